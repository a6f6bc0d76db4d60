"""The planners: ways to predict what a mixture leads to; see `PLANNERS`.

To add one, write a file with a `Planner` value and add it here. A planner that needs the transfer table alone is in
`mixture/planning/`; one that runs models is in this folder, and imports torch only in its `make`, so that planning
without models starts fast.
"""

from __future__ import annotations

import logging

from versatune_ds.domains import nearest_name
from versatune_ds.mixture.planning.dynamics import DYNAMICS
from versatune_ds.mixture.planning.predictor import Planner
from versatune_ds.mixture.planning.transfer import TRANSFER
from versatune_ds.planning.merge import MERGE
from versatune_ds.planning.mixmin import MIXMIN

logger = logging.getLogger(__name__)

PLANNERS: dict[str, Planner] = {planner.name: planner for planner in (TRANSFER, MERGE, MIXMIN, DYNAMICS)}

PUBLISHED_NAMES = {"mergemix": MERGE.name}
"""Names under which a planner was published, by which it may be chosen too."""

DEFAULT = TRANSFER.name
"""The planner of `versatune plan` without `--planner`."""


def planner_named(name: str) -> Planner:
    """Return a planner, also by the name it was published under; raise ValueError with the nearest name otherwise."""
    if name in PUBLISHED_NAMES:
        logger.info("--planner %s: it is the planner %s here", name, PUBLISHED_NAMES[name])
        name = PUBLISHED_NAMES[name]
    if name not in PLANNERS:
        raise ValueError(f"--planner {name}: unknown planner; {nearest_name(name, tuple(PLANNERS))}")
    return PLANNERS[name]
