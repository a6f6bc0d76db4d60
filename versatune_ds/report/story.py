"""Describe a run in plain sentences: how the mixture moved, why, and how the losses changed.

Every sentence is computed from the recorded decisions and losses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from versatune_ds.mixture.policies import POLICIES
from versatune_ds.mixture.policies.acted import kinds_of, read_recorded
from versatune_ds.report.series import (
    RunSeries,
    effective_step,
    loss_above_reference,
    number_of,
    number_or_none,
    requested_weights,
)

VISIBLE_MOVE = 5e-5
"""Change of a weight from which it counts as moved: half of the last digit shown."""


def headline(series: RunSeries) -> list[str]:
    """Return how the mixture moved and why, how the losses changed, and which safeguards acted."""
    if not series.decisions:
        return ["No decision has been recorded yet: the losses before training have not been measured."]
    updates = series.updates
    if not updates:
        return ["The losses before training are measured; the mixture has not been updated yet."]
    return [text for text in (_moved(series, updates), _losses(series), _safeguards(updates)) if text]


def changes_of_weights(first: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, float]:
    """Return how far each domain's weight moved from one mixture to another."""
    known = {name: (number_or_none(first.get(name)), number_or_none(last.get(name))) for name in first}
    return {name: after - before for name, (before, after) in known.items() if before is not None and after is not None}


def mean_of_losses(series: RunSeries) -> tuple[float, float] | None:
    """Return the mean over domains of the first and of the last validation losses, None before the first."""
    pairs = [losses for name in series.domain_names if (losses := series.of(f"domain/{name}/loss"))]
    if not pairs:
        return None
    return sum(losses[0][1] for losses in pairs) / len(pairs), sum(losses[-1][1] for losses in pairs) / len(pairs)


def _moved(series: RunSeries, updates: Sequence[Mapping[str, Any]]) -> str:
    """Describe which domains gained and lost most weight by the last step, as the tables show it, and why."""
    policy, count = series.setting("mixture.policy") or "of this run", times(len(updates), "update")
    count += _late(series, updates)
    _, weights = requested_weights(series)
    first, last = ({name: weights[name][end] for name in series.domain_names} for end in (0, -1))
    changes = changes_of_weights(first, last)
    if not changes or max(map(abs, changes.values())) < VISIBLE_MOVE:
        rule = POLICIES.get(policy)
        because = ": it is a fixed mixture" if rule is not None and not rule.moves else ""
        return f"Policy {policy} left the mixture as it was over {count}{because}."
    up, down = max(changes, key=lambda name: changes[name]), min(changes, key=lambda name: changes[name])
    moved = (
        f"Over {count}, policy {policy} gave most weight to {up} ({first[up]:.3f} to {last[up]:.3f}) "
        f"and took most from {down} ({first[down]:.3f} to {last[down]:.3f})"
    )
    return f"{moved}{_why(series, updates)}."


def _late(series: RunSeries, updates: Sequence[Mapping[str, Any]]) -> str:
    """Return how many of the updates had no effect by the last step; empty for none."""
    late = [update for update in updates if effective_step(update) > series.last_step]
    if not late:
        return ""
    subject = "the last of which takes" if len(late) == 1 else f"the last {len(late)} of which take"
    subject = "which takes" if len(updates) == 1 else subject
    return f", {subject} effect only after step {series.last_step:,}"


def _why(series: RunSeries, updates: Sequence[Mapping[str, Any]]) -> str:
    """Describe who had most and least left to learn, in the measure of the policy; empty where it follows none."""
    rule = POLICIES.get(series.setting("mixture.policy"))  # a user's own module is not imported to read a run
    measure = rule.measure(lambda key: series.setting(f"mixture.{key}")) if rule is not None else None
    if rule is None or measure is None:
        return ""
    is_nats = measure == "nats"
    left = loss_above_reference if is_nats else _potential
    given = series.setting("mixture.target") if rule.has_given_target_share else None  # that share does not move
    names = [name for name in series.domain_names if name != given]
    by_name = {name: [x for update in updates if (x := left(update, name)) is not None] for name in names}
    means = {name: sum(values) / len(values) for name, values in by_name.items() if values}
    if not means:
        return ""
    most, least = max(means, key=lambda name: means[name]), min(means, key=lambda name: means[name])
    found = f"{means[most]:.3f} nats above its reference" if is_nats else f"potential {means[most]:.3f}"
    return (
        f": on average over the updates {most} had most left to learn ({found}) and {least} least ({means[least]:.3f})"
    )


def _potential(decision: Mapping[str, Any], name: str) -> float | None:
    return number_of(decision, "signals", name, "learnable_potential")


def _losses(series: RunSeries) -> str:
    """Describe how the mean loss changed, and which domains ended above their first loss."""
    means = mean_of_losses(series)
    if means is None:
        return ""
    before, after = means
    moved = "fell" if after < before else "rose"
    if after == before:
        moved = "stayed"
    risen = {name: rise for name in series.domain_names if (rise := rise_from_start(series, name)) > 0}
    named = ", ".join(f"{name} by {rise:.1%}" for name, rise in sorted(risen.items(), key=lambda item: -item[1])[:6])
    end = f"above its first loss ended: {named}" if risen else "no domain ended above its first loss"
    return f"The mean validation loss {moved} from {before:.3f} to {after:.3f} nats per token; {end}."


def rise_from_start(series: RunSeries, name: str) -> float:
    """Return by what share of its first loss a domain's last one lies above it; 0 where it does not."""
    losses = series.of(f"domain/{name}/loss")
    return max(losses[-1][1] / losses[0][1] - 1, 0.0) if losses and losses[0][1] > 0 else 0.0


def _safeguards(updates: Sequence[Mapping[str, Any]]) -> str:
    """Describe which safeguards acted, and how often."""
    kinds = [kinds_of(read_recorded(update.get("acted"))) for update in updates]
    counts = Counter(kind for of_update in kinds for kind in of_update)
    if not counts:
        return "No safeguard had to act."
    named = ", ".join(f"{kind} ({count})" for kind, count in counts.most_common())
    return f"Safeguards acted in {sum(map(bool, kinds))} of {times(len(updates), 'update')}: {named}."


def times(count: int, what: str) -> str:
    """Return a count with its noun."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
