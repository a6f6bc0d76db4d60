"""Make the optimizer that the recipe names.

The one idea: the recipe says which arithmetic it wants, DeepSpeed's settings say where the optimizer lives; only
here do both come together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

from versatune_ds.config import TrainConfig
from versatune_ds.engine.ds_settings import offload_device


def build_optimizer(
    model: torch.nn.Module, *, train: TrainConfig, ds_config: Mapping[str, Any], device: torch.device
) -> torch.optim.Optimizer:
    """Return the optimizer of a model's trainable parameters.

    Raises:
        ValueError: If it cannot be had on this machine, or with these DeepSpeed settings.
    """
    groups = [group for group in parameter_groups(model, weight_decay=train.weight_decay) if group["params"]]
    arguments = {"lr": train.learning_rate, "betas": (train.beta1, train.beta2), "eps": 1e-8}
    if train.optimizer == "deepspeed_adam":
        is_on_cpu = device.type == "cpu" or offload_device(ds_config, "offload_optimizer") is not None
        return _deepspeed_adam(groups, is_on_cpu=is_on_cpu, arguments=arguments)
    if train.optimizer == "adamw_8bit":
        import bitsandbytes  # an extra; ds_checks.py has found it

        return bitsandbytes.optim.AdamW8bit(groups, **arguments)
    return torch.optim.AdamW(groups, **arguments)


def parameter_groups(model: torch.nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters into those with weight decay (matrices) and those without (biases, norms)."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    # Under ZeRO-3 a parameter's own shape is that of its partition; ds_shape is the whole one's.
    is_matrix = {name: len(getattr(parameter, "ds_shape", parameter.shape)) >= 2 for name, parameter in named}
    return [
        {"params": [p for name, p in named if is_matrix[name]], "weight_decay": weight_decay},
        {"params": [p for name, p in named if not is_matrix[name]], "weight_decay": 0.0},
    ]


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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"train.optimizer: deepspeed_adam could not be compiled here ({reason}); it needs g++ and ninja, and nvcc "
            "for a GPU; or use adamw"
        ) from None
