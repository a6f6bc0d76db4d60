"""Continue a run that has begun with more steps: which checkpoint it resumes from, and what its learning rate does.

More steps change what the schedule is at every step. Where the steps that were taken had the learning rate that they
have in the longer run too, continuing is the same as never having stopped, bit for bit: `constant` always, `wsd` up to
the step before its decay. So a `wsd` run whose decay has begun restarts from a checkpoint before it, if one is kept.
`cosine` and `linear` fall over the whole run; stretched over more steps their learning rate would jump up, which has to
be allowed by name.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from versatune_ds.config import RunConfig, TrainConfig
from versatune_ds.config.load import parse_section
from versatune_ds.config.recipe import allowing
from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.distributed import World, from_rank_zero
from versatune_ds.engine.learning_rate import learning_rate_at
from versatune_ds.run_folder.atomic import write_text
from versatune_ds.run_folder.checkpoint_files import complete_checkpoints
from versatune_ds.run_folder.config_changes import has_begun
from versatune_ds.run_folder.folder import former_versions, version_at
from versatune_ds.run_folder.names import CHECKPOINTS_FOLDER, CONFIG_FILE, LATEST_FILE, step_of_checkpoint
from versatune_ds.training.length.run_length import with_steps

logger = logging.getLogger(__name__)

_MAX_RISE = 0.1
"""Largest rise of the learning rate from one step to the next, as a share of the peak, that is no jump."""

_SET_ASIDE = ".before_extension"
"""Ending of the folders of checkpoints that an extended run does not continue from: they count no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """At which length a run continues, and from where."""

    train: TrainConfig
    """The recipe's, with the warm-up that the run began with."""
    last_step: int | None = None
    """Newest step that it may resume from; None for any."""
    line: str | None = None
    """What more steps do to the schedule, for the log; None where the length is as before."""


def settle_length(
    config: RunConfig, data: PreparedData, *, world: World, is_fresh: bool
) -> tuple[RunConfig, int | None]:
    """Return, on every rank, the config with its length in steps, and the newest step that it may resume from.

    Communication: one broadcast of a text.

    Raises:
        ValueError: On every rank, if the length cannot be counted, or as `continuation` does.
    """

    def settle() -> dict[str, Any]:
        is_new = is_fresh or not has_begun(config.run_dir)
        recorded = None if is_new else recorded_train(config.run_dir / CONFIG_FILE)
        found = continuation(with_steps(config, data, recorded=recorded), is_fresh=is_fresh)
        for line in (found.line, extension_notice(found.train) if is_new else None):
            if line is not None:
                logger.info("%s", line)
        interval = None if is_new else kept_interval(config.with_train(found.train))
        train = found.train.model_dump(mode="json", exclude_unset=True)
        return {"train": train, "last_step": found.last_step, "update_every": interval}

    settled = from_rank_zero(settle, world)
    config = config.with_train(parse_section(settled["train"], TrainConfig))
    if settled["update_every"] is not None:
        mixture = config.mixture.with_update_every(settled["update_every"])
        config = config.model_copy(update={"mixture": mixture})
    return config, settled["last_step"]


def extension_notice(train: TrainConfig) -> str | None:
    """Return, for a run that begins, that more steps later would raise its learning rate; None where they would not."""
    if train.learning_rate_schedule not in ("cosine", "linear") or train.min_learning_rate_fraction > 1 - _MAX_RISE:
        return None
    end = "the last step" if train.steps is None else f"step {train.steps:,}"
    return (
        f"train.learning_rate_schedule: {train.learning_rate_schedule} ends at {end}; if the run may get more steps "
        "later, choose wsd or constant now"
    )


def kept_interval(config: RunConfig) -> int | None:
    """Return the steps between updates that a run began with, where the recipe gives none and they are others now."""
    mixture = yaml.safe_load((config.run_dir / CONFIG_FILE).read_text(encoding="utf-8")).get("mixture") or {}
    was, now = mixture.get("update_every"), config.mixture.update_every
    if was in (None, now) or "update_every" in config.mixture.model_fields_set:
        return None
    logger.info(
        "mixture.update_every: %d, as the run began; one of %d steps from the beginning has %d", was,
        config.train.steps, now,
    )  # fmt: skip
    return was


def continuation(config: RunConfig, *, is_fresh: bool) -> Continuation:
    """Return how a run continues, from its folder alone; a config whose epochs are not counted yet is not looked at.

    Raises:
        ValueError: In one line, if it would have fewer steps than it began with, or if the learning rate would jump and
            `resume.allow` does not permit that.
    """
    folder, train = config.run_dir, config.train
    if is_fresh or train.steps is None or not has_begun(folder):
        return Continuation(train=train)
    was = recorded_train(folder / CONFIG_FILE)
    assert was.steps is not None, "a run records its steps"
    now = with_warmup_of(was, train)
    what = f"train.steps: {now.steps}" + (f" ({now.steps_from})" if now.steps_from else "")
    if now.steps == was.steps:
        return Continuation(train=now)
    if now.steps < was.steps:
        raise ValueError(
            f"{what}, but the run in {folder} began with {was.steps}: a run may get more steps, not fewer; use "
            f"train.steps={was.steps} or more, choose another run.name, or start over with --fresh"
        )
    steps = [step_of_checkpoint(path.name) for path in complete_checkpoints(folder)]
    if not steps:
        return Continuation(train=train, line=f"{what}, was {was.steps}: no checkpoint is kept, training starts over")
    return _extended(was, now, steps=steps, what=f"{what}, was {was.steps}", config=config)


def _extended(was: TrainConfig, now: TrainConfig, *, steps: list[int], what: str, config: RunConfig) -> Continuation:
    """Return how a run with checkpoints of these steps, newest first, continues with more steps."""
    newest, exact, name = steps[0], last_equal_step(was, now), now.learning_rate_schedule
    if newest <= exact:
        same = _past_in_words(now, step=newest, run_dir=config.run_dir)
        return Continuation(train=now, line=f"{what}: {name} continues exactly after step {newest}, {same}")
    earlier = [step for step in steps if step <= exact]
    if name == was.learning_rate_schedule == "wsd" and earlier:
        same = _past_in_words(now, step=earlier[0], run_dir=config.run_dir)
        line = (
            f"{what}: wsd continues exactly after step {earlier[0]}, {same}: the newest checkpoint from before its "
            f"decay, which began after step {exact}; later checkpoints are kept as step_*{_SET_ASIDE}, and their steps "
            "are trained again"
        )
        return Continuation(train=now, last_step=earlier[0], line=line)
    before, after = learning_rate_at(newest, was), learning_rate_at(newest + 1, now)
    change = f"from {before:.3g} at step {newest} to {after:.3g} at step {newest + 1}"
    is_jump = after - before > _MAX_RISE * now.learning_rate
    if is_jump and "learning_rate" not in config.resume.allowed:
        way_out = allowing(config.resume.allowed, "learning_rate")
        kept = f" (no checkpoint of step {exact} or before is kept)" if name == "wsd" else ""
        raise ValueError(
            f"{what} in {config.run_dir}: {name} would raise the learning rate {change}{kept}; allow that with "
            f"{way_out}, or start another run from its model (versatune export {config.run_dir}, then run.name=... "
            f"model.name_or_path={config.run_dir}/export)"
        )
    line = f"{what}: {name} is stretched over the new length, so the learning rate goes {change}"
    return Continuation(train=now, line=f"{line}; a run of {now.steps} steps from the beginning would differ")


def _past_in_words(now: TrainConfig, *, step: int, run_dir: Path) -> str:
    """Return whether the steps up to this one had the learning rates of a run that had its new length from the start.

    They had not where the run was extended before and its learning rate jumped, or where the user changed the rate.
    """
    former = [(until, recorded_train(path)) for until, path in former_versions(run_dir / CONFIG_FILE)]
    if any(last_equal_step(train, now) < min(until, step) for until, train in former):
        return f"though some of its earlier steps had another learning rate than in a run of {now.steps} steps"
    warmup = f", with the {now.num_warmup_steps} steps of warm-up that it began with" if now.num_warmup_steps else ""
    return f"the same as a run of {now.steps} steps from the beginning{warmup}"


def last_equal_step(was: TrainConfig, now: TrainConfig) -> int:
    """Return the last step up to which two schedules have the same learning rate at every step.

    Example: `wsd` of 100 steps with decay_fraction .1 and one of 200: 90, after which the first one falls.
    """
    assert was.steps is not None, "a run records its steps"
    for step in range(1, was.steps + 1):
        if learning_rate_at(step, was) != learning_rate_at(step, now):
            return step - 1
    return was.steps


def with_warmup_of(was: TrainConfig, now: TrainConfig) -> TrainConfig:
    """Return a train section with the warm-up, in steps, that the run began with; a given `warmup_steps` stays.

    Otherwise a share of more steps would be a longer warm-up, and the run might find itself in it again. A run that was
    extended has recorded its warm-up in steps, so that it keeps it whenever it resumes.
    """
    is_as_before = now.steps == was.steps and was.warmup_steps is None
    if now.warmup_steps is not None or is_as_before or now.num_warmup_steps == was.num_warmup_steps:
        return now
    values = now.model_dump(mode="json", exclude_unset=True)
    values.pop("warmup_fraction", None)
    return parse_section({**values, "warmup_steps": was.num_warmup_steps}, TrainConfig)


def recorded_train(path: Path) -> TrainConfig:
    """Return the train section of a run's recorded config, without keys that this version does not have."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))["train"]
    return parse_section({key: value for key, value in values.items() if key in TrainConfig.model_fields}, TrainConfig)


def steps_at(run_dir: Path, *, step: int) -> int:
    """Return the number of steps that a run was to have when it saved the checkpoint of a step."""
    steps = recorded_train(version_at(run_dir / CONFIG_FILE, step=step)).steps
    assert steps is not None, "a run records its steps"
    return steps


def set_later_checkpoints_aside(run_dir: Path, *, step: int) -> None:
    """Rename the checkpoints of steps after this one, so that they count no more; none is deleted. On rank 0 only.

    The run's records are cut back to the step next. A kill in between leaves a run that stopped at the step.
    """
    folder = run_dir / CHECKPOINTS_FOLDER
    for path in complete_checkpoints(run_dir):
        if step_of_checkpoint(path.name) > step:
            path.rename(_free_name(path.with_name(path.name + _SET_ASIDE)))
    newest = next(iter(complete_checkpoints(run_dir)))
    write_text(folder / LATEST_FILE, newest.name + "\n")


def _free_name(path: Path) -> Path:
    """Return the path, with a number behind it if it exists: a run may be extended again."""
    names = (path, *(path.with_name(f"{path.name}_{number}") for number in range(2, 1000)))
    return next(name for name in names if not name.exists())
