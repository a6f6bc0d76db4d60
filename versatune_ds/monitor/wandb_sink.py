"""Send a run to Weights & Biases.

Values are logged at their optimizer step. W&B keeps one entry a step, and a resumed run repeats the steps after its
checkpoint with the same values, so the parts of a resumed run form one history, also after `wandb sync`.

Metrics of a domain are named by section (`loss/law`; `section_names.py`). Their names of earlier versions
(`domain/law/loss`) are logged as well for one more version, hidden from automatic charts, so that saved workspaces and
runs that an earlier version began keep working.

The key is read from the environment or from netrc, by W&B; we write it to no file, log line or record.
"""

from __future__ import annotations

import logging
import netrc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import wandb
from matplotlib.backends.backend_agg import FigureCanvasAgg

from versatune_ds.config import RunConfig
from versatune_ds.log import first_line
from versatune_ds.monitor.decision_views import (
    decision_metrics,
    draw_losses,
    draw_weights,
    loss_points,
    weight_points,
)
from versatune_ds.monitor.run_id import kept_id
from versatune_ds.monitor.section_names import DOMAIN_PREFIX, HIDDEN_SECTIONS, by_section
from versatune_ds.monitor.uploads import uploaded_config, uploaded_text
from versatune_ds.run_folder.json_lines import json_lines
from versatune_ds.run_folder.names import (
    CONFIG_FILE,
    DECISIONS_FILE,
    ENVIRONMENT_FILE,
    PLAN_FILE,
    PRIOR_FILE,
    REFERENCE_FILE,
    WANDB_ID_FILE,
)

logger = logging.getLogger(__name__)

FINISH_SECONDS = 120
"""How long the end of a run waits for W&B to upload the rest."""

_DECISIONS_PER_CHART = 10
_KEPT_FILES = (CONFIG_FILE, ENVIRONMENT_FILE, PRIOR_FILE, PLAN_FILE, REFERENCE_FILE, DECISIONS_FILE)


class Wandb:
    """A sink that logs metrics, decisions, charts and alerts of one run.

    Args:
        config: The run's config.
        resumed_step: Step the run resumed after, -1 for a new run.
        export_model: Exports the model of a run's folder and returns the exported folder; called at the end if the
            model is to be uploaded.
    """

    def __init__(
        self, config: RunConfig, *, resumed_step: int, export_model: Callable[[Path], Path] | None = None
    ) -> None:
        self._config = config
        self._export_model = export_model
        self._decisions = [line.value for line in json_lines(config.run_dir / DECISIONS_FILE) if line.value is not None]
        self._step = max(resumed_step, 0)
        self._run = start_run(config, run_id=kept_id(config.run_dir / WANDB_ID_FILE, is_new=resumed_step < 0))
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        for section in (DOMAIN_PREFIX.rstrip("/"), *HIDDEN_SECTIONS):
            self._run.define_metric(f"{section}/*", step_metric="step", hidden=True)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log a step's metrics."""
        self._step = step
        self._run.log({"step": step, **values, **by_section(values)}, step=step)

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Log a decision's signals and weights at its step, and the charts every `_DECISIONS_PER_CHART` decisions."""
        self._decisions.append(dict(decision))
        self.metrics(decision["decided_at_step"], decision_metrics(decision))
        if len(self._decisions) % _DECISIONS_PER_CHART == 0:
            self._log_charts()

    def alert(self, step: int, *, title: str, text: str) -> None:
        """Raise an alert, which W&B forwards according to the user's settings there."""
        self._run.alert(title=title, text=f"step {step}: {text}", level=wandb.AlertLevel.WARN)

    def finish(self, *, exit_code: int) -> None:
        """Log charts and the table of decisions, upload artifacts, and close with the process's exit code."""
        if self._decisions:
            self._log_charts()
            self._run.log({"decisions": decision_table(self._decisions)}, step=self._step)
        if exit_code == 0:
            self._keep_artifacts()
        self._run.finish(exit_code=exit_code)

    def _log_charts(self) -> None:
        """Log weights and losses as charts with the domains as lines, and as pictures, which have references."""
        charts = {
            "charts/weights": line_chart(weight_points(self._decisions), title="weight by step"),
            "charts/losses": line_chart(loss_points(self._decisions), title="validation loss (nats per token) by step"),
        }
        figures = {"pictures/weights": draw_weights(self._decisions), "pictures/losses": draw_losses(self._decisions)}
        images = {name: wandb.Image(_as_pixels(figure)) for name, figure in figures.items()}
        self._run.log({"step": self._step, **charts, **images}, step=self._step)

    def _keep_artifacts(self) -> None:
        """Upload the files that describe the run and, if configured, its exported model."""
        kept, run_dir = self._config.monitor.wandb.artifacts, self._config.run_dir
        if kept == "none":
            return
        record = wandb.Artifact(f"{self._config.run.name}-record", type="record")
        for name in _KEPT_FILES:
            if (run_dir / name).is_file():
                _add_file(record, run_dir / name)
        self._run.log_artifact(record)
        if kept == "model" and self._export_model is not None:
            model = wandb.Artifact(f"{self._config.run.name}-model", type="model")
            try:
                model.add_dir(str(self._export_model(run_dir)))
            except ValueError as error:  # training has succeeded: an existing folder must not fail the run
                logger.warning("the model was not uploaded to W&B: %s", error)
                return
            self._run.log_artifact(model)


def _add_file(artifact: Any, path: Path) -> None:
    """Add a text file to an artifact, without the secrets of addresses in it."""
    text = uploaded_text(path)
    if text is None:
        artifact.add_file(str(path))
        return
    with artifact.new_file(path.name, encoding="utf-8") as stream:
        stream.write(text)


def start_run(config: RunConfig, *, run_id: str) -> Any:
    """Start the W&B run, offline if the server does not answer.

    Raises:
        ValueError: If the mode is online and there is no key.
    """
    mode = config.monitor.wandb.mode
    if mode == "online":
        check_has_key()
    try:
        return _init(config, run_id=run_id, mode=mode)
    except Exception as error:  # an unreachable server must not end a run
        if mode != "online":
            raise
        logger.warning(
            "W&B did not start (%s); training continues and is recorded offline; upload later: wandb sync "
            "%s/wandb/offline-run-*",
            first_line(error),
            config.run_dir,
        )
    wandb.teardown()  # the service has still registered the run's id
    return _init(config, run_id=run_id, mode="offline")


def _init(config: RunConfig, *, run_id: str, mode: str) -> Any:
    settings = config.monitor.wandb
    return wandb.init(
        id=run_id,
        resume="allow" if mode == "online" else None,
        name=config.run.name,
        project=settings.project,
        entity=settings.entity,
        group=settings.group,
        tags=settings.tags,
        mode=mode,
        dir=str(config.run_dir),
        config=uploaded_config(config),
        settings=wandb.Settings(
            console="off",  # would upload the control codes of the live view
            silent=True,
            init_timeout=settings.start_timeout_seconds,
            login_timeout=settings.start_timeout_seconds,
            finish_timeout=FINISH_SECONDS,
        ),
    )


def check_has_key() -> None:
    """Raise ValueError where W&B finds no key, which it needs to be online."""
    if not has_key():
        raise ValueError(
            "monitor.wandb.mode=online: no key found; set WANDB_API_KEY in the environment, "
            "or use monitor.wandb.mode=offline"
        )


def has_key() -> bool:
    """Return whether there is a key in the environment, or in netrc for W&B's server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def decision_table(decisions: list[dict[str, Any]]) -> wandb.Table:
    """Return all decisions as a table: step, reason, safeguards, and the weights after each."""
    names = list(decisions[0]["weights_after"])
    rows = [
        [d["update"], d["decided_at_step"], d["effective_step"], d["reason"], "; ".join(d["acted"])]
        + [d["weights_after"][name] for name in names]
        for d in decisions
    ]
    columns = ["update", "decided_at_step", "effective_step", "reason", "acted", *(f"weight {name}" for name in names)]
    return wandb.Table(columns=columns, data=rows)


def line_chart(points: Mapping[str, list[tuple[int, float]]], *, title: str) -> Any:
    """Return W&B's own line chart: a line for each domain.

    Args:
        points: (step, value) by domain.
        title: Shown above.
    """
    steps = [[step for step, _ in line] for line in points.values()]
    values = [[value for _, value in line] for line in points.values()]
    return wandb.plot.line_series(steps, values, keys=list(points), title=title, xname="step", split_table=True)


def _as_pixels(figure: Any) -> Any:
    """Return a matplotlib figure as an array of pixels, drawn without a display."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())
