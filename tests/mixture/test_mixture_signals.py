"""Potential and forgetting: hand-computed, noise-aware, kept where a domain is absent."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from versatune_ds.mixture.measurement import Measurement, Remembered
from versatune_ds.mixture.policies import Signals
from versatune_ds.mixture.signals import History, forgetting_degree, learnable_potential, signals_from
from versatune_ds.mixture.statistics import ExampleLosses


def observe(loss_K, *, history, reference_K=None, update=1, z=0.0, stderr_K=None, weights_K=None):
    loss_K = np.array(loss_K, dtype=float)
    measurement = Measurement.of_means(loss_K)
    if stderr_K is not None:
        measurement = replace(measurement, change_stderr_K=np.array(stderr_K, dtype=float))
    history = history.started(measurement)
    signals = signals_from(
        measurement,
        history=history,
        reference_loss_K=np.full(len(loss_K), np.nan) if reference_K is None else np.array(reference_K),
        weights_K=np.full(len(loss_K), 0.5) if weights_K is None else np.array(weights_K),
        update=update,
        z=z,
    )
    return signals, history.after(signals)


def test_the_potential_is_the_share_of_the_loss_above_the_reference():
    potential = learnable_potential(np.array([2.0, 2.0, 0.0, np.nan]), np.array([1.5, 3.0, 0.0, 1.0]))
    assert np.array_equal(potential, [0.25, 0.0, 0.0, np.nan], equal_nan=True)


def test_forgetting_is_the_relative_rise_and_0_without_an_earlier_loss():
    loss_K, earlier_K = np.array([2.2, 1.8, 2.0]), np.array([2.0, 2.0, np.nan])
    degree = forgetting_degree(loss_K, earlier_K, change_stderr_K=np.zeros(3), z=0.0)
    assert degree == pytest.approx([0.1, 0.0, 0.0])


def test_forgetting_uses_the_lower_bound_at_z_standard_errors():
    loss_K, earlier_K = np.array([2.2, 2.2]), np.array([2.0, 2.0])
    degree = forgetting_degree(loss_K, earlier_K, change_stderr_K=np.array([0.05, np.nan]), z=2.0)
    assert degree == pytest.approx([0.05, 0.1])


def test_pure_noise_reads_as_forgetting_without_the_bound_and_hardly_with_it():
    rng = np.random.default_rng(0)
    earlier_K, loss_K = rng.normal(2, 0.02, 20_000), rng.normal(2, 0.02, 20_000)
    stderr_K = np.full(20_000, 0.02 * np.sqrt(2))
    raw = forgetting_degree(loss_K, earlier_K, change_stderr_K=stderr_K, z=0.0)
    assert raw.mean() == pytest.approx(0.56 * 0.01, rel=0.05)  # docs/method.md section 8: 0.56 s
    assert forgetting_degree(loss_K, earlier_K, change_stderr_K=stderr_K, z=2.0).mean() < 0.03 * raw.mean()


def test_forgetting_looks_back_to_previous_best_and_start():
    history = History.empty(1)
    for update, loss in enumerate([2.0, 1.0, 1.5]):
        _, history = observe([loss], history=history, update=update)
    signals, _ = observe([2.4], history=history, update=3)
    assert signals.forgetting_degree_K == pytest.approx([0.6])
    assert signals.forgetting_from_best_K == pytest.approx([1.4])
    assert signals.forgetting_from_start_K == pytest.approx([0.2])


def test_the_first_measurement_forgets_nothing():
    signals, _ = observe([3.0, 4.0], history=History.empty(2), update=0)
    for name in ("forgetting_degree_K", "forgetting_from_best_K", "forgetting_from_start_K"):
        assert getattr(signals, name).tolist() == [0.0, 0.0]


def test_an_absent_domain_keeps_every_one_of_its_previous_signals():
    _, history = observe([2.0, 4.0], history=History.empty(2), reference_K=[1.0, 1.0], update=0)
    before, history = observe([2.5, 3.0], history=history, reference_K=[1.0, 1.0])
    after, _ = observe([np.nan, 2.0], history=history, reference_K=[1.0, 1.0], update=2)
    assert all(getattr(after, name)[0] == getattr(before, name)[0] or np.isnan(getattr(after, name)[0])
               for name in Signals.vector_names())  # fmt: skip
    assert after.forgetting_degree_K[0] == pytest.approx(0.25)
    assert after.loss_K.tolist() == [2.5, 2.0]


def test_losses_per_weight_add_up_from_the_first_update_on():
    history = History.empty(2)
    _, history = observe([2.0, 2.0], history=history, update=0, weights_K=[0.5, 0.5])
    _, history = observe([2.0, 2.0], history=history, update=1, weights_K=[0.5, 0.5])
    signals, _ = observe([1.0, 1.0], history=history, update=2, weights_K=[1.0, 0.0])
    assert signals.loss_per_weight_sum_K.tolist() == [5.0, 4.0]


def test_the_history_survives_json_exactly():
    _, history = observe([2.0, np.nan, 1 / 3], history=History.empty(3), reference_K=[0.1, 0.2, 0.3])
    again = History.from_state_dict(json.loads(json.dumps(history.state_dict())))
    assert again.signals.update == history.signals.update
    for name in Signals.vector_names():
        assert np.array_equal(getattr(again.signals, name), getattr(history.signals, name), equal_nan=True)
    assert np.array_equal(again.best_K, history.best_K, equal_nan=True)


def example_losses(sums):
    return ExampleLosses(
        loss_sum_E=np.array(sums, dtype=float),
        num_loss_tokens_E=np.full(len(sums), 2),
        domain_ids_E=np.arange(len(sums)) % 2,
        num_domains=2,
    )


def test_the_best_losses_are_stored_domain_by_domain():
    remembered = Remembered().after(example_losses([4, 4, 6, 6])).after(example_losses([2, 8, 3, 9]))
    assert remembered.best.loss_sum_E.tolist() == [2, 4, 3, 6]
    assert remembered.start.loss_sum_E.tolist() == [4, 4, 6, 6]
    assert remembered.previous.loss_sum_E.tolist() == [2, 8, 3, 9]


def test_stored_losses_survive_json_bit_for_bit():
    remembered = Remembered().after(example_losses([0.1, 0.2, 1 / 3, 1e-300]))
    again = Remembered.from_state_dict(json.loads(json.dumps(remembered.state_dict())))
    assert np.array_equal(again.previous.loss_sum_E, remembered.previous.loss_sum_E)
    assert again.previous.is_same_examples(remembered.previous)
    assert Remembered.from_state_dict(Remembered().state_dict()).previous is None
