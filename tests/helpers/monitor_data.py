"""Make configs, metrics and decisions for the tests of the monitor's sinks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.config.load import parse_config


def recipe(output_dir: Path, **monitor: Any) -> RunConfig:
    """Return a config with a given monitor section."""
    return parse_config(
        {
            "run": {"name": "r", "output_dir": str(output_dir)},
            "model": {"from_config": {"model_type": "llama"}},
            "data": {"synthetic": {}},
            "train": {"steps": 40},
            "mixture": {},
            "monitor": monitor,
        }
    )


def step_metrics(**changed: float) -> dict[str, float]:
    """Return the metrics of an interval of training."""
    return {
        "train/loss": 1.5,
        "train/grad_norm": 0.25,
        "train/learning_rate": 1e-3,
        "perf/tokens_per_second": 12_345.0,
        "perf/step_seconds": 2.0,
        "perf/memory_gib": 3.0,
        **changed,
    }


def decision(update: int = 1, *, law: float = 0.75, acted: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a decision on law and code with an update every 10 steps; law's weight was 0.5, its reference is 1."""
    losses = {"law": 2.0, "code": 0.5}
    return {
        "update": update,
        "decided_at_step": 10 * update,
        "effective_step": 10 * update + 3,
        "losses": {name: {"mean": mean, "stderr": 0.125, "num_loss_tokens": 9} for name, mean in losses.items()},
        "signals": {
            "law": {"learnable_potential": 0.5, "forgetting_from_best": 0.0, "reference_loss": 1.0},
            "code": {"learnable_potential": None, "forgetting_from_best": 0.25, "reference_loss": None},
        },
        "weights_before": {"law": 0.5, "code": 0.5},
        "weights_after": {"law": law, "code": 1.0 - law},
        "acted": list(acted),
        "reason": "law has most left to learn",
    }
