"""Keep the recipe's optimizer settings when a checkpoint is loaded.

A checkpoint of DeepSpeed (0.19.8) brings the settings it was saved with: weight decay, betas and epsilon in every
parameter group, under stages 1 and 2 the clipping norm, in fp16 those of the loss scale. A universal checkpoint of
stage 3 gives the first group's to all groups, so that norms and biases would decay. Only what training has reached
may come from a checkpoint: moments, step counts, the current loss scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_GROUP_SETTINGS = ("betas", "eps", "weight_decay")
_REACHED = ("cur_scale", "cur_iter", "last_overflow_iter")
"""What a dynamic loss scale has reached; its other attributes are settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """Settings of an optimizer as the recipe made it, before a checkpoint is loaded."""

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
            loaded, was_dynamic = optimizer.loss_scale_config, self.loss_scale_config["dynamic_loss_scale"]
            is_reached = was_dynamic and loaded.dynamic_loss_scale
            kept = {key: value for key, value in self.loss_scale_config.items() if not (is_reached and key in _REACHED)}
            vars(loaded).update(kept)

    def _restore_loss_scaler(self, optimizer: Any) -> None:
        """Put the loss scaler of the recipe in the place of the loaded one, at the scale that this had reached."""
        loaded, ours = optimizer.loss_scaler, self.loss_scaler
        if loaded.dynamic and ours.dynamic:
            for name in _REACHED:
                setattr(ours, name, getattr(loaded, name))
            ours.cur_hysteresis = min(loaded.cur_hysteresis, ours.delayed_shift)
        optimizer.loss_scaler, optimizer.dynamic_loss_scale = ours, ours.dynamic
