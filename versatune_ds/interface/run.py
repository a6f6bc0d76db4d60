"""What a run recorded, read from its folder: config, metrics, decisions and evaluation.

The folder is all that is needed, so this works while the run is in progress, after it was killed, and for runs of
earlier versions. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from versatune_ds.config import RunConfig
from versatune_ds.interface import frames
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.explain import decision_at, explain
from versatune_ds.mixture.offline.recorded_losses import recorded_decisions
from versatune_ds.report.finish import page_path
from versatune_ds.report.page import write_page
from versatune_ds.report.series import RunSeries, read_series
from versatune_ds.run_folder.recorded_config import recorded_config

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it was when it was read; `read_run` reads it again. Losses are in nats per loss token."""

    folder: Path
    """The run's folder."""
    _series: RunSeries

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, step {self.step} of {self._series.num_steps or '?'})"

    @property
    def name(self) -> str:
        """Return the run's name, `run.name`."""
        return self._series.name

    @property
    def step(self) -> int:
        """Return the last recorded optimizer step, 0 before the first."""
        return self._series.last_step

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Return the domains in the order of the run; empty before the run knows them."""
        return self._series.domain_names

    @property
    def config(self) -> RunConfig:
        """Return the resolved recipe, the current one where a resume changed it.

        Raises:
            ValueError: If a key of a run of another version is not known to this one.
        """
        return recorded_config(self.folder)

    @property
    def metrics(self) -> pd.DataFrame:
        """Return the metrics: one row a step (the index), one column a metric such as `train/loss`.

        Columns are those of metrics.jsonl: losses in nats per loss token, `perf/step_seconds` in seconds,
        `perf/tokens_per_second`, `domain/NAME/num_tokens` in tokens. NaN where a step did not record a metric.
        """
        return frames.metrics_frame(self._series.metrics)

    @property
    def losses(self) -> pd.DataFrame:
        """Return the held-out losses: one row a measured step (the index), one column a domain."""
        return frames.losses_frame(self._series)

    @property
    def weights(self) -> pd.DataFrame:
        """Return the weights, which sum to 1: one row a change, by the first step they apply to, one column a domain.

        The last row repeats the weights at the last recorded step, so that a plot reaches it.
        """
        return frames.weights_frame(self._series)

    @property
    def decisions(self) -> pd.DataFrame:
        """Return one row a decision: when it was made and applies, its reason, and which safeguards acted."""
        return frames.decisions_frame(self._series.decisions)

    @property
    def domains(self) -> pd.DataFrame:
        """Return one row a decision and domain: loss, weights before and after, and the signals recorded."""
        return frames.domains_frame(self._series.decisions)

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """Return the content of evaluation.json; empty before `evaluate`."""
        return self._series.evaluation

    def decision(self, step: int | None = None) -> Decision:
        """Return the last decision made at or before a step, its digest verified; the newest one by default.

        Raises:
            ValueError: If there is none yet, or its line was changed; the message has file and line.
        """
        decisions = recorded_decisions(self.folder)
        return decisions[-1] if step is None else decision_at(decisions, step)

    def explain(self, step: int | None = None) -> str:
        """Return that decision in words and numbers, as `versatune explain` prints it.

        Raises:
            ValueError: As `decision` does.
        """
        return explain(self.decision(step))

    def report(self, output: str | Path | None = None) -> Path:
        """Write the run's HTML page and return its path; by default report/index.html in the run's folder."""
        path = page_path([self.folder], output=None if output is None else Path(output))
        return write_page([self._series], path)


def read_run(folder: str | Path) -> Run:
    """Read a run's folder, of a run that is finished, in progress or killed.

    Args:
        folder: The run's folder, such as `runs/quickstart`.

    Raises:
        ValueError: If it is not the folder of a run.
    """
    path = Path(folder).expanduser()
    return Run(path, read_series(path))
