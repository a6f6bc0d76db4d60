"""Build the optimizer of a recipe, and compute the learning rate of every step.

The recipe chooses the optimizer, DeepSpeed's settings where its state is; this is where both meet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

from versatune_ds.config import TrainConfig
from versatune_ds.engine.deepspeed_quirks import full_shape
from versatune_ds.engine.ds_settings import offload_device
from versatune_ds.log import first_line


def build_optimizer(
    model: torch.nn.Module, *, train: TrainConfig, ds_config: Mapping[str, Any], device: torch.device
) -> torch.optim.Optimizer:
    """Return the optimizer of a model's trainable parameters.

    Raises:
        ValueError: If this machine or these DeepSpeed settings do not allow it.
    """
    groups = [group for group in parameter_groups(model, weight_decay=train.weight_decay) if group["params"]]
    arguments = {"lr": train.learning_rate, "betas": (train.beta1, train.beta2), "eps": 1e-8}
    if train.optimizer == "deepspeed_adam":
        is_on_cpu = device.type == "cpu" or offload_device(ds_config, "offload_optimizer") is not None
        return _deepspeed_adam(groups, is_on_cpu=is_on_cpu, arguments=arguments)
    if train.optimizer == "adamw_8bit":
        import bitsandbytes  # an extra; ds_checks.py has checked that it is installed

        return bitsandbytes.optim.AdamW8bit(groups, **arguments)
    return torch.optim.AdamW(groups, **arguments)


def parameter_groups(model: torch.nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters into those with weight decay (matrices) and those without (biases, norms)."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    is_matrix = {name: len(full_shape(parameter)) >= 2 for name, parameter in named}
    return [
        {"params": [p for name, p in named if is_matrix[name]], "weight_decay": weight_decay},
        {"params": [p for name, p in named if not is_matrix[name]], "weight_decay": 0.0},
    ]


def learning_rate_at(step: int, train: TrainConfig) -> float:
    """Return the learning rate of optimizer step `step`, counted from 1.

    It is a pure function of the step, so a resumed run needs no scheduler state. Linear from 0 over the warm-up steps;
    then constant, or down to `min_learning_rate_fraction` of the peak at the last step: by a cosine or a line over all
    remaining steps, or (`wsd`: warm-up, stable, decay) by a line over the last `decay_fraction` of the run.

    Example: `wsd` of 100 steps, 10 of warm-up, decay_fraction 0.2: rises until step 10, stays until step 80, falls
    until step 100.

    Source of wsd: MiniCPM (arXiv 2404.06395), section 4. Differences: it falls along a line, theirs exponentially.
    """
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


def _deepspeed_adam(
    groups: list[dict[str, Any]], *, is_on_cpu: bool, arguments: dict[str, Any]
) -> torch.optim.Optimizer:
    """Return DeepSpeed's AdamW for the CPU or the GPU; its operator is compiled at first use.

    Raises:
        ValueError: If it cannot be compiled.
    """
    try:
        optimizer = DeepSpeedCPUAdam if is_on_cpu else FusedAdam
        return optimizer(groups, **arguments)
    except (ImportError, OSError, RuntimeError) as error:
        reason = first_line(error)
        raise ValueError(
            f"train.optimizer: deepspeed_adam could not be compiled here ({reason}); install g++ and ninja, and nvcc "
            "for a GPU, or use adamw"
        ) from None
