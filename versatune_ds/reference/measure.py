"""Measure what every domain could reach: fine-tune the base model on each alone, or score a given model.

All domains run in one process group, one after another. Imports, tokenizing and data are paid for once; the model is
loaded again for each domain. A finished domain has a result.json and is not measured again.

Source: docs/method.md sections 8 and 11: references are held-out losses, and they are the only signal.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.distributed import World, barrier, from_rank_zero, run_on_rank_zero
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.exit_codes import REQUEUE_EXIT_CODE
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.offline.recorded_losses import read_decisions
from versatune_ds.reference.command import ReferenceTask, other_model
from versatune_ds.reference.model_storage import check_room_for_models, keep_run_model
from versatune_ds.reference.one_domain import (
    ALL_DOMAINS,
    RESULT_FILE,
    EarlyStop,
    check_made_with,
    domain_data,
    domain_recipe,
    loss_of,
    made_with,
    read_result,
    result_of_run,
)
from versatune_ds.reference.results import all_results, unmeasured_domains, write_files
from versatune_ds.reference.score import check_same_tokenizer, score_model
from versatune_ds.reference.transfer_record import (
    TransferRecord,
    begin_transfer,
    held_out_digests,
    recorded_transfer,
    sizes_of,
)
from versatune_ds.run_folder.atomic import write_json
from versatune_ds.run_folder.names import CHECKPOINTS_FOLDER, DECISIONS_FILE, MODEL_FOLDER
from versatune_ds.training.assemble import assemble_run
from versatune_ds.training.length.run_length import with_steps
from versatune_ds.training.loop import measure_before_training, train
from versatune_ds.training.prepared_data import RunSetup, prepare_once_per_node
from versatune_ds.training.run import Run
from versatune_ds.training.saved_model import load_recipe
from versatune_ds.training.signals import StopSignals
from versatune_ds.training.worker import as_start_error, run_rank, take_place

logger = logging.getLogger(__name__)


def run_reference_worker(recipe: Path, overrides: Sequence[str], *, task: ReferenceTask, is_quiet: bool) -> int:
    """Run one process of `versatune reference`; return 0, 2 for a user's mistake, 75 to be started again."""

    def work(world: World, stop_signals: StopSignals) -> int:
        setup = as_start_error(lambda: reference_setup(load_recipe(recipe, overrides), task=task, world=world), world)
        return measure_references(setup, task=task, stop_signals=stop_signals)

    return run_rank(work, is_quiet=is_quiet)


def reference_setup(config: RunConfig, *, task: ReferenceTask, world: World) -> RunSetup:
    """Join the world and prepare what all domains share; raise ValueError if recipe, data or task is wrong."""
    other = other_model(config, task)
    device = take_place(world)
    tokenizer, data = prepare_once_per_node(config, world)
    for name in task.domains or ():
        if name not in data.domain_set.names:
            raise ValueError(f"--domains: {name!r} is none of the domains {', '.join(data.domain_set)}")
    if other is not None:
        key, name = other
        check_same_tokenizer(name, key=key, tokenizer=tokenizer)
    config = with_steps(config, data)
    ds_config = deepspeed_config(config.train, world_size=world.world_size)
    return RunSetup(config=config, world=world, device=device, ds_config=ds_config, tokenizer=tokenizer, data=data)


def measure_references(setup: RunSetup, *, task: ReferenceTask, stop_signals: StopSignals) -> int:
    """Measure all requested domains, write reference.json once all are known, and return the exit code.

    Args:
        setup: The recipe of the mixed run, with the data of all domains.
        task: What to measure.
        stop_signals: Signals that stop the measurement early.
    """
    world, model = setup.world, task.scored_model
    names = as_start_error(lambda: _measurable(setup, task.domains), world)
    if model is not None:
        # One pass over the held-out examples, no training.
        results = as_start_error(lambda: score_model(setup, names=names, model=model), world)
    else:
        # One run a domain; those with a result are skipped.
        if setup.config.reference.keep_models:
            as_start_error(lambda: _check_room(setup, names, is_fresh=task.is_fresh), world)
        runs = names + _mixed_runs(setup, task)
        for number, name in enumerate(runs, start=1):
            what = "equal shares of all domains" if name == ALL_DOMAINS else name
            logger.info("reference %d of %d: %s", number, len(runs), what)
            if not _measure_domain(setup, name, is_fresh=task.is_fresh, stop_signals=stop_signals):
                return REQUEUE_EXIT_CODE
        stop_signals.ignore()
        results = all_results(setup)
    run_on_rank_zero(lambda: write_files(setup, results, task=task), world)
    barrier()
    return 0


def _measurable(setup: RunSetup, domains: Sequence[str] | None) -> tuple[str, ...]:
    """Return the requested domains that have held-out rows; the others have no loss that could be a reference.

    Raises:
        ValueError: If one of the others was requested by name, or no domain remains.
    """
    unmeasured = unmeasured_domains(setup)
    requested = [name for name in domains or () if name in unmeasured]
    if requested or len(unmeasured) == len(setup.domain_set):
        names = ", ".join(requested or unmeasured)
        raise ValueError(f"data: no held-out rows of {names}, so no reference can be measured; give some in `valid`")
    if unmeasured:
        logger.warning(
            "no held-out rows of %s: no reference is measured, and none is needed, since no loss moves their weights",
            ", ".join(unmeasured),
        )
    return tuple(name for name in domains or setup.domain_set if name not in unmeasured)


def _mixed_runs(setup: RunSetup, task: ReferenceTask) -> tuple[str, ...]:
    """Return the run on equal shares of all domains, where it is to be measured.

    With --domains it is not: several such jobs may share the domains, and none of them knows which is the last.
    """
    settings = setup.config.reference
    is_wanted = settings.transfer and settings.mixed_run and task.domains is None and len(setup.domain_set) > 1
    return (ALL_DOMAINS,) if is_wanted else ()


def _check_room(setup: RunSetup, names: Sequence[str], *, is_fresh: bool) -> None:
    """Check on rank 0 that the disk has room for the models of the domains still to be measured."""

    def check() -> None:
        check_room_for_models(setup, [name for name in names if is_fresh or read_result(setup.config, name) is None])

    run_on_rank_zero(check, setup.world)


def _measure_domain(setup: RunSetup, name: str, *, is_fresh: bool, stop_signals: StopSignals) -> bool:
    """Fine-tune on one domain unless that is done; return whether it is, False if a signal came."""
    if as_start_error(lambda: _is_known(setup, name, is_fresh=is_fresh), setup.world):
        return True
    run = as_start_error(lambda: _begin_domain(setup, name, is_fresh=is_fresh, stop_signals=stop_signals), setup.world)
    transfer = None
    if setup.config.reference.transfer:
        transfer = as_start_error(lambda: begin_transfer(setup, run), setup.world)
    stop_signals.begin_steps()
    is_done = _train_domain(setup, run, name, transfer=transfer)
    if is_done:
        run.engine.close()  # or this domain's model and optimizer would stay in memory beside the next one's
    return is_done


def _is_known(setup: RunSetup, name: str, *, is_fresh: bool) -> bool:
    """Return, on every rank, whether a domain is already measured as the recipe asks.

    Raises:
        ValueError: On every rank, if it was measured in another way; one line a difference.
    """
    if is_fresh:
        return False
    result = from_rank_zero(lambda: read_result(setup.config, name), setup.world)
    if result is None:
        return False
    folder = domain_recipe(setup.config, name).run_dir
    check_made_with(result["made_with"], made_with(setup, name), folder=folder)
    logger.info("%s: measured before, %s", name, folder / RESULT_FILE)
    return True


def _begin_domain(setup: RunSetup, name: str, *, is_fresh: bool, stop_signals: StopSignals) -> Run:
    """Assemble the run on one domain alone and take its first measurement: the base model's loss."""
    run = assemble_run(
        domain_recipe(setup.config, name),
        world=setup.world,
        device=setup.device,
        is_fresh=is_fresh,
        stop_signals=stop_signals,
        prepared=(setup.tokenizer, domain_data(setup.data, name)),
    )
    measure_before_training(run)
    return run


def _train_domain(setup: RunSetup, run: Run, name: str, *, transfer: TransferRecord | None) -> bool:
    """Train a domain until its held-out loss stops falling; return whether it is done, False if a signal came."""
    stop = None if name == ALL_DOMAINS else _early_stop(setup, run, name)

    def should_stop(decision: Decision) -> bool:
        """Measure the other domains too, and return whether the own loss has stopped falling; on every rank alike."""
        if transfer is not None:
            transfer.measure()
        return stop is not None and stop(decision)

    is_done = False
    try:
        is_done = train(run, should_stop=should_stop, save_at_end=False)
    finally:
        run.close(exit_code=0 if is_done else REQUEUE_EXIT_CODE)
    if is_done:
        if run.config.reference.keep_models and name != ALL_DOMAINS:
            keep_run_model(run)
        has_transfer = transfer is not None
        write = _write_mixed_result if name == ALL_DOMAINS else _write_result
        run_on_rank_zero(lambda: write(setup, run.config, name, has_transfer=has_transfer), setup.world)
    run.release()
    return is_done


def _early_stop(setup: RunSetup, run: Run, name: str) -> EarlyStop:
    """Return when a domain's run may stop, with the losses measured before a resume."""
    decisions = run.config.run_dir / DECISIONS_FILE
    losses = from_rank_zero(lambda: [loss_of(decision, name) for decision in read_decisions(decisions)], setup.world)
    return EarlyStop(name, patience=setup.config.reference.patience, losses=losses)


def _write_result(setup: RunSetup, recipe: RunConfig, name: str, *, has_transfer: bool) -> None:
    """Write a domain's result and delete its checkpoints, which nothing needs any more."""
    run_dir = recipe.run_dir
    result = {**result_of_run(run_dir, name), "made_with": made_with(setup, name)}
    if has_transfer:
        result["transfer"] = {
            **recorded_transfer(run_dir, held_out=held_out_digests(setup.data)),
            **sizes_of(setup.data.train[setup.domain_set.id_of(name)]),
        }
    if recipe.reference.keep_models:
        result["model"] = MODEL_FOLDER
    _finish(run_dir, result)
    logger.info("%s: reference loss %.4f at step %d", name, result["loss"], result["step"])


def _write_mixed_result(setup: RunSetup, recipe: RunConfig, name: str, *, has_transfer: bool) -> None:
    """Write the result of the run on equal shares, and delete its checkpoints."""
    result = {
        "weights": dict.fromkeys(setup.domain_set, 1.0 / len(setup.domain_set)),
        "made_with": made_with(setup, name),
    }
    if has_transfer:
        result["transfer"] = recorded_transfer(recipe.run_dir, held_out=held_out_digests(setup.data))
    _finish(recipe.run_dir, result)


def _finish(run_dir: Path, result: Mapping[str, Any]) -> None:
    write_json(run_dir / RESULT_FILE, result)
    shutil.rmtree(run_dir / CHECKPOINTS_FOLDER, ignore_errors=True)
