"""Compute how much of the hardware a run uses: model FLOP/s, share of the device's peak (MFU), memory.

Model FLOPs count what the mathematics needs, once: recomputed activations do not count. Attention's own products are
not counted, so MFU is a lower bound. Of a mixture of experts, only those a token is sent to count.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass

import torch
from torch import nn

from versatune_ds.config import TrainConfig
from versatune_ds.distributed import World
from versatune_ds.engine.deepspeed_quirks import full_shape
from versatune_ds.model.sizes import sizes_of

_PEAK_TFLOPS = {
    "B200": 2250.0, "H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L40": 181.0, "A10G": 70.0,
    "RTX 4090": 165.0, "MI300X": 1307.0,
}  # fmt: skip
"""Dense bf16 peak of a device by a part of its name, from the vendors' data sheets (SXM versions)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Cost of one token, and peak of the devices.

    Attributes:
        flops_per_token: Model FLOPs of forward and backward pass.
        peak_tflops: Peak of one process's device in the run's precision; None where it is not known.
        num_processes: Processes of the run, one device each.
    """

    flops_per_token: float
    peak_tflops: float | None
    num_processes: int

    def metrics(self, tokens_per_second: float) -> dict[str, float]:
        """Return TFLOP/s a process and, where the peak is known, MFU.

        Worked example: 8e9 parameters trained in full cost 48e9 FLOPs a token; 10,000 tokens/s on one H100 are 480
        TFLOP/s, an MFU of 0.485.
        """
        tflops = self.flops_per_token * tokens_per_second / self.num_processes / 1e12
        values = {"perf/tflops_per_process": tflops}
        if self.peak_tflops is not None:
            values["perf/mfu"] = tflops / self.peak_tflops
        return values


def throughput_of(model: nn.Module, train: TrainConfig, *, world: World) -> Throughput:
    """Return what a token of a model costs, before or after ZeRO-3 has partitioned its parameters."""
    return Throughput(
        flops_per_token=flops_per_token(model),
        peak_tflops=_peak_tflops(train.precision),
        num_processes=world.world_size,
    )


def flops_per_token(model: nn.Module) -> float:
    """Return the model FLOPs of one token: per weight 2 forward, 2 for the input's gradient, 2 more if trained.

    Only matrices that multiply count: not a lookup table, unless it is tied to the head. Of routed experts a token uses
    `num_experts_per_token` of `num_experts`.
    """
    sizes = sizes_of(model.config) if hasattr(model, "config") else None
    has_experts = sizes is not None and sizes.num_experts and sizes.num_experts_per_token
    share_used = sizes.num_experts_per_token / sizes.num_experts if has_experts else 1.0
    lookups = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    heads = {id(getattr(part, "weight", None)) for part in model.modules() if not isinstance(part, nn.Embedding)}
    total = 0.0
    for name, parameter in model.named_parameters():
        shape = full_shape(parameter)
        if len(shape) < 2 or (id(parameter) in lookups and id(parameter) not in heads):
            continue
        num_used = shape.numel() * (share_used if ".experts." in name else 1.0)
        total += (6.0 if parameter.requires_grad else 4.0) * num_used
    return total


def _peak_tflops(precision: str) -> float | None:
    """Return the device's known peak for 16-bit training."""
    if precision == "fp32" or not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in _PEAK_TFLOPS.items() if part in name), None)


def peak_memory_gib() -> float:
    """Return this process's highest memory so far: the device's as torch allocated it, else the process's own."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
