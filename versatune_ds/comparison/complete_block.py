"""Find what an incomplete comparison can say: policies, seeds and targets for which every run is there.

Policies are compared pair by pair, on the same seeds. So the page has the largest block of policies x seeds (x targets)
without a gap, the baseline among them, and lists what is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product

from versatune_ds.comparison.cells import Cell
from versatune_ds.comparison.plan import ComparisonPlan

_MAX_NAMES = 12


def complete_block(plan: ComparisonPlan, done: Collection[Cell]) -> tuple[ComparisonPlan, list[Cell]] | None:
    """Return the comparison cut down to its largest complete block, and the runs in it; None without the baseline.

    Of two blocks of the same size, the one with more policies; blocks of the baseline alone come last.

    Worked example: uniform and a are done with seeds 1 and 2, b with seed 1: {uniform, a} x {1, 2} has four runs, all
    three policies with seed 1 only three.
    """
    run = {(cell.label, cell.target, cell.seed) for cell in done if cell.mixture is None}
    is_done = {(label, target, seed) for label, target, seed in run if (plan.baseline, target, seed) in run}
    best, best_size = None, (False, 0, 0)
    for num_seeds, num_targets in product(range(1, len(plan.seeds) + 1), range(1, max(1, len(plan.targets)) + 1)):
        targets = _most_done([(t, sum(t == x for _, x, _ in is_done)) for t in plan.targets or (None,)], num_targets)
        counts = [(s, sum(s == x for _, t, x in is_done if t in targets)) for s in plan.seeds]
        seeds = _most_done(counts, num_seeds)
        labels = [name for name in plan.runs if all((name, t, s) in is_done for t, s in product(targets, seeds))]
        size = (len(labels) > 1, len(labels) * len(seeds) * len(targets), len(labels))
        if plan.baseline in labels and size > best_size:
            best, best_size = (labels, targets, seeds), size
    return None if best is None else _cut(plan, done, labels=best[0], targets=best[1], seeds=best[2])


def _most_done(counts: Sequence[tuple[object, int]], num: int) -> list[object]:
    """Return the `num` of which most runs are done, in their own order; of equal ones the first."""
    ranked = sorted(range(len(counts)), key=lambda i: -counts[i][1])[:num]
    return [counts[i][0] for i in sorted(ranked)]


def _cut(
    plan: ComparisonPlan,
    done: Collection[Cell],
    *,
    labels: Sequence[str],
    targets: Sequence[object],
    seeds: Sequence[object],
) -> tuple[ComparisonPlan, list[Cell]]:
    """Return the comparison of some of its policies, targets and seeds, with the drawn mixtures that are complete."""
    drawn = [cell for cell in done if cell.mixture is not None and cell.seed in seeds]
    shared = [seed for seed in plan.seeds[: plan.static_seeds] if seed in seeds]
    names = [
        name
        for name in dict.fromkeys(cell.label for cell in drawn)
        if all((name, seed) in {(cell.label, cell.seed) for cell in drawn} for seed in shared)
    ]
    kept = {
        "runs": {name: plan.runs[name] for name in labels},
        "targets": tuple(target for target in targets if target is not None),
        "seeds": tuple(seeds),
        "static": len(names) if shared else 0,
        "static_seeds": None if plan.static_seeds is None else len(shared),
    }
    cells = [
        cell
        for cell in done
        if cell.seed in seeds
        and (
            (cell.label in labels and cell.target in targets)
            if cell.mixture is None
            else (shared and cell.label in names)
        )
    ]
    return plan.model_copy(update=kept), cells


def missing_sentence(cells: Sequence[Cell], *, done: Collection[Cell], shown: Collection[Cell]) -> str | None:
    """Return which runs are missing, and which are done but stand alone; None for a complete comparison."""
    missing = [cell.run_name for cell in cells if cell not in done]
    if not missing:
        return None
    text = f"**Incomplete**: {len(missing)} of {len(cells)} runs have no result yet: {_listed(missing)}. "
    text += "The tables have the policies and seeds of which every pair is there."
    alone = [cell.run_name for cell in done if cell not in shown]
    if alone:
        text += f" {len(alone)} more are done and wait for others of their seed or policy: {_listed(alone)}."
    return text


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(f"`{name}`" for name in names[:_MAX_NAMES]) + more
