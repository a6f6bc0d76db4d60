"""Find the policy that a recipe names: a built-in one, or a user's own in a module of theirs."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping

from versatune_ds.domains import nearest_name
from versatune_ds.mixture.policies.policy import Policy


def check_policy(name: str, known: Mapping[str, Policy]) -> Policy:
    """Return a built-in policy; raise ValueError with the nearest name where there is none."""
    if name not in known:
        raise ValueError(f"mixture.policy: unknown policy {name!r}; {nearest_name(name, tuple(known))}")
    return known[name]


def is_own(name: str) -> bool:
    """Return whether a name is that of a user's own policy, `module:attribute`."""
    return ":" in name


def check_own_name(name: str) -> None:
    """Raise ValueError unless a name has the form `module:attribute`."""
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        raise ValueError(f"mixture.policy: {name[:60]!r}: expected a name, or my_module:my_policy for your own")


def import_policy(name: str) -> Policy:
    """Return a user's policy, given as `module:attribute`; the working folder is searched too.

    The module is imported only because the recipe names it.

    Raises:
        ValueError: If it cannot be imported, has no such attribute, or the attribute is no `Policy`.
    """
    module_name, _, attribute = name.partition(":")
    _search_working_folder()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises while it is imported
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
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
    """Let imports find modules beside the user's recipe, as `python script.py` would; installed commands do not."""
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)
