"""Measure the memory of `versatune reference` after each domain: it must not grow from one domain to the next.

The peak of a process never falls, so a domain that left its model behind would show as a step up.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu_parts.place import ROOT, Place
from benchmarks.gpu_parts.product_run import large_recipe, run_command, step_records, write_recipe
from benchmarks.gpu_parts.rows import Row, failed_row

TABLE = "versatune reference: peak memory after each domain"
MEDIUM = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 16,
          "num_key_value_heads": 16, "vocab_size": 32000}  # fmt: skip
"""About 0.2 B parameters: six of them with their optimizers would show."""


def rows(place: Place) -> Iterator[Row]:
    """Yield a row a domain, in the order in which they were measured."""
    recipe = large_recipe(place, name="references")
    if not place.is_small:
        recipe["model"]["from_config"] = {**recipe["model"]["from_config"], **MEDIUM}
    recipe["reference"] = {"steps": 2 if place.is_small else 6, "evaluate_every": 2 if place.is_small else 3}
    recipe["validation"] = {"max_examples_per_domain": 5}
    path, output = place.folder / "references.yaml", place.folder / "references" / "reference.json"
    words = [ROOT / "launcher" / "reference.py", write_recipe(path, recipe), f"--output={output}", "--fresh"]
    words += ["--domains=code,law"] if place.is_small else []
    ended = run_command(words, seconds=place.seconds_left())
    files = place.folder.glob("runs/reference/references/*/metrics.jsonl")
    first = None
    for run_dir in [file.parent for file in sorted(files, key=lambda file: file.stat().st_mtime)]:
        peaks = [record["perf/memory_gib"] for record in step_records(run_dir)]
        if peaks:
            first = first or peaks[-1]
            values = {"peak GiB": round(peaks[-1], 3), "more than after the first": round(peaks[-1] - first, 3)}
            yield Row(table=TABLE, name=run_dir.name, values=values)
    if ended.code != 0:
        yield failed_row(TABLE, "the command", ended.reason())
