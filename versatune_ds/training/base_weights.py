"""Identify the frozen weights of a run with adapters, so that its checkpoints need not contain them.

A checkpoint of such a run has the adapters, and the digest of the files that the base model was loaded from. Resuming
and exporting load the base model again, and refuse one whose files have changed. Checkpoints contain frozen weights as
before where there are no such files, and in a run that an earlier version began.

Random weights (`model.from_config`) have no files. They are a function of the seed, the kind of device and the versions
of torch and transformers: a run that resumed after an upgrade, or on a CPU, would find others. So checkpoints contain
them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from versatune_ds.config import ModelConfig, RunConfig
from versatune_ds.data.manifest import digest_of_texts
from versatune_ds.data.sources.source_digests import SourceDigests
from versatune_ds.distributed import World, from_rank_zero
from versatune_ds.model.saved_weights import local_weight_files
from versatune_ds.training.prepared_data import cache_folder

logger = logging.getLogger(__name__)

BASE_WEIGHTS = "base_weights"
"""Key of the digest in the identity that a checkpoint saves; absent where it has the frozen weights."""


def base_weights_digest(model: ModelConfig, *, cache_dir: Path) -> str | None:
    """Return the digest of the files that a model's frozen weights were loaded from.

    Args:
        model: The recipe's model section.
        cache_dir: Where digests of large files are cached.

    Returns:
        None where all weights are trained, or no such files are on this machine.
    """
    if model.lora is None or model.name_or_path is None:
        return None
    files = local_weight_files(model.name_or_path)
    return digest_of_texts(SourceDigests(cache_dir).of(files)) if files else None


def identity_of_base(
    config: RunConfig, *, saved: Mapping[str, Any] | None, folder: Path | None, world: World
) -> dict[str, str]:
    """Return on every rank what checkpoints record of the base model; empty where they have the frozen weights.

    The model is loaded by now, so that one of the Hub is on this machine. Communication: one broadcast of the digest,
    or of an error.

    Args:
        config: The recipe.
        saved: The identity in the checkpoint that the run resumes from; None at the start.
        folder: That checkpoint.
        world: This process's place.

    Raises:
        ValueError: On every rank, if the base model's files have changed since the checkpoint.
    """
    if config.model.lora is None or (saved is not None and BASE_WEIGHTS not in saved):
        return {}

    def checked_digest() -> str | None:
        digest = base_weights_digest(config.model, cache_dir=cache_folder(config))
        if saved is not None and digest != saved[BASE_WEIGHTS]:
            raise ValueError(f"{changed_line(folder, config.model)}, or start over with --fresh")
        return digest

    digest = from_rank_zero(checked_digest, world)
    if world.is_rank_zero and saved is None:
        logger.info("checkpoints contain %s", _content(config.model, has_files=digest is not None))
    return {BASE_WEIGHTS: digest} if digest else {}


def _content(model: ModelConfig, *, has_files: bool) -> str:
    """Return what checkpoints contain, and why."""
    if has_files:
        return "the adapters alone; the base model is loaded from its own files again, and must not change"
    if model.from_config is None:
        return "the frozen weights too: the base model has no files on this machine"
    return (
        "the frozen weights too: model.from_config made them from run.seed, and another kind of device or another "
        "version of torch or transformers may make other ones from it; train from a saved model to leave them out"
    )


def changed_line(folder: Path | None, model: ModelConfig) -> str:
    """Return the error message for a base model that is no longer the one a checkpoint's adapters belong to."""
    return (
        f"{folder}: contains adapters of the base model {model.name_or_path}, whose weights are missing or have "
        "changed since it was saved; restore the earlier files"
    )
