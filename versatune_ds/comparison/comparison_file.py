"""Read a comparison from its YAML file, and check every recipe and run in it before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from versatune_ds.comparison.cells import cells_of, config_of_cell, known_domains
from versatune_ds.comparison.override_texts import texts
from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.config import load_config
from versatune_ds.config.load import parse_section, set_by_dotted_key
from versatune_ds.config.yaml_text import EMPTY, read_value, read_yaml
from versatune_ds.domains import nearest_name
from versatune_ds.mixture.policies.fixed import UNIFORM
from versatune_ds.planning.planners import DEFAULT, planner_named

_ORIGINS = ("folder", "domains", "synthetic")
"""Keys of `data` of which a recipe has exactly one."""


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
    names = known_domains(config)
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
