"""Save and restore a run so that a checkpoint is either whole or does not count.

The one idea: DeepSpeed's files and our own `versatune.json` are written into `step_XXXXXXXX.partial`; only when the
MANIFEST with every file's size and checksum lies beside them is the folder renamed to `step_XXXXXXXX`. Whatever is
killed before that leaves the previous checkpoint as the newest whole one.

Our own state is rank-independent: below ZeRO-3 one rank writes DeepSpeed's `client_state` and every rank would read
that rank's values back (deepspeed 0.19.8), so nothing of ours is stored there.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from versatune_ds.distributed import World, broadcast_text, run_on_rank_zero, sum_over_ranks

logger = logging.getLogger(__name__)

STATE_FILE = "versatune.json"
MANIFEST_FILE = "MANIFEST"
_BLOCK_BYTES = 1 << 24


def checkpoint_folder(run_dir: Path, *, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return run_dir / "checkpoints" / f"step_{step:08d}"


def save_checkpoint(
    deepspeed_engine: Any, *, run_dir: Path, step: int, state: dict[str, Any], keep: int, world: World
) -> Path:
    """Save DeepSpeed's state and ours as one whole, and drop the oldest checkpoints beyond `keep`.

    Communication: DeepSpeed's own barriers, one all-reduce of the files' checksums (each rank reads its share), and
    a barrier at the end.

    Args:
        deepspeed_engine: The engine whose weights and optimizer are saved.
        run_dir: The run's folder.
        step: Optimizer steps done.
        state: Rank-independent JSON state; the same on all ranks.
        keep: Newest checkpoints kept.
        world: This process's place.
    """
    folder = checkpoint_folder(run_dir, step=step)
    partial = folder.with_name(folder.name + ".partial")
    run_on_rank_zero(lambda: _make_empty(partial), world)
    deepspeed_engine.save_checkpoint(str(partial.parent), tag=partial.name, client_state={}, save_latest=False)
    run_on_rank_zero(lambda: (partial / STATE_FILE).write_text(json.dumps(state, indent=1)), world)
    manifest = _measure_files(partial, world)
    run_on_rank_zero(lambda: _make_whole(partial, folder, manifest=manifest, keep=keep), world)
    return folder


def _make_empty(folder: Path) -> None:
    """Create a folder, dropping what a killed save left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _measure_files(folder: Path, world: World) -> dict[str, list[int]]:
    """Return {relative path: [bytes, crc32]} of a folder; every rank reads each world_size-th file.

    Rank 0 alone lists the folder: on a network file system the others may not see every name yet.
    """
    names = json.loads(broadcast_text(json.dumps(_file_names(folder)) if world.is_rank_zero else None, world))
    measured = np.zeros((len(names), 2))
    for i in range(world.rank, len(names), world.world_size):
        measured[i] = (folder / names[i]).stat().st_size, _crc32(folder / names[i])
    totals = sum_over_ranks(measured)  # below 2^53, so exact in float64
    return {name: [int(size), int(crc)] for name, (size, crc) in zip(names, totals, strict=True)}


def _file_names(folder: Path) -> list[str]:
    """Return the relative paths of a folder's files, sorted, without the manifest."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _crc32(path: Path) -> int:
    """Return a file's checksum, read in blocks."""
    checksum = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _make_whole(partial: Path, folder: Path, *, manifest: dict[str, list[int]], keep: int) -> None:
    """Write the manifest, give the folder its name, point `latest` at it, drop the oldest."""
    text = json.dumps({"version": 1, "files": manifest}, indent=1)
    with (partial / MANIFEST_FILE).open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    latest = folder.with_name("latest")
    temporary = latest.with_name("latest.partial")
    temporary.write_text(folder.name + "\n", encoding="utf-8")
    temporary.replace(latest)
    for old in whole_checkpoints(folder.parent.parent)[keep:]:
        shutil.rmtree(old)


def whole_checkpoints(run_dir: Path) -> list[Path]:
    """Return the folders of checkpoints that were finished, newest first."""
    folders = (run_dir / "checkpoints").glob("step_????????")
    return sorted((path for path in folders if (path / MANIFEST_FILE).is_file()), reverse=True)


def newest_sound_checkpoint(run_dir: Path, world: World) -> Path | None:
    """Return the newest checkpoint whose files are as its MANIFEST says, naming each that is not.

    Communication: a broadcast of what rank 0 finds, then one all-reduce per checkpoint looked at.
    """
    found = [folder.name for folder in whole_checkpoints(run_dir)] if world.is_rank_zero else []
    for name in json.loads(broadcast_text(json.dumps(found), world)):
        folder = run_dir / "checkpoints" / name
        expected = json.loads(broadcast_text(_manifest_text(folder) if world.is_rank_zero else None, world))
        is_broken = _is_broken(folder, expected, first=world.rank, stride=world.world_size)
        broken = [sorted(expected)[i] for i in np.flatnonzero(sum_over_ranks(is_broken))]
        if not broken:
            return folder
        logger.warning("%s is broken (%s); trying the one before", folder, ", ".join(broken))
    return None


def check_sound(folder: Path) -> None:
    """Compare all files of a checkpoint with its MANIFEST, in this process alone.

    Raises:
        RuntimeError: Naming the files that are missing or differ.
    """
    expected = json.loads(_manifest_text(folder))
    broken = [sorted(expected)[i] for i in np.flatnonzero(_is_broken(folder, expected, first=0, stride=1))]
    if broken:
        raise RuntimeError(f"{folder} is broken ({', '.join(broken)}); remove it to fall back on the one before")


def _manifest_text(folder: Path) -> str:
    """Return the files a checkpoint's manifest lists, as JSON."""
    return json.dumps(json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))["files"])


def _is_broken(folder: Path, expected: dict[str, list[int]], *, first: int, stride: int) -> np.ndarray:
    """Return 1 for each file, in the order of names, that is missing or differs; each stride-th one is looked at."""
    names = sorted(expected)
    is_broken = np.zeros(len(names))
    for i in range(first, len(names), stride):
        path = folder / names[i]
        size, checksum = expected[names[i]]
        is_broken[i] = not (path.is_file() and path.stat().st_size == size and _crc32(path) == checksum)
    return is_broken


def load_checkpoint(deepspeed_engine: Any, folder: Path) -> None:
    """Restore weights and optimizer from a checkpoint.

    Raises:
        RuntimeError: If DeepSpeed finds nothing it can load.
    """
    loaded, _ = deepspeed_engine.load_checkpoint(str(folder.parent), tag=folder.name)
    if loaded is None:
        raise RuntimeError(f"{folder}: DeepSpeed could not load it; remove the folder to fall back on the one before")


def read_state(folder: Path) -> dict[str, Any]:
    """Return our own state of a checkpoint."""
    return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))


def open_weights(folder: Path) -> dict[str, Any]:
    """Return the model's weights of a checkpoint by name, fp32 masters where the optimizer keeps them, hardly read.

    Each has `shape` and `dtype`, and `contiguous()` reads it as a tensor. Under ZeRO-3 the files of all ranks are
    mapped and a weight is put together when it is asked for; below, all of them are in memory from the start.
    """
    if list(folder.glob("*_optim_states.pt")):
        return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name, lazy_mode=True))
    # Stage 0: DeepSpeed's own file also holds its config objects, so weights_only cannot read it whole.
    path = folder / "mp_rank_00_model_states.pt"
    return dict(torch.load(path, map_location="cpu", mmap=True, weights_only=False)["module"])
