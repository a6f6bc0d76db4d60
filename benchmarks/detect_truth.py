"""Test `versatune detect` on known mixtures: base models trained on given shares of the built-in corpus.

    python benchmarks/detect_truth.py [--folder DIR] [--steps 300] [--sequences 1024] [--truths skewed fresh]
        [--output FILE] [key=value ...]

Trains one base model for each true mixture (recipes/base.yaml, every token bears loss), exports it, detects by both
methods, and writes a page: total variation between the detected and the true shares of tokens. A model of another size
takes `model.from_config={...}` and another page (--output).
Other formulas and shorter memories of likelihood's baseline are compared from the same measurements. Models and
sequences that exist already are not made again. Goal: total variation of 0.08 at most.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kernels_timing import processor_name
from versatune_ds.config import load_config
from versatune_ds.knowledge.byte_ngram import LENGTHS, ngram_bits
from versatune_ds.knowledge.likelihood_rows import likelihood_rows
from versatune_ds.training.prepared_data import load_or_train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "detect.md"
DOMAINS = ("general", "code", "medicine", "finance", "science", "law")
TRUTHS = {"skewed": (0.4, 0.25, 0.15, 0.1, 0.06, 0.04), "uniform": (1 / 6,) * 6,
          "reversed": (0.04, 0.06, 0.1, 0.15, 0.25, 0.4), "fresh": (0.1, 0.08, 0.35, 0.3, 0.05, 0.12)}  # fmt: skip
GOAL = 0.08
KEPT_FROM = ("\n## A pretrained model", "\n## Labels of texts from other sources")
"""Headings of what other commands measured: the page goes on with all text from the first of them."""


def run_versatune(*arguments: str) -> None:
    """Run a command of versatune; its messages go to the terminal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "versatune_ds.cli", *arguments], check=True, cwd=ROOT, env=environment)


def detected(name: str, *, folder: Path, steps: int, sequences: int, overrides: list[str]) -> dict:
    """Return the prior.json of a base model with a known mixture, training it first."""
    truth = dict(zip(DOMAINS, TRUTHS[name], strict=True))
    place, run_name = f"run.output_dir={folder}", f"truth-{name}"
    prior = json.dumps(truth).replace('"', "")
    if not (folder / run_name / "export").is_dir():
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
    """Return the lines of one base model: both methods beside the truth."""
    truth = dict(zip(DOMAINS, TRUTHS[name], strict=True))
    methods = {method: found["methods"][method] for method in ("generation", "likelihood")}
    summaries = []
    for method, values in methods.items():
        distance = total_variation(values["weights"], truth)
        inside = sum(low <= truth[domain] <= high for domain, (low, high) in values["intervals"].items())
        verdict = "met" if distance <= GOAL else "missed"
        summaries.append(f"{method} {distance:.3f} (goal {GOAL}: {verdict}; {inside} of {len(truth)} intervals hold)")
    mean = geometric_mean(*(values["weights"] for values in methods.values()))
    summary = (
        f"Total variation: {', '.join(summaries)}; their geometric mean {total_variation(mean, truth):.3f}, uniform "
        f"{total_variation(dict.fromkeys(truth, 1 / len(truth)), truth):.3f}. {found['num_sequences']:,} sequences in "
        f"{len(found['rounds'])} rounds; classifier's accuracy {found['labeller']['accuracy']:.3f}, calibration error "
        f"{found['labeller']['calibration_error']:.3f}, on held-out rows."
    )
    header = ("domain", "true share", "generation", "95 % interval", "likelihood", "95 % interval", "bits a byte",
              "baseline")  # fmt: skip
    lines = [f"### {name}", "", summary, "", f"| {' | '.join(header)} |", f"|---|{'---:|' * (len(header) - 1)}"]
    for domain, share in truth.items():
        cells = [domain, f"{share:.3f}"]
        for values in methods.values():
            low, high = values["intervals"][domain]
            cells += [f"{values['weights'][domain]:.3f}", f"{low:.3f} - {high:.3f}"]
        bits = (methods["likelihood"][key][domain] for key in ("bits_per_byte", "baseline_bits_per_byte"))
        lines.append(f"| {' | '.join([*cells, *(f'{value:.3f}' for value in bits)])} |")
    rates = ", ".join(f"{what} {rate:.1%}" for what, rate in found["rates"].items())
    disagreements = [f"- {domain}: {text}" for domain, text in found["disagreements"].items()]
    return [*lines, "", f"Of the sequences: {rates}.", "", *disagreements, *([""] if disagreements else [])]


def geometric_mean(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """Return the normalised geometric mean of two mixtures."""
    mean = {name: (first[name] * second[name]) ** 0.5 for name in first}
    return {name: value / sum(mean.values()) for name, value in mean.items()}


def weights_by(formula: Callable[[np.ndarray], np.ndarray], ratio: np.ndarray) -> dict[str, float]:
    """Return the weights of a formula of the ratio baseline / model, domain by domain."""
    weights = formula(np.maximum(ratio, 1.001))
    return dict(zip(DOMAINS, (weights / weights.sum()).tolist(), strict=True))


FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{f"(baseline / model)^{n}": partial(lambda n, ratio: ratio**n, n) for n in (1, 2, 4, 8)},
    "1 - model / baseline": lambda ratio: 1 - 1 / ratio,
    **{f"log(baseline / model)^{n}": partial(lambda n, ratio: np.log(ratio) ** n, n) for n in (1, 2, 3)},
}


def formulas_table(found: dict[str, dict], *, bits: dict[str, dict[str, float]]) -> list[str]:
    """Return total variation of every formula on every base model, with the shortest and the longest memory."""
    titles = [f"{name}, {memory} bytes" for name in found for memory in bits]
    lines = [f"| weights proportional to | {' | '.join(titles)} |", f"|---|{'---:|' * len(titles)}"]
    for title, formula in FORMULAS.items():
        cells = []
        for name, values in found.items():
            truth = dict(zip(DOMAINS, TRUTHS[name], strict=True))
            model = np.array([values["methods"]["likelihood"]["bits_per_byte"][domain] for domain in DOMAINS])
            for baseline in bits.values():
                ratio = np.array([baseline[domain] for domain in DOMAINS]) / model
                cells.append(f"{total_variation(weights_by(formula, ratio), truth):.3f}")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def num_parameters(export: Path) -> int:
    """Return the number of parameters of an exported model."""
    with safe_open(export / "model.safetensors", framework="pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118 (a file, no mapping)


def baseline_bits(folder: Path, *, export: Path) -> dict[str, dict[str, float]]:
    """Return {longest history in bytes: {domain: bits a byte}} of the baseline; it does not depend on the model."""
    place = [f"run.output_dir={folder}", f"model.name_or_path={export}"]
    config = load_config(ROOT / "recipes" / "detect.yaml", [*place, "mixture.prior=uniform"])
    rows = likelihood_rows(config, tokenizer=load_or_train_tokenizer(config))
    to_fit = [text for part in rows.baseline_texts for text in part]
    found = {}
    for longest in (5, 8, max(LENGTHS)):
        lengths = [length for length in LENGTHS if length <= longest]
        bits = [ngram_bits(part, fitted_on=to_fit, lengths=lengths).sum() / sum(map(len, part)) for part in rows.texts]
        found[str(longest)] = dict(zip(rows.domain_set, bits, strict=True))
    return found


def kept_part(page: str) -> str:
    """Return the part of the page that this script does not write, from the first heading of it."""
    starts = [page.index(heading) for heading in KEPT_FROM if heading in page]
    return page[min(starts) :] if starts else ""


def main() -> None:
    """Train, detect, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--sequences", type=int, default=1024)
    parser.add_argument("--truths", nargs="+", choices=tuple(TRUTHS), default=list(TRUTHS), metavar="NAME")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parsed = parser.parse_args()
    settings = {"steps": parsed.steps, "sequences": parsed.sequences, "overrides": parsed.overrides}
    found = {name: detected(name, folder=parsed.folder.resolve(), **settings) for name in parsed.truths}
    command = " ".join(
        [f"python benchmarks/detect_truth.py --steps {parsed.steps} --sequences {parsed.sequences}", *parsed.overrides]
    )
    folder = parsed.folder.resolve()
    first_export = folder / f"truth-{parsed.truths[0]}" / "export"
    versions = found[parsed.truths[0]]["versions"]
    lines = [
        "# Knowledge detection against the truth",
        "",
        f"Device: {processor_name()}, {torch.get_num_threads()} threads. "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f". numpy {np.__version__}. Date: {datetime.date.today()}. Command: `{command}`.",
        "",
        f"Base models of {num_parameters(first_export) / 1e6:.1f} M parameters trained from random weights on the",
        "built-in corpus with a constant mixture;",
        "the truth is the share of tokens they were trained on. Labeller: the classifier, fitted on the corpus's rows.",
        "",
        *[line for name, values in found.items() for line in report(name, values)],
        "### Formulas of likelihood, and the memory of its baseline",
        "",
        "Total variation from the truth, from the same measurements; the baseline remembers 5, 8 or 32 bytes.",
        "",
        *formulas_table(found, bits=baseline_bits(folder, export=first_export)),
    ]
    # The page goes on with what other commands measured.
    before = parsed.output.read_text(encoding="utf-8") if parsed.output.is_file() else ""
    parsed.output.write_text("\n".join(lines).rstrip() + "\n" + kept_part(before), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
