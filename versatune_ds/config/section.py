"""Define what every config section has in common: immutable, closed to keys it does not know, paths expanded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from versatune_ds.paths import expand_path


class Section(BaseModel):
    """Read one mapping of the user's YAML; frozen, unknown keys refused, field docstrings kept as descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


def _expanded(value: Any) -> Any:
    """Return a path's text with `~` and variables replaced; what is no text is left for pydantic to refuse."""
    return expand_path(value) if isinstance(value, str) else value


ExpandedPath = Annotated[Path, BeforeValidator(_expanded)]
"""A path as a user writes it: `~` and $VARIABLES are expanded, by the same rule for every key."""

ExpandedText = Annotated[str, BeforeValidator(_expanded)]
"""A path, or a name of the Hub, which has neither `~` nor `$`."""
