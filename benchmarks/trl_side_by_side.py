"""Measure tokens per second and peak memory beside TRL's SFTTrainer: same model, data, precision, ZeRO stage, packing.

Every measurement is a process of its own (`trl_one_trainer.py`), so that peak memory is that trainer's alone. Rounds
are interleaved, so that a busy machine slows all of them. The result is the median of the steps after the first ones.

    python benchmarks/trl_side_by_side.py --rounds 3 --output benchmarks/results/trl_cpu.json
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ONE_TRAINER = Path(__file__).with_name("trl_one_trainer.py")
TRAINERS = ("ours", "ours_fixed", "trl", "trl_one_row")
"""Ours with a mixture that moves, ours with fixed weights; TRL's with the same micro-batch, then with one row."""

logger = logging.getLogger(__name__)


def run_one(trainer: str, settings: dict[str, Any], *, workspace: Path) -> dict[str, Any]:
    """Run one trainer in a process of its own and return what it measured."""
    output = workspace / "result.json"
    output.unlink(missing_ok=True)
    command = [
        sys.executable,
        str(ONE_TRAINER),
        trainer,
        json.dumps({**settings, "workspace": str(workspace)}),
        str(output),
    ]
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if not output.is_file():
        raise RuntimeError(f"{trainer} left without a result:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(output.read_text(encoding="utf-8"))


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians over rounds: tokens a second, peak memory, and the shares of a step's time."""
    rates = [measured["tokens_per_second"] for measured in rounds]
    phases = {name for measured in rounds for name in measured["share_of_step"]}
    return {
        "tokens_per_second": statistics.median(rates),
        "tokens_per_second_rounds": rates,
        "tokens_per_cpu_second": statistics.median(measured["tokens_per_cpu_second"] for measured in rounds),
        "peak_mib": statistics.median(measured["peak_mib"] for measured in rounds),
        "training_mib": statistics.median(measured["training_mib"] for measured in rounds),
        "masked": rounds[0].get("masked"),
        "share_of_step": {
            name: statistics.median(measured["share_of_step"].get(name, 0.0) for measured in rounds) for name in phases
        },
    }


def compare(settings: dict[str, Any], *, rounds: int) -> dict[str, dict[str, Any]]:
    """Return the summary of every trainer under one setting."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in TRAINERS}
    with tempfile.TemporaryDirectory(prefix="versatune_trl_") as name:
        for number in range(rounds):
            for trainer in TRAINERS[number % len(TRAINERS) :] + TRAINERS[: number % len(TRAINERS)]:
                found[trainer].append(run_one(trainer, settings, workspace=Path(name)))
                logger.info("round %d %s: %.0f tokens/s", number + 1, trainer, found[trainer][-1]["tokens_per_second"])
    return {trainer: summary(measured) for trainer, measured in found.items()}


def main() -> None:
    """Compare under every setting and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=14, help="optimizer steps of a round")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[4096, 32000])
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    parsed = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    results = []
    for vocabulary in parsed.vocabulary:
        settings = {"vocabulary": vocabulary, "steps": parsed.steps, "stage": parsed.stage}
        found = compare(settings, rounds=parsed.rounds)
        results.append({"settings": settings, **found})
        ratio = found["ours"]["tokens_per_second"] / found["trl"]["tokens_per_second"]
        logger.info("%s: %.2f times TRL's tokens a second", settings, ratio)
        text = json.dumps({"load": os.getloadavg(), "results": results}, indent=1)
        parsed.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
