"""Define the config of a run: all sections of a recipe, and here those too small for a file of their own.

Sizes carry their unit in their name (`_tokens`, `_steps`, `rows_per_x`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from versatune_ds.config.data import DataConfig
from versatune_ds.config.detect import DetectConfig
from versatune_ds.config.held_out_metric import HeldOutMetric
from versatune_ds.config.mixture import MixtureConfig
from versatune_ds.config.model import ModelConfig
from versatune_ds.config.monitor import MonitorConfig
from versatune_ds.config.section import ExpandedPath, Section
from versatune_ds.config.slurm import SlurmConfig
from versatune_ds.config.tasks import TasksConfig
from versatune_ds.config.train import TrainConfig
from versatune_ds.mixture.policies import Policy


class RunSection(Section):
    """Name and folder of the run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run's folder in `output_dir`. If that folder exists, the run resumes; use a new name for a new
    run."""
    output_dir: ExpandedPath = Path("runs")
    """Folder in which run folders are made, relative to the working folder. `~` and $VARIABLES are expanded in every
    path."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything random: initial weights, data order, dropout. Change it to repeat a run with other chance."""


class ValidationConfig(Section):
    """Held-out losses: which examples are measured, and how much time that may take."""

    max_examples_per_domain: int | None = Field(default=200, ge=2)
    """Held-out examples of each domain that are measured while training, always the same ones; null measures all. More
    give smaller errors and take more time."""
    min_examples_per_domain: int = Field(default=20, ge=2)
    """Fewest examples of a domain that `target_standard_error` may choose."""
    target_standard_error: float | None = Field(default=None, gt=0)
    """Measure only as many examples of each domain as this standard error of its mean loss needs, in nats per loss
    token. Step 0 measures `max_examples_per_domain` and chooses; the choice stays to the end of the run. null keeps
    all. The change of a loss is known far better than the loss itself, because it is measured on the same examples.
    Losses of random weights hardly vary at step 0: for such a model give a smaller error, or raise
    `min_examples_per_domain`."""
    max_share: float | None = Field(default=None, gt=0, lt=1)
    """Largest share of the run's time that measuring may take, such as 0.02. If it takes more, losses are measured, and
    the mixture is updated, every 2, 3, ... times `mixture.update_every` steps. null measures every time: a clock
    decides here, so the same recipe may make other decisions on another machine."""
    rows_per_micro_batch: int | None = Field(default=None, ge=1)
    """Packed rows that one process evaluates at a time; by default as in training."""
    tasks: TasksConfig | None = None
    """Questions to ask while training, every so many steps: multiple choice and written answers, recorded as
    `task/choices/accuracy`, `task/choices/DOMAIN/accuracy`, ... They decide nothing."""

    @model_validator(mode="after")
    def _has_room_to_choose(self) -> ValidationConfig:
        most = self.max_examples_per_domain
        if self.target_standard_error is not None and most is not None and self.min_examples_per_domain > most:
            raise ValueError(
                f"validation.min_examples_per_domain: {self.min_examples_per_domain} is more than "
                f"validation.max_examples_per_domain, {most}; lower it or raise the other"
            )
        return self


class ReferenceConfig(Section):
    """How `versatune reference` fine-tunes the base model on each domain alone, to measure what the domain can reach.

    All other settings are the recipe's; this section only says how long to train.
    """

    steps: int | None = Field(default=None, ge=1)
    """Largest number of optimizer steps on each domain; by default half of `train.steps`. Training stops earlier if the
    loss no longer falls."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Optimizer steps between measurements of the held-out loss; by default a tenth of the steps. The number of steps
    is rounded up to a multiple."""
    patience: int = Field(default=2, ge=1)
    """Measurements in a row without a new minimum after which training on a domain stops."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default `train.learning_rate`."""
    model: ModelConfig | None = None
    """Another model than the recipe's, for example a smaller one; it must use the same tokenizer."""
    transfer: bool = True
    """Measure the held-out losses of all domains, not of the one alone, while training on each, and write what every
    domain does to the others to transfer.json. It takes as many times longer to measure as there are domains; training
    and reference.json stay the same."""
    mixed_run: bool = True
    """Also train as many steps on equal shares of all domains. A plan predicts from runs on single domains, and this
    one, at the cost of one domain more, shows how far such a prediction is off. It is part of transfer.json, so
    `transfer: false` leaves it out too."""
    keep_models: bool = True
    """Keep the weights after the last step on each domain: the model in the precision of training, or its LoRA adapters
    alone. `versatune plan --planner merge` and `mixmin` need them; without them every domain has to be trained on again
    for such a plan. They take the room of one model a domain: the size is logged, and compared with the free disk,
    before training. `false` keeps none."""


class CheckpointConfig(Section):
    """When state is saved, and how many checkpoints are kept."""

    every: int | None = Field(default=None, ge=1)
    """Optimizer steps between checkpoints. By default one is saved only at the end and when a signal stops the run."""
    every_minutes: float | None = Field(default=None, gt=0)
    """Minutes between checkpoints, in addition to `every`; rank 0's clock is read after each step."""
    keep: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep. While one is saved, the disk needs room for one more."""
    background: bool = False
    """Whether training continues while a checkpoint is written. It then waits only until each process has copied its
    state into the host's memory, which needs room for that copy (`versatune check` gives its size; on GPUs it is pinned
    memory), and until the save before is complete. false waits until the checkpoint is on disk. The last checkpoint of
    a run, and that of a signal, are always waited for. The files are the same, and so is what a kill leaves."""
    best: HeldOutMetric | None = None
    """Also keep the checkpoint with the lowest held-out loss, whatever its age: by `validation/loss` (the mean of all
    domains), `domain/NAME/loss` (one of them) or `worst_domain` (the largest change of a domain's loss since step 0, as
    a share of it: the smallest rise, or the gain of the domain that gained least). A new best measurement after step 0
    is saved at once, so while losses fall every measurement saves a checkpoint; the disk needs room for one more.
    `versatune export` and `evaluate` then take the best one. null keeps the newest alone."""


ALLOWED_BY_DEFAULT = ("world_size", "zero_stage")
"""Names in `resume.allow` of what only changes where a run runs."""


class ResumeConfig(Section):
    """What may differ from the checkpoint that a run resumes from.

    What changes the result of a run must be allowed by name; what only changes where it runs is allowed by default.
    """

    allow: tuple[Literal["data", "tokenizer", "mixture", "world_size", "zero_stage", "learning_rate"], ...] = (
        ALLOWED_BY_DEFAULT
    )
    """What may differ from the checkpoint; `world_size` and `zero_stage` may unless the list is empty, and need not be
    repeated. `world_size`: another number of processes; the batches are the same, losses
    agree within rounding. `zero_stage`: 1 instead of 2, or 2 instead of 1. `data`: a changed domain starts its data
    from the beginning. `tokenizer`: needs `data` too, and a vocabulary that fits. `mixture`: another policy,
    references, prior or signal of your own; the current weights stay. `learning_rate`: more `train.steps` may make
    the learning rate jump up, as a cosine that is stretched does. `[]` refuses every difference: the run resumes
    bit for bit or not at all."""

    @property
    def allowed(self) -> tuple[str, ...]:
        """Return what may differ: what is listed, and what may by default; nothing where the list is empty."""
        return tuple(dict.fromkeys((*ALLOWED_BY_DEFAULT, *self.allow))) if self.allow else ()


def allowing(allowed: Sequence[str], *parts: str) -> str:
    """Return the override that allows more than a run allows now; what may differ by default is not repeated."""
    names = dict.fromkeys([*(name for name in allowed if name not in ALLOWED_BY_DEFAULT), *parts])
    return f"'resume.allow=[{', '.join(names)}]'"


class RunConfig(Section):
    """The config of a run: the recipe, checked and frozen."""

    run: RunSection
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    mixture: MixtureConfig = MixtureConfig()
    validation: ValidationConfig = ValidationConfig()
    reference: ReferenceConfig = ReferenceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resume: ResumeConfig = ResumeConfig()
    monitor: MonitorConfig = MonitorConfig()
    detect: DetectConfig = DetectConfig()
    slurm: SlurmConfig = SlurmConfig()

    @model_validator(mode="after")
    def _is_updated_in_short_runs_too(self) -> RunConfig:
        """Adapt the default interval between updates to the length of the run, where that is known."""
        if self.train.steps is not None:
            object.__setattr__(self, "mixture", self.mixture.for_length(self.train.steps))
        return self

    def with_train(self, train: TrainConfig) -> RunConfig:
        """Return the config with another train section, and the default interval between updates for its length."""
        mixture = self.mixture if train.steps is None else self.mixture.for_length(train.steps)
        return self.model_copy(update={"train": train, "mixture": mixture})

    @property
    def run_dir(self) -> Path:
        """Return the folder of the run."""
        return self.run.output_dir / self.run.name

    @property
    def cache_dir(self) -> Path:
        """Return the folder of prepared shards, trained tokenizers and fetched files."""
        return self.data.cache_dir or self.run.output_dir / ".cache"

    @property
    def rows_evaluated_at_once(self) -> int:
        """Return the rows that one process evaluates at a time: those of validation, else of training."""
        return self.validation.rows_per_micro_batch or self.train.rows_per_micro_batch

    def with_rule(self, rule: Policy | None) -> RunConfig:
        """Return the config with the rule of `mixture.policy` given as a value; None leaves it as it is."""
        return self if rule is None else self.model_copy(update={"mixture": self.mixture.with_rule(rule)})

    def with_signal(self, signal: Callable[..., Any] | None) -> RunConfig:
        """Return the config with the function of `mixture.signal` given as a value; None leaves it as it is."""
        return self if signal is None else self.model_copy(update={"mixture": self.mixture.with_signal(signal)})

    def default_output(self, key: Literal["prior", "reference"]) -> Path:
        """Return the file that `mixture.KEY` names, else NAME-KEY.json in the folder of the runs."""
        named = getattr(self.mixture, key)
        return named if isinstance(named, Path) else self.run.output_dir / f"{self.run.name}-{key}.json"
