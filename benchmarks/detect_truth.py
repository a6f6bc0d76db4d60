"""Test `versatune detect` on known mixtures: base models trained on given shares of the built-in corpus.

    python benchmarks/detect_truth.py [--folder DIR] [--steps 300] [--sequences 1024] [key=value ...]

Trains one base model for each true mixture (recipes/base.yaml, every token bears loss), exports it, detects, and
writes benchmarks/results/detect.md: total variation between the detected and the true shares of tokens, with its
bootstrap interval. Models and sequences that exist already are not made again. Goal: total variation of 0.08 at most.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kernels_timing import processor_name

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "detect.md"
DOMAINS = ("general", "code", "medicine", "finance", "science", "law")
TRUTHS = {"skewed": (0.4, 0.25, 0.15, 0.1, 0.06, 0.04), "uniform": (1 / 6,) * 6}
GOAL = 0.08
OTHERS = "\n## Labels of texts from other sources"


def run_versatune(*arguments: str) -> None:
    """Run a command of versatune; its messages go to the terminal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "versatune_ds.cli", *arguments], check=True, cwd=ROOT, env=environment)


def detected(name: str, *, folder: Path, steps: int, sequences: int, overrides: list[str]) -> dict:
    """Return the prior.json of a base model with a known mixture, training it first."""
    truth = dict(zip(DOMAINS, TRUTHS[name], strict=True))
    place, run_name = f"run.output_dir={folder}", f"truth-{name}"
    prior = json.dumps(truth).replace('"', "")
    run_versatune("train", "recipes/base.yaml", place, f"run.name={run_name}", f"train.steps={steps}",
                  f"mixture.prior={prior}", *overrides)  # fmt: skip
    run_versatune("export", str(folder / run_name))
    output = folder / f"{run_name}-prior.json"
    run_versatune("detect", "recipes/detect.yaml", place, f"model.name_or_path={folder / run_name / 'export'}",
                  f"detect.num_sequences={sequences}", "detect.labeller=classifier",
                  "--output", str(output))  # fmt: skip
    return json.loads(output.read_text(encoding="utf-8"))


def total_variation(shares: dict[str, float], truth: dict[str, float]) -> float:
    """Return half the sum of absolute differences."""
    return 0.5 * sum(abs(shares[name] - truth[name]) for name in truth)


def report(name: str, found: dict) -> list[str]:
    """Return the lines of one base model."""
    truth = dict(zip(DOMAINS, TRUTHS[name], strict=True))
    distance = total_variation(found["weights"], truth)
    inside = sum(low <= truth[domain] <= high for domain, (low, high) in found["intervals"].items())
    summary = (
        f"Total variation {distance:.3f} (goal {GOAL}: {'met' if distance <= GOAL else 'missed'}); the 95 % intervals "
        f"hold {inside} of {len(truth)} true shares. {found['num_sequences']:,} sequences in {len(found['rounds'])} "
        f"rounds; classifier's accuracy {found['labeller']['accuracy']:.3f}, calibration error "
        f"{found['labeller']['calibration_error']:.3f}, on held-out rows."
    )
    lines = [
        f"### {name}",
        "",
        summary,
        "",
        "| domain | true share of tokens | detected | 95 % interval |",
        "|---|---:|---:|---:|",
    ]
    for domain, share in truth.items():
        low, high = found["intervals"][domain]
        lines.append(f"| {domain} | {share:.3f} | {found['weights'][domain]:.3f} | {low:.3f} - {high:.3f} |")
    rates = ", ".join(f"{what} {rate:.1%}" for what, rate in found["rates"].items())
    return [*lines, "", f"Of the sequences: {rates}.", ""]


def main() -> None:
    """Train, detect, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--sequences", type=int, default=1024)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parsed = parser.parse_args()
    settings = {"steps": parsed.steps, "sequences": parsed.sequences, "overrides": parsed.overrides}
    found = {name: detected(name, folder=parsed.folder.resolve(), **settings) for name in TRUTHS}
    command = " ".join(
        [f"python benchmarks/detect_truth.py --steps {parsed.steps} --sequences {parsed.sequences}", *parsed.overrides]
    )
    versions = found["skewed"]["versions"]
    lines = [
        "# Knowledge detection against the truth",
        "",
        f"Device: {processor_name()}, {torch.get_num_threads()} threads. "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f". numpy {np.__version__}. Date: {datetime.date.today()}. Command: `{command}`.",
        "",
        "Base models of 1.1 M parameters trained from random weights on the built-in corpus with a constant mixture;",
        "the truth is the share of tokens they were trained on. Labeller: the classifier, fitted on the corpus's rows.",
        "",
        *[line for name, values in found.items() for line in report(name, values)],
    ]
    # The page goes on with what other commands measured.
    _, mark, others = RESULT.read_text(encoding="utf-8").partition(OTHERS) if RESULT.is_file() else ("", "", "")
    RESULT.write_text("\n".join(lines).rstrip() + "\n" + mark + others, encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
