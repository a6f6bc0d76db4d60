r"""Measure everything that needs a GPU, in one command of a few minutes; results go to benchmarks/results/gpu.

    python benchmarks/on_gpu.py                                         all parts, at most 400 seconds
    python benchmarks/on_gpu.py --budget-seconds 590 --parts loss,step,trl
    python benchmarks/on_gpu.py --size small --output /tmp/on_gpu       the same on a CPU, in a minute or two

Parts run in order of importance (`gpu_parts/__init__.py`), each in a process of its own with a limit of its own; the
budget cuts the last ones. A part that hangs is killed with everything it started, and keeps the rows it had printed. A
part, or a rival within one, that fails is a line in the table with its reason. The result is written after every part.

A machine without a package index needs these wheels, some 14 MB beside PyTorch, transformers, accelerate and peft:

    pip download --no-deps --only-binary=:all: --python-version 3.12 -d wheels datasets multiprocess dill pydantic \
        pydantic_core annotated-types typing-inspection hjson rich zstandard trl liger-kernel cut-cross-entropy
    pip wheel --no-deps -w wheels deepspeed==0.19.8
    pip install --no-index --no-deps wheels/*.whl                       (on the machine)

A package that is missing there costs only its own lines. The measurements of one day and device:
benchmarks/results/gpu/DATE-DEVICE.json; README.md beside them is written from all of these files.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_parts import PARTS  # noqa: E402
from benchmarks.gpu_parts.page import write_page  # noqa: E402
from benchmarks.gpu_parts.rows import Row, row_of_json, without_folders  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "gpu"
PACKAGES = (
    "torch", "triton", "deepspeed", "transformers", "accelerate", "trl", "liger-kernel", "cut-cross-entropy", "peft",
)  # fmt: skip
_SHORTEST_SECONDS = 10.0
"""With less of the budget left, a part is not started: importing PyTorch takes about as long."""
_PROBE = (
    "import json, torch; c = torch.cuda.is_available(); "
    "print(json.dumps({'name': torch.cuda.get_device_name() if c else None, 'cuda': torch.version.cuda}))"
)


@dataclass(slots=True, kw_only=True)
class PartResult:
    """What one part measured, and how it ended."""

    name: str
    outcome: str
    """`complete`, or why not everything was measured."""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


def run_part(name: str, command: Sequence[str], *, limit: float, folder: Path) -> PartResult:
    """Run a part's process until its end or its limit; kill its whole process group then, and keep its rows.

    Args:
        name: Of the part.
        command: Prints rows as JSON lines on its standard output.
        limit: Seconds.
        folder: Where its output is kept meanwhile: files, since a pipe that a grandchild has open would never end.
    """
    output, errors = folder / f"{name}.rows", folder / f"{name}.log"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    started = time.monotonic()
    with output.open("wb") as rows_file, errors.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=rows_file, stderr=log, start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_group(process)
    rows = [row for line in output.read_text(errors="replace").splitlines() if (row := row_of_json(line))]
    result = PartResult(name=name, outcome="complete", seconds=round(time.monotonic() - started, 1), rows=rows)
    if code is None:
        result.outcome = f"stopped at its limit of {limit:.0f} s"
    elif code != 0:
        last = next((line for line in reversed(errors.read_text(errors="replace").splitlines()) if line.strip()), "")
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        result.outcome = without_folders(f"ended with {how}: {last}")[:240]
    return result


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with everything that it started: a part's own children must not disturb the next one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def part_command(name: str, *, size: str, folder: Path, seconds: float) -> list[str]:
    """Return the command of a part's process."""
    module = [sys.executable, "-m", "benchmarks.gpu_parts.run_part", name]
    return [*module, "--size", size, "--folder", str(folder), "--seconds", str(round(seconds, 1))]


def limit_of(name: str, *, left: float) -> float | None:
    """Return the seconds that a part may take: its own limit or what the budget leaves; None if that is too little."""
    return None if left < _SHORTEST_SECONDS else min(float(PARTS[name]), left)


def probe_device() -> dict[str, Any]:
    """Return the device's name as PyTorch sees it (None without one), the driver and the CUDA version.

    In a process of its own: the driver must not take memory of the device.
    """
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"on_gpu: PyTorch cannot be imported here: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "device": found["name"],
        "cuda": found["cuda"],
        "driver": _output_of(_DRIVER_QUERY) if found["name"] else None,
    }


_DRIVER_QUERY = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]


def _output_of(command: Sequence[str]) -> str | None:
    """Return the first line that a command prints; None if it cannot be run."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def describe_call(device: Mapping[str, Any], *, size: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Return everything beside the numbers: device, versions, commit, date, command."""
    versions = {name: _version(name) for name in PACKAGES}
    changed = _output_of(["git", "status", "--porcelain", "--untracked-files=no"])
    commit = _output_of(["git", "rev-parse", "--short=12", "HEAD"])
    return {
        "device": device["device"] or f"CPU ({platform.machine()}, {os.cpu_count()} cores)",
        "driver": device["driver"],
        "versions": {"python": platform.python_version(), "CUDA": device["cuda"], **versions},
        "commit": commit and f"{commit}{' with changes' if changed else ''}",
        "date": str(datetime.datetime.now(tz=datetime.timezone.utc).date()),
        "command": without_folders(" ".join(["python benchmarks/on_gpu.py", *arguments])),
        "size": size,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def result_path(folder: Path, *, date: str, device: str) -> Path:
    """Return a file for a result that no earlier one of the same day and device has.

    Example: `2026-11-28-nvidia-h100-80gb-hbm3.json`, then `2026-11-28-nvidia-h100-80gb-hbm3-2.json`.
    """
    name = f"{date}-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}"
    names = [name, *(f"{name}-{number}" for number in range(2, 1000))]
    return next(path for name in names if not (path := folder / f"{name}.json").exists())


def measure(parts: Sequence[str], *, budget_seconds: float, size: str, call: dict[str, Any], output: Path) -> Path:
    """Run the parts within the budget, and write the result and the page after each; return the result's path."""
    output.mkdir(parents=True, exist_ok=True)
    path = result_path(output, date=call["date"], device=call["device"])
    started, results = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="on_gpu_") as folder:
        for name in parts:
            limit = limit_of(name, left=budget_seconds - (time.monotonic() - started))
            if limit is None:
                results.append(PartResult(name=name, outcome="not run: the budget was used up"))
            else:
                command = part_command(name, size=size, folder=Path(folder), seconds=limit)
                results.append(run_part(name, command, limit=limit, folder=Path(folder)))
            print(
                f"{time.monotonic() - started:6.1f} s  {name}: {results[-1].outcome}, {len(results[-1].rows)} rows",
                flush=True,
            )
            content = {**call, "seconds": round(time.monotonic() - started, 1), "parts": [asdict(r) for r in results]}
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            write_page(output)
    return path


def parts_argument(text: str) -> list[str]:
    """Return the parts named in `a,b`, in order of importance."""
    asked = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in asked if name not in PARTS]
    if unknown or not asked:
        names = ", ".join(PARTS)
        raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'}: no such part; expected some of {names}")
    return [name for name in PARTS if name in asked]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-seconds", type=float, default=400.0, metavar="S", help="for all parts (default: 400)")
    parser.add_argument(
        "--parts",
        type=parts_argument,
        default=list(PARTS),
        metavar="A,B",
        help=f"some of {', '.join(PARTS)} (default: all)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of results (default: benchmarks/results/gpu)"
    )
    parser.add_argument("--size", choices=("full", "small"), help="default: full with a CUDA device, small without")
    parsed = parser.parse_args(arguments)
    device = probe_device()
    size = parsed.size or ("full" if device["device"] else "small")
    if size == "full" and not device["device"]:
        parser.error("--size full needs a CUDA device, and PyTorch sees none; leave it out, or take --size small")
    if size == "small" and parsed.output is None:
        parser.error(
            "results of the small size say nothing about a GPU and do not belong in benchmarks/results/gpu; "
            "give another folder with --output DIR"
        )
    call = describe_call(device, size=size, arguments=arguments)
    output = parsed.output or RESULTS
    path = measure(parsed.parts, budget_seconds=parsed.budget_seconds, size=size, call=call, output=output)
    print(f"wrote {path} and {output / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
