"""Write a run as TensorBoard event files, into the run's folder.

Metrics of a domain are named by section (`loss/law`), as in W&B, so that TensorBoard makes a group of each quantity.
Event files of earlier versions have `domain/law/loss`; a run that such a version began shows both, one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from versatune_ds.monitor.decision_views import decision_metrics, draw_losses, draw_weights
from versatune_ds.monitor.section_names import by_section


class TensorBoard:
    """A sink that writes scalars, decisions as text, and charts; a resumed run replaces the steps after its checkpoint.

    Args:
        folder: Folder of the event files.
        resumed_step: Step the run resumed after, -1 for a new run.

    Raises:
        ValueError: If the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, *, resumed_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # takes over a second
        except ImportError:
            raise ValueError(
                "monitor.tensorboard: the package tensorboard is missing; pip install 'versatune_ds[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(log_dir=str(folder), purge_step=resumed_step + 1 if resumed_step >= 0 else None)
        self._decisions: list[dict[str, Any]] = []

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write a step's metrics as scalars, named by section."""
        for name, value in by_section(values).items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Write a decision's numbers as scalars, and its reason and safeguards as text."""
        self._decisions.append(dict(decision))
        step = decision["decided_at_step"]
        self.metrics(step, decision_metrics(decision))
        acted = "".join(f"\n- {text}" for text in decision["acted"])
        self._writer.add_text("decision", f"{decision['reason']}\n{acted}", global_step=step)

    def alert(self, step: int, *, title: str, text: str) -> None:
        """Write an alert as text."""
        self._writer.add_text("alert", f"{title}: {text}", global_step=step)

    def finish(self, *, exit_code: int) -> None:
        """Add the charts and close the files."""
        if self._decisions:
            step = self._decisions[-1]["decided_at_step"]
            self._writer.add_figure("charts/weights", draw_weights(self._decisions), global_step=step)
            self._writer.add_figure("charts/losses", draw_losses(self._decisions), global_step=step)
        self._writer.close()
