"""A resumed run trains with the current settings of its recipe, in every ZeRO stage and after a conversion."""

from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from one_batch import LEARNING_RATE, micro_batches
from ranks import run_ranks
from tiny_models import build_arguments

from versatune_ds.config import TrainConfig
from versatune_ds.engine.checkpoint import NewCheckpoint, load_checkpoint, save_checkpoint
from versatune_ds.engine.checkpoint_quirks import OptimizerSettings, place_step_counts
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.engine.engine import Engine, share_process_group
from versatune_ds.engine.other_world_size import load_converted
from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.domain_model import DomainModel

BEFORE = {"weight_decay": 0.0, "beta1": 0.9, "beta2": 0.95, "max_grad_norm": 1.0}
NOW = {"weight_decay": 0.5, "beta1": 0.5, "beta2": 0.75, "max_grad_norm": 1e-3}


def engine_of(world, *, stage, precision="fp32", **settings):
    share_process_group()
    train = TrainConfig(
        steps=9, rows_per_batch=4, precision=precision, learning_rate=LEARNING_RATE, warmup_fraction=0.0,
        learning_rate_schedule="constant", deepspeed={"zero_optimization": {"stage": stage}}, **settings,
    )  # fmt: skip
    causal_lm = build_causal_lm(**{**build_arguments("llama", tie_word_embeddings=True), "precision": precision})
    ds_config = deepspeed_config(train, world_size=world.world_size)
    return Engine(
        DomainModel(causal_lm, num_domains=1), train=train, ds_config=ds_config, world=world,
        device=torch.device("cpu"), seed=0,
    )  # fmt: skip


def step(engine, number):
    engine.train_step(micro_batches("packed", world=engine.world, rows_per_micro_batch=1), step=number)
    return fp32_sums(engine)


def fp32_sums(engine):
    """Return the sum of squares of this rank's fp32 weights by group: what a decay of `weight_decay * lr` shrinks."""
    optimizer = engine.deepspeed_engine.optimizer
    flat = getattr(optimizer, "single_partition_of_fp32_groups", None)
    if flat is None:
        flat = getattr(optimizer, "fp32_partitioned_groups_flat", None)
    if flat is None:
        flat = [p for group in optimizer.param_groups for p in group["params"]]
    return [float(part.detach().double().square().sum()) for part in flat]


def settings_in(engine):
    optimizer = engine.deepspeed_engine.optimizer
    groups = [(group["betas"], group["weight_decay"], group["eps"]) for group in optimizer.param_groups]
    clip = getattr(optimizer, "clip_grad", engine.deepspeed_engine.gradient_clipping())
    return groups, clip


EXPECTED = ([((0.5, 0.75), 0.5, 1e-8), ((0.5, 0.75), 0.0, 1e-8)], 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32")])
def test_a_resumed_run_decays_and_clips_as_its_recipe_says_now(stage, precision, tmp_path):
    """The weights after the step are those of the engine that saved, given the new settings by hand."""

    def resumed(world):
        before = engine_of(world, stage=stage, precision=precision, **BEFORE)
        step(before, 1)
        new = NewCheckpoint(run_dir=tmp_path, step=1, state={}, keep=1, world=world)
        folder = save_checkpoint(before.deepspeed_engine, new)
        for group, settings in zip(before.deepspeed_engine.optimizer.param_groups, EXPECTED[0], strict=True):
            group["betas"], group["weight_decay"] = settings[0], settings[1]
        if hasattr(before.deepspeed_engine.optimizer, "clip_grad"):
            before.deepspeed_engine.optimizer.clip_grad = 1e-3
        before.deepspeed_engine._config.gradient_clipping = 1e-3
        again = engine_of(world, stage=stage, precision=precision, **NOW)
        load_checkpoint(again.deepspeed_engine, folder)
        return settings_in(again), step(again, 2), step(before, 2)

    (tmp_path / "ranks").mkdir()
    for found, ours, expected in run_ranks(resumed, world_size=2, folder=tmp_path / "ranks"):
        assert found == EXPECTED
        assert ours == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_after_a_conversion_every_group_has_its_own_settings(stage, tmp_path):
    """DeepSpeed gives the first group's to all of them under stage 3: norms would decay."""

    def saved(world):
        engine = engine_of(world, stage=stage, **BEFORE)
        step(engine, 1)
        new = NewCheckpoint(run_dir=tmp_path, step=1, state={}, keep=1, world=world)
        save_checkpoint(engine.deepspeed_engine, new)

    def converted(world):
        engine = engine_of(world, stage=stage, **NOW)
        load_converted(engine.deepspeed_engine, tmp_path / "checkpoints" / "step_00000001", world=world)
        return settings_in(engine)

    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    run_ranks(saved, world_size=2, folder=tmp_path / "two")
    assert run_ranks(converted, world_size=1, folder=tmp_path / "one") == [EXPECTED]


@pytest.mark.parametrize(("is_fused", "expected"), [(True, "meta"), (None, "cpu")])
def test_a_loaded_step_count_is_where_the_form_of_adamw_wants_it(is_fused, expected):
    """The meta device stands in for a GPU; a checkpoint of the other form brings its own setting along."""
    parameter = torch.nn.Parameter(torch.zeros(2, device="meta"))
    inner = torch.optim.AdamW([parameter], foreach=False)
    inner.param_groups[0]["fused"] = is_fused
    outer = SimpleNamespace(param_groups=inner.param_groups, optimizer=inner)
    settings = OptimizerSettings.of(outer)
    inner.param_groups[0]["fused"] = not is_fused
    inner.state[parameter]["step"] = torch.tensor(3.0)
    settings.restore(outer)
    place_step_counts(outer)
    assert inner.param_groups[0]["fused"] is is_fused
    assert inner.state[parameter]["step"].device.type == expected


def wrapper(scaler):
    return SimpleNamespace(param_groups=[], loss_scaler=scaler, dynamic_loss_scale=scaler.dynamic)


def dynamic(**settings):
    return DynamicLossScaler(
        **{"init_scale": 2**16, "scale_window": 1000, "min_scale": 1, "delayed_shift": 2,
           "consecutive_hysteresis": False, **settings}
    )  # fmt: skip


def test_a_dynamic_loss_scale_keeps_its_value_and_gets_the_new_window():
    optimizer = wrapper(dynamic(scale_window=50, min_scale=8))
    settings = OptimizerSettings.of(optimizer)
    optimizer.loss_scaler = dynamic()
    optimizer.loss_scaler.cur_scale, optimizer.loss_scaler.cur_iter = 256.0, 77
    settings.restore(optimizer)
    scaler = optimizer.loss_scaler
    assert (scaler.cur_scale, scaler.cur_iter, scaler.scale_window, scaler.min_scale) == (256.0, 77, 50, 8)


def test_a_loss_scale_that_is_now_fixed_gets_the_value_of_the_recipe():
    optimizer = wrapper(LossScaler(scale=128.0))
    settings = OptimizerSettings.of(optimizer)
    optimizer.loss_scaler, optimizer.dynamic_loss_scale = dynamic(), True
    settings.restore(optimizer)
    assert (optimizer.loss_scaler.cur_scale, optimizer.dynamic_loss_scale) == (128.0, False)
