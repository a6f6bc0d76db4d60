"""A plan is a pure function of seed, weights and state, follows the weights, and reports when data ends."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from fake_shards import FakeShards, fake_domain, fake_domains
from hypothesis import given, settings
from hypothesis import strategies as st

from versatune_ds.data.order.permutation import DomainOrder
from versatune_ds.data.order.plan import PlanSettings, StepPlan, plan_step
from versatune_ds.data.order.sampler import SamplerState
from versatune_ds.data.order.supply import DataEndsError


def orders_of(shards: Sequence[FakeShards], *, seed: int = 1) -> list[DomainOrder]:
    return [DomainOrder.of(s.name, seed=seed, lengths=s.lengths, loss_lengths=s.loss_lengths) for s in shards]


def plan_steps(
    shards: Sequence[FakeShards], weights: Sequence[float], *, num_steps: int, seed: int = 1, **shape
) -> list[StepPlan]:
    settings = PlanSettings(**{"rows_per_batch": 4, "row_tokens": 64, **shape})
    state, plans = SamplerState.start(len(shards)), []
    for step in range(1, num_steps + 1):
        plans.append(
            plan_step(state, np.array(weights), step=step, orders=orders_of(shards, seed=seed), settings=settings)
        )
        state = plans[-1].state_after
    return plans


def drawn(plans: Sequence[StepPlan]) -> list[tuple[int, int, int]]:
    """Return (domain, epoch, index) of every example."""
    return [
        entry
        for plan in plans
        for entry in zip(
            plan.placement.domain_id_E.tolist(), plan.epoch_E.tolist(), plan.placement.index_E.tolist(), strict=True
        )
    ]


def test_a_domain_smaller_than_a_batch_is_repeated_epoch_by_epoch():
    plan = plan_steps([fake_domain(0, [16, 16, 16])], [1.0], num_steps=1)[0]
    assert Counter(drawn([plan])) == Counter(
        [(0, e, i) for e in range(5) for i in range(3)] + [entry for entry in drawn([plan]) if entry[1] == 5]
    )
    assert (plan.num_examples, plan.fill) == (16, 1.0)
    assert plan.state_after.draws_K.tolist() == [16]


def test_a_plan_counts_tokens_loss_tokens_and_shares():
    plan = plan_steps([fake_domain(0, [16]), fake_domain(1, [8])], [0.75, 0.25], num_steps=1)[0]
    assert plan.num_tokens_K.tolist() == [192, 64]
    assert plan.num_loss_tokens_K.tolist() == [96, 32]
    assert plan.num_loss_tokens_global == 128
    assert plan.realised_units_K.tolist() == [192, 64]
    assert plan.requested_units_K.tolist() == [192, 64]


@pytest.mark.parametrize(
    ("unit", "expected"), [("tokens", [0.5, 0.5]), ("loss_tokens", [0.5, 0.5]), ("examples", [0.8, 0.2])]
)
def test_weights_are_shares_of_the_unit_in_the_settings(unit: str, expected: list[float]):
    shards = [fake_domain(0, [32] * 50), fake_domain(1, [8] * 50)]
    plans = plan_steps(shards, [0.5, 0.5], num_steps=40, weight_unit=unit)
    tokens_K = sum(plan.num_tokens_K for plan in plans)
    assert (tokens_K / tokens_K.sum()).tolist() == pytest.approx(expected, abs=0.01)


@settings(max_examples=60)
@given(data=st.data(), num_domains=st.integers(1, 8), unit=st.sampled_from(["tokens", "loss_tokens", "examples"]))
def test_every_epoch_is_complete_and_shares_follow_the_weights(data, num_domains: int, unit: str):
    seed = data.draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    shards = fake_domains(rng.integers(1, 40, num_domains), longest=64, seed=seed)
    shards[0] = fake_domain(0, np.maximum(shards[0].lengths, 2))  # a domain without any loss token has its own test
    plans = plan_steps(shards, rng.dirichlet(np.ones(num_domains)), num_steps=6, weight_unit=unit)
    seen = Counter(drawn(plans))
    assert max(seen.values()) == 1
    for k, draws in enumerate(plans[-1].state_after.draws_K):
        expected = {(k, d // shards[k].num_examples) for d in range(draws)}
        assert {entry[:2] for entry in seen if entry[0] == k} == expected
        assert sum(entry[0] == k for entry in seen) == draws
    units_K = sum(plan.realised_units_K for plan in plans)
    requested_K = sum(plan.requested_units_K for plan in plans)
    assert np.abs(units_K - requested_K).max() <= 64 + 1e-6


def test_each_epoch_boundary_neither_skips_nor_repeats():
    shards = fake_domains([7, 5, 1], longest=20)
    seen = drawn(plan_steps(shards, [0.4, 0.4, 0.2], num_steps=30))
    for k, size in enumerate([7, 5, 1]):
        by_epoch = Counter(epoch for domain, epoch, _ in seen if domain == k)
        assert all(by_epoch[epoch] == size for epoch in range(max(by_epoch)))


def test_units_of_256_domains_stay_within_one_example_of_the_request():
    rng = np.random.default_rng(0)
    shards = fake_domains(rng.integers(1, 60, 256), longest=64)
    plans = plan_steps(shards, rng.dirichlet(np.full(256, 0.3)), num_steps=3, rows_per_batch=300)
    for plan in plans:
        assert np.abs(plan.state_after.deficit_K).max() <= 64 * 2**30
        assert plan.state_after.deficit_K.sum() == 0


def test_adding_a_domain_does_not_change_the_order_of_the_others():
    shards = fake_domains([20, 30], longest=10)
    order_alone, order_mixed = orders_of(shards[:1])[0], orders_of(shards)[0]
    assert order_alone.window(0, 40)[1].tolist() == order_mixed.window(0, 40)[1].tolist()


def test_the_length_of_the_windows_does_not_change_the_plan():
    # Windows are guessed 3 times too short for one domain and 20 times too long for the other.
    lengths = np.where(np.arange(4096) % 4 == 0, 64, 1)
    shards = [fake_domain(0, lengths), fake_domain(1, [2] * 10)]
    settings = PlanSettings(rows_per_batch=4, row_tokens=64)
    orders = orders_of(shards)
    wrong = [
        DomainOrder(
            name=o.name,
            key=o.key,
            lengths=o.lengths,
            loss_lengths=o.loss_lengths,
            mean_tokens=factor,
            mean_loss_tokens=factor,
        )
        for o, factor in zip(orders, (64.0, 0.1), strict=True)
    ]
    state, weights_K = SamplerState.start(2), np.array([0.9, 0.1])
    for step in range(20):
        right_plan = plan_step(state, weights_K, step=step, orders=orders, settings=settings)
        wrong_plan = plan_step(state, weights_K, step=step, orders=wrong, settings=settings)
        assert drawn([right_plan]) == drawn([wrong_plan])
        state = right_plan.state_after


def test_planning_from_the_state_of_an_earlier_plan_continues_it():
    shards = fake_domains([50, 60], longest=32)
    first, second = plan_steps(shards, [0.3, 0.7], num_steps=2)
    again = plan_step(
        first.state_after,
        np.array([0.3, 0.7]),
        step=2,
        orders=orders_of(shards),
        settings=PlanSettings(rows_per_batch=4, row_tokens=64),
    )
    assert drawn([again]) == drawn([second])


def test_the_share_of_a_capped_domain_goes_to_the_others_and_the_plan_lists_it():
    shards = [fake_domain(0, [16] * 4), fake_domain(1, [16] * 100), fake_domain(2, [16] * 100)]
    plans = plan_steps(shards, [0.5, 0.25, 0.25], num_steps=3, max_epochs_per_domain=1)
    assert plans[0].exhausted == (0,)
    assert plans[0].num_tokens_K.tolist() == [64, 96, 96]
    assert plans[1].num_tokens_K.tolist() == [0, 128, 128]
    assert plans[1].requested_units_K.tolist() == pytest.approx([0, 128, 128])


def test_the_last_batch_before_the_data_ends_is_not_full():
    shards = [fake_domain(0, [16] * 20)]
    first, last = plan_steps(shards, [1.0], num_steps=2, max_epochs_per_domain=1)
    assert (first.is_last, last.is_last, last.num_examples, last.fill) == (False, True, 4, 0.25)
    with pytest.raises(DataEndsError, match="data ends"):
        plan_steps(shards, [1.0], num_steps=3, max_epochs_per_domain=1)


def test_every_example_is_drawn_before_the_data_ends():
    shards = fake_domains([13, 40, 3], longest=60)
    seen, state = Counter(), SamplerState.start(3)
    settings = PlanSettings(rows_per_batch=4, row_tokens=64, max_epochs_per_domain=2)
    while True:
        plan = plan_step(state, np.array([0.6, 0.2, 0.2]), step=0, orders=orders_of(shards), settings=settings)
        seen.update(drawn([plan]))
        state = plan.state_after
        if plan.is_last:
            break
    assert seen == Counter((k, e, i) for k, size in enumerate([13, 40, 3]) for e in range(2) for i in range(size))


def test_an_empty_domain_is_refused_only_if_it_has_weight():
    shards = [fake_domain(0, []), fake_domain(1, [8])]
    assert plan_steps(shards, [0.0, 1.0], num_steps=1)[0].num_tokens_K.tolist() == [0, 256]
    with pytest.raises(ValueError, match="domain 'domain0' has no examples"):
        plan_steps(shards, [0.1, 0.9], num_steps=1)


def test_an_example_longer_than_a_row_is_an_error_with_its_index():
    with pytest.raises(ValueError, match=r"domain 'domain0', example 1: 65 tokens, expected 1\.\.64"):
        plan_steps([fake_domain(0, [8, 65])], [1.0], num_steps=1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"rows_per_batch": 0}, "expected 1 or more each"),
        ({"rows_per_batch": 2**20, "row_tokens": 2**11}, "less than 2147483648 tokens"),
        ({"weight_unit": "rows"}, "expected one of tokens, loss_tokens, examples"),
    ],
)
def test_impossible_batch_shapes_are_refused(shape: dict, message: str):
    with pytest.raises(ValueError, match=message):
        PlanSettings(**{"rows_per_batch": 4, "row_tokens": 64, **shape})


PROGRAM = """
import sys; sys.path.insert(0, "tests/helpers"); sys.path.insert(0, "tests/data/order")
from test_plan import *
plans = plan_steps(fake_domains([9, 40, 3], longest=60), [.2, .5, .3], num_steps=5)
print(drawn(plans), plans[-1].state_after.deficit_K.tolist())
"""


def test_another_process_makes_the_same_plan():
    printed = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for hash_seed in ("1", "2")
    }
    plans = plan_steps(fake_domains([9, 40, 3], longest=60), [0.2, 0.5, 0.3], num_steps=5)
    assert printed == {f"{drawn(plans)} {plans[-1].state_after.deficit_K.tolist()}\n"}


def test_the_plans_of_a_seed_are_those_of_earlier_versions():
    shards = fake_domains([500 + 7 * k for k in range(64)], longest=60)
    weights_K = np.arange(1.0, 65)
    weights_K[5] = 0
    digest = hashlib.sha256()
    for unit in ("tokens", "loss_tokens", "examples"):
        for plan in plan_steps(shards, weights_K / weights_K.sum(), num_steps=3, rows_per_batch=128, weight_unit=unit):
            places = (plan.placement.row_E, plan.placement.offset_E, plan.state_after.deficit_K)
            digest.update(repr(drawn([plan])).encode() + repr([part.tolist() for part in places]).encode())
    assert digest.hexdigest()[:16] == "e787234781dd7090"
