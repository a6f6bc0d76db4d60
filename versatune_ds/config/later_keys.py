"""Compare configs that two versions wrote: a key that came later counts as its default in the earlier one.

Such a key is added with a default that leaves results as they were, or the place that reads the files says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter

from versatune_ds.config.recipe import RunConfig

_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)


def with_later_keys(values: Mapping[str, Any], *, section: type[BaseModel] = RunConfig) -> dict[str, Any]:
    """Return a config's values as JSON has them, with the keys that its sections lack at their defaults.

    Sections that are not there at all stay out, and so do keys without a default.

    Args:
        values: As `model_dump(mode="json")` returned them, perhaps of an earlier version, perhaps some sections alone.
        section: What the values are of.
    """
    filled = dict(values)
    for name, field in section.model_fields.items():
        inner = _section_of(field.annotation)
        if inner is not None and isinstance(filled.get(name), Mapping):
            filled[name] = with_later_keys(filled[name], section=inner)
        elif section is not RunConfig and name not in filled and not field.is_required():
            default = field.get_default(call_default_factory=True, validated_data={})
            filled[name] = _ANYTHING.dump_python(default, mode="json")
    return filled


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a key is, also one that may be left out; None for a plain key."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    sections = [kind for kind in kinds if issubclass(kind, BaseModel)]
    return sections[0] if len(sections) == 1 else None
