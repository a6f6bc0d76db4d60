"""`inspect` shows the rows that are trained on, for every number of ranks and every step at which a run resumes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_shards import fake_domain, fake_domains

from versatune_ds.data.inspect import describe_rows, iterate_plans, render_row
from versatune_ds.data.order.permutation import DomainOrder
from versatune_ds.data.order.plan import PlanSettings
from versatune_ds.data.order.sampler import SamplerState
from versatune_ds.domains import DomainSet

DOMAINS = DomainSet(("domain0", "domain1"))
SHARDS = fake_domains([9, 40], longest=30)


def plans(*, first_step: int = 0, last_step: int = 9, state: SamplerState | None = None, shards=SHARDS, **settings):
    orders = [DomainOrder.of(s.name, seed=1, lengths=s.lengths, loss_lengths=s.loss_lengths) for s in shards]
    return iterate_plans(
        state or SamplerState.start(2),
        orders=orders,
        settings=PlanSettings(rows_per_batch=6, row_tokens=32, **settings),
        first_step=first_step,
        last_step=last_step,
        weights_at=lambda step: np.array([0.25, 0.75] if step < 4 else [0.5, 0.5]),
    )


def lines(rows) -> list[str]:
    """Return JSON lines without the rank."""
    return [json.dumps({key: value for key, value in row.items() if key != "rank"}) for row in rows]


def test_a_row_is_described_from_left_to_right():
    shards = [fake_domain(0, [20]), fake_domain(1, [12])]
    rows = list(describe_rows(plans(shards=shards, last_step=0), domain_set=DOMAINS, world_size=2))
    assert rows[0] == {
        "step": 0,
        "row": 0,
        "rank": 0,
        "examples": [["domain0", 0, 0, 20], ["domain1", 1, 0, 12]],
        "fill": 1.0,
    }
    assert [row["rank"] for row in rows] == [0, 1, 0, 1, 0, 1]
    shared = describe_rows(plans(shards=shards, last_step=0), domain_set=DOMAINS, world_size=4, sequence_parallel=2)
    assert [row["rank"] for row in shared] == [0, 2, 0, 2, 0, 2], "the first of those that share a row"


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_without_the_rank_the_output_is_the_same_for_every_world_size(world_size: int):
    rows = describe_rows(plans(), domain_set=DOMAINS, world_size=world_size)
    assert lines(rows) == lines(describe_rows(plans(), domain_set=DOMAINS))


@pytest.mark.parametrize("resumed_at", range(1, 10))
def test_the_output_is_the_same_wherever_it_is_resumed(resumed_at: int):
    *_, before = plans(last_step=resumed_at - 1)
    resumed = describe_rows(plans(first_step=resumed_at, state=before.state_after), domain_set=DOMAINS)
    uninterrupted = lines(describe_rows(plans(), domain_set=DOMAINS))
    assert lines(resumed) == uninterrupted[resumed_at * 6 :]


def test_the_output_ends_with_the_data():
    steps = [plan.step for plan in plans(last_step=10**9, max_epochs_per_domain=1)]
    assert steps == list(range(len(steps)))


def test_text_without_loss_is_shown_in_brackets():
    shards = [fake_domain(0, [20]), fake_domain(1, [6])]
    plan = next(plans(shards=shards))
    text = render_row(plan, 0, shards=shards, domain_set=DOMAINS, decode=lambda ids: ",".join(map(str, ids)))
    last = 1_000_000_000
    assert text.splitlines()[2:4] == [
        "--- domain1 epoch 4 example 0: 6 tokens",
        f"⟦{last},{last + 1},{last + 2}⟧{last + 3},{last + 4},{last + 5}",
    ]
