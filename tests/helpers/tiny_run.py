"""Train a complete run in about a second: built-in corpus, tiny Llama, real DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from versatune_ds.config import RunConfig
from versatune_ds.config.load import parse_config, set_by_dotted_key
from versatune_ds.training.assemble import assemble_run
from versatune_ds.training.loop import measure_before_training, train
from versatune_ds.training.run import Run
from versatune_ds.training.signals import Agreement

ROOT = Path(__file__).parents[2]


def tiny_config(output_dir: Path, *overrides: str, cache_dir: Path | None = None) -> RunConfig:
    """Return a config of 12 steps with an update every 4; overrides are written as on the command line."""
    values: dict[str, Any] = {
        "run": {"name": "tiny", "output_dir": str(output_dir), "seed": 3},
        "model": {
            "from_config": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "tie_word_embeddings": True,
                "attention_dropout": 0.1,
            },
            "tokenizer_vocab_size": 512,
        },
        "data": {
            "synthetic": {"num_rows": 60, "num_valid_rows": 8, "num_test_rows": 2},
            "row_tokens": 128,
            "cache_dir": str(cache_dir or output_dir / "cache"),
        },
        "train": {
            "steps": 12,
            "rows_per_batch": 8,
            "rows_per_micro_batch": 2,
            "learning_rate": 3e-3,
            "precision": "fp32",
            "deepspeed": str(ROOT / "ds_configs" / "zero2.json"),
        },
        "mixture": {
            "policy": "versatune",
            "reference": {"start_fraction": 0.5},
            "update_every": 4,
            "sigma_interval_steps": 4,
            "sigma": 2.0,
        },
        "checkpoint": {"every": 5},
        "monitor": {"log_every": 1},
    }
    for override in overrides:
        set_by_dotted_key(values, override)
    return parse_config(values)


def be_trained(config: RunConfig, world: Any, *, stop_after: int | None = None, is_fresh: bool = False) -> Run:
    """Train on this rank to the end, or until a signal after step `stop_after`, and return the run."""
    run = assemble_run(config, world=world, device=torch.device("cpu"), is_fresh=is_fresh)
    if stop_after is not None:
        run.stop_signals.agreed = lambda: Agreement(is_stopped=run.step >= stop_after, is_save_due=False)
    measure_before_training(run)
    train(run)
    run.loader.close()
    run.monitor.finish(exit_code=0)
    return run


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def losses_by_step(run_dir: Path) -> dict[int, float]:
    """Return {step: train/loss} of a run."""
    return {line["step"]: line["train/loss"] for line in read_lines(run_dir / "metrics.jsonl") if "train/loss" in line}


def inputs_besides_losses(decision):
    """Return the inputs of a recorded decision without the training losses, whose numbers a test cannot know."""
    return {key: value for key, value in decision["inputs"].items() if not key.startswith("train_loss")}
