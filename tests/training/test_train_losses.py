"""Training losses between two updates: exact sums, however they are split over steps, ranks and restarts."""

import json

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from versatune_ds.distributed import World
from versatune_ds.engine.engine import StepResult
from versatune_ds.kernels.domain_loss import DomainSums
from versatune_ds.training.meter import TrainLosses

ALONE = World(rank=0, world_size=1, local_rank=0, launcher="test")


def result_of(*losses, is_applied=True, num_tokens=(4, 0)):
    return StepResult(
        loss_sum=torch.tensor(sum(losses)),
        by_domain=DomainSums(
            loss_sum_K=torch.tensor(losses, dtype=torch.float64),
            loss_sq_sum_K=torch.tensor([loss**2 for loss in losses], dtype=torch.float64),
            num_loss_tokens_K=torch.tensor(num_tokens),
        ),
        num_loss_tokens_global=4,
        is_applied=is_applied,
    )


def test_losses_of_applied_steps_are_summed_by_domain_and_cleared_when_read():
    losses = TrainLosses(2, world=ALONE)
    for result in (result_of(8.0, 0.0), result_of(99.0, 99.0, is_applied=False), result_of(4.0, 0.0)):
        losses.add(result)
    statistics = losses.take()
    assert statistics.loss_sum_K.tolist() == [12.0, 0.0]
    assert statistics.loss_sq_sum_K.tolist() == [80.0, 0.0]
    assert statistics.num_loss_tokens_K.tolist() == [8, 0]
    assert statistics.mean()[0] == 1.5
    assert losses.take().num_loss_tokens_K.tolist() == [0, 0]


def sums_of(statistics):
    return np.concatenate([statistics.loss_sum_K, statistics.loss_sq_sum_K, statistics.num_loss_tokens_K])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1e4), min_size=2, max_size=8), st.integers(0, 8))
def test_a_restart_after_any_step_gives_the_same_bits(values, stop):
    uninterrupted, first = TrainLosses(2, world=ALONE), TrainLosses(2, world=ALONE)
    for value in values:
        uninterrupted.add(result_of(value, value / 3))
    for value in values[:stop]:
        first.add(result_of(value, value / 3))
    resumed = TrainLosses(2, world=ALONE)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for value in values[stop:]:
        resumed.add(result_of(value, value / 3))
    assert sums_of(resumed.take()).tobytes() == sums_of(uninterrupted.take()).tobytes()


def test_only_rank_zero_restores_the_saved_sums():
    second = TrainLosses(2, world=World(rank=1, world_size=2, local_rank=1, launcher="test"))
    second.load_state_dict({"sums": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]})
    assert sums_of(second.take()).tolist() == [0.0] * 6


def test_a_loss_that_is_not_finite_stays_so_after_a_restart():
    losses, resumed = TrainLosses(2, world=ALONE), TrainLosses(2, world=ALONE)
    losses.add(result_of(float("nan"), 1.0))
    resumed.load_state_dict(json.loads(json.dumps(losses.state_dict())))
    assert not resumed.take().mean()[0] >= 0
