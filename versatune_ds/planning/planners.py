"""The planners: ways to predict what a mixture leads to; see `PLANNERS`.

To add one, write a file with a `Planner` value and add it here. A planner that needs the transfer table alone is in
`mixture/planning/`; one that runs models is in this folder, and imports torch only in its `make`, so that planning
without models starts fast.
"""

from __future__ import annotations

from versatune_ds.domains import nearest_name
from versatune_ds.mixture.planning.predictor import Planner
from versatune_ds.mixture.planning.transfer import TRANSFER
from versatune_ds.planning.merge import MERGE
from versatune_ds.planning.mixmin import MIXMIN

PLANNERS: dict[str, Planner] = {planner.name: planner for planner in (TRANSFER, MERGE, MIXMIN)}

DEFAULT = TRANSFER.name
"""The planner of `versatune plan` without `--planner`."""


def planner_named(name: str) -> Planner:
    """Return a planner; raise ValueError with the nearest name if there is none."""
    if name not in PLANNERS:
        raise ValueError(f"--planner {name}: unknown planner; {nearest_name(name, tuple(PLANNERS))}")
    return PLANNERS[name]
