"""Levels of predictions from kept models: exact at what was measured, larger errors where it was not."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfer_tables import BASE_K, source, two_domain_table

from versatune_ds.mixture.planning.calibration import CHORD, CalibratedPredictor
from versatune_ds.mixture.planning.predictor import PlanTask, Predicted
from versatune_ds.mixture.planning.transfer_table import MixedRun

CORNERS_KK = np.array([[-1.0, 0.5], [0.125, -2.0]])
"""Changes of the last step in `two_domain_table`, in nats."""


@dataclass
class Pessimistic:
    """Models whose losses lie `bend` below the chord of the corners at equal shares, in logarithms."""

    bend: float = -0.25
    stderr: float = 0.0
    is_costly: bool = True
    scale_error: float = 0.5

    def __post_init__(self):
        self.base_losses_K = BASE_K

    def predict(self, weights_NK):
        chord_NK = weights_NK @ np.log1p(CORNERS_KK / BASE_K)
        losses_NK = BASE_K * np.exp(chord_NK + 4 * self.bend * np.prod(weights_NK, axis=1)[:, None])
        return Predicted(losses_NK=losses_NK, stderrs_NK=np.full(losses_NK.shape, self.stderr))


def mixed_run(changes_K, *, weights_K=(0.5, 0.5), stderr=0.0):
    run = source([[0.0, 0.0], [0.0, 0.0], list(changes_K)])
    columns = {name: getattr(run, name) for name in ("steps_S", "tokens_S", "losses_SK", "changes_SK")}
    return MixedRun(**columns, change_stderrs_SK=np.full((3, 2), stderr), weights_K=np.array(weights_K))


def predictor(*mixed, models=None, num_tokens=400):
    table = replace(two_domain_table(), mixed=mixed)
    task = PlanTask(table=table, num_steps=4, num_tokens=num_tokens, folder=Path())
    return CalibratedPredictor(models or Pessimistic(), task)


def test_single_domains_and_the_mixed_run_are_met_exactly_and_between_them_the_bend_is_scaled():
    found = predictor(mixed_run([-0.75, -1.5]))
    predicted = found.predict(np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.75, 0.25]]))
    assert predicted.losses_NK[:2] == pytest.approx(BASE_K + CORNERS_KK)
    assert predicted.losses_NK[2] == pytest.approx([1.25, 1.5])
    # The chord at equal shares: law (log .5 + log 1.0625) / 2 = -.3163, and log(1.25 / 2) = -.47 was measured.
    run_bend = np.log(0.625) - np.log(0.5 * 17 / 16) / 2
    scale = (-0.25 * run_bend + CHORD**2) / (0.25**2 + CHORD**2)
    assert found.calibration["scale"]["law"] == pytest.approx(scale)
    assert found.calibration["unexplained"]["law"] == pytest.approx(run_bend + 0.25 * scale)
    chord = 0.75 * np.log(0.5) + 0.25 * np.log(17 / 16)
    # The bend and what is unexplained are 3/4 of those at equal shares.
    assert predicted.losses_NK[3, 0] == pytest.approx(2 * np.exp(chord + 0.75 * run_bend))
    assert found.is_costly


def test_without_a_mixed_run_the_models_levels_stay_and_the_unknown_scale_is_in_the_error(caplog):
    found = predictor()
    equal = np.array([[0.5, 0.5]])
    predicted, raw = found.predict(equal), Pessimistic().predict(equal)
    assert predicted.losses_NK == pytest.approx(raw.losses_NK)
    assert np.all(predicted.stderrs_NK > 0.5 * 0.25 * raw.losses_NK)
    assert np.all(predictor(mixed_run([-0.75, -1.5])).predict(equal).stderrs_NK < 0.2 * predicted.stderrs_NK)
    assert "losses are not calibrated and have larger errors" in caplog.text


def test_errors_grow_with_those_of_the_held_out_examples_and_of_the_mixed_run():
    equal = np.array([[0.5, 0.5]])
    exact = predictor(mixed_run([-0.75, -1.5])).predict(equal).stderrs_NK
    noisy_rows = predictor(mixed_run([-0.75, -1.5]), models=Pessimistic(stderr=0.1)).predict(equal).stderrs_NK
    noisy_run = predictor(mixed_run([-0.75, -1.5], stderr=0.1)).predict(equal).stderrs_NK
    assert np.all(noisy_rows > 1.5 * exact)
    assert np.hypot(exact, 0.1) == pytest.approx(noisy_run, rel=0.01)
    away = predictor(mixed_run([-0.75, -1.5])).predict(np.array([[0.8, 0.2]])).stderrs_NK
    assert np.all(away > exact)


def test_two_mixed_runs_give_the_factor_of_least_squares():
    one = predictor(mixed_run([-0.75, -1.5])).calibration["scale"]["law"]
    two = predictor(mixed_run([-0.75, -1.5]), mixed_run([-0.9, -0.6], weights_K=(0.75, 0.25))).calibration["scale"]
    other = predictor(mixed_run([-0.9, -0.6], weights_K=(0.75, 0.25))).calibration["scale"]["law"]
    # Bends of .25 and .1875: the squares weigh 16 to 9.
    assert two["law"] == pytest.approx((16 * one + 9 * other) / 25, abs=0.01)


def test_models_that_are_on_the_chord_say_nothing_of_the_factor_and_the_mixed_run_is_still_met():
    found = predictor(mixed_run([-0.75, -1.5]), models=Pessimistic(bend=-1e-6))
    assert list(found.calibration["scale"].values()) == pytest.approx([1.0, 1.0], abs=0.01)
    predicted = found.predict(np.array([[1.0, 0.0], [0.5, 0.5]]))
    assert predicted.losses_NK == pytest.approx(np.array([[1.0, 3.5], [1.25, 1.5]]))


def test_a_longer_run_adds_what_the_planner_transfer_expects_of_it_with_an_error():
    same, longer = (predictor(mixed_run([-0.75, -1.5]), num_tokens=tokens) for tokens in (402, 800))
    equal = np.array([[0.5, 0.5]])
    assert same.calibration["length"] == "as measured"
    assert longer.calibration["length"] == "by the planner transfer"
    assert np.all(longer.predict(equal).losses_NK < same.predict(equal).losses_NK)
    assert np.all(longer.predict(equal).stderrs_NK > same.predict(equal).stderrs_NK)


@given(st.floats(0.01, 0.99), st.floats(-0.5, -0.01))
def test_a_bend_that_the_runs_confirm_is_left_as_it_is(weight, bend):
    models = Pessimistic(bend=bend)
    equal = np.array([[0.5, 0.5]])
    run = mixed_run((models.predict(equal).losses_NK - BASE_K)[0])
    asked = np.array([[weight, 1 - weight]])
    found = predictor(run, models=models)
    assert found.predict(asked).losses_NK == pytest.approx(models.predict(asked).losses_NK)
