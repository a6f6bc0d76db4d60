"""Define the base class of all config sections: frozen, unknown keys refused; and the types that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from versatune_ds.paths import expand_path


class Section(BaseModel):
    """Base class of a section of the recipe; the docstrings of its fields are what `versatune keys` prints."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


def _expanded(value: Any) -> Any:
    """Expand `~` and variables in a path; leave anything but text for pydantic to refuse."""
    return expand_path(value) if isinstance(value, str) else value


ExpandedPath = Annotated[Path, BeforeValidator(_expanded)]
"""A path in which `~` and $VARIABLES are expanded."""

ExpandedText = Annotated[str, BeforeValidator(_expanded)]
"""A path or a Hub name; Hub names contain neither `~` nor `$`."""

TextList = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
"""Texts; one may be written without a list around it."""
