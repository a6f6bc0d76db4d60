"""Run one part and print its rows as JSON lines: the process that `benchmarks/on_gpu.py` starts for each part.

    python -m benchmarks.gpu_parts.run_part loss --size small --folder /tmp/work --seconds 60

Rows go to the first standard output; whatever libraries print goes to the standard error.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

from benchmarks.gpu_parts import PARTS
from benchmarks.gpu_parts.place import Place
from benchmarks.gpu_parts.rows import failed_row, reason_of


def main() -> int:
    """Print the rows of a part; what ends it is a row too."""
    started = time.monotonic()  # before PyTorch is imported: its seconds count
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--size", choices=("full", "small"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600.0)
    parsed = parser.parse_args()
    rows_file = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    place = Place(size=parsed.size, device=_device(), folder=parsed.folder, seconds=parsed.seconds, started=started)
    try:
        for row in importlib.import_module(f"benchmarks.gpu_parts.{parsed.part}").rows(place):
            rows_file.write(row.to_json() + "\n")
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        rows_file.write(failed_row(parsed.part, "the rest of this part", reason_of(error)).to_json() + "\n")
        return 1
    return 0


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    sys.exit(main())
