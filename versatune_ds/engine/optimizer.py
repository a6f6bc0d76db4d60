"""Build the optimizer of a recipe.

The recipe chooses the optimizer, DeepSpeed's settings where its state is; this is where both meet.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

from versatune_ds.config import TrainConfig
from versatune_ds.engine.deepspeed_quirks import full_shape
from versatune_ds.engine.ds_settings import offload_device
from versatune_ds.log import first_line

logger = logging.getLogger(__name__)


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
    if not has_fused_adamw(train, ds_config=ds_config, device_type=device.type):
        return torch.optim.AdamW(groups, **arguments)
    parameters = [parameter for group in groups for parameter in group["params"]]
    if not all(parameter.is_floating_point() for parameter in parameters):
        logger.info("optimizer: AdamW, not fused, because not all trained parameters are floating point")
        return torch.optim.AdamW(groups, **arguments)
    logger.info("optimizer: fused AdamW, one kernel for each group of parameters")
    return torch.optim.AdamW(groups, **arguments, fused=True)


def has_fused_adamw(train: TrainConfig, *, ds_config: Mapping[str, Any], device_type: str) -> bool:
    """Return whether PyTorch's AdamW steps in one kernel: where its state is on a CUDA device, and never on a CPU.

    The formula is the same, the order of roundings is not: weights agree within fp32 rounding (a few times 2^-24 of
    each step), not bit by bit. On a CPU the numbers of earlier versions are kept.
    """
    is_offloaded = offload_device(ds_config, "offload_optimizer") is not None
    return train.optimizer == "adamw" and device_type == "cuda" and not is_offloaded


def parameter_groups(model: torch.nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters into those with weight decay (matrices) and those without (biases, norms)."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    is_matrix = {name: len(full_shape(parameter)) >= 2 for name, parameter in named}
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
        with _readable_arch_list():
            return optimizer(groups, **arguments)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        reason = first_line(error)
        arch_list = os.environ.get("TORCH_CUDA_ARCH_LIST")
        hint = "" if arch_list is None else f" (TORCH_CUDA_ARCH_LIST is {arch_list!r})"
        raise ValueError(
            f"train.optimizer: deepspeed_adam could not be compiled here ({reason}){hint}; install g++ and ninja, and "
            "nvcc for a GPU, or use adamw"
        ) from None


@contextlib.contextmanager
def _readable_arch_list() -> Iterator[None]:
    """Within a block, leave the letters out of TORCH_CUDA_ARCH_LIST that DeepSpeed's builder cannot read.

    deepspeed 0.19.8 takes each part of 9.0a for a whole number and raises ValueError; its operators need no feature of
    the architectures with a letter. Example: "8.0;9.0a+PTX" becomes "8.0;9.0+PTX".
    """
    given = os.environ.get("TORCH_CUDA_ARCH_LIST")
    readable = None if given is None else re.sub(r"(?<=\d)[a-z]+", "", given)
    if readable == given:
        yield
        return
    logger.info("DeepSpeed's operator is built for %s: it cannot read TORCH_CUDA_ARCH_LIST=%s", readable, given)
    os.environ["TORCH_CUDA_ARCH_LIST"] = readable
    try:
        yield
    finally:
        os.environ["TORCH_CUDA_ARCH_LIST"] = given
