"""Define the train section of a recipe.

Lengths are in optimizer steps, batch sizes in packed rows; DeepSpeed's own batch keys are derived from them. A length
in `epochs` becomes one in steps once the data are known (`training/length/run_length.py`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from versatune_ds.config.held_out_metric import EarlyStoppingConfig
from versatune_ds.config.section import ExpandedPath, PlainMapping, Section


class TrainConfig(Section):
    """Optimisation: lengths in optimizer steps, batch sizes in packed rows."""

    steps: int | None = Field(default=None, ge=1)
    """Length of the run, in optimizer steps. Give either this or `epochs`. A run that has begun may get more steps: it
    resumes, if the learning rate does not jump (`resume.allow`)."""
    epochs: float | None = Field(default=None, gt=0)
    """Length of the run in passes over the training data, instead of `steps`; `epochs_of` says over which. They become
    steps, rounded up, once the data are prepared: the log and the run's config.yaml have the number."""
    epochs_of: Literal["all", "smallest"] = "all"
    """What one of the `epochs` is. `all`: as many tokens as all domains have together. The mixture decides which of
    them are read more often than that, and which less. `smallest`: one pass over the smallest domain under the weights
    of step 0; the controller may move them later."""
    steps_from: str | None = None
    """Written by a run, not by you: the `epochs` that its `steps` were computed from, as in `3 epochs of all data`."""
    rows_per_batch: int = Field(default=8, ge=1)
    """Batch size: packed rows of one optimizer step, over all processes. A row has `data.row_tokens` tokens."""
    rows_per_micro_batch: int = Field(default=1, ge=1)
    """Packed rows that one process takes through the model at a time. Raise it while memory lasts; it changes the
    speed, not the loss."""
    sequence_parallel: int = Field(default=1, ge=1)
    """For rows that do not fit one GPU: so many neighbouring processes share each row, with an equal slice of its
    tokens. The losses stay the same; the memory of activations is divided by it. The number of processes,
    `data.row_tokens` and the model's attention heads must be multiples of it."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate."""
    learning_rate_schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the learning rate falls after the warm-up; `wsd` (warm-up, stable, decay) falls only at the end."""
    min_learning_rate_fraction: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the last step, as a fraction of the peak."""
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises linearly from 0."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """The same as a number of steps, instead of `warmup_fraction`."""
    decay_fraction: float = Field(default=0.1, gt=0, le=1)
    """Share of the steps, at the end, over which `wsd` falls."""
    optimizer: Literal["adamw", "deepspeed_adam", "adamw_8bit"] = "adamw"
    """`adamw` is PyTorch's, in its fused form on a GPU. `deepspeed_adam` is DeepSpeed's, compiled at first use: its CPU
    version where the optimizer is on the CPU (offload, no GPU), its fused version otherwise. `adamw_8bit` stores its
    states in 8 bits and needs a GPU and the extra `8bit`."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay; biases and norms are not decayed."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """AdamW's decay of the mean of gradients, per step."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """AdamW's decay of the mean of squared gradients, per step."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradient norm above which gradients are scaled down; 0 turns clipping off."""
    max_bad_steps: int = Field(default=20, ge=1)
    """Stop the run after this many steps in a row without an update (a gradient that is not finite, a spike). fp16
    skips some steps at the start, until the loss scale fits."""
    spike_factor: float | None = Field(default=None, gt=1)
    """Skip a step whose loss is more than this many times the usual one. Off by default: a spike is often just a hard
    batch, and looking for spikes waits for the device once a step."""
    early_stopping: EarlyStoppingConfig | None = None
    """End the run when its held-out losses no longer fall: complete, saved, and with the reason in its records. The
    learning rate is as far down as its schedule is by then. `true` takes the defaults, null trains to the last step."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of weights and activations; the optimizer keeps fp32. Gradients of several micro-steps are summed
    in fp32 too, under ZeRO stage 2 (without offloading) and 3, unless `train.deepspeed` sets another
    `data_types.grad_accum_dtype`."""
    deepspeed: ExpandedPath | PlainMapping = Field(default={"zero_optimization": {"stage": 2}})
    """DeepSpeed settings, for example ZeRO stage and offload: a name (zero0, zero1, zero2, zero2_offload, zero3,
    zero3_offload, zero3_nvme: the files of ds_configs/), a JSON file or a mapping. Batch sizes, precision and optimizer
    are taken from this section instead."""

    @property
    def length_in_epochs(self) -> str | None:
        """Return the length in words where it is given in epochs, such as `3 epochs of all data`; else None."""
        if self.epochs is None:
            return None
        of = {"all": "all data", "smallest": "the smallest domain"}[self.epochs_of]
        return f"{self.epochs:g} epoch{'' if self.epochs == 1 else 's'} of {of}"

    @property
    def num_warmup_steps(self) -> int:
        """Return the steps over which the learning rate rises."""
        assert self.steps is not None, "epochs are resolved first"
        return round(self.warmup_fraction * self.steps) if self.warmup_steps is None else self.warmup_steps

    @property
    def num_decay_steps(self) -> int:
        """Return the steps over which `wsd` falls."""
        assert self.steps is not None, "epochs are resolved first"
        return max(1, round(self.decay_fraction * self.steps))

    @field_validator("early_stopping", mode="before")
    @classmethod
    def _is_on_or_off(cls, value: Any) -> Any:
        """Accept true for the defaults and false for none."""
        if isinstance(value, bool):
            return {} if value else None
        return value

    @model_validator(mode="after")
    def _has_one_length(self) -> TrainConfig:
        """Check that the length is given once."""
        if self.steps is None and self.epochs is None:
            raise ValueError(
                "train.steps: missing; give the length of the run in optimizer steps, or in passes over the data "
                "(train.epochs=3)"
            )
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"train.epochs: {self.epochs:g}, and train.steps is {self.steps}: both are the length of the run; "
                "leave one of the two out"
            )
        if self.steps_from is not None and self.steps is None:
            raise ValueError("train.steps_from: only a run writes it, beside its train.steps; leave it out")
        return self

    @model_validator(mode="after")
    def _rises_and_falls_within_its_steps(self) -> TrainConfig:
        """Check that the warm-up is given once, and that warm-up and decay fit into the run."""
        default = type(self).model_fields["warmup_fraction"].default
        if self.warmup_steps is not None and self.warmup_fraction != default:
            raise ValueError(
                f"train.warmup_steps: {self.warmup_steps}, and train.warmup_fraction is {self.warmup_fraction}; "
                "leave one of the two out"
            )
        if self.steps is None:
            return self  # checked when the steps are known
        if self.num_warmup_steps >= self.steps > 1:
            raise ValueError(
                f"train.warmup_steps: {self.num_warmup_steps}: expected fewer than train.steps={self.steps}"
            )
        is_wsd = self.learning_rate_schedule == "wsd"
        if is_wsd and self.num_warmup_steps + self.num_decay_steps > self.steps:
            raise ValueError(
                f"train.decay_fraction: {self.num_decay_steps} steps of decay and {self.num_warmup_steps} of warm-up "
                f"are more than train.steps={self.steps}; lower one of them"
            )
        return self
