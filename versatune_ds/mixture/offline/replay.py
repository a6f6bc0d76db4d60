"""Replay a run's recorded measurements, with its own settings or with others.

With its own settings a replay must give the run's own decisions, digest for digest. With others the losses are still
those of the recorded run, so the result shows what would have been decided, not what would have been learnt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.followed_plan import FollowedPlan
from versatune_ds.mixture.inputs import Inputs
from versatune_ds.mixture.offline.recorded_losses import measurement_of
from versatune_ds.mixture.reference import References

NOT_COUNTERFACTUAL = "The losses are those of the recorded run; under other weights they would have been others."
"""Label of every replay with other settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Settings of one part of a run; each resume with other settings starts a part."""

    settings: MixtureConfig
    references: References | None = None
    plan: FollowedPlan | None = None
    """The plan that the run followed, if any."""
    until_step: float = math.inf
    """Step of the last decision made with these settings."""


def replay(
    recorded: Sequence[Decision],
    *,
    parts: Sequence[Part],
    domain_set: DomainSet,
    start_weights_K: np.ndarray | None = None,
) -> list[Decision]:
    """Return what the controller decides on a run's recorded measurements and inputs.

    Args:
        recorded: Decisions of the run, from the first.
        parts: Settings in order; a run that was never resumed with other settings has one part.
        domain_set: Domains of the run, in its order.
        start_weights_K: Weights at step 0; those of the recorded run by default. Give `starting_weights(settings)`
            where the policy, the prior or the target is another one.
    """
    if start_weights_K is None:
        start_weights_K = domain_set.from_dict(recorded[0].weights_before, what="recorded weights")
    controller: Controller | None = None
    replayed: list[Decision] = []
    for part in parts:
        former = controller
        controller = Controller(
            domain_set=domain_set,
            settings=part.settings,
            weights_K=start_weights_K,
            references=part.references,
            plan=part.plan,
        )
        if former is not None:
            controller.load_state_dict(former.state_dict())  # as a run does that resumes with other settings
        for decision in recorded[len(replayed) :]:
            if decision.decided_at_step > part.until_step:
                break
            again = controller.decide_measured(
                measurement_of(decision, domain_set=domain_set),
                step=decision.decided_at_step,
                effective_step=decision.effective_step,
                inputs=Inputs.from_dict(decision.inputs),
                is_baseline=decision.update == 0,
            )
            replayed.append(again)
    return replayed


def first_difference(recorded: Sequence[Decision], replayed: Sequence[Decision]) -> str | None:
    """Return which decision differs first and in which fields, or None where all digests agree."""
    for old, new in zip(recorded, replayed, strict=True):
        if old.digest != new.digest:
            differing = [key for key, value in new.to_dict().items() if key != "digest" and value != old.to_dict()[key]]
            return f"update {old.update} (step {old.decided_at_step}) differs in {', '.join(differing)}"
    return None
