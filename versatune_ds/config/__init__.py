"""Read a recipe, a YAML file plus `key=value` overrides, into a typed and frozen config.

The pydantic models in this room define every key that a user can set. An unknown key, a wrong type or a contradiction
is reported in one line, before any GPU is used.
"""

from versatune_ds.config.data import DataConfig, DomainFiles, HubDataset, SyntheticCorpus
from versatune_ds.config.detect import (
    USER_HEADER,
    DetectConfig,
    EmbeddingConfig,
    EndpointConfig,
    LocalLabellerConfig,
    SamplingConfig,
)
from versatune_ds.config.load import load_config
from versatune_ds.config.mixture import MixtureConfig
from versatune_ds.config.model import LoraConfig, ModelConfig
from versatune_ds.config.monitor import MonitorConfig
from versatune_ds.config.recipe import RunConfig, ValidationConfig
from versatune_ds.config.slurm import SlurmConfig
from versatune_ds.config.train import TrainConfig

__all__ = [
    "USER_HEADER",
    "DataConfig",
    "DetectConfig",
    "DomainFiles",
    "EmbeddingConfig",
    "EndpointConfig",
    "HubDataset",
    "LocalLabellerConfig",
    "LoraConfig",
    "MixtureConfig",
    "ModelConfig",
    "MonitorConfig",
    "RunConfig",
    "SamplingConfig",
    "SlurmConfig",
    "SyntheticCorpus",
    "TrainConfig",
    "ValidationConfig",
    "load_config",
]
