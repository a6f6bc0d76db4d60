"""Set up logging, log some warnings only once, and shorten errors to a line.

`configure_logging` is called once, by the command line, and `shown_log` by the Python interface; nothing happens at
import. The loggers of other libraries are
left alone, apart from a few lines that tell a user nothing.

A run looks at its files several times, for the tokenizer, the cache and the rows, and a comparison once for every run.
So a warning about them is logged the first time in a process, and not at all by a look that another process repeats.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

_logger = logging.getLogger(__name__)
_PACKAGE = "versatune_ds"
_NO_ACCELERATOR = "Setting accelerator to CPU."
"""A warning of deepspeed 0.19.8 at import wherever it sees no GPU, whatever the command."""
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")
"""Device files of NVIDIA's and AMD's drivers: with a driver, an invisible GPU is worth a warning."""
_is_silent = ContextVar("_is_silent", default=False)


SHARED = {"is_shared": True}
"""`extra` of a warning that every rank finds alike, so that rank 0 alone shows it."""


def configure_logging(*, rank: int = 0, world_size: int = 1, level: int = logging.INFO) -> None:
    """Send the package's log lines to stderr; ranks other than 0 show only warnings, with their rank.

    Args:
        rank: This process's rank.
        world_size: Number of processes; with one, no rank is shown.
        level: Lowest level shown on rank 0.
    """
    handler = logging.StreamHandler(sys.stderr)
    prefix = f"[rank {rank}] " if world_size > 1 and rank > 0 else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(levelname)s %(message)s", datefmt="%H:%M:%S"))
    if rank > 0:
        handler.addFilter(lambda record: not hasattr(record, "is_shared"))
    logger = logging.getLogger(_PACKAGE)
    for old in list(logger.handlers):
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(level if rank == 0 else max(level, logging.WARNING))
    _quiet_libraries()


@contextmanager
def shown_log(*, level: int = logging.INFO) -> Iterator[None]:
    """Show the package's log lines on stderr during a block, as the command line does.

    A program that has set up logging, for the package or as a whole, keeps its own.

    Args:
        level: Lowest level shown.
    """
    package, deepspeed = logging.getLogger(_PACKAGE), logging.getLogger("DeepSpeed")
    if package.handlers or logging.getLogger().handlers:
        yield
        return
    level_before, propagate, delay = package.level, package.propagate, os.environ.get("TQDM_DELAY")
    filters = list(deepspeed.filters)
    with warnings.catch_warnings():
        configure_logging(level=level)
        try:
            yield
        finally:
            package.handlers.clear()
            package.setLevel(level_before)
            package.propagate = propagate
            deepspeed.filters[:] = filters
            if delay is None:
                os.environ.pop("TQDM_DELAY", None)


def log_imports() -> None:
    """Log how long this process took to import libraries; nothing where the system does not show when it started."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        age = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
        age -= int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of the file: start, in ticks since boot
    except (OSError, ValueError, IndexError):
        return
    _logger.info("start: imports, %.1f s", age)


def _quiet_libraries() -> None:
    """Hide deepspeed's warning without a GPU, matplotlib's about missing glyphs, and very short progress bars."""
    warnings.filterwarnings("ignore", message="Glyph .* missing from font")
    logging.getLogger("DeepSpeed").addFilter(_is_useful)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it lacks a kernel that no run uses
    os.environ.setdefault("TQDM_DELAY", "3")  # seconds; read by tqdm at import, inherited by child processes


def _is_useful(record: logging.LogRecord) -> bool:
    """Return whether a line of deepspeed's log is useful to a user."""
    is_expected = record.getMessage().startswith(_NO_ACCELERATOR)
    return not is_expected or any(Path(path).exists() for path in _DRIVERS)


def warn_once(text: str) -> None:
    """Log a warning, unless this process has logged the same text already or `silence` is active."""
    if not _is_silent.get():
        _warn(text)


@contextmanager
def silence() -> Iterator[None]:
    """Suppress such warnings within a block: the process started next looks at the same files and logs them."""
    token = _is_silent.set(True)
    try:
        yield
    finally:
        _is_silent.reset(token)


@cache
def _warn(text: str) -> None:
    """Log a warning; the cache makes it happen once for each text."""
    _logger.warning("%s", text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
