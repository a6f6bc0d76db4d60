"""Measure what every domain could reach: fine-tune the base model on each alone, or score a given model.

All domains run in one process group, one after another. Imports, tokenizing and data are paid for once; the model is
loaded again for each domain. A finished domain has a result.json and is not measured again.

Source: docs/method.md sections 8 and 11: references are held-out losses, and they are the only signal.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from versatune_ds.config import RunConfig, load_config
from versatune_ds.data.encoding.tokenizer import load_tokenizer, tokenizer_digest
from versatune_ds.distributed import World, barrier, from_rank_zero, run_on_rank_zero
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.exit_codes import REQUEUE_EXIT_CODE
from versatune_ds.mixture.offline.recorded_losses import read_decisions
from versatune_ds.reference.command import ReferenceTask, other_model
from versatune_ds.reference.file import Result, reference_content, reference_notes, reference_table
from versatune_ds.reference.one_domain import (
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
from versatune_ds.run_folder.atomic import write_json
from versatune_ds.run_folder.names import CHECKPOINTS_FOLDER, DECISIONS_FILE
from versatune_ds.training.assemble import assemble_run, build_engine, build_model
from versatune_ds.training.held_out import measure_validation, validation_loader
from versatune_ds.training.loop import measure_before_training, train
from versatune_ds.training.mixture_start import loss_digests
from versatune_ds.training.prepared_data import RunSetup, prepare_once_per_node
from versatune_ds.training.run import Run
from versatune_ds.training.signals import StopSignals
from versatune_ds.training.worker import as_start_error, run_rank, take_place

logger = logging.getLogger(__name__)


def run_reference_worker(recipe: Path, overrides: Sequence[str], *, task: ReferenceTask, is_quiet: bool) -> int:
    """Run one process of `versatune reference`; return 0, 2 for a user's mistake, 75 to be started again."""

    def work(world: World, stop_signals: StopSignals) -> int:
        setup = as_start_error(lambda: _prepare(load_config(recipe, overrides), task=task, world=world), world)
        return measure_references(setup, task=task, stop_signals=stop_signals)

    return run_rank(work, is_quiet=is_quiet)


def _prepare(config: RunConfig, *, task: ReferenceTask, world: World) -> RunSetup:
    """Join the world and prepare what all domains share; raise ValueError if recipe, data or task is wrong."""
    other = other_model(config, task)
    device = take_place(world)
    tokenizer, data = prepare_once_per_node(config, world)
    for name in task.domains or ():
        if name not in data.domain_set.names:
            raise ValueError(f"--domains: {name!r} is none of the domains {', '.join(data.domain_set)}")
    if other is not None:
        key, name = other
        _check_same_tokenizer(name, key=key, tokenizer=tokenizer)
    ds_config = deepspeed_config(config.train, world_size=world.world_size)
    return RunSetup(config=config, world=world, device=device, ds_config=ds_config, tokenizer=tokenizer, data=data)


def _check_same_tokenizer(name: str, *, key: str, tokenizer: Any) -> None:
    """Raise ValueError if a model has another tokenizer: its losses are then not comparable."""
    if tokenizer_digest(load_tokenizer(name)) != tokenizer_digest(tokenizer):
        raise ValueError(
            f"{key}: {name} has another tokenizer than the recipe, so its losses per token do not compare; "
            "choose a model of the same family, or set model.tokenizer to that model's and measure again"
        )


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
        for number, name in enumerate(names, start=1):
            logger.info("reference %d of %d: %s", number, len(names), name)
            if not _measure_domain(setup, name, is_fresh=task.is_fresh, stop_signals=stop_signals):
                return REQUEUE_EXIT_CODE
        stop_signals.ignore()
        results = _all_results(setup)
    run_on_rank_zero(lambda: _write(setup, results, task=task), world)
    barrier()
    return 0


def _measurable(setup: RunSetup, domains: Sequence[str] | None) -> tuple[str, ...]:
    """Return the requested domains that have held-out rows; the others have no loss that could be a reference.

    Raises:
        ValueError: If one of the others was requested by name, or no domain remains.
    """
    unmeasured = _unmeasured(setup)
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


def _unmeasured(setup: RunSetup) -> tuple[str, ...]:
    return tuple(name for name, shards in zip(setup.domain_set, setup.data.valid, strict=True) if not len(shards))


def scored_recipe(config: RunConfig, model: str) -> RunConfig:
    """Return the recipe with a given model, a folder or Hub name, instead of its own."""
    settings = config.model.model_copy(update={"name_or_path": model, "from_config": None})
    return config.model_copy(update={"model": settings})


def score_model(setup: RunSetup, *, names: Sequence[str], model: str) -> list[Result]:
    """Return the held-out losses of a given model, and its losses on as many training examples."""
    setup = replace(setup, config=scored_recipe(setup.config, model))
    engine = build_engine(setup, build_model(setup))
    held_out, trained = (
        measure_validation(engine, validation_loader(setup, split=split), num_domains=len(setup.domain_set))
        for split in ("valid", "train")
    )
    columns = (held_out.mean(), held_out.standard_error(), held_out.num_loss_tokens(), trained.mean())
    return [
        {
            "domain": name,
            "loss": float(loss),
            "stderr": float(stderr),
            "num_loss_tokens": int(num_tokens),
            "train_loss": float(train_loss),
        }
        for name, loss, stderr, num_tokens, train_loss in zip(setup.domain_set, *columns, strict=True)
        if name in names
    ]


def _measure_domain(setup: RunSetup, name: str, *, is_fresh: bool, stop_signals: StopSignals) -> bool:
    """Fine-tune on one domain unless that is done; return whether it is, False if a signal came."""
    if as_start_error(lambda: _is_known(setup, name, is_fresh=is_fresh), setup.world):
        return True
    run = as_start_error(lambda: _begin_domain(setup, name, is_fresh=is_fresh, stop_signals=stop_signals), setup.world)
    stop_signals.begin_steps()
    is_done = _train_domain(setup, run, name)
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


def _train_domain(setup: RunSetup, run: Run, name: str) -> bool:
    """Train a domain until its held-out loss stops falling; return whether it is done, False if a signal came."""
    decisions = run.config.run_dir / DECISIONS_FILE
    losses = from_rank_zero(lambda: [loss_of(decision, name) for decision in read_decisions(decisions)], setup.world)
    stop = EarlyStop(name, patience=setup.config.reference.patience, losses=losses)
    is_done = False
    try:
        is_done = train(run, should_stop=stop, save_at_end=False)
    finally:
        run.loader.close()
        run.monitor.finish(exit_code=0 if is_done else REQUEUE_EXIT_CODE)
    if is_done:
        run_on_rank_zero(lambda: _write_result(setup, run.config.run_dir, name), setup.world)
    run.release()
    return is_done


def _write_result(setup: RunSetup, run_dir: Path, name: str) -> None:
    """Write a domain's result and delete its checkpoints, which nothing needs any more."""
    result = {**result_of_run(run_dir, name), "made_with": made_with(setup, name)}
    write_json(run_dir / RESULT_FILE, result)
    shutil.rmtree(run_dir / CHECKPOINTS_FOLDER, ignore_errors=True)
    logger.info("%s: reference loss %.4f at step %d", name, result["loss"], result["step"])


def _all_results(setup: RunSetup) -> list[Result]:
    """Return the results of all domains that are measured as the recipe asks, on rank 0; the other ranks write nothing.

    Domains that --domains excludes may have been measured before, or by another job.
    """
    if not setup.world.is_rank_zero:
        return []
    measured = [name for name in setup.domain_set if name not in _unmeasured(setup)]
    results = {name: read_result(setup.config, name) for name in measured}
    return [result for name, result in results.items() if result and result["made_with"] == made_with(setup, name)]


def _write(setup: RunSetup, results: Sequence[Result], *, task: ReferenceTask) -> None:
    """Log the results; write reference.json, or log which domains are still missing."""
    output = task.output or setup.config.default_output("reference")
    recipe = domain_recipe(setup.config, setup.domain_set.names[0])
    if task.scored_model is not None:
        recipe = scored_recipe(recipe, task.scored_model)
    # Results and what to look at.
    logger.info("references\n%s", reference_table(results))
    for note in reference_notes(results, most_steps=recipe.train.steps, origin=str(output)):
        logger.warning("%s", note)
    # The file, where every domain has a result.
    known = {result["domain"] for result in results}
    unmeasured = _unmeasured(setup)
    missing = [name for name in setup.domain_set if name not in known and name not in unmeasured]
    if missing:
        logger.warning("still to be measured: %s; %s is written when all domains are", ", ".join(missing), output)
        return
    how = f"scored: {task.scored_model}" if task.scored_model else "fine-tuned on each domain alone, held-out minimum"
    digests = loss_digests(setup.config, setup.tokenizer, setup.data)
    content = reference_content(results, config=recipe, digests=digests, how=how, unmeasured=unmeasured)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, content)
    is_named = output == setup.config.mixture.reference
    use = "the recipe uses it" if is_named else f"train with mixture.reference={output}"
    logger.info("wrote %s; %s", output, use)
