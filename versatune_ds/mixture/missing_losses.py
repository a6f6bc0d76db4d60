"""Name what was done about losses that are missing or uncertain, where it changed a decision.

The one idea: the signals are computed a second time without the confidence bound; where policy or budget would then
have acted otherwise, the bound has acted, and the decision says so.

Source: docs/method.md section 8.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.measurement import Measurement
from versatune_ds.mixture.policies import Signals
from versatune_ds.mixture.safeguards import rise_beyond_earlier


def kept_signals(measurement: Measurement, *, previous: Signals, domain_set: DomainSet) -> tuple[str, ...]:
    """Return one text that names the domains absent from a measurement, which keep their previous signals, or none.

    A domain that was never measured has none to keep and is not named.
    """
    is_kept_K = ~measurement.is_present() & ~np.isnan(previous.loss_K)
    named = [domain_set.names[i] for i in np.flatnonzero(is_kept_K)]
    return (f"previous signals kept: {', '.join(named)}",) if named else ()


def eased_budget(
    signals: Signals, *, unbounded: Signals, budget: float | None, domain_set: DomainSet
) -> tuple[str, ...]:
    """Return one text that names the domains for which the bound at z standard errors eased the forgetting budget.

    Args:
        signals: Signals whose rises are lower bounds.
        unbounded: The same with the rises as measured.
        budget: Forgetting budget, None without one.
        domain_set: Domains of the run.
    """
    if budget is None:
        return ()
    rise_K, measured_K = rise_beyond_earlier(signals), rise_beyond_earlier(unbounded)
    eased = [domain_set.names[i] for i in np.flatnonzero((measured_K > budget) & (rise_K < measured_K))]
    return (f"confidence bound: less of the budget is used by {', '.join(eased)}",) if eased else ()
