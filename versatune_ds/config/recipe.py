"""Define the config of a run: the `run` section and all others.

Sizes carry their unit in their name (`_tokens`, `_steps`, `rows_per_x`).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from versatune_ds.config.checkpoint import CheckpointConfig, ResumeConfig
from versatune_ds.config.data import DataConfig
from versatune_ds.config.detect import DetectConfig
from versatune_ds.config.mixture import MixtureConfig
from versatune_ds.config.model import ModelConfig
from versatune_ds.config.monitor import MonitorConfig
from versatune_ds.config.reference import ReferenceConfig
from versatune_ds.config.section import ExpandedPath, Section
from versatune_ds.config.slurm import SlurmConfig
from versatune_ds.config.train import TrainConfig
from versatune_ds.config.validation import ValidationConfig


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


class RunConfig(Section):
    """The config of a run: the recipe, checked and frozen."""

    run: RunSection
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    mixture: MixtureConfig
    validation: ValidationConfig = ValidationConfig()
    reference: ReferenceConfig = ReferenceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resume: ResumeConfig = ResumeConfig()
    monitor: MonitorConfig = MonitorConfig()
    detect: DetectConfig = DetectConfig()
    slurm: SlurmConfig = SlurmConfig()

    @model_validator(mode="after")
    def _can_pack_with_its_attention(self) -> RunConfig:
        """Check that attention cannot cross from one packed example to the next."""
        sizes = {self.train.rows_per_micro_batch, self.validation.rows_per_micro_batch or 1}
        if self.model.attention == "flash_attention_2" and sizes != {1}:
            # transformers 5 separates packed examples only in batches of one row; with more, attention would cross.
            raise ValueError(
                "model.attention: flash_attention_2 needs train.rows_per_micro_batch and "
                "validation.rows_per_micro_batch of 1 (make rows longer instead), or use sdpa"
            )
        return self

    @property
    def run_dir(self) -> Path:
        """Return the folder of the run."""
        return self.run.output_dir / self.run.name
