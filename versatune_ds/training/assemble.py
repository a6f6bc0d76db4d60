"""Build a run from its config: folder, data, mixture, model, engine, and the checkpoint it resumes from.

All user errors are raised here, before the first step; cheap checks run first.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from versatune_ds.config import RunConfig
from versatune_ds.config.unread_settings import unread_settings
from versatune_ds.data.encoding.tokenizer import pad_token_id
from versatune_ds.data.loader import LoaderSettings, MixtureLoader
from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.distributed import World, check_same_on_all_ranks, run_on_rank_zero
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.engine.engine import Engine
from versatune_ds.engine.saving import Saving
from versatune_ds.mixture.offline.outlook import bounds_line, start_warnings
from versatune_ds.mixture.schedule import Schedule
from versatune_ds.model.build import save_model_settings
from versatune_ds.monitor import Monitor, open_monitor
from versatune_ds.monitor.sinks import Sink
from versatune_ds.progress import start_phase
from versatune_ds.run_folder.folder import RunStart, open_run_folder, write_record
from versatune_ds.run_folder.folder_lock import FolderLock
from versatune_ds.run_folder.links import lock_run_folder
from versatune_ds.run_folder.names import EARLY_STOP_FILE, MODEL_FOLDER, TOKENIZER_FOLDER
from versatune_ds.training.bad_steps import BadSteps
from versatune_ds.training.base_weights import BASE_WEIGHTS, identity_of_base
from versatune_ds.training.best import check_judged_rows, early_stop_text, is_complete_at, new_judges
from versatune_ds.training.decision_inputs import DecisionInputs, decision_inputs
from versatune_ds.training.end_tokens import endings_of_data
from versatune_ds.training.held_out import held_out_examples
from versatune_ds.training.length.extension import set_later_checkpoints_aside, settle_length
from versatune_ds.training.length.late_updates import log_updates
from versatune_ds.training.meter import Meter, ServedTokens, TrainLosses
from versatune_ds.training.mixture_start import MixtureStart, start_mixture
from versatune_ds.training.model_engine import build_engine, build_model
from versatune_ds.training.prepared_data import RunSetup, prepare_once_per_node
from versatune_ds.training.resume import (
    ResumePoint,
    find_resume_point,
    log_resume,
    record_resume,
    restore_engine,
    restore_parts,
    run_identity,
)
from versatune_ds.training.run import Run, TaskEvaluation
from versatune_ds.training.signal_function import own_signal_of
from versatune_ds.training.signals import SaveClock, StopSignals
from versatune_ds.training.start_checks import StartCheckInput, check_start
from versatune_ds.training.throughput import throughput_of
from versatune_ds.training.update_clock import UpdateClock

logger = logging.getLogger(__name__)

MakeTasks = Callable[[RunSetup], TaskEvaluation | None]
"""Makes the questions that a run asks while it trains; evaluation/, which has them, is a higher layer."""


def assemble_run(
    config: RunConfig,
    *,
    world: World,
    device: torch.device,
    is_fresh: bool,
    stop_signals: StopSignals | None = None,
    prepared: tuple[Any, PreparedData] | None = None,
    export_model: Callable[[Path], Path] | None = None,
    more_sinks: Sequence[Sink] = (),
    make_tasks: MakeTasks | None = None,
) -> Run:
    """Return the run, ready for the loop, at the step of its newest complete checkpoint.

    Args:
        config: The recipe.
        world: This process's place.
        device: Where the model runs.
        is_fresh: Whether an existing run folder is deleted first.
        stop_signals: Signals that stop the run early; None listens to none.
        prepared: Tokenizer and data where they are loaded already; None prepares the recipe's.
        export_model: Exports the model of a run's folder, for a monitor that keeps it at the end.
        more_sinks: Receivers of metrics and decisions besides the recipe's, on rank 0.
        make_tasks: Returns what asks the questions of `validation.tasks`, None where the recipe has none.

    Raises:
        ValueError: On every rank, for anything wrong in the recipe, its files or its data.
    """
    # Settings and the run's folder, before anything that takes time.
    locks = _check_and_lock(config, world=world, device=device, is_fresh=is_fresh)

    # The data, the mixture that training starts with, and the checkpoint to resume from, None at the start.
    setup, last_step = _set_up(config, world=world, device=device, prepared=prepared, is_fresh=is_fresh)
    config, data = setup.config, setup.data  # its length is in steps now
    tasks = None if make_tasks is None else make_tasks(setup)
    own_signal = own_signal_of(config, domain_set=data.domain_set, tokenizer=setup.tokenizer)
    identity, mixture, point = _identify(setup, last_step=last_step, is_fresh=is_fresh)

    # The model and its engine. A former run is deleted only once the model could be built.
    with start_phase("model", has_own_bar=config.model.name_or_path is not None):
        causal_lm = build_model(setup)
    identity |= _identity_of_base(config, point, world=world)
    start = _open_folder(setup, _run_start(setup, mixture, causal_lm), is_fresh=is_fresh)
    engine = build_engine(setup, causal_lm)

    # The parts with state, restored; only then are the run's records cut back to the checkpoint's step.
    parts = _new_parts(setup, mixture)
    is_complete = point is not None and _restore(parts, engine, point, identity=identity)
    inputs = decision_inputs(config, data) if world.is_rank_zero else None
    sinks = {"export_model": export_model, "more_sinks": more_sinks}
    monitor = _open_records(setup, start, is_complete=is_complete, inputs=inputs, point=point, **sinks)
    return Run(
        config=config, world=world, domain_set=data.domain_set, engine=engine, **parts, tasks=tasks, inputs=inputs,
        monitor=monitor, meter=Meter(data.domain_set), identity=identity, own_signal=own_signal, locks=locks,
        throughput=throughput_of(causal_lm, config.train, world=world), step=0 if point is None else point.step,
        stop_signals=stop_signals or StopSignals(), save_clock=SaveClock(config.checkpoint.every_minutes),
        saving=_saving(setup, engine, parts, identity=identity), is_complete=is_complete,
    )  # fmt: skip


def _set_up(
    config: RunConfig,
    *,
    world: World,
    device: torch.device,
    prepared: tuple[Any, PreparedData] | None,
    is_fresh: bool,
) -> tuple[RunSetup, int | None]:
    """Prepare the data and settle the run's length; return both, and the newest step that it may resume from."""
    ds_config = deepspeed_config(config.train, world_size=world.world_size)
    with start_phase("data"):
        tokenizer, data = prepared or prepare_once_per_node(config, world)
        config, last_step = settle_length(config, data, world=world, is_fresh=is_fresh)
    setup = RunSetup(config=config, world=world, device=device, ds_config=ds_config, tokenizer=tokenizer, data=data)
    check_judged_rows(setup)
    return setup, last_step


def _identify(
    setup: RunSetup, *, last_step: int | None, is_fresh: bool
) -> tuple[dict[str, Any], MixtureStart, ResumePoint | None]:
    """Return what the run is compared by, the same on all ranks; its mixture; and the checkpoint it resumes from."""
    mixture = start_mixture(setup)
    identity = run_identity(setup, mixture)
    check_same_on_all_ranks(json.dumps(identity), setup.world, what="data, tokenizer and settings")
    point = None
    if not is_fresh:
        point = find_resume_point(setup.config, identity, world=setup.world, last_step=last_step)
    _log_start_warnings(setup, mixture, is_resumed=point is not None)
    return identity, mixture, point


def _identity_of_base(config: RunConfig, point: ResumePoint | None, *, world: World) -> dict[str, Any]:
    """Return what a run without frozen weights in its checkpoints depends on besides them."""
    if point is None:
        return identity_of_base(config, saved=None, folder=None, world=world)
    return identity_of_base(config, saved=point.state["identity"], folder=point.folder, world=world)


def _saving(setup: RunSetup, engine: Engine, parts: Mapping[str, Any], *, identity: Mapping[str, Any]) -> Saving:
    """Return what saves the run's checkpoints."""
    return Saving(
        config=setup.config,
        world=setup.world,
        engine=engine,
        best=parts["best"],
        only_trained=BASE_WEIGHTS in identity,
    )


def _check_and_lock(config: RunConfig, *, world: World, device: torch.device, is_fresh: bool) -> tuple[FolderLock, ...]:
    """Run the start checks of every rank, lock the run's folder, run those of rank 0; return the locks, on rank 0."""
    check_input = StartCheckInput(
        config=config, stage="every rank", num_processes=world.world_size, device_type=device.type, is_here=True,
        is_fresh=is_fresh,
    )  # fmt: skip
    check_start(check_input)
    locks = run_on_rank_zero(lambda: lock_run_folder(config.run_dir, is_fresh=is_fresh), world)
    run_on_rank_zero(lambda: check_start(replace(check_input, stage="rank 0")), world)
    return tuple(locks or ())


def _log_start_warnings(setup: RunSetup, mixture: MixtureStart, *, is_resumed: bool) -> None:
    """Log, on rank 0, which keys have no effect, and at the start which weights will surprise."""
    if not setup.world.is_rank_zero:
        return
    warnings = list(unread_settings(setup.config))
    log_updates(setup.config)
    if not is_resumed:
        bounds = bounds_line(setup.config.mixture, start_K=mixture.weights_K, domain_set=setup.domain_set)
        if bounds is not None:
            logger.info("mixture.safeguards: %s", bounds)
        warnings += start_warnings(
            setup.config.mixture,
            named_K=mixture.named_K,
            start_K=mixture.weights_K,
            domain_set=setup.domain_set,
        )
    for line in warnings:
        logger.warning("%s", line)


def _run_start(setup: RunSetup, mixture: MixtureStart, causal_lm: Any) -> RunStart:
    """Return what the run's folder records of its start."""
    config, tokenizer = setup.config, setup.tokenizer

    def save_parts(folder: Path) -> None:
        tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
        # Of every run, also one that keeps no weights: an export needs it beside a checkpoint.
        save_model_settings(causal_lm, folder / MODEL_FOLDER)

    return RunStart(
        prior={"weights": setup.domain_set.to_dict(mixture.weights_K), "origin": str(config.mixture.prior)},
        plan=None if mixture.plan is None else mixture.plan.to_dict(),
        reference=mixture.references.to_dict(setup.domain_set),
        endings=endings_of_data(config, tokenizer, setup.data) if setup.world.is_rank_zero else {},
        save_parts=save_parts,
        weights_made_on=next(causal_lm.parameters()).device.type if config.model.from_config is not None else None,
    )


def _open_folder(setup: RunSetup, start: RunStart, *, is_fresh: bool) -> RunStart:
    """Make the run's folder, or delete a former run first; return what it records of the start."""
    run_on_rank_zero(lambda: open_run_folder(setup.config, setup.world, start=start, is_fresh=is_fresh), setup.world)
    return start


def _new_parts(setup: RunSetup, mixture: MixtureStart) -> dict[str, Any]:
    """Return the parts whose state a checkpoint saves, at step 0, by their names in `Run` (`resume.SAVED_PARTS`)."""
    config, world, num_domains = setup.config, setup.world, len(setup.domain_set)
    needs_train_losses = config.mixture.signal == "train" or config.mixture.watches_overfitting
    return {
        "loader": _training_loader(setup),
        "schedule": Schedule(mixture.weights_K),
        "served": ServedTokens(num_domains),
        "bad_steps": BadSteps(config.train, run_dir=config.run_dir),
        "controller": mixture.controller if world.is_rank_zero else None,
        "validation": held_out_examples(setup),
        "train_losses": TrainLosses(num_domains, world=world) if needs_train_losses else None,
        "updates": UpdateClock(update_every=config.mixture.update_every, max_share=config.validation.max_share),
        **new_judges(config),
    }


def _training_loader(setup: RunSetup) -> MixtureLoader:
    """Return the loader of the training mixture."""
    config = setup.config
    settings = LoaderSettings(
        seed=config.run.seed,
        rows_per_batch=config.train.rows_per_batch,
        row_tokens=config.data.row_tokens,
        rows_per_micro_batch=config.train.rows_per_micro_batch,
        rank=setup.world.rank,
        world_size=setup.world.world_size,
        sequence_parallel=config.train.sequence_parallel,
        weight_unit=config.mixture.weight_unit,
        max_epochs_per_domain=config.data.max_epochs_per_domain,
        pad_token_id=pad_token_id(setup.tokenizer),
    )
    return MixtureLoader(setup.data.train, domain_set=setup.domain_set, settings=settings)


def _restore(parts: Mapping[str, Any], engine: Engine, point: ResumePoint, *, identity: dict[str, Any]) -> bool:
    """Load a checkpoint into the run's parts and its engine, record the resume; return whether the run is complete."""
    log_resume(point)
    with start_phase("checkpoint"):
        restore_parts(parts, point)
        restore_engine(engine, point)
    run_dir = point.folder.parents[1]
    if point.has_later_ones:
        run_on_rank_zero(lambda: set_later_checkpoints_aside(run_dir, step=point.step), engine.world)
    if parts["best"] is not None:
        parts["best"].forget_if_lost(run_dir, engine.world)
    is_complete = point.is_complete and is_complete_at(point.state, early_stopping=parts["early_stopping"])
    if is_complete:
        logger.info("%s is complete%s; --fresh starts over", run_dir, early_stop_text(point.state))
    run_on_rank_zero(lambda: record_resume(run_dir, point, identity), engine.world)
    return is_complete


def _write_start(setup: RunSetup, start: RunStart, *, step: int, is_complete: bool) -> None:
    """Write what applies after a step; a run that trains on has not ended early."""
    write_record(setup.config, setup.world, start=start, step=step)
    if not is_complete:
        (setup.config.run_dir / EARLY_STOP_FILE).unlink(missing_ok=True)


def _open_records(
    setup: RunSetup,
    start: RunStart,
    *,
    is_complete: bool,
    inputs: DecisionInputs | None,
    point: ResumePoint | None,
    export_model: Callable[[Path], Path] | None,
    more_sinks: Sequence[Sink],
) -> Monitor:
    """Cut the run's records back to the step it resumes at and open the monitor; all ranks raise if that fails.

    Only rank 0's monitor has sinks.
    """
    config, world = setup.config, setup.world
    step = 0 if point is None else point.step
    if inputs is not None:
        inputs.resume_after(step)
    run_on_rank_zero(lambda: _write_start(setup, start, step=step, is_complete=is_complete), world)
    resumed_step = -1 if point is None else step
    monitor = run_on_rank_zero(
        lambda: open_monitor(config, resumed_step=resumed_step, export_model=export_model, more_sinks=more_sinks),
        world,
    )
    return monitor or Monitor([])
