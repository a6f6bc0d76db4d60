"""Ranks share every batch without overlap, and a change of weights takes effect at its step."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fake_shards import FakeShards, fake_domain, fake_domains, source_of
from resume import run_steps, same_batches

from versatune_ds.data.batch import IGNORE_INDEX, Batch
from versatune_ds.data.collate import collate_rows
from versatune_ds.data.inspect import describe_rows, iterate_plans
from versatune_ds.data.loader import LoaderSettings, MixtureLoader, StepBatch
from versatune_ds.data.order.plan import plan_step
from versatune_ds.data.order.sampler import SamplerState
from versatune_ds.data.order.supply import DataEndsError
from versatune_ds.domains import DomainSet

DOMAINS = DomainSet(("domain0", "domain1", "domain2"))
WEIGHTS_K = np.array([0.2, 0.5, 0.3])


def make_loader(shards: list[FakeShards] | None = None, *, rank: int = 0, world_size: int = 1, **settings):
    shards = shards or fake_domains([9, 40, 3], longest=30)
    defaults = {"seed": 1, "rows_per_batch": 24, "row_tokens": 32, "rows_per_micro_batch": 1}
    return MixtureLoader(
        shards,
        domain_set=DomainSet(tuple(shard.name for shard in shards)),
        settings=LoaderSettings(rank=rank, world_size=world_size, **{**defaults, **settings}),
    )


def take_all(loader: MixtureLoader, *, last: int = 3, weights_at=lambda step: WEIGHTS_K):
    return run_steps(loader, first=1, last=last, weights_at=weights_at)[0]


def examples_of(batch: Batch) -> list[tuple[int, int]]:
    """Return (domain, example) of every example, from the tokens themselves."""
    starts = (batch.positions == 0) & (batch.input_ids != 0)
    return [source_of(token)[:2] for token in batch.input_ids[starts].tolist()]


def rows_of(step: StepBatch) -> list[list[list]]:
    """Return [domain, example, tokens] of every example of every row of a rank, from the tokens themselves."""
    return [
        _examples_of_row(input_ids, positions)
        for batch in step.micro_batches
        for input_ids, positions in zip(batch.input_ids.numpy(), batch.positions.numpy(), strict=True)
    ]


def _examples_of_row(input_ids_T: np.ndarray, positions_T: np.ndarray) -> list[list]:
    """Return [domain, example, tokens] of every example of a row; zeros at its end are padding."""
    starts = [*np.flatnonzero(positions_T == 0).tolist(), len(input_ids_T)]
    spans = [span for span in itertools.pairwise(starts) if input_ids_T[slice(*span)].any()]
    sources = [source_of(int(input_ids_T[begin])) for begin, _ in spans]
    return [[f"domain{k}", i, end - begin] for (k, i, _), (begin, end) in zip(sources, spans, strict=True)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("rows", [1, 3])
def test_every_rank_gets_the_rows_that_inspect_describes_for_it(world_size: int, rows: int):
    shards = [fake_domain(k, range(2, 30 + 20 * k)) for k in range(3)]
    settings = {"world_size": world_size, "rows_per_micro_batch": rows, "row_tokens": 80}
    loaders = [make_loader(shards, rank=rank, **settings) for rank in range(world_size)]
    plans = iterate_plans(
        SamplerState.start(3),
        orders=loaders[0].orders,
        settings=loaders[0].settings,
        first_step=1,
        last_step=3,
        weights_at=lambda step: WEIGHTS_K,
    )
    described = list(
        describe_rows(plans, domain_set=DOMAINS, world_size=world_size, rows_per_micro_batch=rows),
    )
    for rank, loader in enumerate(loaders):
        found = [row for step in take_all(loader) for row in rows_of(step)]
        shown = [row["examples"] for row in described if row["rank"] == rank]
        assert found == [[[name, index, tokens] for name, _, index, tokens in row] for row in shown]
        assert len(found) == 3 * 24 // world_size


@pytest.mark.parametrize("prefetch", [0, 2, 4])
@pytest.mark.parametrize("taken", [0, 1, 5])
def test_new_weights_do_not_change_steps_already_planned(prefetch: int, taken: int):
    after_K = np.array([0.7, 0.1, 0.2])
    for num_waiting in range(prefetch + 1):
        loader = make_loader(prefetch=prefetch, rows_per_micro_batch=24)
        first_changed, last = taken + num_waiting + 1, taken + num_waiting + 4
        found = []
        for step in range(1, last + 1):
            while step - 1 - len(found) > prefetch or (step == first_changed and len(found) < taken):
                found.append(loader.take(len(found) + 1))
            if step == first_changed:
                assert step - 1 - len(found) == num_waiting
            loader.plan(step, WEIGHTS_K if step < first_changed else after_K)
        found += [loader.take(step) for step in range(len(found) + 1, last + 1)]
        loader.close()
        assert_planned_like(loader, found, first_changed=first_changed, after_K=after_K)


def assert_planned_like(loader: MixtureLoader, found: list[StepBatch], *, first_changed: int, after_K: np.ndarray):
    """Compare the steps of a loader with those of plan_step and their collated rows."""
    shards, state = fake_domains([9, 40, 3], longest=30), SamplerState.start(3)
    for step, batch in enumerate(found, start=1):
        weights_K = WEIGHTS_K if step < first_changed else after_K
        plan = plan_step(state, weights_K, step=step, orders=loader.orders, settings=loader.settings)
        state = plan.state_after
        rows = collate_rows(
            plan.placement,
            first_row=0,
            num_rows=24,
            row_tokens=32,
            shards=shards,
            pad_token_id=0,
        )
        assert same_batches(batch, StepBatch(plan=plan, micro_batches=(rows,), wait_seconds=0.0))
        assert batch.plan.num_loss_tokens_global == plan.num_loss_tokens_global
        for name in ("draws_K", "deficit_K"):
            assert getattr(batch.plan.state_after, name).tolist() == getattr(state, name).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_rows_of_all_ranks_are_disjoint_and_complete(world_size: int, rows: int):
    shards = [fake_domain(0, [5] * 400), fake_domain(1, [7] * 400)]
    loaders = [
        make_loader(shards, rank=rank, world_size=world_size, rows_per_batch=72, rows_per_micro_batch=rows)
        for rank in range(world_size)
    ]
    weights_K = np.array([0.5, 0.5])
    for steps in zip(*(take_all(loader, weights_at=lambda step: weights_K) for loader in loaders), strict=True):
        seen = [example for step in steps for batch in step.micro_batches for example in examples_of(batch)]
        place = steps[0].plan.placement
        planned = list(zip(place.domain_id_E.tolist(), place.index_E.tolist(), strict=True))
        # Example 0 of domain 0 begins with token 0, which looks like padding.
        assert sorted(seen) == sorted(example for example in planned if example != (0, 0))
        assert all(step.plan.num_loss_tokens_global == steps[0].plan.num_loss_tokens_global for step in steps)
        labels = sum(int((b.labels != IGNORE_INDEX).sum()) for step in steps for b in step.micro_batches)
        assert labels == steps[0].plan.num_loss_tokens_global


def test_row_r_is_the_same_for_every_number_of_ranks():
    alone = take_all(make_loader(rows_per_micro_batch=24))
    for world_size, rows in ((2, 3), (3, 2), (8, 3)):
        of_ranks = [
            take_all(make_loader(rank=rank, world_size=world_size, rows_per_micro_batch=rows))
            for rank in range(world_size)
        ]
        for step in range(3):
            micro_steps = zip(*(steps[step].micro_batches for steps in of_ranks), strict=True)
            rows_in_order = [row for ranks in micro_steps for batch in ranks for row in batch.input_ids.tolist()]
            assert rows_in_order == alone[step].micro_batches[0].input_ids.tolist()


@pytest.mark.parametrize("changed_at", range(1, 9))
def test_a_change_of_weights_takes_effect_at_its_step_and_not_before(changed_at: int):
    after_K = np.array([0.0, 0.0, 1.0])
    steady = take_all(make_loader(), last=8)
    changed = take_all(make_loader(), last=8, weights_at=lambda step: WEIGHTS_K if step < changed_at else after_K)
    for before, found in zip(steady[: changed_at - 1], changed, strict=False):
        assert same_batches(before, found)
    for found in changed[changed_at - 1 :]:
        assert found.plan.num_tokens_K[:2].tolist() == [0, 0]


def test_a_rank_without_examples_in_the_last_batch_gets_padding():
    loader = make_loader([fake_domain(0, [8] * 5)], rank=1, world_size=2, max_epochs_per_domain=1)
    loader.plan(1, np.array([1.0]))
    step = loader.take(1)
    assert step.plan.is_last
    assert len(step.micro_batches) == 12
    assert all(batch.num_valid == 0 for batch in step.micro_batches[1:])
    loader.plan(2, np.array([1.0]))
    with pytest.raises(DataEndsError):
        loader.take(2)
    loader.close()


def test_an_error_in_the_background_is_raised_by_take_of_that_step_and_of_all_later_ones():
    loader = make_loader([fake_domain(0, [8, 33])])
    loader.plan(1, np.array([1.0]))
    loader.plan(2, np.array([1.0]))
    for step in (1, 2):
        with pytest.raises(ValueError, match="domain 'domain0', example 1: 33 tokens"):
            loader.take(step)
    loader.close()


def test_a_domain_that_reaches_its_cap_is_logged_once(caplog: pytest.LogCaptureFixture):
    shards = [fake_domain(0, [16] * 4), fake_domain(1, [16] * 400)]
    loader = make_loader(shards, max_epochs_per_domain=1)
    run_steps(loader, first=1, last=3, weights_at=lambda step: np.array([0.5, 0.5]))
    assert [record.getMessage() for record in caplog.records] == [
        "step 1: domain 'domain0' reached max_epochs_per_domain; its share goes to the others"
    ]


def test_steps_are_planned_in_order_and_not_too_far_ahead():
    loader = make_loader()
    with pytest.raises(RuntimeError, match="step 1 taken but not planned"):
        loader.take(1)
    for step in (1, 2, 3):
        loader.plan(step, WEIGHTS_K)
    with pytest.raises(RuntimeError, match="step 4: 3 steps are planned but not taken; take one first"):
        loader.plan(4, WEIGHTS_K)
    loader.take(1)
    with pytest.raises(RuntimeError, match="step 5 planned after step 3; expected 4"):
        loader.plan(5, WEIGHTS_K)
    loader.close()


def test_the_caller_may_change_its_weights_after_planning():
    expected, weights_K = take_all(make_loader(), last=1), WEIGHTS_K.copy()
    loader = make_loader()
    loader.plan(1, weights_K)
    weights_K[:] = [0.0, 0.0, 1.0]
    assert same_batches(expected[0], loader.take(1))
    loader.close()


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="expected a multiple of world_size 5 x rows_per_micro_batch 1 = 5"):
        make_loader(world_size=5)


def test_shards_of_other_domains_are_refused():
    shards = fake_domains([3, 3], longest=4)
    with pytest.raises(ValueError, match="shards of domain0, domain1: expected those of law, code, in this order"):
        MixtureLoader(
            shards,
            domain_set=DomainSet(("law", "code")),
            settings=LoaderSettings(seed=0, rows_per_batch=1, row_tokens=4, rows_per_micro_batch=1),
        )
