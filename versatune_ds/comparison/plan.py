"""Read a comparison: one YAML file with a base model, a recipe, and the runs to compare.

A run of a comparison is the shared recipe with a few keys set, as on the command line. Only those keys are compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from versatune_ds.comparison.mixture_plans import MixturePlan, plan_names, purpose_of, with_plan_files
from versatune_ds.comparison.order import DRAWN, OrderEntry
from versatune_ds.comparison.static_mixtures import draw_mixtures, static_label
from versatune_ds.config import RunConfig, load_config
from versatune_ds.config.load import parse_section, set_by_dotted_key
from versatune_ds.config.section import ExpandedPath, ExpandedText, Section
from versatune_ds.config.yaml_text import EMPTY, Word, read_value, read_yaml
from versatune_ds.domains import nearest_name
from versatune_ds.mixture.policies.fixed import CONSTANT, UNIFORM
from versatune_ds.mixture.settings import floor_and_cap
from versatune_ds.planning.planners import DEFAULT, planner_named

TARGET_MARK = "{target}"
"""Replaced by the target domain's name in a run's values."""
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_ORIGINS = ("folder", "domains", "synthetic")
"""Keys of `data` of which a recipe has exactly one."""


class BaseModelPlan(Section):
    """The model that every run starts from: trained here, to know some domains better than others, or given."""

    name: str = Field(default="base", pattern=_NAME)
    """Comparisons with the same name under one `output_dir` share base model, detected prior and references."""
    recipe: ExpandedPath | None = None
    """Recipe of its training, relative to the comparison's file. Give either this or `model`."""
    set: dict[str, Any] = Field(default={})
    """Dotted keys set in it."""
    model: ExpandedText | None = None
    """A pretrained model instead: a folder saved by transformers, relative to the working directory, or a Hub name."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> BaseModelPlan:
        if (self.recipe is None) == (self.model is None):
            raise ValueError("give exactly one of base.recipe, which trains the base model, and base.model")
        if self.model is not None and self.set:
            raise ValueError(
                "base.set: keys of the base model's recipe, but base.model gives a trained one; keys of the runs go "
                "under set"
            )
        return self

    def describe(self) -> str:
        """Return in Markdown what the model is; a folder by its name alone, since pages are read on other machines."""
        if self.recipe is None:
            name = str(self.model)
            return f"`{Path(name).name if Path(name).is_dir() else name}`, pretrained"
        return f"`{self.recipe.name}` with `{json.dumps(self.set, default=str)}`"


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
    """The model every run starts from: trained once, then exported, or a pretrained one."""
    detect: bool = True
    """Detect the base model's mixture and use it as `mixture.prior`; otherwise the recipe's own prior is used."""
    reference: bool = True
    """Fine-tune the base model on each domain alone, once, for `mixture.reference`."""
    plans: dict[Annotated[str, Field(pattern=_NAME)], MixturePlan] = Field(default={})
    """Name to the options of `versatune plan`: each is made once, and {plan:NAME} in a run's values is its file. With
    `for: target` it is made for each of `targets`."""
    runs: dict[str, dict[str, Any]] = Field(min_length=1)
    """Label to the dotted keys that make the run what it is."""
    static: int = Field(default=0, ge=0)
    """Runs on fixed mixtures, drawn at random: the best of them shows how much any mixture could gain."""
    static_concentration: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(1.0, 2.5), min_length=1)
    """Concentrations of the Dirichlet distributions they are drawn from, in turn."""
    static_seeds: int | None = Field(default=None, ge=1)
    """Seeds they are repeated for, the first so many of `seeds`; null for all. With fewer than all, the best of them is
    then trained with the other seeds too, since it was chosen by the luck of the first as well."""
    targets: tuple[str, ...] = ()
    """Domains that each run is repeated for; in its values {target} is replaced by the domain's name."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Every run is repeated with each as `run.seed`."""
    baseline: str
    """Label that the others are tested against, pairwise by seed (and target)."""
    order: tuple[OrderEntry, ...] = ()
    """Which runs come first, such as [{runs: [uniform, steer], seeds: [1, 2]}]; the others follow, seed by seed and in
    each the baseline first. A comparison that is interrupted, or has a time budget, then has the runs that matter."""
    exact: int = Field(default=30, ge=0)
    """Answers of each domain that are written and compared with the test examples' own (0 for none)."""
    choices: tuple[ExpandedPath, ...] = ()
    """Multiple choice files, or folders of them."""

    @field_validator("seeds", "targets")
    @classmethod
    def _are_different(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"expected each once, got {list(values)}")
        return values

    @model_validator(mode="after")
    def _baseline_is_run(self) -> ComparisonPlan:
        if self.baseline not in self.runs:
            raise ValueError(f"baseline: no run {self.baseline!r}; {nearest_name(self.baseline, list(self.runs))}")
        return self

    @model_validator(mode="after")
    def _plans_are_known(self) -> ComparisonPlan:
        """Check that every {plan:NAME} is of a plan, and that a plan can be made."""
        for name in plan_names([self.set, self.base.set]):
            raise ValueError(f"set: {{plan:{name}}}: only a run can name a plan; write it under runs")
        for label, values in self.runs.items():
            for name in plan_names(values):
                if name not in self.plans:
                    known = nearest_name(name, list(self.plans)) if self.plans else "the comparison has no plans"
                    raise ValueError(f"runs.{label}: {{plan:{name}}}: no plan {name!r}; {known}")
        if self.plans and not self.reference:
            raise ValueError("plans: expected reference: true, since a plan is made from the transfer.json it writes")
        for name, keys in self.plans.items():
            if purpose_of(keys) == "target" and not self.targets:
                raise ValueError(f"plans.{name}.for: target: expected targets in the comparison, one plan for each")
        return self

    @model_validator(mode="after")
    def _static_runs_fit(self) -> ComparisonPlan:
        if self.static and self.targets:
            raise ValueError(
                "static: fixed mixtures are judged by mean loss and worst domain, a comparison with targets by others; "
                "leave one of the two out"
            )
        taken = [label for label in map(static_label, range(1, self.static + 1)) if label in self.runs]
        if taken:
            raise ValueError(
                f"runs.{taken[0]}: the name of a fixed mixture that static: {self.static} draws; rename it"
            )
        return self

    @model_validator(mode="after")
    def _order_is_known(self) -> ComparisonPlan:
        labels = [*self.runs, *([DRAWN] if self.static else [])]
        for entry in self.order:
            entry.check(labels=labels, seeds=self.seeds, targets=self.targets)
        return self

    @model_validator(mode="after")
    def _has_a_folder_of_its_own(self) -> ComparisonPlan:
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

    def plan_file(self, name: str, target: str | None) -> Path:
        """Return the file of a plan; one with `for: target` has a file a target."""
        ending = f"-{target}" if purpose_of(self.plans[name]) == "target" else ""
        return self.start_folder / "plans" / f"{name}{ending}.json"


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
    names = _domain_names(config)
    if names is None:
        raise ValueError(f"static: the domains to draw mixtures of are not known: {config.data.folder} has no train/")
    floor, cap = floor_and_cap(config.mixture, num_domains=len(names))
    return draw_mixtures(names, num=plan.static, concentrations=plan.static_concentration, floor=floor, cap=cap)


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
    base = {}
    if plan.base.recipe is not None:
        base = {"recipe": here / plan.base.recipe, "set": {**data, **plan.base.set}}
    plan = plan.model_copy(
        update={
            "recipe": here / plan.recipe,  # an absolute path stays as it is
            "set": {**data, **plan.set},
            "base": plan.base.model_copy(update=base),
        }
    )
    if plan.base.recipe is not None:
        load_config(plan.base.recipe, texts(plan.base.set))
    _check_plans(plan)
    policies = {config_of_cell(plan, cell).mixture.policy for cell in cells_of(plan)}
    if plan.static and UNIFORM.name not in policies:
        raise ValueError(f"static: expected a run with mixture.policy: {UNIFORM.name}, from which gains are measured")
    return plan


def _check_plans(plan: ComparisonPlan) -> None:
    """Check what `versatune plan` would refuse after the base model was trained."""
    if not plan.plans:
        return
    config = load_config(plan.recipe, texts(plan.set))
    names = _domain_names(config)
    for name, keys in plan.plans.items():
        try:
            planner_named(keys.planner or DEFAULT)
        except ValueError as error:
            raise ValueError(f"plans.{name}.planner: {str(error).partition(': ')[2]}") from None
        for domain in keys.bound:
            if names is not None and domain not in names:
                raise ValueError(f"plans.{name}.bound: no domain {domain!r}; {nearest_name(domain, names)}")
    if config.mixture.weight_unit == "examples":
        raise ValueError("plans: a plan's weights are shares of tokens; set mixture.weight_unit: tokens under set")


def _domain_names(config: RunConfig) -> tuple[str, ...] | None:
    """Return the domains of a recipe's data, None where its folder is missing."""
    from versatune_ds.data.sources.domain_files import domain_names  # it imports datasets; a file's keys need none

    return domain_names(config.data)


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
