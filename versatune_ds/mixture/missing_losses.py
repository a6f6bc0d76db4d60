"""Record how missing or uncertain losses changed a decision.

The signals are computed a second time without the confidence bound. Where the policy or the budget would then have
acted otherwise, the bound acted, and the decision records it.

Source: docs/method.md section 8.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.measurement import Measurement
from versatune_ds.mixture.policies import Signals
from versatune_ds.mixture.policies.acted import Acted
from versatune_ds.mixture.safeguards import rise_beyond_earlier


def kept_signals(measurement: Measurement, *, previous: Signals, domain_set: DomainSet) -> tuple[Acted, ...]:
    """Return a record of the domains that were not measured and kept their previous signals; empty if none.

    A domain that was never measured has no signals to keep and is not listed.
    """
    is_kept_K = ~measurement.is_present() & ~np.isnan(previous.loss_K)
    names = tuple(domain_set.names[i] for i in np.flatnonzero(is_kept_K))
    if not names:
        return ()
    return (Acted("previous signals kept", names, f"previous signals kept: {', '.join(names)}"),)


def eased_budget(
    signals: Signals, *, unbounded: Signals, budget: float | None, domain_set: DomainSet
) -> tuple[Acted, ...]:
    """Return a record of the domains whose forgetting budget the confidence bound eased; empty if none.

    Args:
        signals: Signals whose rises are lower bounds.
        unbounded: Signals whose rises are as measured.
        budget: Forgetting budget, None without one.
        domain_set: Domains of the run.
    """
    if budget is None:
        return ()
    rise_K, measured_K = rise_beyond_earlier(signals), rise_beyond_earlier(unbounded)
    eased = tuple(domain_set.names[i] for i in np.flatnonzero((measured_K > budget) & (rise_K < measured_K)))
    if not eased:
        return ()
    return (Acted("confidence bound", eased, f"confidence bound: less of the budget is used by {', '.join(eased)}"),)
