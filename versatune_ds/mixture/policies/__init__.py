"""The rules that decide the weights, one file each. `POLICIES` is the only place that lists them.

To add one: write `my_rule.py` with a `Policy` value, and add it to the tuple below. A user's own policy needs neither:
`mixture.policy: my_module:my_policy` (docs/extend.md).
"""

from versatune_ds.mixture.policies.authors_code import AUTHORS_CODE
from versatune_ds.mixture.policies.doremi import DOREMI
from versatune_ds.mixture.policies.expansion import EXPANSION
from versatune_ds.mixture.policies.fixed import CONSTANT, INVERSE, PROPORTIONAL, TARGET_ONLY, TARGET_UNIFORM, UNIFORM
from versatune_ds.mixture.policies.named import check_policy, import_policy, is_own
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
        DOREMI,
        SHEARED,
        ODM,
    )
}

DEFAULT, PAPER_DEFAULT = STEER, VERSATUNE
"""What `mixture.policy` is where the recipe does not set it; the second where `mixture.paper` is true."""


def policy_named(name: str) -> Policy:
    """Return the policy that `mixture.policy` names: one of `POLICIES`, or a user's own as `module:attribute`.

    Raises:
        ValueError: If there is none; the message has the nearest name, or what was wrong with the module.
    """
    if is_own(name):
        return import_policy(name)
    return check_policy(name, POLICIES)


__all__ = [
    "DEFAULT",
    "PAPER_DEFAULT",
    "POLICIES",
    "Policy",
    "PolicySettings",
    "Signals",
    "Start",
    "from_prior",
    "policy_named",
]
