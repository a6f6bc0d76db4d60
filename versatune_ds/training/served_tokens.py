"""Count the requested and the served units of every domain over the entire run.

Shape legend: **K** domains.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from versatune_ds.data.order.plan import StepPlan


class ServedTokens:
    """Sum requested and realised units, and served tokens, by domain; the same on every rank.

    Args:
        num_domains: K.
    """

    def __init__(self, num_domains: int) -> None:
        self.num_tokens_K = np.zeros(num_domains, dtype=np.int64)
        self.realised_units_K = np.zeros(num_domains, dtype=np.int64)
        self.requested_units_K = np.zeros(num_domains, dtype=np.float64)

    def add(self, plan: StepPlan) -> None:
        """Add one optimizer step's plan."""
        self.num_tokens_K += plan.num_tokens_K
        self.realised_units_K += plan.realised_units_K
        self.requested_units_K += plan.requested_units_K

    def metrics(self, names: tuple[str, ...]) -> dict[str, float]:
        """Return tokens served, share requested and share realised since the run began."""
        total = max(int(self.realised_units_K.sum()), 1)
        metrics: dict[str, float] = {}
        for i, name in enumerate(names):
            metrics[f"domain/{name}/num_tokens"] = int(self.num_tokens_K[i])
            metrics[f"domain/{name}/requested_share"] = float(self.requested_units_K[i] / total)
            metrics[f"domain/{name}/realised_share"] = float(self.realised_units_K[i] / total)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able, exact state."""
        return {key: getattr(self, key).tolist() for key in ("num_tokens_K", "realised_units_K", "requested_units_K")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load saved state."""
        for key, values in state.items():
            getattr(self, key)[:] = values
