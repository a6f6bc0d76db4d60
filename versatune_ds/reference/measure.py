"""Measure what every domain could reach: fine-tune the base model on each alone, or score a given model.

All domains run in one process group, one after another. Imports, tokenizing and data are paid for once; the model is
loaded again for each domain. A finished domain has a result.json and is not measured again.

Source: docs/method.md sections 8 and 11: references are held-out losses, and they are the only signal.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from versatune_ds.config.model import model_identity
from versatune_ds.distributed import World, barrier, from_rank_zero, run_on_rank_zero
from versatune_ds.exit_codes import REQUEUE_EXIT_CODE
from versatune_ds.mixture.offline.recorded_losses import read_decisions
from versatune_ds.reference.command import ReferenceTask
from versatune_ds.reference.file import (
    Result,
    reference_content,
    reference_notes,
    reference_table,
    write_reference,
)
from versatune_ds.reference.one_domain import (
    EarlyStop,
    default_output,
    domain_data,
    domain_folder,
    domain_recipe,
    loss_of,
    result_of_run,
)
from versatune_ds.reference.score import score_model, scored_recipe
from versatune_ds.reference.shared import Workplace, open_workplace
from versatune_ds.run_folder.names import CHECKPOINTS_FOLDER, DECISIONS_FILE
from versatune_ds.training.assemble import assemble_run
from versatune_ds.training.loop import measure_before_training, train
from versatune_ds.training.mixture_start import loss_digests
from versatune_ds.training.run import Run
from versatune_ds.training.signals import StopSignals
from versatune_ds.training.worker import as_start_error, run_rank

logger = logging.getLogger(__name__)

RESULT_FILE = "result.json"


def run_reference_worker(recipe: Path, overrides: Sequence[str], *, task: ReferenceTask, is_quiet: bool) -> int:
    """Run one process of `versatune reference`; return 0, 2 for a user's mistake, 75 to be started again."""

    def work(world: World, stop_signals: StopSignals) -> int:
        place = as_start_error(lambda: open_workplace(recipe, overrides, task=task, world=world), world)
        return measure_references(place, task=task, stop_signals=stop_signals)

    return run_rank(work, is_quiet=is_quiet)


def measure_references(place: Workplace, *, task: ReferenceTask, stop_signals: StopSignals) -> int:
    """Measure all requested domains, write reference.json once all are known, and return the exit code."""
    # A given model: one pass, no training.
    names = as_start_error(lambda: _measurable(place, task.domains), place.world)
    if task.scored_model is not None:
        results = as_start_error(lambda: score_model(place, names=names, model=task.scored_model or ""), place.world)
        return _conclude(place, results, task=task)
    # Else one run a domain; those with a result are skipped.
    for number, name in enumerate(names, start=1):
        logger.info("reference %d of %d: %s", number, len(names), name)
        is_known = as_start_error(lambda name=name: _is_known(place, name, is_fresh=task.is_fresh), place.world)
        if is_known:
            continue
        run = as_start_error(
            lambda name=name: _begin_domain(place, name, is_fresh=task.is_fresh, stop_signals=stop_signals), place.world
        )
        stop_signals.begin_steps()
        if not _train_domain(place, run, name):
            return REQUEUE_EXIT_CODE
        run.engine.close()  # or this domain's model and optimizer would stay in memory beside the next one's
        del run
    stop_signals.ignore()
    return _conclude(place, _all_results(place), task=task)


def _measurable(place: Workplace, domains: Sequence[str] | None) -> tuple[str, ...]:
    """Return the requested domains that have held-out rows; the others have no loss that could be a reference.

    Raises:
        ValueError: If one of the others was requested by name, or no domain remains.
    """
    unmeasured = _unmeasured(place)
    asked = [name for name in domains or () if name in unmeasured]
    if asked or len(unmeasured) == len(place.data.domain_set):
        names = ", ".join(asked or unmeasured)
        raise ValueError(f"data: no held-out rows of {names}, so no reference can be measured; give some in `valid`")
    if unmeasured:
        logger.warning(
            "no held-out rows of %s: no reference is measured, and none is needed, since no loss moves their weights",
            ", ".join(unmeasured),
        )
    return tuple(name for name in domains or place.data.domain_set if name not in unmeasured)


def _unmeasured(place: Workplace) -> tuple[str, ...]:
    """Return the domains without held-out rows."""
    data = place.data
    return tuple(name for name, shards in zip(data.domain_set, data.valid, strict=True) if not len(shards))


def _is_known(place: Workplace, name: str, *, is_fresh: bool) -> bool:
    """Return, on every rank, whether a domain is already measured as the recipe asks.

    Raises:
        ValueError: On every rank, if it was measured in another way; one line a difference.
    """
    found = from_rank_zero(lambda: _result_text(place, name), place.world)
    if not found or is_fresh:
        return False
    folder = domain_folder(place.config, name)
    check_made_with(json.loads(found)["made_with"], _made_with(place, name), folder=folder)
    logger.info("%s: measured before, %s", name, folder / RESULT_FILE)
    return True


def check_made_with(saved: Mapping[str, Any], current: Mapping[str, Any], *, folder: Path) -> None:
    """Raise ValueError, one line a difference, if a domain was measured in another way than is requested now."""
    saved = {**saved, "model": model_identity(saved.get("model", {}))}
    lines = [
        f"{folder}: measured with {key} {saved.get(key)!r}, now {value!r}; use the earlier value, or measure again "
        "with --fresh"
        for key, value in current.items()
        if saved.get(key) != value
    ]
    if lines:
        raise ValueError("\n".join(lines))


def _result_text(place: Workplace, name: str) -> str:
    """Return a finished domain's result as JSON, empty if there is none."""
    path = domain_folder(place.config, name) / RESULT_FILE
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _made_with(place: Workplace, name: str) -> dict[str, Any]:
    """Return everything that a domain's reference depends on."""
    recipe, data = domain_recipe(place.config, name), domain_data(place.data, name)
    return {
        **loss_digests(recipe, place.tokenizer, data),
        "data": data.digest,
        "seed": recipe.run.seed,
        "model": model_identity(recipe.model.model_dump(mode="json")),
        "patience": recipe.reference.patience,
        "reference.steps": recipe.train.steps,
        "reference.evaluate_every": recipe.mixture.update_every,
        "learning_rate": recipe.train.learning_rate,
        "rows_per_batch": recipe.train.rows_per_batch,
        "max_examples_per_domain": recipe.validation.max_examples_per_domain,
        "target_standard_error": recipe.validation.target_standard_error,
    }


def _begin_domain(place: Workplace, name: str, *, is_fresh: bool, stop_signals: StopSignals) -> Run:
    """Assemble the run on one domain alone and take its first measurement: the base model's loss."""
    run = assemble_run(
        domain_recipe(place.config, name),
        world=place.world,
        device=place.device,
        is_fresh=is_fresh,
        stop_signals=stop_signals,
        prepared=(place.tokenizer, domain_data(place.data, name)),
    )
    measure_before_training(run)
    return run


def _train_domain(place: Workplace, run: Run, name: str) -> bool:
    """Train a domain until its held-out loss stops falling; return whether it is done, False if a signal came."""
    losses = from_rank_zero(lambda: _losses_so_far(run, name), place.world)
    stop = EarlyStop(name, patience=place.config.reference.patience, losses=losses)
    is_done = False
    try:
        is_done = train(run, should_stop=stop, save_at_end=False)
    finally:
        run.loader.close()
        run.monitor.finish(exit_code=0 if is_done else REQUEUE_EXIT_CODE)
    if is_done:
        run_on_rank_zero(lambda: _write_result(place, run.config.run_dir, name), place.world)
    run.release()
    return is_done


def _losses_so_far(run: Run, name: str) -> list[float]:
    """Return the held-out losses on record up to the run's step."""
    decisions = read_decisions(run.config.run_dir / DECISIONS_FILE)
    return [loss_of(decision, name) for decision in decisions]


def _write_result(place: Workplace, run_dir: Path, name: str) -> None:
    """Write a domain's result and delete its checkpoints, which nothing needs any more."""
    result = {**result_of_run(run_dir, name), "made_with": _made_with(place, name)}
    write_reference(run_dir / RESULT_FILE, result)
    shutil.rmtree(run_dir / CHECKPOINTS_FOLDER, ignore_errors=True)
    logger.info("%s: reference loss %.4f at step %d", name, result["loss"], result["step"])


def _all_results(place: Workplace) -> list[Result]:
    """Return the results of all domains that are measured as the recipe asks, on rank 0; the other ranks write nothing.

    Domains that --domains excludes may have been measured before, or by another job.
    """
    measured = [name for name in place.data.domain_set if name not in _unmeasured(place)]
    texts = {name: _result_text(place, name) for name in measured} if place.world.is_rank_zero else {}
    results = {name: json.loads(text) for name, text in texts.items() if text}
    return [result for name, result in results.items() if result["made_with"] == _made_with(place, name)]


def _conclude(place: Workplace, results: Sequence[Result], *, task: ReferenceTask) -> int:
    """Log the results, and write reference.json if every domain has one; on rank 0."""
    run_on_rank_zero(lambda: _write(place, results, task=task), place.world)
    barrier()
    return 0


def _write(place: Workplace, results: Sequence[Result], *, task: ReferenceTask) -> None:
    """Log the results; write reference.json, or log which domains are still missing."""
    output = task.output or default_output(place.config)
    recipe = domain_recipe(place.config, place.data.domain_set.names[0])
    if task.scored_model is not None:
        recipe = scored_recipe(recipe, task.scored_model)
    # Results and what to look at.
    logger.info("references\n%s", reference_table(results))
    for note in reference_notes(results, most_steps=recipe.train.steps, origin=str(output)):
        logger.warning("%s", note)
    # The file, where every domain has a result.
    known = {result["domain"] for result in results}
    unmeasured = _unmeasured(place)
    missing = [name for name in place.data.domain_set if name not in known and name not in unmeasured]
    if missing:
        logger.warning("still to be measured: %s; %s is written when all domains are", ", ".join(missing), output)
        return
    how = f"scored: {task.scored_model}" if task.scored_model else "fine-tuned on each domain alone, held-out minimum"
    digests = loss_digests(place.config, place.tokenizer, place.data)
    content = reference_content(results, config=recipe, digests=digests, how=how, unmeasured=unmeasured)
    write_reference(output, content)
    is_named = output == place.config.mixture.reference
    use = "the recipe uses it" if is_named else f"train with mixture.reference={output}"
    logger.info("wrote %s; %s", output, use)
