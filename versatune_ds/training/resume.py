"""Find the checkpoint a run resumes from, compare it with the run, and restore the run's parts from it.

Each difference between what the checkpoint was saved with and what the run has now is refused in one line that states
what to do, or allowed by name in `resume.allow`; allowed ones are recorded in the run's `resumes.jsonl`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.config.recipe import allowing
from versatune_ds.data.encoding.tokenizer import tokenizer_digest
from versatune_ds.distributed import World, from_rank_zero, run_on_rank_zero
from versatune_ds.engine.checkpoint import load_checkpoint
from versatune_ds.engine.engine import Engine
from versatune_ds.engine.other_world_size import is_convertible, load_converted
from versatune_ds.run_folder.checkpoint_files import newest_valid_checkpoint, read_state, remove_unfinished
from versatune_ds.run_folder.json_lines import append_to_file
from versatune_ds.run_folder.names import RESUMES_FILE
from versatune_ds.training.base_weights import BASE_WEIGHTS
from versatune_ds.training.length.extension import steps_at
from versatune_ds.training.mixture_start import MixtureStart
from versatune_ds.training.prepared_data import RunSetup

logger = logging.getLogger(__name__)

STATE_VERSION = 2

SAVED_PARTS = (
    "loader", "schedule", "served", "bad_steps", "controller", "validation", "train_losses", "updates", "best",
    "early_stopping",
)  # fmt: skip
"""Fields of `Run` whose `state_dict` a checkpoint saves, each under its name in versatune.json."""

_PARTS_ADDED_LATER = ("validation", "train_losses", "updates", "best", "early_stopping")
"""Checkpoints of earlier versions, or of a run with another `mixture.signal`, have no state for these."""

_PARTS = {"data": "data", "validation": "data", "tokenizer": "tokenizer", "weights": "mixture", "references": "mixture",
          "signal": "mixture", "world_size": "world_size", "sequence_parallel": "world_size",
          "zero_stage": "zero_stage"}  # fmt: skip
"""Key of an identity -> the name in `resume.allow` that permits a change of it; other keys may not change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """The checkpoint a run resumes from, and how it differs from the run."""

    folder: Path
    state: Mapping[str, Any]
    changed: frozenset[str]
    """Keys of the identity that differ, all of them allowed."""
    changed_domains: tuple[str, ...]
    """Domains whose training data has changed."""
    is_extended: bool = False
    """Whether the run had done its last step by then, but has more steps now."""
    has_later_ones: bool = False
    """Whether later checkpoints are set aside, because an extended run cannot continue from them."""

    @property
    def step(self) -> int:
        """Return the optimizer steps done when it was saved."""
        return self.state["step"]

    @property
    def is_complete(self) -> bool:
        """Return whether the run had done its last step by then, and has no more steps now."""
        return self.state["is_complete"] and not self.is_extended

    @property
    def needs_conversion(self) -> bool:
        """Return whether DeepSpeed's files must be converted; stage 0 does not split its optimizer into parts."""
        has_parts = self.state["identity"]["zero_stage"] > 0
        return has_parts and bool(self.changed & {"world_size", "zero_stage"})


def run_identity(setup: RunSetup, mixture: MixtureStart) -> dict[str, Any]:
    """Return what a checkpoint is compared with when the run resumes from it; the same on every rank."""
    data, references = setup.data, mixture.references
    return {
        "data": {shards.name: shards.digest for shards in data.train},
        "validation": {shards.name: shards.digest for shards in data.valid},
        "tokenizer": tokenizer_digest(setup.tokenizer),
        "domains": list(data.domain_set),
        "rows_per_batch": setup.config.train.rows_per_batch,
        "world_size": setup.world.world_size,
        "sequence_parallel": setup.config.train.sequence_parallel,
        "zero_stage": setup.zero_stage,
        "weights": mixture.named_K.tolist(),
        "signal": setup.config.mixture.signal if setup.config.mixture.has_own_signal else None,
        "references": None if references.losses_K is None else references.losses_K.tolist(),
    }


def find_resume_point(
    config: RunConfig, identity: Mapping[str, Any], *, world: World, last_step: int | None = None
) -> ResumePoint | None:
    """Return the newest complete checkpoint of a run, None where there is none; delete what kills left over.

    Communication: see `newest_valid_checkpoint`; one broadcast more where a complete run has more steps now.

    Args:
        config: The recipe, its length in steps.
        identity: What the run has now.
        world: This process's place.
        last_step: Newest step that the run may resume from, where `settle_length` gave one.

    Raises:
        ValueError: On every rank, one line for each difference that is not allowed.
    """
    run_on_rank_zero(lambda: remove_unfinished(config.run_dir), world)
    folder = newest_valid_checkpoint(config.run_dir, world, last_step=last_step)
    if folder is None:
        return None
    state = read_state(folder)
    if state["version"] != STATE_VERSION:
        raise ValueError(f"{folder}: saved in format {state['version']}, this is {STATE_VERSION}; use --fresh")
    saved = state["identity"]
    return ResumePoint(
        folder=folder,
        state=state,
        changed=check_identity(saved, identity, folder=folder, allow=config.resume.allowed),
        changed_domains=tuple(name for name in identity["data"] if saved["data"].get(name) != identity["data"][name]),
        is_extended=_is_extended(config, state, world=world),
        has_later_ones=last_step is not None,
    )


def _is_extended(config: RunConfig, state: Mapping[str, Any], *, world: World) -> bool:
    """Return whether a run that had done all its steps has more now; one whose data had ended stays complete."""
    step, num_steps = state["step"], config.train.steps
    assert num_steps is not None, "epochs are resolved first"
    if not state["is_complete"] or step >= num_steps:
        return False
    return step == from_rank_zero(lambda: steps_at(config.run_dir, step=step), world)


def check_identity(
    saved: Mapping[str, Any], current: Mapping[str, Any], *, folder: Path, allow: Sequence[str]
) -> frozenset[str]:
    """Compare what a checkpoint was made with and what the run has now; return the keys that differ.

    Raises:
        ValueError: One line for each difference that is not allowed, or cannot be.
    """
    saved = {"sequence_parallel": 1, **saved}  # earlier versions had no other
    changed = [key for key in current if saved.get(key) != current[key]]
    if "domains" in changed:
        raise ValueError(
            f"{folder}: saved with domains {', '.join(saved['domains'])}, now {', '.join(current['domains'])}: a run "
            "keeps its domains. Use the earlier domains, or export it (versatune export) and start a run of another "
            "run.name from that folder (model.name_or_path)"
        )
    if "data" in changed and "weights" in changed:
        changed.remove("weights")  # a proportional prior follows the data; the weights reached stay in any case
    parts = tuple(part for key in changed if (part := _PARTS.get(key)) and part not in allow)
    way_out = allowing(allow, *parts)
    refused = [
        line for key in changed if (line := _refusal(key, saved.get(key), current[key], allow=allow, way_out=way_out))
    ]
    if refused:
        raise ValueError("\n".join(f"{folder}: {line}" for line in refused))
    return frozenset(changed)


def _refusal(key: str, saved: Any, now: Any, *, allow: Sequence[str], way_out: str) -> str | None:
    """Return in one line why a difference is refused and what to do; None where it is allowed."""
    if key == "zero_stage" and not is_convertible(saved, now):
        return (
            f"saved under ZeRO stage {saved}, now {now}: DeepSpeed converts between stages 1 and 2 only; use the "
            "earlier stage, or export the model and start a new run from it"
        )
    part = _PARTS.get(key)
    if part in allow:
        return None
    what, way_back = f"saved with {key} {saved!r}, now {now!r}", "use the earlier value"
    if isinstance(now, Mapping) and isinstance(saved, Mapping):
        what = f"{key} of {', '.join(name for name in now if saved.get(name) != now[name])} changed since it was saved"
        way_back = "restore the earlier files"
    if key == "world_size":
        way_back = f"use --processes {saved}"
    asking = f", or allow it with {way_out}" if part else ""
    return f"{what}; {way_back}{asking}, or start over with --fresh"


def restart_changed(
    saved: Mapping[str, Any], current: Mapping[str, Any], *, changed_domains: Sequence[str]
) -> dict[str, Any]:
    """Return a saved position in the data with the changed domains back at their first example.

    What a domain was still owed is kept: the mixture continues, over other examples.

    Args:
        saved: The loader's saved state.
        current: The state of a loader of the current data before its first step.
        changed_domains: Names.
    """
    draws = [
        0 if name in changed_domains else count for name, count in zip(saved["domains"], saved["draws"], strict=True)
    ]
    sizes = {key: current[key] for key in ("num_examples", "lengths_digest")} if changed_domains else {}
    return {**saved, **sizes, "draws": draws}


def restore_parts(parts: Mapping[str, Any], point: ResumePoint) -> None:
    """Load a checkpoint's state into the parts of a run.

    Args:
        parts: The parts by name, all of `SAVED_PARTS`; None where this rank or this run does without one.
        point: The checkpoint.
    """
    for name in SAVED_PARTS:
        part, state = parts[name], point.state.get(name)
        if part is None or (state is None and name in _PARTS_ADDED_LATER):
            continue
        if name == "loader":
            state = restart_changed(state, part.state_dict(0), changed_domains=point.changed_domains)
        part.load_state_dict(state)


def restore_engine(engine: Engine, point: ResumePoint) -> None:
    """Load weights and optimizer. Communication: DeepSpeed's own, and a conversion's on another number of ranks."""
    if point.needs_conversion:
        load_converted(engine.deepspeed_engine, point.folder, world=engine.world)
    else:
        only_trained = BASE_WEIGHTS in point.state["identity"]
        load_checkpoint(engine.deepspeed_engine, point.folder, only_trained=only_trained)


def record_resume(run_dir: Path, point: ResumePoint, identity: Mapping[str, Any]) -> None:
    """Append one line to the run's resumes.jsonl: the checkpoint, and what changed since; on rank 0 only."""
    line = {
        "step": point.step,
        "checkpoint": point.folder.name,
        "world_size": identity["world_size"],
        "zero_stage": identity["zero_stage"],
        "changed": {key: [point.state["identity"].get(key), identity[key]] for key in sorted(point.changed)},
    }
    append_to_file(run_dir / RESUMES_FILE, line)


def log_resume(point: ResumePoint) -> None:
    """Log the step the run resumes at, and what differs from now on."""
    logger.info("resuming after step %d from %s", point.step, point.folder)
    if point.changed & {"world_size", "sequence_parallel", "zero_stage"}:
        logger.warning("other processes or ZeRO stage: same batches, losses within rounding, not bit for bit")
    if point.changed_domains:
        logger.warning("changed data, restarted at the first example: %s", ", ".join(point.changed_domains))
    for key in sorted(point.changed - {"world_size", "sequence_parallel", "zero_stage", "data"}):
        logger.warning("%s changed since the checkpoint, allowed by resume.allow", key)
