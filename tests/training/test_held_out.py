"""Which held-out examples are kept: as many as the error needs, part of those measured, the same after a resume."""

import numpy as np
import pytest
import torch
from fake_shards import fake_domains, source_of

from versatune_ds.config import ValidationConfig
from versatune_ds.data.validation_loader import ValidationLoader
from versatune_ds.distributed import World
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.training import held_out
from versatune_ds.training.held_out import HeldOutExamples, sum_by_example

SHARDS = fake_domains([400, 60, 90], longest=20, seed=2)
DOMAINS = DomainSet(tuple(shard.name for shard in SHARDS))
SPREAD = (0.5, 0.002, 3.0)
"""How much the losses of a domain's examples differ."""
ALONE = World(rank=0, world_size=1, local_rank=0, launcher="test")


def token_losses(batch):
    """Return a loss for every position, a function of its example's domain and number in that domain."""
    losses = []
    for token, label in zip(batch.input_ids.flatten().tolist(), batch.labels.flatten().tolist(), strict=True):
        domain_id, index, _ = source_of(token)
        losses.append(0.0 if label < 0 else 2.0 + SPREAD[domain_id] * np.sin(index))
    return torch.tensor(losses)


def measure(engine, loader, *, num_domains):
    return ExampleLosses(
        loss_sum_E=sum_by_example(engine, loader, num_examples=loader.num_examples),
        num_loss_tokens_E=loader.example_num_loss_tokens,
        domain_ids_E=loader.example_domain_ids,
        num_domains=num_domains,
    )


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setattr(held_out, "measure_validation", measure)


def examples_of(**settings):
    def make_loader(examples):
        sizes = {"rows_per_micro_batch": 4, "row_tokens": 32, "rank": 0, "world_size": 1}
        return ValidationLoader(examples, domain_set=DOMAINS, **sizes)

    settings = ValidationConfig(**{"max_examples_per_domain": 300, "min_examples_per_domain": 10} | settings)
    return HeldOutExamples(SHARDS, settings=settings, seed=5, make_loader=make_loader, world=ALONE)


def test_without_a_target_error_all_allowed_examples_are_measured():
    examples = examples_of()
    assert examples.measure(token_losses).num_examples().tolist() == [300, 60, 90]
    assert examples.state_dict()["num_chosen"] is None


def test_each_domain_keeps_as_many_examples_as_the_error_needs_between_the_minimum_and_all(caplog):
    caplog.set_level("INFO", logger="versatune_ds")
    examples = examples_of(target_standard_error=0.04)
    first = examples.measure(token_losses)
    scattered, even, far = first.num_examples()
    assert 40 < scattered < 160  # a spread of 0.5 / sqrt(2): 0.35 / sqrt(n) = 0.04 for about 78 equally long examples
    assert (even, far) == (10, 90)
    assert first.standard_error()[0] == pytest.approx(0.04, rel=0.3)
    table = caplog.records[-1].message.splitlines()
    assert len(table) == 6
    assert [line.endswith("all there are") for line in table[3:]] == [False, False, True]


def test_the_first_measurement_returns_the_losses_of_the_examples_that_all_later_ones_measure():
    examples = examples_of(target_standard_error=0.04)
    first, second = examples.measure(token_losses), examples.measure(token_losses)
    assert second.is_same_examples(first)
    np.testing.assert_array_equal(second.loss_sum_E, first.loss_sum_E)


def test_a_resumed_run_measures_the_same_examples_and_does_not_choose_again():
    examples, resumed = (examples_of(target_standard_error=0.04) for _ in range(2))
    first = examples.measure(token_losses)
    resumed.load_state_dict(examples.state_dict())
    assert resumed.measure(token_losses).loss_sum_E.tobytes() == first.loss_sum_E.tobytes()
    resumed.load_state_dict({"num_chosen": [3, 4, 5]})  # as saved by an earlier version
    assert resumed.measure(token_losses).num_examples().tolist() == [3, 4, 5]


def test_a_target_error_that_changed_since_the_checkpoint_makes_the_run_choose_again(caplog):
    """The old choice was kept, although the new target was logged as active."""
    expected = examples_of(target_standard_error=0.04).measure(token_losses).num_examples().tolist()
    for before in ({}, {"target_standard_error": 0.4}):
        earlier, late = examples_of(**before), examples_of(target_standard_error=0.04)
        earlier.measure(token_losses)
        late.load_state_dict(earlier.state_dict())
        assert late.measure(token_losses).num_examples().tolist() == expected
    assert "held-out examples are chosen again" in caplog.text
    without = examples_of()
    without.load_state_dict(late.state_dict())
    assert without.measure(token_losses).num_examples().tolist() == [300, 60, 90]


def test_all_ranks_keep_the_number_of_examples_that_rank_zero_chose(monkeypatch):
    monkeypatch.setattr(held_out, "from_rank_zero", lambda action, world: [7, 8, 9])
    assert examples_of(target_standard_error=0.04).measure(token_losses).num_examples().tolist() == [7, 8, 9]
