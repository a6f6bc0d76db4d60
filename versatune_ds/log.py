"""Give every module a logger and set up, once, how its lines look.

The one idea: nothing happens at import; `configure_logging` is called by the command line, and other libraries'
loggers are left alone, but for the little that says nothing to a user.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

_PACKAGE = "versatune_ds"
_NO_ACCELERATOR = "Setting accelerator to CPU."
"""What deepspeed 0.19.8 warns of at import wherever it sees no GPU, whatever the command."""
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")
"""Device files of NVIDIA's and AMD's drivers: where one is, a GPU that is not seen is worth a warning."""


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
    _quiet_libraries()


def _quiet_libraries() -> None:
    """Leave out what deepspeed says of a machine that has no GPU, and progress bars of work that takes no time."""
    logging.getLogger("DeepSpeed").addFilter(_is_worth_saying)
    os.environ.setdefault("TQDM_DELAY", "3")  # seconds; tqdm reads it when it is imported, processes inherit it


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Return whether one of deepspeed's lines tells a user something."""
    is_expected = record.getMessage().startswith(_NO_ACCELERATOR)
    return not is_expected or any(Path(path).exists() for path in _DRIVERS)
