"""Check that checkpoints and prepared data fit on the disk.

`checkpoint.keep` checkpoints exist while the next one is written, so there must be room for one more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from versatune_ds.config import RunConfig
from versatune_ds.engine.ds_settings import zero_stage
from versatune_ds.model.build import DTYPES
from versatune_ds.preflight.memory import estimates_of, gib
from versatune_ds.preflight.memory_estimate import ModelSize
from versatune_ds.preflight.rows import encode_sample
from versatune_ds.preflight.subject import Subject
from versatune_ds.run_folder.names import CHECKPOINTS_FOLDER
from versatune_ds.training.finding import Finding, fail, ok

_CACHE_BYTES_PER_TOKEN = 13
"""Prepared data besides the text of their records: ids (4 bytes), in the shards and while they are built, and loss."""


def checkpoint_bytes(config: RunConfig, *, size: ModelSize, ds_config: Mapping[str, Any]) -> int:
    """Return the size of a checkpoint: weights, two moments of Adam, and fp32 copies where the optimizer has any.

    Under ZeRO-3 trained weights are written once, as the optimizer's fp32 copies.
    """
    dtype = DTYPES[config.train.precision]
    copies = 4 if zero_stage(ds_config) > 0 or dtype != torch.float32 else 0
    moments = 2 if config.train.optimizer == "adamw_8bit" else 8
    is_written_once = zero_stage(ds_config) == 3
    num_weights = size.num_parameters - size.num_trained if is_written_once else size.num_parameters
    return num_weights * dtype.itemsize + size.num_trained * (moments + copies)


def check_disk(subject: Subject) -> Iterator[Finding]:
    """Compare checkpoints, then prepared data, with the free space of their folders."""
    config = subject.config
    one = checkpoint_bytes(config, size=estimates_of(subject).size, ds_config=subject.ds_config)
    existing = _size_of(config.run_dir / CHECKPOINTS_FOLDER)
    needed = one * (config.checkpoint.keep + 1)
    about = f"{config.checkpoint.keep} checkpoints and one being written, {gib(one)} each"
    folder = config.run_dir / CHECKPOINTS_FOLDER  # may be a link to another disk
    yield _compare(
        "checkpoint.keep", about, needed=needed - existing, folder=folder, todo="keep fewer, or set run.output_dir"
    )
    text, tokens = subject.num_bytes, _num_tokens(subject)
    yield _compare(
        "data.cache_dir",
        f"prepared data, about {tokens / 1e6:,.1f} M tokens",
        needed=int(text + tokens * _CACHE_BYTES_PER_TOKEN),
        folder=subject.cache_dir,
        todo="set data.cache_dir to a larger disk",
    )


def _num_tokens(subject: Subject) -> float:
    """Return the training tokens of all domains, estimated from sampled rows."""
    return sum(
        encode_sample(subject, name).mean_tokens * subject.sample(name, "train").num_rows
        for name in subject.readable_domains()
    )


def _compare(key: str, about: str, *, needed: int, folder: Path, todo: str) -> Finding:
    """Compare what is needed with what is free, and check that the folder can be written."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        return fail("disk", key, f"{existing} cannot be written", "choose another folder")
    if needed > free:
        return fail("disk", key, f"{about}: {gib(needed)}, but {existing} has {gib(free)} free", todo)
    return ok("disk", key, f"{about}; {gib(free)} free in {existing}")


def _size_of(folder: Path) -> int:
    """Return the bytes of a folder's files, 0 if there is none: a resumed run deletes old checkpoints."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
