"""Define the number of a measurement by which a run is judged, and the settings that judge by it.

A lower number is better for all of them: the mean loss, the loss of one domain, or the change of the worst domain.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from versatune_ds.config.section import Section
from versatune_ds.domains import domain_name, nearest_name

MEAN_LOSS = "validation/loss"
"""The plain mean of the held-out losses of all domains, in nats per loss token."""
WORST_DOMAIN = "worst_domain"
"""The largest change of a domain's held-out loss since step 0, as a share of its loss there."""
METRICS_OF_ALL = (MEAN_LOSS, WORST_DOMAIN)
"""Metrics of all domains together."""
_NAMES = (*METRICS_OF_ALL, "domain/NAME/loss")


def domain_of_metric(metric: str) -> str | None:
    """Return the domain whose loss a metric is, None for a metric of all domains."""
    begins, ends = "domain/", "/loss"
    is_of_one = metric.startswith(begins) and metric.endswith(ends) and len(metric) > len(begins + ends)
    return domain_name(metric.removeprefix(begins).removesuffix(ends)) if is_of_one else None


def _known(metric: str) -> str:
    if metric in METRICS_OF_ALL or domain_of_metric(metric) is not None:
        return metric
    hint = nearest_name(metric, _NAMES)
    raise ValueError(f"expected {', '.join(_NAMES)}{'; ' + hint if hint.startswith('did') else ''}")


HeldOutMetric = Annotated[str, AfterValidator(_known)]
"""`validation/loss`, `worst_domain` or `domain/NAME/loss`."""


class EarlyStoppingConfig(Section):
    """When a run ends before its last step, because its held-out losses no longer fall."""

    metric: HeldOutMetric = MEAN_LOSS
    """What must fall, as for `checkpoint.best`: `validation/loss`, `worst_domain` or `domain/NAME/loss`."""
    patience: int = Field(default=3, ge=1)
    """The run ends after this many measurements in a row without a new lowest value. Losses are measured every
    `mixture.update_every` steps; those before training, and after the last step where no update is due, do not
    count."""
    min_delta: float = Field(default=0.0, ge=0)
    """A value is a new lowest one only if it is lower than the last by more than this: in nats per loss token, for
    `worst_domain` as a share of the loss at step 0."""
