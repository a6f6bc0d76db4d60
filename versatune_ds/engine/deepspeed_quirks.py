"""Workarounds for DeepSpeed's internal behaviour, all in one place: look here first when DeepSpeed is upgraded.

Written for deepspeed 0.19.8. Each entry describes what DeepSpeed does, how much harm that does, and the test that fails
without the workaround (`tests/FOLDER/FILE.py::NAME`).

Elsewhere, because it is needed before deepspeed is imported or outside Python: device numbers and LOCAL_RANK
(`distributed/rendezvous.py`), the launcher's treatment of devices and signals (`launch/start.py`,
`launch/forward_signals.py`), a warning at import (`log.py`). Settings that are refused because of a fault of DeepSpeed:
`ds_settings.py` (bf16 under stage 0) and `ds_checks.py`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator, stage_1_and_2

_GROUP_SETTINGS = ("betas", "eps", "weight_decay", "fused", "foreach")
_LOSS_SCALE_STATE = ("cur_scale", "cur_iter", "last_overflow_iter")
"""What a dynamic loss scale has reached; its other attributes are settings."""


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


def place_step_counts(optimizer: Any) -> None:
    """Move AdamW's step counts to where its form wants them: beside the parameter if fused, else on the host.

    DeepSpeed loads them onto the device. There every step of a form that is not fused would wait for the device to read
    them, and the fused form cannot step with counts on the host, which checkpoints of earlier versions have.
    Test: tests/engine/test_optimizer_settings.py::test_a_loaded_step_count_is_where_the_form_of_adamw_wants_it
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "fused" in group and torch.is_tensor(state.get("step")):
                state["step"] = state["step"].float().to(parameter.device if group["fused"] else "cpu")


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


class _FailureCollector(TorchCheckpointEngine):
    """Write DeepSpeed's files, and keep the first failure instead of raising it."""

    def __init__(self, write: Callable[[Any, Path], None]) -> None:
        super().__init__()
        self._write = write
        self.failure: Exception | None = None
        self.kept_names: frozenset[str] | None = None
        """Names of the model's weights to write; None for all."""

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file, unless one before it failed."""
        if self.failure is not None:
            return
        if self.kept_names is not None and "module" in state_dict:
            kept = {name: value for name, value in state_dict["module"].items() if name in self.kept_names}
            state_dict = {**state_dict, "module": kept}
        try:
            self._write(state_dict, Path(path))
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where the disk is full
            self.failure = error


def save_files(
    deepspeed_engine: Any, folder: Path, *, write: Callable[[Any, Path], None], only_trained: bool = False
) -> None:
    """Let DeepSpeed write its files of a checkpoint, in step with the other ranks even where a file cannot be written.

    Between two files DeepSpeed meets in barriers: a rank that raised at a full disk would leave the others waiting for
    the process group's timeout. It also copies scripts beside the files, on rank 0 alone, with the same effect
    (`versatune export` does what they do). Below ZeRO-3 one rank writes `client_state` and every rank would read that
    rank's values back, so nothing is stored there.
    Test: tests/training/test_kept_state.py::test_a_full_disk_loses_one_checkpoint_and_at_the_last_step_is_an_error

    Its `exclude_frozen_parameters` writes a frozen weight all the same where it has a second name (a tied head), and
    the scales of weights in 4 bits. Both are left out here.
    Test: tests/engine/test_trained_checkpoints.py::test_only_trained_weights_and_buffers_are_written

    Args:
        deepspeed_engine: The engine.
        folder: Folder to write to.
        write: Writes the values of one file, or keeps a copy of them to be written later.
        only_trained: Whether frozen weights are left out.

    Raises:
        OSError, RuntimeError: What writing the first such file raised.
    """
    collector = _FailureCollector(write)
    deepspeed_engine.checkpoint_engine = collector
    deepspeed_engine._copy_recovery_script = lambda save_path: None
    if only_trained:
        collector.kept_names = _saved_names(deepspeed_engine.module)
    deepspeed_engine.save_checkpoint(
        str(folder.parent), tag=folder.name, client_state={}, save_latest=False, exclude_frozen_parameters=only_trained
    )
    if collector.failure is not None:
        raise collector.failure


def _saved_names(module: torch.nn.Module) -> frozenset[str]:
    """Return the names, in a module's state, of its trained parameters and its buffers."""
    named = module.named_parameters(remove_duplicate=False)
    trained = (name for name, parameter in named if parameter.requires_grad)
    return frozenset([*trained, *(name for name, _ in module.named_buffers(remove_duplicate=False))])


def load_module(*, src: Mapping[str, Any], dst: torch.nn.Module) -> None:
    """Load a module's saved state in which frozen weights may be absent; DeepSpeed's `load_checkpoint` calls it.

    DeepSpeed's own loader either refuses an absent weight or ignores all of them, trained ones too.
    Test: tests/engine/test_trained_checkpoints.py::test_trained_weights_load_and_frozen_ones_stay

    Raises:
        RuntimeError: If a trained weight is absent, or a saved one has no place.
    """
    found = dst.load_state_dict(src, strict=False)
    absent = _saved_names(dst) & set(found.missing_keys)
    if absent or found.unexpected_keys:
        names = ", ".join(sorted([*absent, *found.unexpected_keys])[:5])
        raise RuntimeError(f"the checkpoint's trained weights are not those of the model: {names}")


@contextlib.contextmanager
def universal_checkpoints(deepspeed_engine: Any) -> Iterator[None]:
    """Load universal checkpoints within a block; the setting is read at each load, and there is no other switch.

    Test: tests/engine/test_optimizer_settings.py::test_after_a_conversion_every_group_has_its_own_settings
    """
    deepspeed_engine._config.load_universal_checkpoint = True
    try:
        yield
    finally:
        deepspeed_engine._config.load_universal_checkpoint = False


def separate_step_counts(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter's state a step counter of its own.

    Under stage 3 DeepSpeed loads one tensor for all of them from a universal checkpoint, and torch's AdamW, which
    counts in place, then counts once for each parameter group: losses were 1e-3 off a few steps later.
    Test: tests/training/test_kept_state.py::test_a_stage_and_number_of_processes_that_deepspeed_can_convert_give_the_same_losses
    """  # noqa: E501
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """Settings of an optimizer as the recipe made it, to be restored after a checkpoint is loaded.

    A checkpoint of DeepSpeed brings the settings it was saved with: weight decay, betas and epsilon in every parameter
    group, under stages 1 and 2 the clipping norm, in fp16 those of the loss scale. A universal checkpoint of stage 3
    gives the first group's settings to all groups, so that norms and biases would decay. Only what training has reached
    may come from a checkpoint: moments, step counts, the current loss scale.
    Test: tests/engine/test_optimizer_settings.py::test_a_resumed_run_decays_and_clips_as_its_recipe_says_now
    """

    groups: Sequence[Mapping[str, Any]]
    clip_grad: float | None
    """None where no wrapper clips: the engine does, or nobody."""
    loss_scaler: Any
    """Of ZeRO's wrappers, a static or a dynamic one."""
    loss_scale_config: Mapping[str, Any] | None
    """Of the fp16 wrappers of stage 0."""

    @classmethod
    def of(cls, optimizer: Any) -> OptimizerSettings:
        """Return the settings of DeepSpeed's wrapper, or of a plain optimizer."""
        config = getattr(optimizer, "loss_scale_config", None)
        return cls(
            groups=[{key: group[key] for key in _GROUP_SETTINGS if key in group} for group in optimizer.param_groups],
            clip_grad=getattr(optimizer, "clip_grad", None),
            loss_scaler=getattr(optimizer, "loss_scaler", None),
            loss_scale_config=None if config is None else dict(vars(config)),
        )

    def restore(self, optimizer: Any) -> None:
        """Put the settings back into an optimizer whose state was loaded since."""
        for group, settings in zip(optimizer.param_groups, self.groups, strict=True):
            group.update(settings)
        if self.clip_grad is not None:
            optimizer.clip_grad = self.clip_grad
        if self.loss_scaler is not None:
            self._restore_loss_scaler(optimizer)
        if self.loss_scale_config is not None:
            self._restore_loss_scale_config(optimizer.loss_scale_config)

    def _restore_loss_scaler(self, optimizer: Any) -> None:
        """Replace the loaded loss scaler by the recipe's, at the scale that the loaded one had reached."""
        loaded, ours = optimizer.loss_scaler, self.loss_scaler
        if loaded.dynamic and ours.dynamic:
            for name in _LOSS_SCALE_STATE:
                setattr(ours, name, getattr(loaded, name))
            ours.cur_hysteresis = min(loaded.cur_hysteresis, ours.delayed_shift)
        optimizer.loss_scaler, optimizer.dynamic_loss_scale = ours, ours.dynamic

    def _restore_loss_scale_config(self, loaded: Any) -> None:
        """Put the recipe's settings into a loaded loss scale, which keeps its state if both are dynamic."""
        settings = dict(self.loss_scale_config)
        if settings["dynamic_loss_scale"] and loaded.dynamic_loss_scale:
            for name in _LOSS_SCALE_STATE:
                settings.pop(name, None)
        vars(loaded).update(settings)
