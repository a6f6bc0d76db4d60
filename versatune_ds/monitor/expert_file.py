"""Keep experts.json of a run: which experts of a mixture of experts served which domain.

It counts the steps since this process began, so that nothing needs to be saved: after a resume it begins again.

Shape legend: **K** domains, **L** layers with experts, **X** experts of a layer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from versatune_ds.mixture.expert_shares import ExpertCounts
from versatune_ds.run_folder.atomic import write_text
from versatune_ds.run_folder.names import EXPERTS_FILE

_SECONDS = 60.0
"""Between two times that the file is written; it has K * L * X numbers."""


class ExpertFile:
    """Sum the counts of a run's log lines, and write them at most once a minute, and at the end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts_KLX: np.ndarray | None = None
        self._num_steps = 0
        self._written: float | None = None

    def add(self, counts_KLX: np.ndarray, *, num_steps: int) -> None:
        """Add the counts of all ranks over the steps since the last call."""
        self._counts_KLX = counts_KLX + (0 if self._counts_KLX is None else self._counts_KLX)
        self._num_steps += num_steps

    def write(self, run_dir: Path, *, domain_names: tuple[str, ...], step: int, is_last: bool) -> None:
        """Write the file of the steps up to `step` where it is due; none for a model whose experts are not counted."""
        if self._counts_KLX is None:
            return
        now = self._clock()
        if not is_last and self._written is not None and now - self._written < _SECONDS:
            return
        self._written = now
        first_step = step - self._num_steps + 1
        counts = ExpertCounts(
            domain_names=domain_names, counts_KLX=self._counts_KLX, first_step=first_step, last_step=step
        )
        write_text(run_dir / EXPERTS_FILE, json.dumps(counts.to_dict()) + "\n")
