"""Train a tiny run on the nodes of a cluster in a box, with something that goes wrong at a chosen moment."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from cluster_box import Box, Rank, exit_codes
from command_line import write_recipe
from tiny_run import ROOT, losses_by_step, tiny_config

from versatune_ds.data.prepare import domains as prepare_domains
from versatune_ds.distributed import failures, heartbeats
from versatune_ds.distributed.silence import SilenceLimits
from versatune_ds.engine.checkpoint import open_weights
from versatune_ds.engine.engine import Engine
from versatune_ds.run_folder import folder_lock
from versatune_ds.run_folder.checkpoint_files import complete_checkpoints
from versatune_ds.training.held_out import HeldOutExamples
from versatune_ds.training.worker import run_worker

MOMENTS = {
    "step": (Engine, "train_step", 7),
    "update": (HeldOutExamples, "measure", 3),
    "save": (torch, "save", 2),
    "prepare": (prepare_domains, "build_domain", 3),
}
"""Moment -> function in which a rank stops, and at which of its calls."""


class BoxRuns:
    """Runs of one recipe in a box: 12 steps, an update every 4, a checkpoint every 5.

    Args:
        box: The box, whose shared disk has the runs' folders.
        overrides: Changes of the recipe.
    """

    def __init__(self, box: Box, *overrides: str) -> None:
        self.box = box
        self._recipe = write_recipe(tiny_config(box.shared, *overrides), box.folder / "tiny.yaml")
        # What DeepSpeed loads at every start: loaded once here, since ranks are forked from this process.
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
        importlib.import_module("transformers.models.llama.modeling_llama")

    def start(self, name: str, *overrides: str, arm: Callable[[int], None] = lambda rank: None) -> list[Rank]:
        """Start or resume a run, one rank a node; `arm` is called in each process before it trains."""

        def work(rank: int) -> int:
            torch.set_num_threads(1)
            # A node that is started again looks like another machine: its first process waits for the owner before it.
            folder_lock.SILENT_SECONDS, folder_lock._BEAT_SECONDS = 8.0, 1.0
            arm(rank)
            words = [f"run.name={name}", *overrides]
            return run_worker(self._recipe, words, is_fresh=False, is_quiet=False, when_complete=lambda folder: None)

        return self._start(work)

    def launch(self, name: str, *overrides: str, environ: Mapping[str, str]) -> list[Rank]:
        """Start or resume a run as a launcher does: each rank is a new Python with these variables as well."""
        script = str(ROOT / "launcher" / "train.py")
        words = [sys.executable, script, str(self._recipe), f"run.name={name}", *overrides]
        return self._start(
            lambda rank: os.execve(sys.executable, words, {**os.environ, "PYTHONPATH": str(ROOT), **environ})
        )

    def _start(self, work: Callable[[int], int]) -> list[Rank]:
        for node in self.box.nodes:
            (node.folder / "rank.log").unlink(missing_ok=True)
        return self.box.start_ranks(work)

    def train(self, name: str, *overrides: str, seconds: float = 120.0) -> None:
        """Train a run to its end."""
        ranks = self.start(name, *overrides)
        codes = exit_codes(ranks, seconds=seconds)
        assert codes == [0] * len(ranks), f"{codes}\n{self.logs()}"

    def stop_at(self, moment: str, *, victim: int) -> Callable[[int], None]:
        """Return what arms the victim to stop within a moment, until `go_on`; `wait_for_moment` waits for that."""
        owner, name, call = MOMENTS[moment]
        for path in (self._reached, self._going_on):
            path.unlink(missing_ok=True)

        def arm(rank: int) -> None:
            function, count = getattr(owner, name), [0]

            def stopping(*arguments: object, **settings: object) -> object:
                count[0] += 1
                if count[0] == call:
                    self._reached.write_text(moment)
                    while not self._going_on.exists():
                        time.sleep(0.02)
                return function(*arguments, **settings)

            if rank == victim:
                setattr(owner, name, stopping)

        return arm

    @property
    def _reached(self) -> Path:
        return self.box.folder / "reached"

    @property
    def _going_on(self) -> Path:
        return self.box.folder / "going_on"

    def go_on(self) -> None:
        """Let the victim of `stop_at` continue."""
        self._going_on.touch()

    def wait_for_moment(self, ranks: list[Rank], *, seconds: float = 60.0) -> None:
        """Wait until the victim has stopped."""
        self.wait(self._reached.exists, ranks, seconds=seconds)

    def wait(self, condition: Callable[[], bool], ranks: list[Rank], *, seconds: float = 60.0) -> None:
        """Wait for a condition while all ranks live."""
        end = time.monotonic() + seconds
        while not condition():
            codes = [rank.exit_code(seconds=0) for rank in ranks]
            assert time.monotonic() < end, f"condition not true after {seconds} s, exit codes {codes}\n{self.logs()}"
            assert codes == [None] * len(ranks), f"{codes}\n{self.logs()}"
            time.sleep(0.02)

    def run_dir(self, name: str) -> Path:
        """Return a run's folder as this process reaches it."""
        return self.box.seen / name

    def num_steps(self, name: str) -> int:
        """Return how many steps a run has recorded."""
        metrics = self.run_dir(name) / "metrics.jsonl"
        return metrics.read_text().count('"train/loss"') if metrics.is_file() else 0

    def record_number(self, name: str) -> int:
        """Return the inode of a run's metrics file: a new one after each start, which cuts the file back."""
        path = self.run_dir(name) / "metrics.jsonl"
        return path.stat().st_ino if path.is_file() else 0

    def newest(self, name: str) -> int:
        """Return the step of a run's newest complete checkpoint, 0 without one."""
        found = complete_checkpoints(self.run_dir(name))
        return int(found[0].name.removeprefix("step_")) if found else 0

    def log(self, number: int) -> str:
        """Return what a node's rank has written since it was started."""
        path = self.box.nodes[number].folder / "rank.log"
        return path.read_text() if path.is_file() else ""

    def logs(self) -> str:
        """Return what all ranks have written."""
        return "\n".join(f"--- {node.name}\n{self.log(node.number)[-3000:]}" for node in self.box.nodes)

    def assert_equal(self, name: str, whole: str) -> None:
        """Check that a run's losses, decisions and weights are those of another, bit for bit."""
        left, right = self.run_dir(name), self.run_dir(whole)
        assert losses_by_step(left) == losses_by_step(right)
        assert (left / "decisions.jsonl").read_bytes() == (right / "decisions.jsonl").read_bytes()
        assert complete_checkpoints(left)[0].name == complete_checkpoints(right)[0].name
        weights = [open_weights(complete_checkpoints(folder)[0]) for folder in (left, right)]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def hasten_heartbeats(*, silent: float = 2.0, lost: float = 6.0) -> None:
    """Let this process's rank miss others within seconds."""
    heartbeats.BEAT_SECONDS = 0.5
    failures.silence_limits = lambda environ: SilenceLimits(warn_seconds=silent, lost_seconds=lost)
    failures._GRACE_SECONDS = 2.0


@contextlib.contextmanager
def trained_box(folder: Path, *overrides: str, num_nodes: int, disk_mib: int = 2000) -> Iterator[BoxRuns]:
    """Yield the runs of a box in which the run `whole` was trained without a break; close the box at the end."""
    box = Box(folder, num_nodes=num_nodes, disk_mib=disk_mib)
    try:
        runs = BoxRuns(box, *overrides)
        runs.train("whole")
        yield runs
    finally:
        box.close()


def build_preloaded(source: Path, *, folder: Path) -> Path:
    """Build a library for LD_PRELOAD from one C file; skip the test where there is no gcc."""
    if shutil.which("gcc") is None:
        pytest.skip(f"needs gcc to build {source.name}")
    library = folder / source.with_suffix(".so").name
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def preempt(ranks: list[Rank]) -> None:
    """Send all ranks what a scheduler sends."""
    for rank in ranks:
        os.kill(rank.pid, signal.SIGTERM)
