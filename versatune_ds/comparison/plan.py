"""Define the file of a comparison: a base model, a recipe, and the runs to compare.

`comparison_file.py` reads it; `cells.py` lists its runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from versatune_ds.comparison.mixture_plans import MixturePlan, plan_names, purpose_of
from versatune_ds.comparison.order import DRAWN, OrderEntry
from versatune_ds.comparison.static_mixtures import static_label
from versatune_ds.config.section import ExpandedPath, ExpandedText, Section
from versatune_ds.domains import nearest_name

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


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
            found = "none" if self.model is None else "both; leave one out, as in base.recipe=null"
            raise ValueError(
                f"give exactly one of base.recipe, which trains the base model, and base.model; found {found}"
            )
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
