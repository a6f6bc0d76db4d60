"""Write the table of what a comparison cost: its runs, and detection, references and plans before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from versatune_ds.comparison.cells import Cell
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.comparison.results_page.run_records import RunRecord, reference_records
from versatune_ds.comparison.results_page.table import as_table
from versatune_ds.comparison.stage_times import seconds_by_stage
from versatune_ds.export.model_card import escaped

_HOW_TO_READ = """Runs: means over the runs of a policy; tokens trained on, and seconds of training steps, with other
runs at work beside them. Stages: made once for all runs; seconds of the entire command, loading and measuring
included{known}. The base model's own training, and evaluation, are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What something cost; None for what is not known."""

    count: int
    """Times it was done."""
    num_tokens: float | None
    """Tokens trained on."""
    seconds: float | None


def compute_section(results: Results, records: Mapping[Cell, RunRecord]) -> list[str]:
    """Return the section's paragraphs; none where no run's folder is there."""
    runs = {label: cost_of_runs(_of_label(records, label)) for label in results.plan.runs}
    unit = runs[results.plan.baseline]
    if unit is None:
        return []
    stages = stage_costs(results)
    rows = [_row(f"run of {escaped(label)}", cost, unit=unit) for label, cost in runs.items() if cost is not None]
    rows += [_row(f"stage: {name}", cost, unit=unit) for name, cost in stages.items()]
    if stages:
        rows.append(_row("all stages", total_of(list(stages.values())), unit=unit))
    all_runs = total_of([Cost(count=1, num_tokens=r.num_tokens, seconds=r.seconds) for r in records.values()])
    rows.append(_row("all runs", all_runs, unit=unit))
    known = "" if all(cost.seconds is not None for cost in stages.values()) else " (not recorded for all of them)"
    headings = ["what", "times", "tokens", "seconds", "tokens, % of one run", "seconds, % of one run"]
    return [
        "## Compute: tokens trained on and seconds",
        "",
        f"One run is the mean of `{results.plan.baseline}`.",
        "",
        as_table(headings, rows),
        "",
        _HOW_TO_READ.format(known=known),
        "",
    ]


def _of_label(records: Mapping[Cell, RunRecord], label: str) -> list[RunRecord]:
    return [record for cell, record in records.items() if cell.label == label]


def cost_of_runs(records: Sequence[RunRecord]) -> Cost | None:
    """Return the mean cost of one of some runs, None without any."""
    if not records:
        return None
    num_tokens, seconds = sum(record.num_tokens for record in records), sum(record.seconds for record in records)
    return Cost(count=len(records), num_tokens=num_tokens / len(records), seconds=seconds / len(records))


def stage_costs(results: Results) -> dict[str, Cost]:
    """Return what detection, references and plans cost, those that the comparison has."""
    plan, seconds = results.plan, seconds_by_stage(results.plan.start_folder)
    costs = {}
    if plan.detect:
        costs["detection"] = Cost(count=1, num_tokens=0, seconds=seconds.get("detect"))
    if plan.reference:
        trained = reference_records(results)
        costs["references"] = Cost(
            count=len(trained) or 1,
            num_tokens=sum(record.num_tokens for record in trained) if trained else None,
            seconds=seconds.get("reference", sum(record.seconds for record in trained) if trained else None),
        )
    if plan.plans:
        files = list((plan.start_folder / "plans").glob("*.json"))
        costs["plans"] = Cost(count=len(files) or len(plan.plans), num_tokens=0, seconds=seconds.get("plan"))
    return costs


def total_of(costs: Sequence[Cost]) -> Cost:
    """Return the sum of costs; what one of them does not know, the sum does not."""
    tokens, seconds = ([getattr(cost, key) for cost in costs] for key in ("num_tokens", "seconds"))
    return Cost(
        count=sum(cost.count for cost in costs),
        num_tokens=None if None in tokens else sum(tokens),
        seconds=None if None in seconds else sum(seconds),
    )


def _row(what: str, cost: Cost, *, unit: Cost) -> list[str]:
    """Return a line of the table, with its shares of one run."""
    return [
        what,
        str(cost.count),
        "-" if cost.num_tokens is None else f"{cost.num_tokens:,.0f}",
        "-" if cost.seconds is None else f"{cost.seconds:,.1f}",
        _share(cost.num_tokens, unit.num_tokens),
        _share(cost.seconds, unit.seconds),
    ]


def _share(value: float | None, unit: float | None) -> str:
    return "-" if value is None or not unit else f"{100 * value / unit:,.0f}"
