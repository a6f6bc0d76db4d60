"""Workarounds for DeepSpeed's internal behaviour: look here first when DeepSpeed is upgraded.

Those for checkpoints are in `checkpoint_quirks.py`.

Written for deepspeed 0.19.8. Each entry describes what DeepSpeed does, how much harm that does, and the test that fails
without the workaround (`tests/FOLDER/FILE.py::NAME`).

Elsewhere, because it is needed before deepspeed is imported or outside Python: device numbers and LOCAL_RANK
(`distributed/rendezvous.py`), the launcher's treatment of devices and signals (`launch/start.py`,
`launch/forward_signals.py`), a warning at import (`log.py`). Settings that are refused because of a fault of DeepSpeed:
`ds_settings.py` (bf16 under stage 0) and `ds_checks.py`.
"""

from __future__ import annotations

import warnings
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator, stage_1_and_2


def skip_shared_memory_op() -> None:
    """Let the CPU's collectives run through gloo alone; call it before DeepSpeed joins the process group.

    DeepSpeed builds a shared-memory operator at the first process group with a CPU: 30 s on every machine, and it needs
    ninja. Gloo gives the same results.
    Test: tests/engine/test_deepspeed_quirks.py::test_no_operator_is_built_for_collectives_on_the_cpu
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def ignore_renamed_torch_functions() -> None:
    """Hide the warnings about functions that torch 2.13 has renamed and DeepSpeed still calls by the old name.

    One warning a rank and function, about which a user can do nothing.
    Test: tests/engine/test_deepspeed_quirks.py::test_warnings_about_renamed_functions_of_torch_are_hidden
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def full_shape(parameter: torch.nn.Parameter) -> torch.Size:
    """Return the shape of a parameter; its own is an empty placeholder's under ZeRO-3, and of packed bytes in 4 bits.

    Otherwise no parameter would be a matrix: none would decay, and a model would have 0 parameters.
    Test: tests/training/test_circle.py::test_every_zero_stage_trains_to_the_same_losses
    """
    quantisation = getattr(parameter, "quant_state", None)
    return getattr(parameter, "ds_shape", parameter.shape) if quantisation is None else quantisation.shape


def patch_clipping(deepspeed_engine: Any) -> None:
    """Let clipping under stage 0 in fp32 pass a step without gradients.

    DeepSpeed raises IndexError there, which would end the run at the first step whose gradients
    `drop_nonfinite_gradients` has dropped.
    Test: tests/training/test_kept_state.py::test_a_step_that_is_nan_on_one_rank_is_skipped_on_all_and_the_data_continue
    """

    def clip() -> None:
        if any(parameter.grad is not None for parameter in deepspeed_engine.module.parameters()):
            type(deepspeed_engine).clip_fp32_gradients(deepspeed_engine)

    deepspeed_engine.clip_fp32_gradients = clip


def drop_nonfinite_gradients(deepspeed_engine: Any) -> bool:
    """Return whether gradients are finite, and drop them otherwise; checks under ZeRO stage 0 in fp32 only.

    There the optimizer is torch's own and DeepSpeed does not check: one NaN would ruin all weights. Without gradients
    the optimizer does nothing. They are summed over the ranks by now, so all ranks return the same. This waits for the
    device; in every other case DeepSpeed checks, and waits, by itself. It keeps no gradient norm here either:
    the log would show nan at every step. The norm is set where `get_global_grad_norm` looks for it.
    Test: tests/training/test_kept_state.py::test_a_step_that_is_nan_on_one_rank_is_skipped_on_all_and_the_data_continue
    """
    if hasattr(deepspeed_engine.optimizer, "overflow"):
        return True
    trained = [parameter for parameter in deepspeed_engine.module.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained])
    deepspeed_engine._global_grad_norm = norm
    if bool(torch.isfinite(norm)):
        return True
    for parameter in trained:
        parameter.grad = None
    return False


def read_norm_once(deepspeed_engine: Any) -> None:
    """Let an optimizer step of ZeRO stage 1 or 2 wait for the device once, for the gradient norm.

    With two parameter groups deepspeed 0.19.8 waits eight times: for a flag of NaN and infinity (one more pass over
    all gradients), twice a group while it masks such a norm, once to judge the norm, once a group to clip. The norm
    alone decides: it is not finite where a gradient is not. It is the same on every rank, and as a number on the host
    it judges and clips without waiting. One wait must stay, since the host has to know whether the step was skipped.
    Every number stays the same. Left as they are: offloaded optimizers, which sum the norm on the host, stage 3, and
    what a user's settings do without the norm or its check.
    Test: tests/engine/test_deepspeed_quirks.py::test_a_step_reads_the_device_once_and_trains_to_the_same_bits
    """
    optimizer = deepspeed_engine.optimizer
    if not isinstance(optimizer, stage_1_and_2.DeepSpeedZeroOptimizer) or optimizer.cpu_offload:
        return
    is_norm_judged = optimizer.dtype != torch.bfloat16 or optimizer.check_grad_overflow
    if not (optimizer.compute_grad_norm and is_norm_judged):
        return
    stage_1_and_2.mask_nan_or_inf_with_val_inplace = _mask_invalid_norm
    measure_norm = optimizer.scaled_global_norm
    optimizer.scaled_global_norm = lambda norm_type=2: measure_norm(norm_type).cpu()
    optimizer.check_overflow = lambda partition_gradients=True: None


def _mask_invalid_norm(norm: torch.Tensor, device: Any = None, val: float = -1.0) -> None:
    """Replace NaN and infinity in place; DeepSpeed's own copies the value to the device and reads it back."""
    norm.masked_fill_(~torch.isfinite(norm), val)


def destroy(deepspeed_engine: Any) -> None:
    """Release a DeepSpeed engine's model, gradients and optimizer state; the caller then drops its reference.

    DeepSpeed keeps the engines of ZeRO stages 1 to 3 until the process ends, 16 bytes a parameter: the hooks on the
    parameters' gradients, which only its `destroy` removes, refer to the optimizer from where Python's garbage
    collector does not look. Under stage 3 two places keep the partitions even then, 2 or 4 bytes a parameter: a stack
    of modules in their forward pass, with the model at its bottom, and the cache of a method of all engines.
    Test: tests/reference/test_measure.py::test_nothing_of_a_domains_engine_is_in_memory_when_the_next_domain_begins
    """
    deepspeed_engine.destroy()
    modules = {id(module) for module in deepspeed_engine.module.modules()}
    stack = getattr(parameter_offload, "FWD_MODULE_STACK", [])
    stack[:] = [module for module in stack if id(module) not in modules]
    for method in vars(partitioned_param_coordinator.PartitionedParameterCoordinator).values():
        for cell in getattr(method, "__closure__", None) or ():
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()
