"""Put a run together from its config: folder, data, model, engine, mixture, and the checkpoint it goes on from.

The one idea: everything a user can get wrong is found here, before the first step, in the order of what it costs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from versatune_ds.config import RunConfig
from versatune_ds.config.unread_settings import unread_settings
from versatune_ds.data.encoding.tokenizer import pad_token_id
from versatune_ds.data.loader import MixtureLoader
from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.distributed import World, check_same_on_all_ranks, run_on_rank_zero
from versatune_ds.engine.deepspeed_quirks import full_shape
from versatune_ds.engine.ds_settings import deepspeed_config, zero_stage
from versatune_ds.engine.engine import Engine, share_process_group
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.offline.outlook import start_warnings
from versatune_ds.mixture.reference import References, load_references
from versatune_ds.mixture.reference_checks import check_provenance
from versatune_ds.mixture.schedule import Schedule
from versatune_ds.model.build import (
    DomainModel,
    build_causal_lm,
    compile_layers,
    save_model_settings,
    special_ids_of_tokenizer,
)
from versatune_ds.model.model_check import check_losses_are_the_models
from versatune_ds.model.positions import check_positions
from versatune_ds.model.router_loss import describe_router_loss
from versatune_ds.monitor import Monitor, open_monitor
from versatune_ds.run_folder.folder import RunStart, open_run_folder, write_record
from versatune_ds.run_folder.folder_lock import FolderLock
from versatune_ds.run_folder.links import lock_run_folder
from versatune_ds.run_folder.names import MODEL_FOLDER, TOKENIZER_FOLDER
from versatune_ds.training.bad_steps import BadSteps
from versatune_ds.training.decision_inputs import DecisionInputs, SupplyLimits
from versatune_ds.training.end_tokens import endings_of_data
from versatune_ds.training.held_out import held_out_examples
from versatune_ds.training.loss_digests import loss_digests
from versatune_ds.training.meter import Meter
from versatune_ds.training.mixture_start import domain_sizes, named_weights, recipe_weights
from versatune_ds.training.mixture_table import mixture_table
from versatune_ds.training.prepared_data import prepare_once_per_node
from versatune_ds.training.resume import ResumePoint, find_resume_point, record_resume, run_identity
from versatune_ds.training.run import Run
from versatune_ds.training.served_tokens import ServedTokens
from versatune_ds.training.signals import SaveClock, StopSignals
from versatune_ds.training.start_checks import Start, check_start
from versatune_ds.training.throughput import Throughput, throughput_of
from versatune_ds.training.train_losses import TrainLosses
from versatune_ds.training.update_clock import UpdateClock

logger = logging.getLogger(__name__)


def assemble_run(
    config: RunConfig,
    *,
    world: World,
    device: torch.device,
    is_fresh: bool,
    prepared: tuple[Any, PreparedData] | None = None,
    export_model: Callable[[Path], Path] | None = None,
) -> Run:
    """Return the run, ready for the loop, at the step of its newest sound checkpoint.

    Args:
        config: The recipe.
        world: This process's place.
        device: Where the model runs.
        is_fresh: Whether an existing run folder is deleted first.
        prepared: Tokenizer and data, where they are at hand; without them the recipe's are prepared.
        export_model: Exports the model of a run's folder, for a monitor that keeps it at the end.

    Raises:
        ValueError: On every rank, for anything wrong in the recipe, its files or its data.
    """
    beginning = Start(
        config=config, stage="every rank", num_processes=world.world_size, device_type=device.type, is_here=True,
        is_fresh=is_fresh,
    )  # fmt: skip
    check_start(beginning)
    ds_config = deepspeed_config(config.train, world_size=world.world_size)
    locks: list[FolderLock] = []
    run_on_rank_zero(lambda: locks.extend(lock_run_folder(config.run_dir, is_fresh=is_fresh)), world)
    run_on_rank_zero(lambda: check_start(replace(beginning, stage="rank 0")), world)
    tokenizer, data = prepared or prepare_once_per_node(config, world)
    references = _references(config, tokenizer, data)
    named_K, weights_K = named_weights(config, data), recipe_weights(config, data)
    controller = Controller(
        domain_set=data.domain_set, settings=config.mixture, weights_K=weights_K, references=references
    )
    logger.info("mixture\n%s", mixture_table(config, data, weights_K))
    stage = zero_stage(ds_config)
    identity = run_identity(config, tokenizer, data, world=world, stage=stage, weights_K=named_K, references=references)
    check_same_on_all_ranks(json.dumps(identity), world, what="data, tokenizer and settings")
    point = None if is_fresh else find_resume_point(config, identity, world=world)
    if world.is_rank_zero:
        begins = (
            []
            if point
            else start_warnings(config.mixture, named_K=named_K, start_K=weights_K, domain_set=data.domain_set)
        )
        for line in (*unread_settings(config), *begins):
            logger.warning("%s", line)
    causal_lm = build_model(config, tokenizer, ds_config=ds_config)
    start = RunStart(
        prior={"weights": data.domain_set.to_dict(weights_K), "origin": str(config.mixture.prior)},
        reference=references.to_dict(data.domain_set),
        endings=endings_of_data(config, tokenizer, data) if world.is_rank_zero else {},
        save_parts=lambda folder: _save_parts(causal_lm, tokenizer, run_dir=folder),
    )
    run_on_rank_zero(lambda: open_run_folder(config, world, start=start, is_fresh=is_fresh), world)
    engine = build_engine(config, causal_lm, data, ds_config=ds_config, world=world, device=device)
    throughput = throughput_of(causal_lm, precision=config.train.precision, num_processes=world.world_size)
    run = _new_run(
        config, data, tokenizer, world=world, engine=engine, controller=controller, identity=identity,
        schedule=Schedule(weights_K), throughput=throughput,
    )  # fmt: skip
    run.locks = tuple(locks)
    _go_on_from(run, point, start=start, export_model=export_model)
    return run


def _save_parts(causal_lm: Any, tokenizer: Any, *, run_dir: Path) -> None:
    """Write the tokenizer and the model's config into a run's folder."""
    tokenizer.save_pretrained(run_dir / TOKENIZER_FOLDER)
    save_model_settings(causal_lm, run_dir / MODEL_FOLDER)


def _new_run(
    config: RunConfig,
    data: PreparedData,
    tokenizer: Any,
    *,
    world: World,
    engine: Engine,
    controller: Controller,
    identity: dict[str, Any],
    schedule: Schedule,
    throughput: Throughput,
) -> Run:
    """Return a run at step 0, with nothing recorded yet."""
    return Run(
        config=config,
        world=world,
        domain_set=data.domain_set,
        engine=engine,
        loader=_training_loader(config, data, tokenizer, world=world),
        validation=held_out_examples(config, data, tokenizer, world=world),
        schedule=schedule,
        controller=controller if world.is_rank_zero else None,
        inputs=_decision_inputs(config, data) if world.is_rank_zero else None,
        monitor=Monitor([]),
        stop_signals=StopSignals(),
        meter=Meter(data.domain_set),
        train_losses=TrainLosses(len(data.domain_set), world=world) if config.mixture.signal == "train" else None,
        updates=UpdateClock(update_every=config.mixture.update_every, max_share=config.validation.max_share),
        served=ServedTokens(len(data.domain_set)),
        throughput=throughput,
        save_clock=SaveClock(config.checkpoint.every_minutes),
        bad_steps=BadSteps(config.train, run_dir=config.run_dir),
        identity=identity,
    )


def _go_on_from(
    run: Run, point: ResumePoint | None, *, start: RunStart, export_model: Callable[[Path], Path] | None
) -> None:
    """Bring a run to its checkpoint, if it has one, and open its records at that step."""
    config, world = run.config, run.world
    if point is not None:
        run.restore(point)
        run_on_rank_zero(lambda: record_resume(config.run_dir, point, run.identity), world)
    if run.inputs is not None:
        run.inputs.go_on_after(run.step)
    run_on_rank_zero(lambda: write_record(config, world, start=start, step=run.step), world)
    run.monitor = _monitor(
        config, world=world, resumed_step=-1 if point is None else run.step, export_model=export_model
    )


def _references(config: RunConfig, tokenizer: Any, data: PreparedData) -> References:
    """Return the reference losses, checked to be of the same tokens and the same loss mask as the run's.

    Raises:
        ValueError: If they are missing, or cannot steer this run and `mixture.reference_check` is refuse.
    """
    references = load_references(config.mixture, domain_set=data.domain_set)
    if is_never_measured(config, num_valid_K=[len(shards) for shards in data.valid]):
        logger.warning("mixture.policy: %s", nothing_measured(config))
    digests = loss_digests(config, tokenizer, data)
    is_refused = config.mixture.reference_check == "refuse"
    for warning in check_provenance(references, domain_set=data.domain_set, run_digests=digests, is_refused=is_refused):
        logger.warning("%s", warning)
    return references


def is_never_measured(config: RunConfig, *, num_valid_K: Sequence[int]) -> bool:
    """Return whether a policy that moves by held-out losses has no held-out row in any domain."""
    return not config.mixture.rule.is_fixed and config.mixture.signal != "train" and not any(num_valid_K)


def nothing_measured(config: RunConfig) -> str:
    """Return what to say of such a recipe."""
    return (
        f"{config.mixture.policy} moves the mixture by held-out losses, but no domain has held-out rows: it stays at "
        "its start; give held-out rows, set mixture.signal=train, or mixture.policy=constant"
    )


def _decision_inputs(config: RunConfig, data: PreparedData) -> DecisionInputs:
    """Return what decisions take in besides losses; supply bounds a policy that moves, never a mixture as given."""
    limits, max_epochs = None, config.data.max_epochs_per_domain
    is_as_given = config.mixture.paper or config.mixture.rule.is_fixed
    if max_epochs is not None and not is_as_given:
        limits = SupplyLimits(
            num_examples_K=domain_sizes(data, unit="examples"),
            units_per_pass_K=domain_sizes(data, unit=config.mixture.weight_unit),
            max_epochs=max_epochs,
            num_steps=config.train.steps,
        )
    return DecisionInputs(config.run_dir, domain_set=data.domain_set, policy=config.mixture.rule, limits=limits)


def build_model(config: RunConfig, tokenizer: Any, *, ds_config: dict[str, Any]) -> Any:
    """Build or load the model on every rank from the same seed, in parts only where ZeRO-3 loads a saved one."""
    share_process_group()
    torch.manual_seed(config.run.seed)
    return build_causal_lm(
        config.model,
        precision=config.train.precision,
        vocab_size=len(tokenizer),
        special_ids=special_ids_of_tokenizer(tokenizer),
        zero3_config=ds_config if zero_stage(ds_config) == 3 else None,
    )


def build_engine(
    config: RunConfig,
    causal_lm: Any,
    data: PreparedData,
    *,
    ds_config: dict[str, Any],
    world: World,
    device: torch.device,
) -> Engine:
    """Give the model its loss head, check it, and hand it to DeepSpeed."""
    num_parameters = sum(full_shape(part).numel() for part in causal_lm.parameters())
    logger.info("model: %s, %.1f M parameters", type(causal_lm).__name__, num_parameters / 1e6)
    if (line := describe_router_loss(causal_lm)) is not None:
        logger.info("%s", line)
    check_positions(causal_lm, longest=longest_example(data))
    if zero_stage(ds_config) < 3:
        check_losses_are_the_models(causal_lm.to(device))
    if config.model.compile:
        compile_layers(causal_lm)
    model = DomainModel(causal_lm, num_domains=len(data.domain_set))
    engine = Engine(model, train=config.train, ds_config=ds_config, world=world, device=device, seed=config.run.seed)
    if zero_stage(ds_config) == 3:  # its weights are in parts from here on: only the engine gathers them
        engine.check_losses()
    return engine


def longest_example(data: PreparedData) -> int:
    """Return the tokens of the longest example, trained on or held out."""
    return max((int(part.lengths.max()) for part in (*data.train, *data.valid) if len(part.lengths)), default=0)


def _training_loader(config: RunConfig, data: PreparedData, tokenizer: Any, *, world: World) -> MixtureLoader:
    """Return the loader of the training mixture."""
    return MixtureLoader(
        data.train,
        domain_set=data.domain_set,
        seed=config.run.seed,
        rows_per_batch=config.train.rows_per_batch,
        row_tokens=config.data.row_tokens,
        rows_per_micro_batch=config.train.rows_per_micro_batch,
        rank=world.rank,
        world_size=world.world_size,
        weight_unit=config.mixture.weight_unit,
        max_epochs_per_domain=config.data.max_epochs_per_domain,
        pad_token_id=pad_token_id(tokenizer),
    )


def _monitor(
    config: RunConfig, *, world: World, resumed_step: int, export_model: Callable[[Path], Path] | None
) -> Monitor:
    """Open the monitor; if it cannot be opened on rank 0, every rank raises."""
    opened: list[Monitor] = []

    def open_it() -> None:
        monitor = open_monitor(config, is_rank_zero=True, resumed_step=resumed_step, export_model=export_model)
        opened.append(monitor)

    run_on_rank_zero(open_it, world)
    return opened[0] if opened else Monitor([])
