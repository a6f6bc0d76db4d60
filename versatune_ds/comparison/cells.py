"""List the runs of a comparison, and return the keys and the config of each.

A run is the shared recipe with a few keys set, as on the command line. Only those keys are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from versatune_ds.comparison.mixture_plans import plan_names, with_plan_files
from versatune_ds.comparison.override_texts import texts
from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.comparison.static_mixtures import draw_mixtures
from versatune_ds.config import RunConfig, load_config
from versatune_ds.config.yaml_text import Word
from versatune_ds.mixture.policies.fixed import CONSTANT
from versatune_ds.mixture.settings import floor_and_cap

TARGET_MARK = "{target}"
"""Replaced by the target domain's name in a run's values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of a comparison."""

    label: str
    target: str | None
    seed: int
    mixture: tuple[tuple[str, float], ...] | None = None
    """Weights of a drawn fixed mixture by domain; None for a run of the comparison's file."""

    @property
    def run_name(self) -> str:
        """Return the run's folder name."""
        return "-".join([self.label, *([self.target] if self.target else []), f"seed{self.seed}"])


def cells_of(plan: ComparisonPlan) -> Iterator[Cell]:
    """Yield every run, the baseline first and seeds slowest, so that an interrupted comparison has complete seeds."""
    mixtures = _static_mixtures(plan)
    labels = [plan.baseline, *(label for label in plan.runs if label != plan.baseline)]
    for number, seed in enumerate(plan.seeds):
        for target in plan.targets or (None,):
            for label in labels:
                yield Cell(label=label, target=target, seed=seed)
        if plan.static_seeds is None or number < plan.static_seeds:
            for label, weights in mixtures.items():
                yield Cell(label=label, target=None, seed=seed, mixture=tuple(weights.items()))


def _static_mixtures(plan: ComparisonPlan) -> dict[str, dict[str, float]]:
    """Return label to weights of the fixed mixtures, within the same floor and cap as a plan."""
    if not plan.static:
        return {}
    config = load_config(plan.recipe, texts(plan.set))
    names = known_domains(config)
    if names is None:
        raise ValueError(f"static: the domains to draw mixtures of are not known: {config.data.folder} has no train/")
    floor, cap = floor_and_cap(config.mixture, num_domains=len(names))
    return draw_mixtures(names, num=plan.static, concentrations=plan.static_concentration, floor=floor, cap=cap)


def known_domains(config: RunConfig) -> tuple[str, ...] | None:
    """Return the domains of a recipe's data, None where its folder is missing."""
    from versatune_ds.data.sources.domain_files import domain_names  # it imports datasets; a file's keys need none

    return domain_names(config.data, cache_dir=config.cache_dir)


def config_of_cell(plan: ComparisonPlan, cell: Cell, *, start: Sequence[str] = ()) -> RunConfig:
    """Return the config of one run; raise ValueError with the run whose keys are wrong."""
    try:
        return load_config(plan.recipe, [*start, *overrides_of(plan, cell)])
    except ValueError as error:
        lines = str(error).splitlines()
        raise ValueError("\n".join(f"runs.{cell.label}: {line}" for line in lines)) from None


def overrides_of(plan: ComparisonPlan, cell: Cell) -> list[str]:
    """Return the `key=value` texts that make one run of the shared recipe."""
    own = {
        key: with_plan_files(_for_target(value, cell.target), lambda name: plan.plan_file(name, cell.target))
        for key, value in _own_values(plan, cell).items()
    }
    place = {"run.name": cell.run_name, "run.output_dir": str(plan.folder / "runs"), "run.seed": cell.seed}
    return texts({**plan.set, **place, **own})


def _own_values(plan: ComparisonPlan, cell: Cell) -> dict[str, Any]:
    """Return the dotted keys that make a run what it is."""
    if cell.mixture is None:
        return plan.runs[cell.label]
    fixed = {"mixture.policy": CONSTANT.name, "mixture.prior_uniform_share": 0.0}
    return {**fixed, "mixture.prior": dict(cell.mixture)}


def plans_of_cell(plan: ComparisonPlan, cell: Cell) -> list[Path]:
    """Return the files of the plans that a run's values name, each once."""
    names = dict.fromkeys(plan_names(_own_values(plan, cell)))
    return [plan.plan_file(name, cell.target) for name in names]


def _for_target(value: Any, target: str | None) -> Any:
    """Return a value with the target's name put in."""
    if isinstance(value, str) and not isinstance(value, Word) and target is not None:
        return value.replace(TARGET_MARK, target)
    if isinstance(value, dict):
        return {_for_target(key, target): _for_target(item, target) for key, item in value.items()}
    return value
