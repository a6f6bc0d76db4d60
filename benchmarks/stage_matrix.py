"""Train the same small model under every ZeRO stage, precision and way of saving memory, and print the final losses.

In fp32 every cell of a column must show one number: a ZeRO stage, offload, accumulation and gradient checkpointing
change where numbers are stored and in which order they are added, never what is computed.

    python benchmarks/stage_matrix.py --output benchmarks/results/stage_matrix.md
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from one_batch import STEPS, engine_losses, make_engine  # noqa: E402
from ranks import run_ranks  # noqa: E402

from versatune_ds.config import LoraConfig  # noqa: E402
from versatune_ds.distributed import World  # noqa: E402
from versatune_ds.engine.ds_checks import check_offload  # noqa: E402

STAGES = (0, 1, 2, 3)
PRECISIONS = ("fp32", "bf16")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"rows_per_micro_batch": 1},
    "checkpointing": {"settings": {"gradient_checkpointing": True}},
    "offload": {},
    "LoRA": {"settings": {"lora": LoraConfig(rank=4)}},
    "LoRA, offload": {"settings": {"lora": LoraConfig(rank=4)}},
}


def zero_settings(variant: str, *, stage: int) -> dict[str, Any]:
    """Return DeepSpeed's zero_optimization of one cell."""
    offload = {"offload_optimizer": {"device": "cpu"}} if "offload" in variant else {}
    if offload and stage == 3:
        offload["offload_param"] = {"device": "cpu"}
    return {"stage": stage, **offload}


def cell(world: World, variant: str, *, stage: int, precision: str) -> str:
    """Train on this rank and return the last step's loss, or that the recipe is refused."""
    options = {"rows_per_micro_batch": 2, **VARIANTS[variant]}
    zero = zero_settings(variant, stage=stage)
    try:
        check_offload({"zero_optimization": zero})
        engine = make_engine(world, zero=zero, precision=precision, **options)
    except ValueError:
        return "refused"
    return f"{engine_losses(engine, rows_per_micro_batch=options['rows_per_micro_batch'])[-1]:.6f}"


def rows_of_table(world: World) -> list[str]:
    """Return the lines of the table, a row for each precision and stage."""
    lines = ["| precision | ZeRO stage | " + " | ".join(VARIANTS) + " |", "|---|---|" + "---:|" * len(VARIANTS)]
    for precision in PRECISIONS:
        for stage in STAGES:
            cells = [cell(world, variant, stage=stage, precision=precision) for variant in VARIANTS]
            lines.append(f"| {precision} | {stage} | " + " | ".join(cells) + " |")
            if world.is_rank_zero:
                print(lines[-1], flush=True)
    return lines


def page(lines: list[str], *, command: str) -> str:
    """Return the result as a page, with versions and command."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "deepspeed", "transformers", "peft"))
    head = (
        f"Loss of step {STEPS} of a tiny Llama with tied embeddings on two processes, every step on the same four\n"
        "packed rows. `refused`: such a recipe ends with one line before anything is built (offload and bf16 need\n"
        "stage 1 or higher). Within a precision all columns without LoRA should agree, and both with it, in\n"
        "fp32 to 1e-5; bf16 rounds where sums are cut, which stage and accumulation move."
    )
    foot = (
        f"Made by `{command}` on {datetime.date.today()}: CPU, {os.cpu_count()} cores ({platform.machine()}), shared\n"
        f"with other work; {versions}.\nNot covered: fp16 and NVMe, which need hardware this machine lacks."
    )
    return "\n".join(["# Training loss under every ZeRO stage", "", head, "", *lines, "", foot, ""])


def main() -> None:
    """Train all cells and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="file to write; standard output without it")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        lines = run_ranks(rows_of_table, world_size=2, folder=Path(folder), timeout=3600)[0]
    text = page(lines, command="python benchmarks/stage_matrix.py")
    if output is None:
        print(text)
    else:
        output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
