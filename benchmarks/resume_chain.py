"""Check that a run loses nothing when it is killed ten times, or moved over 2, 4, 1 and 2 processes.

The same recipe is also trained without a break. Weights, decisions and metrics of both are compared, byte for byte
where the number of processes stays and as numbers where it changes. The processes are forked after the imports, so that
twenty starts take minutes. Real launchers are not used here; their tests check that a run whose rank was killed ends.

    python benchmarks/resume_chain.py --output /tmp/chain --steps 44 --kills 10

With `--background` checkpoints are written while training continues, and no number of processes changes. Every file
then waits a tenth of a second before it is written, so that a kill meets a save under way; the table says which did.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import random
import signal
import sys
import time
from importlib import metadata
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch

from versatune_ds.distributed import free_port
from versatune_ds.engine.checkpoint import open_weights
from versatune_ds.exit_codes import REQUEUE_EXIT_CODE
from versatune_ds.run_folder.checkpoint_files import complete_checkpoints
from versatune_ds.training.worker import run_worker

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the chains and print the results as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=44)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--background", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a process forked after torch's thread pool was used would wait for it forever
    runs = Runs(args.output, num_steps=args.steps, is_background=args.background)
    option = " --background" if args.background else ""
    report(f"`python benchmarks/resume_chain.py --output FOLDER --steps {args.steps} --kills {args.kills}{option}`\n")
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "deepspeed", "transformers"))
    place = f"Python {platform.python_version()}, {libraries}, {os.cpu_count()} cores, no GPU"
    report(f"{time.strftime('%Y-%m-%d')}, {place}.\n")
    runs.train_to_end("whole", processes=2)
    random_kills(runs, num_kills=args.kills, choice=random.Random(args.seed))
    if not args.background:
        elastic_chain(runs)


def report(text: str) -> None:
    """Print a line of the result at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Runs:
    """Start runs of the quickstart recipe that differ in name and number of processes.

    Args:
        output: Folder of the runs.
        num_steps: Optimizer steps of each.
        is_background: Whether checkpoints are written while training continues; not in the uninterrupted run.
    """

    def __init__(self, output: Path, *, num_steps: int, is_background: bool) -> None:
        self.output, self.num_steps, self.is_background = output, num_steps, is_background
        output.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, *, processes: int) -> list[ForkProcess]:
        """Start or resume a run."""
        overrides = [
            f"run.name={name}", f"run.output_dir={self.output}", f"train.steps={self.num_steps}",
            "train.rows_per_batch=8", "train.rows_per_micro_batch=2", "checkpoint.every=2", "mixture.update_every=10",
            "validation.max_examples_per_domain=20", "monitor.log_every=1", f"data.cache_dir={self.output / 'cache'}",
        ]  # fmt: skip
        is_background = self.is_background and name != "whole"
        overrides += ["checkpoint.background=true"] * is_background
        port, context = str(free_port()), multiprocessing.get_context("fork")
        places = [
            {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
             "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
             "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
            for rank in range(processes)
        ]  # fmt: skip
        log = self.output / f"{name}.log"
        started = [context.Process(target=run_rank, args=(overrides, place, log, is_background)) for place in places]
        for process in started:
            process.start()
        return started

    def train_to_end(self, name: str, *, processes: int) -> None:
        """Train until the run is complete."""
        codes = wait_for(self.start(name, processes=processes))
        if any(codes):
            raise RuntimeError(f"{name}: exit codes {codes}; see {self.output / name}.log")

    def wait_for_step(self, name: str, step: int, processes: list[ForkProcess]) -> None:
        """Wait until a run has recorded a step."""
        while not any(line["step"] >= step for line in self.metrics(name)):
            if not all(process.is_alive() for process in processes):
                raise RuntimeError(f"{name}: ended before step {step}; see {self.output / name}.log")
            time.sleep(0.02)

    def metrics(self, name: str) -> list[dict[str, float]]:
        """Return the recorded metrics that do not depend on the time of day."""
        path = self.output / name / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        values = (json.loads(line) for line in lines if line.endswith("\n"))
        return [{key: number for key, number in line.items() if not key.startswith("perf/")} for line in values]

    def weights_digest(self, name: str) -> str:
        """Return a digest of the weights of a run's newest checkpoint."""
        digest = hashlib.sha256()
        for key, value in sorted(open_weights(complete_checkpoints(self.output / name)[0]).items()):
            digest.update(key.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def record_number(self, name: str) -> int:
        """Return the inode of a run's metrics file: a new one after each start, which cuts the file back."""
        path = self.output / name / "metrics.jsonl"
        return path.stat().st_ino if path.is_file() else 0

    def newest_step(self, name: str) -> int:
        """Return the step of a run's newest complete checkpoint, 0 without one."""
        return next((int(path.name.removeprefix("step_")) for path in complete_checkpoints(self.output / name)), 0)


def run_rank(overrides: list[str], place: dict[str, str], log: Path, is_slow: bool) -> None:
    """Run one process of a run, as a launcher's process does, after imports that were done once."""
    if is_slow:
        write = torch.save
        torch.save = lambda values, stream: (time.sleep(0.1), write(values, stream))
    os.environ.update(place)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    recipe = ROOT / "recipes" / "quickstart.yaml"
    os._exit(run_worker(recipe, overrides, is_fresh=False, is_quiet=False, when_complete=lambda run_dir: None))


def wait_for(processes: list[ForkProcess]) -> list[int | None]:
    """Wait until all processes have ended; return their exit codes."""
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def random_kills(runs: Runs, *, num_kills: int, choice: random.Random) -> None:
    """Kill one rank or all, at random moments, and compare the result with the run that was not killed."""
    report(
        f"## {num_kills} kills\n\n"
        "| kill | exit codes of the ranks | seconds until both were gone | newest checkpoint | a save under way |\n"
        "|---:|---|---:|---:|---|"
    )
    reach = max(4, runs.num_steps // (num_kills + 1))
    for number in range(1, num_kills + 1):
        resumed, record = runs.newest_step("killed"), runs.record_number("killed")
        ranks = runs.start("killed", processes=2)
        while runs.record_number("killed") == record and all(rank.is_alive() for rank in ranks):  # until it is cut back
            time.sleep(0.02)
        runs.wait_for_step("killed", min(resumed + choice.randrange(1, reach), runs.num_steps - 2), ranks)
        time.sleep(choice.uniform(0, 0.5))
        victims = ranks if choice.random() < 0.5 else [choice.choice(ranks)]
        for process in victims:
            process.kill()
        killed = time.monotonic()
        codes = wait_for(ranks)
        seconds = time.monotonic() - killed
        is_met = "yes" if list((runs.output / "killed" / "checkpoints").glob("*.partial")) else "no"
        report(f"| {number} | {codes} | {seconds:.1f} | step {runs.newest_step('killed')} | {is_met} |")
    runs.train_to_end("killed", processes=2)
    decisions = [(runs.output / name / "decisions.jsonl").read_bytes() for name in ("whole", "killed")]
    report(f"\nWeights: {runs.weights_digest('whole')} uninterrupted, {runs.weights_digest('killed')} killed. ")
    report(f"Decisions equal byte for byte: {decisions[0] == decisions[1]}. ")
    report(f"Metrics of all steps equal: {runs.metrics('whole') == runs.metrics('killed')}.\n")


def elastic_chain(runs: Runs) -> None:
    """Train a quarter of the steps on 2, 4, 1 and 2 processes each."""
    report("## 2 -> 4 -> 1 -> 2 processes\n")
    quarter = runs.num_steps // 4
    for part, processes in enumerate((2, 4, 1), start=1):
        ranks = runs.start("elastic", processes=processes)
        runs.wait_for_step("elastic", part * quarter, ranks)
        os.kill(ranks[-1].pid, signal.SIGTERM)
        codes = wait_for(ranks)
        report(
            f"- {processes} processes: SIGTERM to the last one, exit codes {codes} (expected {REQUEUE_EXIT_CODE}), "
            f"saved step {runs.newest_step('elastic')}"
        )
    runs.train_to_end("elastic", processes=2)
    losses = [
        {line["step"]: line["train/loss"] for line in runs.metrics(name) if "train/loss" in line}
        for name in ("whole", "elastic")
    ]
    difference = max(abs(losses[0][step] - losses[1][step]) for step in losses[0])
    report(
        f"\nAll {len(losses[1])} steps; largest difference of train/loss from the uninterrupted run: {difference:.1e}."
    )
    names = ("whole", "elastic")
    tokens = [[value for key, value in runs.metrics(name)[-1].items() if "share" in key] for name in names]
    report(f"Same tokens served by domain: {tokens[0] == tokens[1]}.")


if __name__ == "__main__":
    main()
