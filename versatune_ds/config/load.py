"""Load a recipe: a YAML file, then `key=value` overrides, then the typed models; every mistake becomes one line.

`yaml_text` reads the file, `section` reads words and numbers as their keys expect them, pydantic finds the
mistakes, and `error_messages` describes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from versatune_ds.config.error_messages import lines_of_errors
from versatune_ds.config.recipe import RunConfig
from versatune_ds.config.section import typed_values
from versatune_ds.config.yaml_text import EMPTY, read_value, read_yaml
from versatune_ds.mixture.policies import Policy, name_of
from versatune_ds.own_code import is_own, name_of_value, place_of

SectionType = TypeVar("SectionType", bound=BaseModel)

Recipe = str | Path | Mapping[str, Any] | RunConfig
"""A recipe: a YAML file, its content as a mapping, or a config that was read before."""


def set_by_dotted_key(values: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in a nested mapping; the value is read as YAML, so numbers and lists come out typed.

    Raises:
        ValueError: If the text has no `=`, or a part of the key is not a mapping.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override!r}: expected key=value, for example train.learning_rate=1e-4")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) in (None, EMPTY):
            values[parent] = {}
        values = values[parent]
        if not isinstance(values, dict):
            raise ValueError(f"{override!r}: {parent!r} is a value, not a section; give the key of a section")
    try:
        values[last] = read_value(text)
    except ValueError as error:
        raise ValueError(f"{override!r}: {error}") from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as {dotted key: value}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def load_config(recipe: Recipe, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the run's config from a recipe and overrides.

    Args:
        recipe: YAML file, nested mapping, or config.
        overrides: `key=value` texts with dotted keys, applied in order.

    Raises:
        ValueError: One line per mistake (joined by newlines), each beginning with the dotted key.
    """
    if isinstance(overrides, str):
        raise ValueError(f"{overrides!r}: expected a list of key=value texts; write [{overrides!r}]")
    if isinstance(recipe, RunConfig) and not overrides:
        return recipe
    values = recipe_values(recipe)
    for override in overrides:
        set_by_dotted_key(values, override)
    _replace_length(values, {override.partition("=")[0] for override in overrides})
    config = parse_config(values)
    if not isinstance(recipe, RunConfig):
        return config
    # What was given as a value stays until another is named.
    former = recipe.mixture
    config = config.with_rule(former.given_rule if former.policy == config.mixture.policy else None)
    return config.with_signal(former.given_signal if former.signal == config.mixture.signal else None)


def load_config_with_policy(
    recipe: Recipe, overrides: Sequence[str], policy: Policy | None, signal: Callable[..., Any] | None = None
) -> RunConfig:
    """Return the config as `load_config` does, with a policy and a loss signal given as values.

    They take the place of `mixture.policy` and `mixture.signal`.

    Raises:
        ValueError: As `load_config` does, and for a policy that is no `Policy` or a signal that is no function.
    """
    if signal is not None:
        name = name_of_signal(signal)
        config = load_config_with_policy(recipe, [*overrides, f"mixture.signal={name}"], policy)
        return config.with_signal(signal)
    if policy is None:
        return load_config(recipe, overrides)
    if not isinstance(policy, Policy):
        raise ValueError(f"policy: expected a versatune_ds.Policy, got {type(policy).__name__}")
    name = name_of(policy)
    config = load_config(recipe, [*overrides, f"mixture.policy={name}"])
    return config.with_rule(policy) if is_own(name) else config


def _replace_length(values: dict[str, Any], overridden: set[str]) -> None:
    """Let an overridden `train.steps` or `train.epochs` take the place of the other one, and of what a run wrote."""
    train, given = values.get("train"), overridden & {"train.steps", "train.epochs"}
    if not given or not isinstance(train, dict):
        return
    for key, other in (("steps", "epochs"), ("epochs", "steps")):
        if given == {f"train.{key}"} and train.get(key) is not None:
            train.pop(other, None)
    if "train.steps_from" not in overridden:
        train.pop("steps_from", None)


def name_of_signal(function: Callable[..., Any]) -> str:
    """Return the `mixture.signal` of a function given as a value.

    Raises:
        ValueError: If it is no function, or cannot be called with one argument.
    """
    if not callable(function) or isinstance(function, type):
        given = function.__name__ if isinstance(function, type) else type(function).__name__
        raise ValueError(f"signal: expected a function of one SignalContext, got {given}")
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise ValueError(
            f"signal: {place_of(function)}: expected a function of one argument, the SignalContext ({error})"
        ) from None
    except ValueError:
        pass  # a compiled function has no signature to look at
    fallback = getattr(function, "__name__", type(function).__name__)
    return name_of_value(function, module=getattr(function, "__module__", None), fallback=fallback)


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as a nested mapping of its own: of a config, the keys that were given."""
    if isinstance(recipe, RunConfig):
        return recipe.model_dump(mode="json", exclude_unset=True)
    return _copied(recipe) if isinstance(recipe, Mapping) else read_yaml(Path(recipe))


def _copied(values: Any) -> Any:
    """Return nested mappings as dicts, which overrides may change."""
    return {key: _copied(value) for key, value in values.items()} if isinstance(values, Mapping) else values


def parse_config(values: dict[str, Any]) -> RunConfig:
    """Return the typed config of a nested mapping; raise ValueError with one line per mistake."""
    return parse_section(values, RunConfig)


def parse_section(values: dict[str, Any], model: type[SectionType]) -> SectionType:
    """Return a nested mapping as one of our typed sections; raise ValueError with one line per mistake."""
    try:
        return model.model_validate(typed_values(values, model))
    except ValidationError as error:
        lines = lines_of_errors(error.errors(include_url=False), model)
    raise ValueError("\n".join(lines))
