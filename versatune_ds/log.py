"""Give every module a logger and set up, once, how its lines look.

The one idea: nothing happens at import; `configure_logging` is called by the command line, and other libraries'
loggers are left alone.
"""

from __future__ import annotations

import logging
import sys

_PACKAGE = "versatune_ds"


def configure_logging(*, rank: int = 0, world_size: int = 1, level: int = logging.INFO) -> None:
    """Send the package's log lines to stderr; ranks other than 0 show warnings only and carry their number.

    Args:
        rank: This process's rank.
        world_size: Number of processes; with one, no rank is shown.
        level: Lowest level shown on rank 0.
    """
    handler = logging.StreamHandler(sys.stderr)
    prefix = f"[rank {rank}] " if world_size > 1 and rank > 0 else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logger = logging.getLogger(_PACKAGE)
    for old in list(logger.handlers):
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(level if rank == 0 else max(level, logging.WARNING))
