"""Hold the typed config of a run: one YAML file plus `key=value` overrides, read strictly.

The one idea: what a user can set is exactly what the models in this package name. An unknown key, a wrong type or a
contradiction is one line on the terminal, before any GPU is taken.
"""

from versatune_ds.config.load import load_config
from versatune_ds.config.mixture import MixtureConfig
from versatune_ds.config.sections import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    MonitorConfig,
    RunConfig,
    TrainConfig,
    ValidationConfig,
)

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "MixtureConfig",
    "ModelConfig",
    "MonitorConfig",
    "RunConfig",
    "TrainConfig",
    "ValidationConfig",
    "load_config",
]
