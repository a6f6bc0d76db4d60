"""The policies: rules that decide the weights, one file a rule (the six fixed baselines share one); see `POLICIES`.

To add one, write `my_rule.py` with a `Policy` value and add it to `POLICIES` below. Your own policy can also stay
outside the package: `mixture.policy: my_module:my_policy` (docs/extend.md). No module outside this folder names a
policy; what the package needs to know of one is a field of `Policy`, and the defaults below are values.

Reading order: policy, signals, versatune, steer.
"""

from versatune_ds.domains import nearest_name
from versatune_ds.mixture.policies.authors_code import AUTHORS_CODE
from versatune_ds.mixture.policies.doremi import DOREMI
from versatune_ds.mixture.policies.expansion import EXPANSION
from versatune_ds.mixture.policies.fixed import CONSTANT, INVERSE, PROPORTIONAL, TARGET_ONLY, TARGET_UNIFORM, UNIFORM
from versatune_ds.mixture.policies.odm import ODM
from versatune_ds.mixture.policies.own import import_policy, is_own
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
        return import_policy(name)
    if name not in POLICIES:
        raise ValueError(f"mixture.policy: unknown policy {name!r}; {nearest_name(name, tuple(POLICIES))}")
    return POLICIES[name]


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
    "policy_named",
]
