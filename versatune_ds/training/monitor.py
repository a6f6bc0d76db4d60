"""Write what a run measures: JSON lines always, W&B where the recipe asks for it.

The one idea: a metric is a flat name (`domain/law/loss`) and a number at a step; sinks take such mappings. Files are
cut back to the resumed step, so a run that was killed and resumed reads as one history.

The wandb key comes from the environment alone; it appears in no file, log line or record of ours.
"""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from versatune_ds.config import RunConfig

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Take metrics and decisions of a run."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Take the metrics of a step."""

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Take a decision of the controller."""

    def finish(self, *, exit_code: int) -> None:
        """Close; no call follows."""


def cut_json_lines(path: Path, *, key: str, last_step: int) -> None:
    """Drop the lines of steps beyond `last_step`, and a last line that a kill left unfinished.

    Args:
        path: A JSON-lines file; a missing one is left missing.
        key: Key that holds the step.
        last_step: Steps up to this one stay.
    """
    if not path.is_file():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line, key=key) <= last_step]
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def _step_of(line: str, *, key: str) -> float:
    """Return the step of a JSON line, infinity where the line is broken."""
    try:
        return int(json.loads(line)[key])
    except (ValueError, KeyError, TypeError):
        return math.inf


class JsonLines:
    """Append metrics and decisions to the run directory's files, one object a line, flushed at once."""

    def __init__(self, run_dir: Path, *, resumed_step: int) -> None:
        metrics_path, decisions_path = run_dir / "metrics.jsonl", run_dir / "decisions.jsonl"
        cut_json_lines(metrics_path, key="step", last_step=resumed_step)
        cut_json_lines(decisions_path, key="decided_at_step", last_step=resumed_step)
        self._metrics = metrics_path.open("a", encoding="utf-8", buffering=1)
        self._decisions = decisions_path.open("a", encoding="utf-8", buffering=1)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line; a value that is no number becomes null, since JSON has no NaN."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._metrics.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Append one line."""
        self._decisions.write(json.dumps(decision, allow_nan=False) + "\n")

    def finish(self, *, exit_code: int) -> None:
        """Close the files."""
        self._metrics.close()
        self._decisions.close()


class Wandb:
    """Send metrics to Weights & Biases; a failure is said once and training goes on."""

    def __init__(self, config: RunConfig, *, resumed_step: int) -> None:
        import wandb  # takes half a second and starts a service: only where asked for

        settings = config.monitor.wandb
        id_file = config.run_dir / "wandb_id"
        if not id_file.is_file() or resumed_step < 0:
            id_file.write_text(secrets.token_hex(4), encoding="utf-8")
        self._run = wandb.init(
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow" if settings.mode == "online" else None,
            name=config.run.name,
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            mode=settings.mode,
            dir=str(config.run_dir),
            config=config.model_dump(mode="json"),
        )
        self._run.define_metric("*", step_metric="step")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log a step's metrics under the step metric `step`."""
        self._attempt(lambda: self._run.log({"step": step, **values}))

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Log the signals and the weights a decision sets, at the step it was decided."""
        values = {f"domain/{name}/weight_decided": weight for name, weight in decision["weights_after"].items()}
        for name, signals in decision["signals"].items():
            values |= {f"domain/{name}/{key}": value for key, value in signals.items() if value is not None}
        self.metrics(decision["decided_at_step"], values)

    def finish(self, *, exit_code: int) -> None:
        """Close the run with the process's exit code."""
        self._attempt(lambda: self._run.finish(exit_code=exit_code))

    def _attempt(self, call: Any) -> None:
        """Call W&B; after a first failure say so and stay silent."""
        if self._run is None:
            return
        try:
            call()
        except Exception as error:  # whatever W&B raises must not stop training
            logger.warning("W&B stopped taking data (%s); training goes on, metrics.jsonl has everything", error)
            self._run = None


class Monitor:
    """Hand metrics and decisions to all sinks; on ranks other than 0 there are none.

    Args:
        sinks: Where values go.
    """

    def __init__(self, sinks: list[Sink]) -> None:
        self._sinks = sinks

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record a step's metrics."""
        for sink in self._sinks:
            sink.metrics(step, values)

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Record a decision."""
        for sink in self._sinks:
            sink.decision(decision)

    def finish(self, *, exit_code: int) -> None:
        """Close all sinks."""
        for sink in self._sinks:
            sink.finish(exit_code=exit_code)


def open_monitor(config: RunConfig, *, is_rank_zero: bool, resumed_step: int) -> Monitor:
    """Return the monitor of this rank.

    Raises:
        ValueError: If W&B is to be online and cannot start; the way out is named.
    """
    if not is_rank_zero:
        return Monitor([])
    sinks: list[Sink] = [JsonLines(config.run_dir, resumed_step=resumed_step)]
    if config.monitor.wandb.mode != "off":
        try:
            sinks.append(Wandb(config, resumed_step=resumed_step))
        except Exception as error:  # no key, no network, a service that does not start
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"monitor.wandb.mode={config.monitor.wandb.mode}: W&B did not start ({first_line}); "
                "set WANDB_API_KEY, or use monitor.wandb.mode=offline"
            ) from None
    return Monitor(sinks)
