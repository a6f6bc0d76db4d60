"""The policies: rules that decide the weights, one file a rule or family of rules; see `POLICIES`.

To add one, write `my_rule.py` with a `Policy` value and add it to `POLICIES` below. Your own policy can also stay
outside the package: `mixture.policy: my_module:my_policy` (docs/extend.md). No module outside this folder names a
policy; what the package needs to know of one is a field of `Policy`, and the defaults below are values.

Reading order: policy, signals, versatune, steer.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from types import ModuleType

from versatune_ds.domains import nearest_name
from versatune_ds.log import first_line
from versatune_ds.mixture.policies.authors_code import AUTHORS_CODE, AUTHORS_CODE_EXCESS, AUTHORS_CODE_RELATIVE
from versatune_ds.mixture.policies.doremi import DOREMI
from versatune_ds.mixture.policies.expansion import EXPANSION
from versatune_ds.mixture.policies.fixed import CONSTANT, INVERSE, PROPORTIONAL, TARGET_ONLY, TARGET_UNIFORM, UNIFORM
from versatune_ds.mixture.policies.odm import ODM
from versatune_ds.mixture.policies.policy import Policy, PolicySettings, Start, from_prior
from versatune_ds.mixture.policies.schedule import SCHEDULE
from versatune_ds.mixture.policies.sheared import SHEARED
from versatune_ds.mixture.policies.signals import Signals
from versatune_ds.mixture.policies.steer import STEER
from versatune_ds.mixture.policies.versatune import VERSATUNE

POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        VERSATUNE,
        EXPANSION,
        STEER,
        UNIFORM,
        CONSTANT,
        INVERSE,
        PROPORTIONAL,
        TARGET_ONLY,
        TARGET_UNIFORM,
        SCHEDULE,
        AUTHORS_CODE,
        AUTHORS_CODE_EXCESS,
        AUTHORS_CODE_RELATIVE,
        DOREMI,
        SHEARED,
        ODM,
    )
}

DEFAULT, PAPER_DEFAULT = STEER, VERSATUNE
"""`mixture.policy` where the recipe does not set it; the second where `mixture.paper` is true."""
KEEPS_PRIOR = CONSTANT
"""The policy to suggest where nothing can move the weights."""
ONE_DOMAIN = UNIFORM
"""The policy of a run on one domain alone, which has no mixture."""
MAIN_MODULE = "__main__"
"""The module of a script or a notebook, which only its own process has."""


def policy_named(name: str) -> Policy:
    """Return the policy of a `mixture.policy`: one of `POLICIES`, or a user's own as `module:attribute`.

    Raises:
        ValueError: If there is none; the message has the nearest name, or what is wrong with the module.
    """
    if is_own(name):
        return _import_policy(name)
    if name not in POLICIES:
        raise ValueError(f"mixture.policy: unknown policy {name!r}; {nearest_name(name, tuple(POLICIES))}")
    return POLICIES[name]


def is_own(name: str) -> bool:
    """Return whether a `mixture.policy` is a user's own, `module:attribute`, rather than a built-in one."""
    return ":" in name


def check_own_name(name: str) -> None:
    """Raise ValueError unless a name has the form `module:attribute`."""
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        raise ValueError(f"mixture.policy: {name[:60]!r}: expected a name, or my_module:my_policy for your own")


def name_of(policy: Policy) -> str:
    """Return the `mixture.policy` of a policy given as a value: a built-in name, else `module:attribute`.

    One that no module has (made in a function or, as `__main__`, in a script or a notebook) is recorded as
    `__main__:NAME`, which no other process can import.
    """
    if POLICIES.get(policy.name) is policy:
        return policy.name
    its_own = sys.modules.get(getattr(policy.update, "__module__", ""))
    modules = [module for module in (its_own, *sys.modules.values()) if isinstance(module, ModuleType)]
    for module in sorted(modules, key=lambda module: module.__name__ == MAIN_MODULE):  # __main__ last, else as it was
        for attribute, value in list(vars(module).items()):
            if value is policy:
                return f"{module.__name__}:{attribute}"
    attribute = re.sub(r"^(?=\d)|\W", "_", policy.name)
    return f"{MAIN_MODULE}:{attribute}"


def is_importable(name: str) -> bool:
    """Return whether another process can find a policy by this `mixture.policy`."""
    return not name.startswith(f"{MAIN_MODULE}:")


def _import_policy(name: str) -> Policy:
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
    if not isinstance(found, Policy) and not is_importable(name):
        raise ValueError(
            f"mixture.policy: {name}: it was given as a value in a Python session; put it into a file, and set "
            f"mixture.policy=my_module:{attribute}"
        )
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


__all__ = [
    "DEFAULT",
    "KEEPS_PRIOR",
    "MAIN_MODULE",
    "ONE_DOMAIN",
    "PAPER_DEFAULT",
    "POLICIES",
    "Policy",
    "PolicySettings",
    "Signals",
    "Start",
    "check_own_name",
    "from_prior",
    "is_importable",
    "is_own",
    "name_of",
    "policy_named",
]
