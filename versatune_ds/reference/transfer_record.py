"""Measure the held-out losses of all domains while a run trains on one of them, and record one line a measurement.

Training is untouched: measuring draws nothing at random and moves no weight, and whether training stops is decided from
the domain's own loss as before. Every change is paired, example by example, with the base model's losses. Those are
measured before the first step of each run and kept in its folder, so that a resumed run pairs with the same numbers.

Shape legend: **K** domains.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.data.shards import DomainShards
from versatune_ds.distributed import from_rank_zero, run_on_rank_zero
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.measurement import Measurement, Remembered
from versatune_ds.model.sizes import check_positions
from versatune_ds.run_folder.atomic import read_json, write_json
from versatune_ds.run_folder.json_lines import append_to_file, cut_json_lines, json_lines
from versatune_ds.run_folder.names import TRANSFER_BASE_FILE, TRANSFER_FILE
from versatune_ds.training.held_out import HeldOutExamples, held_out_examples
from versatune_ds.training.prepared_data import RunSetup
from versatune_ds.training.run import Run

logger = logging.getLogger(__name__)


class TransferRecord:
    """Measure all domains for a run on one of them; `begin_transfer` makes it.

    Args:
        run: The run on one domain alone.
        domain_set: All domains.
        held_out: The held-out examples of all domains.
        base: The base model's losses of these examples, on rank 0.
    """

    def __init__(self, run: Run, *, domain_set: DomainSet, held_out: HeldOutExamples, base: Remembered) -> None:
        self._run = run
        self._domain_set = domain_set
        self._held_out = held_out
        self._base = base

    def measure(self) -> None:
        """Measure all domains after the run's step, and append a line. Communication: the measurement's own.

        Every rank calls it at the same step; rank 0 writes.
        """
        with self._run.meter.paused():
            losses = self._held_out.measure(self._run.engine)
        run_on_rank_zero(lambda: self._append(self._base.measure(losses)), self._run.world)

    def measure_base(self, held_out_digests: Mapping[str, str]) -> None:
        """Measure the base model, keep its losses by example in the run's folder, and write the first line."""
        run, started = self._run, time.perf_counter()
        losses = self._held_out.measure(run.engine)
        self._base = Remembered().after(losses)
        seconds = time.perf_counter() - started
        logger.info("held-out losses of all %d domains: %.1f s a measurement", len(self._domain_set), seconds)

        def write() -> None:
            content = {
                "held_out": dict(held_out_digests),
                "chosen": self._held_out.state_dict(),
                "losses": self._base.state_dict(),
            }
            write_json(run.config.run_dir / TRANSFER_BASE_FILE, content)
            cut_json_lines(run.config.run_dir / TRANSFER_FILE, key="step", last_step=-1)
            self._append(self._base.measure(losses))

        run_on_rank_zero(write, run.world)

    def _append(self, measurement: Measurement) -> None:
        """Append a measurement to the run's transfer.jsonl."""
        base_K = np.zeros(len(self._domain_set)) if self._base.start is None else self._base.start.mean()
        columns = {
            "losses": measurement.loss_K,
            "stderrs": measurement.loss_stderr_K,
            "changes": measurement.loss_K - base_K,
            "change_stderrs": measurement.change_from_start_stderr_K,
        }
        line = {
            "step": self._run.step,
            "tokens": int(self._run.served.num_tokens_K.sum()),
            **{key: self._by_domain(values_K) for key, values_K in columns.items()},
        }
        append_to_file(self._run.config.run_dir / TRANSFER_FILE, line)

    def _by_domain(self, values_K: np.ndarray) -> dict[str, float | None]:
        """Return numbers by domain as JSON values, null for one that is not finite."""
        values = self._domain_set.to_dict(values_K)
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


def begin_transfer(setup: RunSetup, run: Run) -> TransferRecord | None:
    """Measure the base model for a run that has not begun, or restore its measurements where it resumed.

    Communication: at the start a measurement, then a broadcast; on a resume one broadcast.

    Args:
        setup: The recipe of the mixed run, with the data of all domains.
        run: A run on one of them, its model not yet trained, or restored from a checkpoint.

    Returns:
        None, which is logged, where the run began without these measurements or with other held-out rows.

    Raises:
        ValueError: If a held-out example is longer than the positions that the model has learned.
    """
    _check_positions(setup, run)
    digests, held_out = held_out_digests(setup.data), held_out_examples(setup)
    record = TransferRecord(run, domain_set=setup.domain_set, held_out=held_out, base=Remembered())
    if run.step == 0:
        record.measure_base(digests)
        return record
    chosen_for = held_out.state_dict()["chosen_for"]
    base = from_rank_zero(lambda: _restored_base(run, digests, chosen_for=chosen_for), setup.world)
    if base is None:
        return None
    held_out.load_state_dict(base["chosen"])
    return TransferRecord(
        run, domain_set=setup.domain_set, held_out=held_out, base=Remembered.from_state_dict(base["losses"])
    )


def _check_positions(setup: RunSetup, run: Run) -> None:
    """Raise ValueError if the model has learned fewer positions than another domain's held-out examples need."""
    model = run.engine.deepspeed_engine.module
    longest = max((int(shards.lengths.max()) for shards in setup.data.valid if len(shards)), default=0)
    if model.num_positions is not None and longest > model.num_positions:
        check_positions(model.causal_lm, longest=longest, what="the longest held-out example of all domains")


def _restored_base(run: Run, digests: Mapping[str, str], *, chosen_for: list[Any]) -> dict[str, Any] | None:
    """Return what `measure_base` wrote, and cut the lines back to the run's step; None where it does not fit."""
    run_dir = run.config.run_dir
    base = read_json(run_dir / TRANSFER_BASE_FILE)
    is_paired = base and base["held_out"] == dict(digests) and base["chosen"]["chosen_for"] == chosen_for
    if base and is_paired:
        cut_json_lines(run_dir / TRANSFER_FILE, key="step", last_step=run.step)
        return base
    reason = "held-out examples changed since it began" if base else "it began without measuring all domains"
    names = run.domain_set.names
    what, again = (f"what {names[0]} does", f"--domains {names[0]} --fresh")
    if len(names) > 1:
        what, again = "what equal shares do", f"{run_dir} removed"
    logger.warning(
        "%s: %s, so %s to the domains stays unknown; to know it, measure again with %s", run_dir, reason, what, again
    )
    return None


def held_out_digests(data: PreparedData) -> dict[str, str]:
    """Return the digest of each domain's held-out rows, without the domains that have none."""
    return {shards.name: shards.digest for shards in data.valid if len(shards)}


def recorded_transfer(run_dir: Path, *, held_out: Mapping[str, str]) -> dict[str, Any]:
    """Return what a finished run did to all domains, from its records: its `transfer` in result.json.

    Args:
        run_dir: The run's folder.
        held_out: What `held_out_digests` returned.

    Returns:
        Columns of one number a measurement, as in transfer.json; empty where the run has no such records.
    """
    lines = [line.value for line in json_lines(run_dir / TRANSFER_FILE) if line.value is not None]
    if not lines or lines[0]["step"] != 0:
        return {}
    measured = list(held_out)
    return {
        "base": {key: {name: lines[0][key][name] for name in measured} for key in ("losses", "stderrs")},
        "steps": [line["step"] for line in lines],
        "tokens": [line["tokens"] for line in lines],
        **{
            key: {name: [line[key][name] for line in lines] for name in measured}
            for key in ("losses", "changes", "change_stderrs")
        },
        "held_out": dict(held_out),
    }


def sizes_of(shards: DomainShards) -> dict[str, int]:
    """Return a source's number of training examples and their tokens, as transfer.json has them."""
    return {
        "rows": shards.num_examples,
        "tokens_per_epoch": int(np.asarray(shards.lengths, dtype=np.int64).sum()),
    }
