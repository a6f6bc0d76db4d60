"""Read a comparison: one YAML file with a base model, a recipe, and the runs to compare.

A run of a comparison is the shared recipe with a few keys set, as on the command line. Only those keys are compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from versatune_ds.config import RunConfig, load_config
from versatune_ds.config.load import parse_section, set_by_dotted_key
from versatune_ds.config.section import ExpandedPath, Section
from versatune_ds.config.yaml_text import EMPTY, Word, read_value, read_yaml
from versatune_ds.domains import nearest_name

TARGET_MARK = "{target}"
"""Replaced by the target domain's name in a run's values."""
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_ORIGINS = ("folder", "domains", "synthetic")
"""Keys of `data` of which a recipe has exactly one."""


class BaseModelPlan(Section):
    """How the base model is made, so that it knows some domains better than others."""

    name: str = Field(default="base", pattern=_NAME)
    """Comparisons with the same name under one `output_dir` share base model, detected prior and references."""
    recipe: ExpandedPath
    """Recipe of its training, relative to the comparison's file."""
    set: dict[str, Any] = Field(default={})
    """Dotted keys set in it."""


class ComparisonPlan(Section):
    """A comparison, as its file describes it."""

    name: str = Field(pattern=_NAME)
    """Folder of the comparison under `output_dir`."""
    output_dir: ExpandedPath = Path("runs/compare")
    recipe: ExpandedPath
    """Recipe that all runs share, relative to the comparison's file."""
    set: dict[str, Any] = Field(default={})
    """Dotted keys set in it for every run."""
    data: dict[str, Any] = Field(default={})
    """Keys of `data` for the base model and every run alike, such as {folder: my_data}; one that sets where the data
    come from replaces what the recipes set."""
    base: BaseModelPlan
    """The model every run starts from: trained once, then exported."""
    detect: bool = True
    """Detect the base model's mixture and use it as `mixture.prior`; otherwise the recipe's own prior is used."""
    reference: bool = True
    """Fine-tune the base model on each domain alone, once, for `mixture.reference`."""
    runs: dict[str, dict[str, Any]] = Field(min_length=1)
    """Label to the dotted keys that make the run what it is."""
    targets: tuple[str, ...] = ()
    """Domains that each run is repeated for; in its values {target} is replaced by the domain's name."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Every run is repeated with each as `run.seed`."""
    baseline: str
    """Label that the others are tested against, pairwise by seed (and target)."""
    exact: int = Field(default=30, ge=0)
    """Answers of each domain that are written and compared with the test examples' own (0 for none)."""
    choices: tuple[ExpandedPath, ...] = ()
    """Multiple choice files, or folders of them."""

    @field_validator("seeds", "targets")
    @classmethod
    def _are_different(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Check that nothing would run twice."""
        if len(set(values)) != len(values):
            raise ValueError(f"expected each once, got {list(values)}")
        return values

    @model_validator(mode="after")
    def _baseline_is_run(self) -> ComparisonPlan:
        """Check that the baseline is one of the runs."""
        if self.baseline not in self.runs:
            raise ValueError(f"baseline: no run {self.baseline!r}; {nearest_name(self.baseline, list(self.runs))}")
        return self

    @model_validator(mode="after")
    def _has_a_folder_of_its_own(self) -> ComparisonPlan:
        """Check that the comparison's folder is not that of its starting point."""
        if self.folder == self.start_folder:
            raise ValueError(f"name: {self.name!r} is the folder of the starting point; give the comparison another")
        return self

    @property
    def folder(self) -> Path:
        """Return the folder of the comparison."""
        return self.output_dir / self.name

    @property
    def start_folder(self) -> Path:
        """Return the folder of base model, prior and references."""
        return self.output_dir / f"base-{self.base.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run of a comparison."""

    label: str
    target: str | None
    seed: int

    @property
    def run_name(self) -> str:
        """Return the run's folder name."""
        return "-".join([self.label, *([self.target] if self.target else []), f"seed{self.seed}"])


def cells_of(plan: ComparisonPlan) -> Iterator[Cell]:
    """Yield every run; seeds change slowest, so that an interrupted comparison has complete seeds."""
    for seed in plan.seeds:
        for target in plan.targets or (None,):
            for label in plan.runs:
                yield Cell(label=label, target=target, seed=seed)


def read_plan(path: Path, overrides: Sequence[str]) -> ComparisonPlan:
    """Return a comparison, with every recipe in it read and every run's keys checked before anything is trained.

    Args:
        path: YAML file.
        overrides: `key=value` texts over the comparison's own keys, such as `seeds=[1,2]`.

    Raises:
        ValueError: One line for each mistake.
    """
    values = read_yaml(path)
    for override in overrides:
        _set(values, override)
    plan = parse_section(values, ComparisonPlan)
    here, data = path.parent, _data_keys(plan.data)
    base = {"recipe": _beside(here, plan.base.recipe), "set": {**data, **plan.base.set}}
    plan = plan.model_copy(
        update={
            "recipe": _beside(here, plan.recipe),
            "set": {**data, **plan.set},
            "base": plan.base.model_copy(update=base),
        }
    )
    load_config(plan.base.recipe, texts(plan.base.set))
    for cell in cells_of(plan):
        config_of_cell(plan, cell)
    return plan


def _set(values: dict[str, Any], override: str) -> None:
    """Set a key of the comparison; after `set.` and `base.set.` comes a recipe's own dotted key, which is not split."""
    for prefix in ("set.", "base.set."):
        if override.startswith(prefix):
            key, _, text = override.removeprefix(prefix).partition("=")
            section = values.get("base") if prefix.startswith("base") else values
            if isinstance(section, dict):
                section["set"] = {**(section.get("set") or {}), key: read_value(text)}
            return
    set_by_dotted_key(values, override)


def _data_keys(data: dict[str, Any]) -> dict[str, Any]:
    """Return the dotted keys of `data`; one that sets where the data come from empties the others that do."""
    others = dict.fromkeys(_ORIGINS) if any(data.get(key) not in (None, EMPTY) for key in _ORIGINS) else {}
    return {f"data.{key}": value for key, value in {**others, **data}.items()}


def _beside(folder: Path, path: Path) -> Path:
    """Return a path relative to a folder, or as it is where it is absolute."""
    return path if path.is_absolute() else folder / path


def config_of_cell(plan: ComparisonPlan, cell: Cell, *, start: Sequence[str] = ()) -> RunConfig:
    """Return the config of one run; raise ValueError with the run whose keys are wrong."""
    try:
        return load_config(plan.recipe, [*start, *overrides_of(plan, cell)])
    except ValueError as error:
        lines = str(error).splitlines()
        raise ValueError("\n".join(f"runs.{cell.label}: {line}" for line in lines)) from None


def overrides_of(plan: ComparisonPlan, cell: Cell) -> list[str]:
    """Return the `key=value` texts that make one run of the shared recipe."""
    own = {key: _for_target(value, cell.target) for key, value in plan.runs[cell.label].items()}
    place = {"run.name": cell.run_name, "run.output_dir": str(plan.folder / "runs"), "run.seed": cell.seed}
    return texts({**plan.set, **place, **own})


def _for_target(value: Any, target: str | None) -> Any:
    """Return a value with the target's name put in."""
    if isinstance(value, str) and not isinstance(value, Word) and target is not None:
        return value.replace(TARGET_MARK, target)
    if isinstance(value, dict):
        return {_for_target(key, target): _for_target(item, target) for key, item in value.items()}
    return value


def texts(values: dict[str, Any]) -> list[str]:
    """Return dotted keys and values as the command line takes them."""
    return [f"{key}={_as_yaml(value)}" for key, value in values.items()]


def _as_yaml(value: Any) -> str:
    """Return a value as the YAML of one line; words such as off, which only a key's type tells from text, unquoted."""
    return re.sub(r'"\\u0000(\w*)"', r"\1", json.dumps(_marked(value), default=str))


def _marked(value: Any) -> Any:
    """Return a value in which a zero character marks what must not be quoted."""
    if isinstance(value, dict):
        return {key: _marked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item) for item in value]
    if isinstance(value, Word) or value is EMPTY:
        return "\0" + (value if isinstance(value, Word) else "")
    return value
