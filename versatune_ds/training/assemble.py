"""Put a run together from its config: folder, data, model, engine, mixture, and the checkpoint it goes on from.

The one idea: everything a user can get wrong is found here, before the first step, in the order of what it costs.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from versatune_ds.config import RunConfig
from versatune_ds.data.loader import MixtureLoader
from versatune_ds.data.prepare import PreparedData
from versatune_ds.data.subset import ExampleSubset
from versatune_ds.data.tokenize import tokenizer_digest
from versatune_ds.data.validation_rows import ValidationLoader
from versatune_ds.distributed import World, run_on_rank_zero
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.reference import load_references
from versatune_ds.mixture.schedule import Schedule
from versatune_ds.mixture.settings import FIXED_POLICIES
from versatune_ds.training.checkpoint import newest_sound_checkpoint
from versatune_ds.training.decision_inputs import DecisionInputs, SupplyLimits
from versatune_ds.training.ds_settings import deepspeed_config, zero_stage
from versatune_ds.training.engine import Engine
from versatune_ds.training.meter import Meter
from versatune_ds.training.mixture_start import domain_sizes, recipe_weights
from versatune_ds.training.model import DomainModel, build_causal_lm
from versatune_ds.training.monitor import Monitor, open_monitor
from versatune_ds.training.prepared import prepare_on_rank_zero
from versatune_ds.training.run import Run
from versatune_ds.training.run_folder import open_run_folder
from versatune_ds.training.served import ServedTokens
from versatune_ds.training.signals import StopSignals

logger = logging.getLogger(__name__)


def assemble_run(config: RunConfig, *, world: World, device: torch.device, is_fresh: bool, signals: StopSignals) -> Run:
    """Return the run, ready for the loop, at the step of its newest sound checkpoint.

    Raises:
        ValueError: On every rank, for anything wrong in the recipe, its files or its data.
    """
    ds_config = deepspeed_config(config.train, world_size=world.world_size)
    run_on_rank_zero(lambda: open_run_folder(config, is_fresh=is_fresh, world=world), world)
    tokenizer, data = prepare_on_rank_zero(config, world)
    weights_K, controller = _mixture(config, data)
    engine = _engine(config, tokenizer, data, ds_config=ds_config, world=world, device=device)
    run = Run(
        config=config,
        world=world,
        domain_set=data.domain_set,
        engine=engine,
        loader=_training_loader(config, data, tokenizer, world=world),
        validation=_validation_loader(config, data, tokenizer, world=world),
        schedule=Schedule(weights_K),
        controller=controller if world.is_rank_zero else None,
        inputs=_decision_inputs(config, data) if world.is_rank_zero else None,
        monitor=Monitor([]),
        signals=signals,
        meter=Meter(data.domain_set),
        served=ServedTokens(len(data.domain_set)),
        identity={
            "data": data.digest,
            "tokenizer": tokenizer_digest(tokenizer),
            "domains": list(data.domain_set),
            "rows_per_batch": config.train.rows_per_batch,
            "world_size": world.world_size,
            "zero_stage": zero_stage(ds_config),
        },
    )
    checkpoint = newest_sound_checkpoint(config.run_dir, world)
    if checkpoint is not None:
        run.restore(checkpoint)
    if run.inputs is not None:
        run.inputs.go_on_after(run.step)
    run.monitor = _monitor(config, world=world, resumed_step=run.step)
    return run


def _mixture(config: RunConfig, data: PreparedData) -> tuple[np.ndarray, Controller]:
    """Return the weights of step 0 and the controller; only rank 0 will ask it."""
    references = load_references(config.mixture, domain_set=data.domain_set)
    weights_K = recipe_weights(config, data)
    controller = Controller(
        domain_set=data.domain_set, settings=config.mixture, weights_K=weights_K, references=references
    )
    return weights_K, controller


def _decision_inputs(config: RunConfig, data: PreparedData) -> DecisionInputs:
    """Return what decisions take in besides losses; supply bounds a policy that moves, never a mixture as given."""
    limits, max_epochs = None, config.data.max_epochs_per_domain
    is_as_given = config.mixture.paper or config.mixture.policy in {*FIXED_POLICIES, "schedule"}
    if max_epochs is not None and not is_as_given:
        limits = SupplyLimits(
            num_examples_K=domain_sizes(data, unit="examples"),
            units_per_pass_K=domain_sizes(data, unit=config.mixture.weight_unit),
            max_epochs=max_epochs,
            num_steps=config.train.steps,
        )
    return DecisionInputs(config.run_dir, domain_set=data.domain_set, limits=limits)


def _engine(
    config: RunConfig,
    tokenizer: Any,
    data: PreparedData,
    *,
    ds_config: dict[str, Any],
    world: World,
    device: torch.device,
) -> Engine:
    """Build the model on every rank from the same seed and hand it to DeepSpeed; rank 0 keeps its config on disk."""
    torch.manual_seed(config.run.seed)
    special_ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id")
        for name in ("bos", "eos", "pad")
        if getattr(tokenizer, f"{name}_token_id") is not None
    }
    causal_lm = build_causal_lm(
        config.model, precision=config.train.precision, vocab_size=len(tokenizer), special_ids=special_ids
    )
    if world.is_rank_zero:
        causal_lm.config.save_pretrained(config.run_dir / "model")
    num_parameters = sum(parameter.numel() for parameter in causal_lm.parameters())
    logger.info("model: %s, %.1f M parameters", type(causal_lm).__name__, num_parameters / 1e6)
    model = DomainModel(causal_lm, num_domains=len(data.domain_set)).to(device)
    return Engine(model, train=config.train, ds_config=ds_config, world=world, device=device, seed=config.run.seed)


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


def _validation_loader(config: RunConfig, data: PreparedData, tokenizer: Any, *, world: World) -> ValidationLoader:
    """Return the loader of the fixed held-out examples."""
    settings = config.validation
    shards = data.valid
    if settings.max_rows_per_domain is not None:
        shards = [
            ExampleSubset(part, max_examples=settings.max_rows_per_domain, seed=config.run.seed) for part in shards
        ]
    return ValidationLoader(
        shards,
        domain_set=data.domain_set,
        rows_per_micro_batch=settings.rows_per_micro_batch or config.train.rows_per_micro_batch,
        row_tokens=config.data.row_tokens,
        rank=world.rank,
        world_size=world.world_size,
        pad_token_id=pad_token_id(tokenizer),
    )


def pad_token_id(tokenizer: Any) -> int:
    """Return the id that fills rows; its positions bear no loss, so any id will do where the tokenizer has none."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _monitor(config: RunConfig, *, world: World, resumed_step: int) -> Monitor:
    """Open the monitor; if it cannot be opened on rank 0, every rank raises."""
    opened: list[Monitor] = []
    run_on_rank_zero(lambda: opened.append(open_monitor(config, is_rank_zero=True, resumed_step=resumed_step)), world)
    return opened[0] if opened else Monitor([])
