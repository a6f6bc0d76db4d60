"""Compute the learning rate of every step: a pure function, which needs neither torch nor DeepSpeed."""

from __future__ import annotations

import math

from versatune_ds.config import TrainConfig


def learning_rate_at(step: int, train: TrainConfig) -> float:
    """Return the learning rate of optimizer step `step`, counted from 1.

    It is a pure function of the step, so a resumed run needs no scheduler state. Linear from 0 over the warm-up steps;
    then constant, or down to `min_learning_rate_fraction` of the peak at the last step: by a cosine or a line over all
    remaining steps, or (`wsd`: warm-up, stable, decay) by a line over the last `decay_fraction` of the run.

    Example: `wsd` of 100 steps, 10 of warm-up, decay_fraction 0.2: rises until step 10, stays until step 80, falls
    until step 100.

    Source of wsd: MiniCPM (arXiv 2404.06395), section 4. Differences: it falls along a line, theirs exponentially.
    """
    assert train.steps is not None, "epochs are resolved first"
    warmup_steps = train.num_warmup_steps
    if step <= warmup_steps:
        return train.learning_rate * step / warmup_steps
    decay_steps = train.num_decay_steps if train.learning_rate_schedule == "wsd" else train.steps - warmup_steps
    progress = max(0.0, 1 - (train.steps - step) / max(decay_steps, 1))
    floor = train.min_learning_rate_fraction
    line = floor + (1 - floor) * (1 - progress)
    shape = {
        "cosine": floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2,
        "linear": line,
        "wsd": line,
        "constant": 1.0,
    }[train.learning_rate_schedule]
    return train.learning_rate * shape
