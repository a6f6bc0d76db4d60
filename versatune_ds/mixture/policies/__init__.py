"""The policies: rules that decide the weights, one file a rule or family of rules; see `POLICIES`.

To add one, write `my_rule.py` with a `Policy` value and add it to `POLICIES` below. Your own policy can also stay
outside the package: `mixture.policy: my_module:my_policy` (docs/extend.md). No module outside this folder names a
policy; what the package needs to know of one is a field of `Policy`, and the defaults below are values.

Reading order: policy, signals, versatune, steer.
"""

from __future__ import annotations

from versatune_ds.domains import nearest_name
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
from versatune_ds.own_code import import_module_of, is_importable, is_own, name_of_value, names_in

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


def name_of(policy: Policy) -> str:
    """Return the `mixture.policy` of a policy given as a value: a built-in name, else `module:attribute`.

    One that no module has is recorded as `__main__:NAME`, which no other process can import.
    """
    if POLICIES.get(policy.name) is policy:
        return policy.name
    return name_of_value(policy, module=getattr(policy.update, "__module__", None), fallback=policy.name)


def _import_policy(name: str) -> Policy:
    """Return a user's policy, given as `module:attribute`; the working folder is searched too.

    Raises:
        ValueError: If the module cannot be imported, has no such attribute, or the attribute is no `Policy`.
    """
    module, attribute = import_module_of(name, key="mixture.policy")
    found = getattr(module, attribute, None)
    if not isinstance(found, Policy) and not is_importable(name):
        raise ValueError(
            f"mixture.policy: {name}: it was given as a value in a Python session; put it into a file, and set "
            f"mixture.policy=my_module:{attribute}"
        )
    if not isinstance(found, Policy):
        policies = names_in(module, are=Policy)
        known = f"it has {', '.join(policies)}" if policies else "it has no Policy"
        raise ValueError(f"mixture.policy: {name}: expected a versatune_ds Policy called {attribute!r}; {known}")
    return found


__all__ = [
    "DEFAULT",
    "KEEPS_PRIOR",
    "ONE_DOMAIN",
    "PAPER_DEFAULT",
    "POLICIES",
    "Policy",
    "PolicySettings",
    "Signals",
    "Start",
    "from_prior",
    "name_of",
    "policy_named",
]
