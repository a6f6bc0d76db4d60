"""Run the batch job: prepare, let srun start the ranks, pass signals on, and requeue the job.

The ranks save and exit with code 75 whenever they are told to stop. This process, which outlives them, decides whether
the job is requeued: not if it failed, was cancelled, or makes no progress.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from versatune_ds.config import RunConfig, load_config
from versatune_ds.exit_codes import REQUEUE_EXIT_CODE
from versatune_ds.paths import expand_path
from versatune_ds.run_folder.atomic import read_json
from versatune_ds.run_folder.names import ENVIRONMENT_FILE, newest_step
from versatune_ds.slurm.steps import prepare_step, train_step
from versatune_ds.slurm.submit import job_folder

logger = logging.getLogger(__name__)

GIVEN_UP_EXIT_CODE = 1
"""Exit code of a job that saved but is not requeued: not 75, which a cluster may be set up to requeue by itself."""

_NUM_TRIES = 7
_PAUSE_SECONDS = 10.0
"""How often, and how long apart, to ask Slurm's controller: it does not answer while it restarts."""

_STOPPED_BY_SIGNAL = (128 + signal.SIGTERM, 128 + signal.SIGUSR1)
"""srun's exit codes when a rank got the signal before its handler was installed."""


def run_job(recipe: Path, overrides: Sequence[str], *, is_fresh: bool, is_quiet: bool) -> int:
    """Run one start of a batch job and return its exit code.

    Args:
        recipe: YAML file.
        overrides: `key=value` texts.
        is_fresh: Whether an existing run is deleted first; not one that this job itself began before a requeue.
        is_quiet: Whether the ranks show only warnings.

    Returns:
        0 if the run is complete; 75 if the job was requeued; 1 if it was not, though the run could resume; else the
        ranks' exit code: 2 for a user's mistake, 1 for a failure.

    Raises:
        ValueError: If the recipe is wrong, or the number of tasks does not fit the GPUs.
    """
    job = _Job(recipe, overrides, is_fresh=is_fresh, environ=os.environ)
    if job.starts.are_stuck_at(job.newest_step):
        logger.error(job.stuck_message())
        return GIVEN_UP_EXIT_CODE
    return job.start(flags=["--quiet"] if is_quiet else [])


def array_overrides(config: RunConfig, environ: Mapping[str, str]) -> list[str]:
    """Return the overrides that make an array's task its own run, name and seed; empty outside an array."""
    task = environ.get("SLURM_ARRAY_TASK_ID", "")
    if not task.isdigit():
        return []
    return [f"run.name={config.run.name}-{task}", f"run.seed={config.run.seed + int(task)}"]


class Starts:
    """The step from which each start of a job trained, so that a job without progress is not started for ever.

    A start that ends where it began may be bad luck, such as a preemption in its first minute. A second one in a row
    means that the job would take nodes for nothing.

    Args:
        path: One step a line, in a file that outlives the job's nodes; made at the first start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, step: int) -> None:
        """Record a start after `step` steps."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(f"{step}\n")

    def steps(self) -> list[int]:
        """Return the step of every start, oldest first."""
        return [int(line) for line in self.path.read_text().split()] if self.path.is_file() else []

    def are_stuck_at(self, step: int) -> bool:
        """Return whether the last two starts began at `step`, where the run still is."""
        return self.steps()[-2:] == [step, step]


def job_that_opened(run_dir: Path) -> str | None:
    """Return the id of the job that last opened the run's folder, None if none did."""
    return (read_json(run_dir / ENVIRONMENT_FILE) or {}).get("slurm_job_id")


class _Job:
    """One start of a job: its recipe, its record, and the step of srun that is running."""

    def __init__(self, recipe: Path, overrides: Sequence[str], *, is_fresh: bool, environ: Mapping[str, str]) -> None:
        self._is_fresh = is_fresh
        extra = array_overrides(load_config(recipe, overrides), environ)
        self.arguments = [str(recipe), *overrides, *extra]
        self.config = load_config(recipe, [*overrides, *extra])
        self.environ = step_environment(environ, config=self.config)
        self.id = environ.get("SLURM_JOB_ID", "")
        if not self.id:
            raise ValueError("SLURM_JOB_ID is not set: slurm/train.sbatch runs `versatune job`; use `versatune submit`")
        self.num_requeues = int(environ.get("SLURM_RESTART_COUNT", "0"))
        self.starts = Starts(job_folder(self.config) / f"{self.config.run.name}-{self.id}.starts")
        self.python = environ.get("VERSATUNE_PYTHON") or sys.executable
        self.step: subprocess.Popen[bytes] | None = None
        self.is_stop_requested = False

    @property
    def is_to_be_fresh(self) -> bool:
        """Return whether the run's folder must still be deleted: not after a start of this job has begun the run."""
        return self._is_fresh and job_that_opened(self.config.run_dir) != self.id

    @property
    def newest_step(self) -> int:
        """Return the step from which the run would resume now."""
        return 0 if self.is_to_be_fresh else newest_step(self.config.run_dir)

    def start(self, *, flags: list[str]) -> int:
        """Prepare data if there is no checkpoint, train, and decide what the exit code means."""
        # Record the start before anything can fail.
        train = train_step(self.config, self.environ, python=self.python)
        step = self.newest_step
        self.starts.add(step)
        logger.info(
            "job %s, start %d, on %s: run %s %s",
            self.id, self.num_requeues + 1, self.environ.get("SLURM_JOB_NODELIST"), self.config.run_dir,
            f"resumes after step {step}" if step else "begins",
        )  # fmt: skip
        # From here on, signals reach the ranks.
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._pass_on)
        code = 0
        if step == 0:
            code = self._run([*prepare_step(self.config, self.environ, python=self.python), *self.arguments])
        if code == 0:
            fresh = ["--fresh"] if self.is_to_be_fresh else []
            command = [*train, *self.arguments, *flags, *fresh]
            code = REQUEUE_EXIT_CODE if self.is_stop_requested else self._run(command)
        return self._end(code)

    def _run(self, command: list[str]) -> int:
        """Run one step of srun to its end and return its exit code, as a shell would."""
        logger.info("starting: %s", shlex.join(command))
        was_requested = self.is_stop_requested
        self.step = subprocess.Popen(command, env=dict(self.environ))
        if self.is_stop_requested and not was_requested:
            self.step.send_signal(signal.SIGUSR1)  # it came while srun was being started, and was not passed on
        code = self.step.wait()
        self.step = None
        return code if code >= 0 else 128 - code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Signal the ranks to save and exit, through srun, which passes SIGUSR1 on (SIGTERM would end it)."""
        logger.warning("%s: telling the ranks to save and exit", signal.Signals(number).name)
        self.is_stop_requested = True
        if self.step is not None:
            self.step.send_signal(signal.SIGUSR1)

    def _end(self, code: int) -> int:
        """Requeue the job if its run can resume, and return the job's exit code."""
        if code == 0:
            logger.info("run %s is complete", self.config.run_dir)
        elif may_resume(code, is_stop_requested=self.is_stop_requested):
            return self._requeue()
        else:
            logger.error(
                "the run failed with exit code %d, at or after step %d, and is not requeued: read the lines above; "
                "submitted again, it resumes from its newest checkpoint", code, self.newest_step,
            )  # fmt: skip
        return code

    def _requeue(self) -> int:
        """Requeue the job, unless Slurm ends it itself, it has no more starts, or it makes no progress."""
        state = self._state()
        if " " in state:
            logger.error("saved after step %d, but squeue failed: %s; submit again to resume", self.newest_step, state)
            return GIVEN_UP_EXIT_CODE
        if state != "RUNNING":  # requeued from outside, or cancelled: a requeue would bring a cancelled job back
            logger.info("saved after step %d; Slurm itself ends this start (%s)", self.newest_step, state or "unknown")
            return REQUEUE_EXIT_CODE
        if self.starts.are_stuck_at(self.newest_step):
            logger.error(self.stuck_message())
            return GIVEN_UP_EXIT_CODE
        if self.num_requeues >= self.config.slurm.max_requeues:
            logger.error(
                "saved after step %d, but not requeued: slurm.max_requeues=%d is reached; submit again to resume",
                self.newest_step, self.config.slurm.max_requeues,
            )  # fmt: skip
            return GIVEN_UP_EXIT_CODE
        logger.info("saved after step %d; requeueing the job", self.newest_step)
        refusal = _output_of("scontrol", "requeue", self.id)
        if refusal:
            logger.error("scontrol requeue %s: %s; submit again to resume", self.id, refusal)
            return GIVEN_UP_EXIT_CODE
        return REQUEUE_EXIT_CODE

    def _state(self) -> str:
        """Return the job's state, one word; squeue's error message if the controller does not answer for a minute."""
        command = ("squeue", "--noheader", f"--jobs={self.id}", "--format=%T")
        for _ in range(_NUM_TRIES):
            state = _output_of(*command)
            if " " not in state:
                return state
            time.sleep(_PAUSE_SECONDS)
        return state

    def stuck_message(self) -> str:
        """Return the message for a job that makes no progress."""
        return (
            f"job {self.id} made no progress in two starts (both began after step {self.newest_step}) and is not "
            "requeued; give it more time (slurm.time) or save more often (checkpoint.every), then submit again"
        )


def may_resume(code: int, *, is_stop_requested: bool) -> bool:
    """Return whether an exit code means that the run was stopped, rather than that it failed.

    Ranks that get the signal before their handler is installed, or that Slurm kills for being too slow, die of it.
    """
    return code in (REQUEUE_EXIT_CODE, *_STOPPED_BY_SIGNAL) or (is_stop_requested and code > 128)


def step_environment(environ: Mapping[str, str], *, config: RunConfig) -> dict[str, str]:
    """Return the environment of the job's steps: the user's own, with defaults for a cluster.

    Compiled kernels are kept on the node's own disk: a lock file that a killed job left on a shared one would make
    every later build wait for it. The number of threads follows the cores of a task, also where Slurm binds nothing.
    """
    local = environ.get("SLURM_TMPDIR") or environ.get("TMPDIR") or "/tmp"
    if config.slurm.local_dir is not None:
        local = expand_path(str(config.slurm.local_dir), environ=environ)
    folder = Path(local) / f"versatune-{os.getuid()}"
    ours = {
        "TORCH_EXTENSIONS_DIR": str(folder / "torch_extensions"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "PYTHONUNBUFFERED": "1",
    }
    if "SLURM_CPUS_PER_TASK" in environ:
        ours["OMP_NUM_THREADS"] = environ["SLURM_CPUS_PER_TASK"]
    return {**ours, **environ}


def _output_of(*command: str) -> str:
    """Run a command and return its output in one line, stderr included; scontrol prints nothing on success."""
    done = subprocess.run(command, capture_output=True, text=True)
    return " ".join((done.stdout + done.stderr).split())
