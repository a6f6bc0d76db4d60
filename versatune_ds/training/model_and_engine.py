"""Build a run's model, check it, and give it to DeepSpeed."""

from __future__ import annotations

import logging
from typing import Any

import torch

from versatune_ds.engine.engine import Engine, share_process_group
from versatune_ds.model.attention import describe_attention, machine_here
from versatune_ds.model.build import DomainModel, build_causal_lm, compile_layers, special_ids_of_tokenizer
from versatune_ds.model.model_check import check_losses_are_the_models
from versatune_ds.model.positions import check_positions
from versatune_ds.model.router_loss import describe_router_loss
from versatune_ds.training.run_setup import RunSetup

logger = logging.getLogger(__name__)


def build_model(setup: RunSetup) -> Any:
    """Build or load the model on every rank from the same seed; only ZeRO-3 loads a saved model in parts."""
    share_process_group()
    config = setup.config
    torch.manual_seed(config.run.seed)
    return build_causal_lm(
        config.model,
        precision=config.train.precision,
        vocab_size=len(setup.tokenizer),
        special_ids=special_ids_of_tokenizer(setup.tokenizer),
        zero3_config=setup.ds_config if setup.zero_stage == 3 else None,
    )


def build_engine(setup: RunSetup, causal_lm: Any) -> Engine:
    """Attach the loss head to a model, check its positions and losses, and return its DeepSpeed engine.

    Raises:
        ValueError: If the model cannot take the longest example, or computes another loss than the head.
    """
    config = setup.config
    num_parameters = sum(getattr(part, "ds_numel", part.numel()) for part in causal_lm.parameters())
    logger.info("model: %s, %.1f M parameters", type(causal_lm).__name__, num_parameters / 1e6)
    machine = machine_here(config.train.precision)
    logger.info("attention: %s", describe_attention(causal_lm, wanted=config.model.attention, machine=machine))
    if (line := describe_router_loss(causal_lm)) is not None:
        logger.info("%s", line)

    # ZeRO-3 keeps the weights in parts, which only the engine gathers: there the losses are checked afterwards.
    check_positions(causal_lm, longest=setup.longest_example)
    if setup.zero_stage < 3:
        check_losses_are_the_models(causal_lm.to(setup.device))
    if config.model.compile:
        compile_layers(causal_lm)
    engine = Engine(
        DomainModel(causal_lm, num_domains=len(setup.domain_set)),
        train=config.train,
        ds_config=setup.ds_config,
        world=setup.world,
        device=setup.device,
        seed=config.run.seed,
    )
    if setup.zero_stage == 3:
        engine.check_losses()
    return engine
