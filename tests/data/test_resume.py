"""A run resumed anywhere, on any number of ranks, gets the batches of the uninterrupted one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_shards import fake_domain, fake_domains
from resume import assert_resumes_at_every_step, run_steps, same_batches

from versatune_ds.data.loader import LoaderSettings, MixtureLoader
from versatune_ds.domains import DomainSet

SIZES = [9, 40, 1]


def weights_at(step: int) -> np.ndarray:
    """Return weights that change at every third step, with zeros among them."""
    return np.array([[0.2, 0.5, 0.3], [0.0, 0.9, 0.1], [1.0, 0.0, 0.0]][step // 3 % 3])


def make_loader(*, rank: int = 0, world_size: int = 1, shards=None, **settings) -> MixtureLoader:
    shards = shards or fake_domains(SIZES, longest=30)
    defaults = {"seed": 1, "rows_per_batch": 48, "row_tokens": 32, "rows_per_micro_batch": 1}
    return MixtureLoader(
        shards,
        domain_set=DomainSet(tuple(shard.name for shard in shards)),
        settings=LoaderSettings(rank=rank, world_size=world_size, **{**defaults, **settings}),
    )


@pytest.mark.parametrize("unit", ["tokens", "loss_tokens", "examples"])
def test_a_run_resumes_after_every_step(unit: str):
    assert_resumes_at_every_step(
        lambda: make_loader(rows_per_batch=4, weight_unit=unit), last=12, weights_at=weights_at
    )


def test_a_run_resumes_after_every_step_while_domains_run_out():
    assert_resumes_at_every_step(
        lambda: make_loader(rows_per_batch=2, max_epochs_per_domain=3.5),
        last=9,
        weights_at=lambda step: np.array([0.3, 0.4, 0.3]),
    )


def test_a_run_with_a_single_example_resumes_after_every_step():
    shards = [fake_domain(0, [8])]
    assert_resumes_at_every_step(
        lambda: make_loader(shards=shards, rows_per_batch=2), last=5, weights_at=lambda step: np.ones(1)
    )


def test_runs_resumed_on_eight_six_and_sixteen_ranks_see_the_batches_of_one_rank():
    one_rank, _ = run_steps(make_loader(rows_per_micro_batch=48), first=1, last=9, weights_at=weights_at)
    state = None
    for world_size, first in ((8, 1), (6, 4), (16, 7)):
        of_ranks, states = [], []
        for rank in range(world_size):
            loader = make_loader(rank=rank, world_size=world_size)
            if state is not None:
                loader.load_state_dict(state)
            batches, after = run_steps(loader, first=first, last=first + 2, weights_at=weights_at)
            of_ranks.append(batches)
            states.append(json.dumps(after[first + 2]))
        assert len(set(states)) == 1, "the state depends on the rank"
        state = json.loads(states[0])
        for i in range(3):
            rows = [row for step in zip(*(b[i].micro_batches for b in of_ranks), strict=True) for row in step]
            found = [row.input_ids[0].tolist() for row in rows]
            assert found == one_rank[first - 1 + i].micro_batches[0].input_ids.tolist()


def test_planned_batches_are_not_part_of_the_state():
    loader = make_loader()
    for step in (1, 2, 3):
        loader.plan(step, weights_at(step))
    loader.take(1)
    state = loader.state_dict(1)
    loader.close()
    assert state["draws"] == run_steps(make_loader(), first=1, last=1, weights_at=weights_at)[1][1]["draws"]


def test_a_state_saved_before_the_first_step_starts_from_the_beginning():
    state = make_loader().state_dict(0)
    loader = make_loader()
    loader.load_state_dict(state)
    resumed, _ = run_steps(loader, first=1, last=2, weights_at=weights_at)
    plain, _ = run_steps(make_loader(), first=1, last=2, weights_at=weights_at)
    assert all(map(same_batches, plain, resumed))


def test_the_state_of_256_domains_is_below_64_kilobytes():
    shards = fake_domains([5] * 256, longest=30)
    loader = make_loader(shards=shards)
    _, states = run_steps(loader, first=1, last=3, weights_at=lambda step: np.full(256, 1 / 256))
    assert len(json.dumps(states[3])) < 64_000


def test_the_error_for_other_data_has_one_line_for_every_mismatch():
    state = make_loader().state_dict(0)
    other = make_loader(shards=fake_domains([9, 41, 1], longest=30), seed=2, weight_unit="examples")
    with pytest.raises(RuntimeError) as error:
        other.load_state_dict(state)
    lines = str(error.value).splitlines()
    assert [line.split(" is ")[0] for line in lines[:-1]] == [
        "data state: seed",
        "data state: weight_unit",
        "data state: num_examples",
        "data state: lengths_digest",
    ]
    assert lines[-1] == "continue with the data of the checkpoint, or start a new run"


def test_a_state_of_another_step_or_after_planning_is_refused():
    loader = make_loader()
    loader.plan(1, weights_at(1))
    with pytest.raises(RuntimeError, match="data state loaded after step 1 was planned; load it first"):
        loader.load_state_dict(make_loader().state_dict(0))
    loader.take(1)
    with pytest.raises(RuntimeError, match="data state loaded after step 1 was planned; load it first"):
        loader.load_state_dict(make_loader().state_dict(0))
    with pytest.raises(RuntimeError, match="data state of step 3 requested after step 1 was taken"):
        loader.state_dict(3)
    loader.close()
