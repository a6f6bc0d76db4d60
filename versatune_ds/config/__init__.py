"""Read a recipe, a YAML file plus `key=value` overrides, into a typed and frozen config.

The pydantic models in this room define every key that a user can set. An unknown key, a wrong type or a contradiction
is reported in one line, before any GPU is used.
"""

from versatune_ds.config.checkpoint import CheckpointConfig, ResumeConfig
from versatune_ds.config.data import EXAMPLE_PARTS, DataConfig, DataSource, DomainFiles, HubDataset, SyntheticCorpus
from versatune_ds.config.detect import DetectConfig, EndpointConfig, LocalLabellerConfig, SamplingConfig
from versatune_ds.config.load import load_config
from versatune_ds.config.lora import LoraConfig
from versatune_ds.config.mixture import MixtureConfig
from versatune_ds.config.model import ModelConfig
from versatune_ds.config.monitor import MonitorConfig
from versatune_ds.config.recipe import RunConfig
from versatune_ds.config.reference import ReferenceConfig
from versatune_ds.config.slurm import ContainerConfig, SlurmConfig
from versatune_ds.config.train import TrainConfig
from versatune_ds.config.validation import ValidationConfig

__all__ = [
    "EXAMPLE_PARTS",
    "CheckpointConfig",
    "ContainerConfig",
    "DataConfig",
    "DataSource",
    "DetectConfig",
    "DomainFiles",
    "EndpointConfig",
    "HubDataset",
    "LocalLabellerConfig",
    "LoraConfig",
    "MixtureConfig",
    "ModelConfig",
    "MonitorConfig",
    "ReferenceConfig",
    "ResumeConfig",
    "RunConfig",
    "SamplingConfig",
    "SlurmConfig",
    "SyntheticCorpus",
    "TrainConfig",
    "ValidationConfig",
    "load_config",
]
