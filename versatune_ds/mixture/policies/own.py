"""Import a user's own policy, which a recipe gives as `my_module:my_policy`."""

from __future__ import annotations

import importlib
import os
import re
import sys

from versatune_ds.log import first_line
from versatune_ds.mixture.policies.policy import Policy


def is_own(name: str) -> bool:
    """Return whether a `mixture.policy` is a user's own, `module:attribute`, rather than a built-in one."""
    return ":" in name


def check_own_name(name: str) -> None:
    """Raise ValueError unless a name has the form `module:attribute`."""
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        raise ValueError(f"mixture.policy: {name[:60]!r}: expected a name, or my_module:my_policy for your own")


def import_policy(name: str) -> Policy:
    """Return a user's policy, given as `module:attribute`; the working folder is searched too.

    Raises:
        ValueError: If the module cannot be imported, has no such attribute, or the attribute is no `Policy`.
    """
    module_name, _, attribute = name.partition(":")
    _search_working_folder()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises while it is imported
        reason = first_line(error)
        raise ValueError(
            f"mixture.policy: {name}: cannot import {module_name!r} ({type(error).__name__}: {reason}); "
            "expected module:attribute, the module in the working folder or on PYTHONPATH"
        ) from error
    found = getattr(module, attribute, None)
    if not isinstance(found, Policy):
        policies = [key for key, value in vars(module).items() if isinstance(value, Policy)]
        known = f"it has {', '.join(policies)}" if policies else "it has no Policy"
        raise ValueError(f"mixture.policy: {name}: expected a versatune_ds Policy called {attribute!r}; {known}")
    return found


def _search_working_folder() -> None:
    """Add the working folder to where modules are searched, as `python -m` does; installed commands do not."""
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)
