"""The parts of `benchmarks/on_gpu.py`: one module a part, each a generator of rows.

A part is `rows(place: Place) -> Iterator[Row]`. It yields a row as soon as it is measured, so that a part that is
stopped keeps what it had. It imports what it measures inside `rows`, so that a missing package is a row with its
reason. It has two sizes: `full` for a GPU, and `small`, which runs on a CPU in seconds and proves the script.
"""

from __future__ import annotations

PARTS = {
    "tests": 130,
    "loss": 70,
    "step": 160,
    "startup": 120,
    "attention": 50,
    "head": 100,
    "trl": 220,
    "matrix": 150,
    "reference": 120,
}
"""Name of each part to the seconds that it may take. They run in this order, so that a small budget cuts those that
matter least."""
