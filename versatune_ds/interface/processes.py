"""Start processes from Python: the recipe as a file, exit codes as exceptions."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import yaml

from versatune_ds.config import RunConfig
from versatune_ds.config.load import recipe_values
from versatune_ds.exit_codes import INTERRUPTED_EXIT_CODE, REQUEUE_EXIT_CODE, USER_ERROR_EXIT_CODE


@contextlib.contextmanager
def recipe_file(config: RunConfig) -> Iterator[Path]:
    """Yield a file with a config's recipe, for processes that read it; it is deleted afterwards."""
    with tempfile.TemporaryDirectory(prefix="versatune_") as folder:
        path = Path(folder) / f"{config.run.name}.yaml"
        path.write_text(yaml.safe_dump(recipe_values(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
        yield path


def check_main_thread(processes: int | None) -> None:
    """Raise RuntimeError unless this is the main thread, which gets the signals for the processes."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(f"processes={processes}: expected the main thread, which gets the signals for them")


def raise_for(exit_code: int, *, again: str = "train again to resume") -> None:
    """Raise what an exit code of started processes means; nothing for 0. The processes have logged the reason."""
    if exit_code in (REQUEUE_EXIT_CODE, INTERRUPTED_EXIT_CODE):
        raise KeyboardInterrupt(f"stopped by a signal, state saved; {again}")
    if exit_code == USER_ERROR_EXIT_CODE:
        raise ValueError("the processes found a mistake in the recipe or its data; see their log above")
    if exit_code:
        raise RuntimeError(f"the processes ended with exit code {exit_code}; see their log above")
