"""Workarounds for what DeepSpeed does while it saves and loads checkpoints; `deepspeed_quirks.py` has the others.

Written for deepspeed 0.19.8. Each entry describes what DeepSpeed does, how much harm that does, and the test that fails
without the workaround (`tests/FOLDER/FILE.py::NAME`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

_GROUP_SETTINGS = ("betas", "eps", "weight_decay", "fused", "foreach")
_LOSS_SCALE_STATE = ("cur_scale", "cur_iter", "last_overflow_iter")
"""What a dynamic loss scale has reached; its other attributes are settings."""


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
