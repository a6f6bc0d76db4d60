"""Decide what a run goes on from, and whether it may: what a checkpoint was saved with against what the run has now.

The one idea: each difference is either refused in one line that says what to do, or was asked for by name in
`resume.allow`; those that are let through are recorded in the run's `resumes.jsonl`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.data.encoding.tokenizer import tokenizer_digest
from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.distributed import World, run_on_rank_zero
from versatune_ds.engine.other_world_size import is_convertible
from versatune_ds.mixture.reference import References
from versatune_ds.run_folder.checkpoint_files import newest_valid_checkpoint, read_state, remove_unfinished
from versatune_ds.run_folder.json_lines import append_json_line
from versatune_ds.run_folder.names import RESUMES_FILE

logger = logging.getLogger(__name__)

STATE_VERSION = 2

_PARTS = {"data": "data", "validation": "data", "tokenizer": "tokenizer", "weights": "mixture", "references": "mixture",
          "world_size": "world_size", "zero_stage": "zero_stage"}  # fmt: skip
"""Key of an identity -> what `resume.allow` calls a change of it; other keys may not change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """Hold the checkpoint a run goes on from, and in what it differs from the run."""

    folder: Path
    state: Mapping[str, Any]
    changed: frozenset[str]
    """Keys of the identity that differ, all of them allowed."""
    changed_domains: tuple[str, ...]
    """Domains whose training data is another one."""

    @property
    def needs_conversion(self) -> bool:
        """Return whether DeepSpeed's files must be converted; stage 0 keeps its optimizer whole."""
        has_parts = self.state["identity"]["zero_stage"] > 0
        return has_parts and bool(self.changed & {"world_size", "zero_stage"})


def run_identity(
    config: RunConfig,
    tokenizer: Any,
    data: PreparedData,
    *,
    world: World,
    stage: int,
    weights_K: np.ndarray,
    references: References,
) -> dict[str, Any]:
    """Return what a checkpoint is compared with when a run goes on from it; the same on every rank."""
    return {
        "data": {shards.name: shards.digest for shards in data.train},
        "validation": {shards.name: shards.digest for shards in data.valid},
        "tokenizer": tokenizer_digest(tokenizer),
        "domains": list(data.domain_set),
        "rows_per_batch": config.train.rows_per_batch,
        "world_size": world.world_size,
        "zero_stage": stage,
        "weights": weights_K.tolist(),
        "references": None if references.losses_K is None else references.losses_K.tolist(),
    }


def find_resume_point(config: RunConfig, identity: Mapping[str, Any], *, world: World) -> ResumePoint | None:
    """Return the newest sound checkpoint of a run, None where there is none; leftovers of kills are deleted.

    Communication: see `newest_valid_checkpoint`.

    Raises:
        ValueError: On every rank, one line for each difference that is not allowed.
    """
    run_on_rank_zero(lambda: remove_unfinished(config.run_dir), world)
    folder = newest_valid_checkpoint(config.run_dir, world)
    if folder is None:
        return None
    state = read_state(folder)
    if state["version"] != STATE_VERSION:
        raise ValueError(f"{folder}: saved in format {state['version']}, this is {STATE_VERSION}; use --fresh")
    saved = state["identity"]
    return ResumePoint(
        folder=folder,
        state=state,
        changed=check_identity(saved, identity, folder=folder, allow=config.resume.allow),
        changed_domains=tuple(name for name in identity["data"] if saved["data"].get(name) != identity["data"][name]),
    )


def check_identity(
    saved: Mapping[str, Any], current: Mapping[str, Any], *, folder: Path, allow: Sequence[str]
) -> frozenset[str]:
    """Compare what a checkpoint was made with and what the run has now; return the keys that differ.

    Raises:
        ValueError: One line for each difference that is not allowed, or cannot be.
    """
    changed = [key for key in current if saved.get(key) != current[key]]
    if "domains" in changed:
        raise ValueError(
            f"{folder}: saved with domains {', '.join(saved['domains'])}, now {', '.join(current['domains'])}: a run "
            "keeps its domains. Give them back, or export it (versatune export) and start a run of another run.name "
            "from that folder (model.name_or_path)"
        )
    if "data" in changed and "weights" in changed:
        changed.remove("weights")  # a proportional prior follows the data; the weights reached stay in any case
    refused = [line for key in changed if (line := _refusal(key, saved.get(key), current[key], allow=allow))]
    if refused:
        raise ValueError("\n".join(f"{folder}: {line}" for line in refused))
    return frozenset(changed)


def _refusal(key: str, saved: Any, now: Any, *, allow: Sequence[str]) -> str | None:
    """Return in one line why a difference is refused and what to do; None where it is allowed."""
    if key == "zero_stage" and not is_convertible(saved, now):
        return (
            f"saved under ZeRO stage {saved}, now {now}: DeepSpeed converts between stages 1 and 2 only; give it back, "
            "or export the model and start a new run from it"
        )
    part = _PARTS.get(key)
    if part in allow:
        return None
    what, way_back = f"saved with {key} {saved!r}, now {now!r}", "give it back"
    if isinstance(now, Mapping) and isinstance(saved, Mapping):
        what = f"{key} of {', '.join(name for name in now if saved.get(name) != now[name])} changed since it was saved"
    if key == "world_size":
        way_back = f"use --processes {saved}"
    asking = f", or allow it with 'resume.allow=[{', '.join([*allow, part])}]'" if part else ""
    return f"{what}; {way_back}{asking}, or start over with --fresh"


def restart_changed(
    saved: Mapping[str, Any], current: Mapping[str, Any], *, changed_domains: Sequence[str]
) -> dict[str, Any]:
    """Return a saved place in the data in which the changed domains stand at their first example.

    What a domain was still owed stays: the mixture goes on, over other examples.

    Args:
        saved: The loader's saved state.
        current: The state of a loader of the current data that has not begun.
        changed_domains: Names.
    """
    draws = [
        0 if name in changed_domains else count for name, count in zip(saved["domains"], saved["draws"], strict=True)
    ]
    sizes = {key: current[key] for key in ("num_examples", "lengths_digest")} if changed_domains else {}
    return {**saved, **sizes, "draws": draws}


def record_resume(run_dir: Path, point: ResumePoint, identity: Mapping[str, Any]) -> None:
    """Append to the run's folder what it went on from, and what was changed; on rank 0 only."""
    line = {
        "step": point.state["step"],
        "checkpoint": point.folder.name,
        "world_size": identity["world_size"],
        "zero_stage": identity["zero_stage"],
        "changed": {key: [point.state["identity"].get(key), identity[key]] for key in sorted(point.changed)},
    }
    with (run_dir / RESUMES_FILE).open("ab", buffering=0) as stream:
        append_json_line(stream, line)


def log_resume(point: ResumePoint) -> None:
    """Say where the run goes on, and what is different from now on."""
    logger.info("resuming after step %d from %s", point.state["step"], point.folder)
    if point.changed & {"world_size", "zero_stage"}:
        logger.warning("other processes or ZeRO stage: same batches, losses within rounding, not bit for bit")
    if point.changed_domains:
        logger.warning("changed data, begun anew: %s", ", ".join(point.changed_domains))
    for key in sorted(point.changed - {"world_size", "zero_stage", "data"}):
        logger.warning("%s changed since the checkpoint, allowed by resume.allow", key)
