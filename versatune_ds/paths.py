"""Expand `~` and environment variables in a path a user wrote: one rule for recipes and the command line.

A variable that is set is always replaced. One that is not set is refused, because a folder named `$SCRATCH` in the
working folder is never what was meant; only a path that exists exactly as written is taken as written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_VARIABLE = re.compile(r"\$(?:\{(?P<braced>[^{}]*)\}|(?P<plain>[A-Za-z_][A-Za-z0-9_]*))")


def expand_path(text: str, *, environ: Mapping[str, str] = os.environ) -> str:
    """Return a path with a leading `~` or `~user`, and `$NAME` and `${NAME}`, replaced.

    Args:
        text: The path as written; names without `~` and `$`, such as `owner/name` of the Hub, stay as they are.
        environ: Where variables are looked up.

    Raises:
        ValueError: If a variable is not set or there is no such user, and no such path exists as written.
    """
    text = os.fspath(text)
    missing = [name for name in _names(text) if name not in environ]
    if missing and os.path.lexists(text):
        return text
    if missing:
        raise ValueError(f"${missing[0] or '{}'} is not set in the environment; export it, or write the path out")
    expanded = _VARIABLE.sub(lambda match: environ[_name(match)], text)
    if not text.startswith("~"):
        return expanded
    home = os.path.expanduser(expanded)
    if home == expanded and not os.path.lexists(text):
        user = expanded.partition("/")[0].removeprefix("~")
        raise ValueError(f"no user {user!r} on this machine; write the path out, or ./{text} for a file of that name")
    return home


def _names(text: str) -> list[str]:
    """Return the names of the variables in a text, in order."""
    return [_name(match) for match in _VARIABLE.finditer(text)]


def _name(match: re.Match[str]) -> str:
    """Return the name of a variable that was found."""
    return match["plain"] if match["braced"] is None else match["braced"]
