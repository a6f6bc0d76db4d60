"""Build the model of a run, and its DeepSpeed engine with the loss head."""

from __future__ import annotations

import logging
from typing import Any

import torch

from versatune_ds.engine.deepspeed_quirks import full_shape
from versatune_ds.engine.ds_settings import offload_device
from versatune_ds.engine.engine import Engine, share_process_group
from versatune_ds.model.attention_choice import describe_attention, machine_here
from versatune_ds.model.build import build_causal_lm, special_ids_of_tokenizer
from versatune_ds.model.domain_model import DomainModel, compile_layers
from versatune_ds.model.four_bit import describe_four_bit
from versatune_ds.model.fused_layers import fuse_layers
from versatune_ds.model.model_check import check_losses_are_the_models
from versatune_ds.model.router_loss import describe_router_loss
from versatune_ds.model.sequence_parallel import split_attention
from versatune_ds.model.sizes import check_positions
from versatune_ds.progress import start_phase
from versatune_ds.training.prepared_data import RunSetup

logger = logging.getLogger(__name__)


def build_model(setup: RunSetup) -> Any:
    """Build or load the model on every rank from the same seed; only ZeRO-3 loads a saved model in parts.

    It is made on the device, unless its parameters will be offloaded to the host.
    """
    share_process_group()
    config = setup.config
    is_offloaded = offload_device(setup.ds_config, "offload_param") is not None
    torch.manual_seed(config.run.seed)
    return build_causal_lm(
        config.model,
        precision=config.train.precision,
        vocab_size=len(setup.tokenizer),
        special_ids=special_ids_of_tokenizer(setup.tokenizer),
        zero3_config=setup.ds_config if setup.zero_stage == 3 else None,
        device=None if is_offloaded else setup.device,
    )


def build_engine(setup: RunSetup, causal_lm: Any) -> Engine:
    """Attach the loss head to a model, check its positions and losses, and return its DeepSpeed engine.

    Raises:
        ValueError: If the model cannot take the longest example, or computes another loss than the head.
    """
    config = setup.config
    sizes = [(full_shape(part).numel(), part.requires_grad) for part in causal_lm.parameters()]
    num_parameters, num_trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    trained = "" if num_trained == num_parameters else f", {num_trained / 1e6:.3g} M of them trained"
    logger.info("model: %s, %.3g M parameters%s", type(causal_lm).__name__, num_parameters / 1e6, trained)
    machine = machine_here(config.train.precision)
    logger.info("attention: %s", describe_attention(causal_lm, wanted=config.model.attention, machine=machine))
    for line in (describe_router_loss(causal_lm), describe_four_bit(causal_lm)):
        if line is not None:
            logger.info("%s", line)

    # ZeRO-3 keeps the weights in parts, which only the engine gathers: there the losses are checked afterwards.
    check_positions(causal_lm, longest=setup.longest_example)
    fuse_layers(causal_lm, config.model, device=setup.device)
    if setup.zero_stage < 3:
        with start_phase("loss kernels and check of the losses"):  # the first loss loads or compiles them
            check_losses_are_the_models(causal_lm.to(setup.device))
    if config.model.compile:
        compile_layers(causal_lm)
    num_slices = config.train.sequence_parallel
    group = split_attention(causal_lm, wanted=config.model.attention, num_slices=num_slices, world=setup.world)
    with start_phase("DeepSpeed"):
        engine = Engine(
            DomainModel(causal_lm, num_domains=len(setup.domain_set), sequence_group=group),
            train=config.train,
            ds_config=setup.ds_config,
            world=setup.world,
            device=setup.device,
            seed=config.run.seed,
        )
    if setup.zero_stage == 3:
        with start_phase("loss kernels and check of the losses"):
            engine.check_losses()
    engine.check_slices()
    return engine
