"""Define the config of a run: the `run` section and all others.

Sizes carry their unit in their name (`_tokens`, `_steps`, `rows_per_x`).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

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

    @property
    def run_dir(self) -> Path:
        """Return the folder of the run."""
        return self.run.output_dir / self.run.name
