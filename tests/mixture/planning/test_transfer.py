"""The planner `transfer`: exact at what was measured, and between it as its formula says."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_tables import BASE_K, two_domain_table

from versatune_ds.mixture.planning.predictor import PlanTask
from versatune_ds.mixture.planning.transfer import (
    KAPPA,
    POWER,
    TRANSFER,
    TransferPredictor,
    effective_tokens,
)
from versatune_ds.mixture.planning.transfer_reader import table_of
from versatune_ds.mixture.planning.transfer_table import MixedRun

EQUAL_K = np.array([0.5, 0.5])


def predictor(table, *, tokens=400):
    return TRANSFER.make(PlanTask(table=table, num_steps=4, num_tokens=tokens, folder=Path()))


def losses(table, *weights_K, tokens=400):
    return predictor(table, tokens=tokens).predict(np.array(weights_K, dtype=float)).losses_NK


def with_mixed(table, weights_K, losses_K, *, stderr=0.0):
    """Return the table with one more mixed run, of 4 steps and 400 tokens."""
    changes_SK = np.array([[0.0, 0.0], np.asarray(losses_K) - BASE_K])
    run = MixedRun(
        steps_S=np.array([0, 4]),
        tokens_S=np.array([0, 400]),
        losses_SK=BASE_K + changes_SK,
        changes_SK=changes_SK,
        change_stderrs_SK=np.array([[0.0, 0.0], [stderr, stderr]]),
        weights_K=np.asarray(weights_K, dtype=float),
    )
    return dataclasses.replace(table, mixed=(*table.mixed, run))


def with_own_changes(table, name, changes_S, *, stderr=0.0):
    """Return the table with other changes of a domain's loss in its own run, measured every 100 tokens."""
    k, source = table.domain_set.id_of(name), table.sources[name]
    num_steps = len(changes_S)
    changes_SK = np.zeros((num_steps, 2))
    changes_SK[:, k] = changes_S
    run = dataclasses.replace(
        source,
        steps_S=np.arange(num_steps),
        tokens_S=100 * np.arange(num_steps),
        losses_SK=BASE_K + changes_SK,
        changes_SK=changes_SK,
        change_stderrs_SK=np.full((num_steps, 2), stderr),
    )
    return dataclasses.replace(table, sources={**table.sources, name: run})


def test_tokens_of_the_first_pass_count_fully_and_repeated_ones_less():
    tokens = effective_tokens(np.array([50.0, 100.0, 400.0]), tokens_per_epoch=np.array(100.0))
    assert tokens[:2].tolist() == [50.0, 100.0]
    assert tokens[2] == pytest.approx(100 + 1540 * (1 - np.exp(-3 / 15.4)))  # 372.6
    endless = effective_tokens(np.array([1e9]), tokens_per_epoch=np.array(100.0))
    assert endless[0] == pytest.approx(100 + 1540)


def test_a_run_on_one_domain_alone_is_predicted_as_it_was_measured():
    predicted_NK = losses(two_domain_table(), [1, 0], [0, 1])
    # Law alone: law 2 -> 1, code 3 -> 3.5. Code alone: law 2 -> 2.125, code 3 -> 1.
    assert predicted_NK == pytest.approx(np.array([[1.0, 3.5], [2.125, 1.0]]))


def test_without_a_mixed_run_the_usual_power_and_kappa_are_used():
    law, code = losses(two_domain_table(), EQUAL_K)[0]
    rest = 0.5 / (0.5 + KAPPA * 0.5)  # of what the other domain alone did
    assert law == pytest.approx(2 * np.exp(np.log(1 / 2) * 0.5**POWER + np.log(2.125 / 2) * rest))
    assert code == pytest.approx(3 * np.exp(np.log(1 / 3) * 0.5**POWER + np.log(3.5 / 3) * rest))


def test_a_mixed_run_is_predicted_as_it_was_measured_and_sets_the_power():
    table = with_mixed(two_domain_table(), EQUAL_K, [1.3, 1.6])
    found = predictor(table)
    assert found.predict(EQUAL_K[None]).losses_NK[0] == pytest.approx([1.3, 1.6], rel=1e-9)
    # What the power leaves is small: it was fitted on a grid with steps of 0.01.
    assert max(map(abs, found.calibration["unexplained"].values())) < 0.01
    assert found.calibration["mixed_runs"] == [{"law": 0.5, "code": 0.5}]
    # Law fell by log(1.3 / 2) of log(1 / 2), with half of the tokens.
    rest = np.log(2.125 / 2) / (1 + KAPPA)
    power = np.log((np.log(1.3 / 2) - rest) / np.log(1 / 2)) / np.log(0.5)
    assert found.calibration["power"]["law"] == pytest.approx(power, abs=0.01)


def test_two_mixed_runs_tell_how_strongly_own_rows_undo_forgetting():
    table, few_K = two_domain_table(), np.array([0.99, 0.01])
    weak = with_mixed(with_mixed(table, EQUAL_K, [1.3, 1.6]), few_K, [1.0, 3.35])
    strong = with_mixed(with_mixed(table, EQUAL_K, [1.3, 1.6]), few_K, [1.0, 2.9])
    kappas = [predictor(each).calibration["kappa"] for each in (weak, strong)]
    assert kappas[0] < KAPPA < kappas[1]


def test_more_tokens_of_a_domain_never_raise_its_loss_unless_its_own_run_over_fitted():
    shares = np.linspace(0, 1, 21)
    weights_NK = np.stack([shares, 1 - shares], axis=1)
    law_N = predictor(two_domain_table()).predict(weights_NK).losses_NK[:, 0]
    assert np.all(np.diff(law_N) < 0)


def test_a_domain_whose_own_run_over_fitted_is_best_before_it_gets_everything():
    table = with_own_changes(two_domain_table(), "law", [0.0, -0.8, -1.0, -0.5, 0.0])
    shares = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    law_N = losses(table, *np.stack([shares, 1 - shares], axis=1))[:, 0]
    assert np.argmin(law_N) == 2  # 200 tokens, where its own run was at its lowest
    assert law_N[2] == pytest.approx(1.0, abs=0.01)
    assert law_N[4] == pytest.approx(2.0)  # as measured: nothing is left of the gain
    # In a run of twice the tokens the rise goes on.
    assert losses(table, [1, 0], tokens=500)[0, 0] > 2.2


def test_an_over_fitted_domain_that_falls_further_in_a_mixture_rises_from_there_to_the_end_of_its_own_run():
    table = with_own_changes(two_domain_table(), "law", [0.0, -0.2, 0.0, 0.2, 0.5])
    table = with_mixed(table, [0.25, 0.75], [1.5, 1.1])
    law_N = losses(table, [0.25, 0.75], [0.625, 0.375], [1, 0])[:, 0]
    assert law_N[[0, 2]] == pytest.approx([1.5, 2.5])  # both as measured
    # Half of the way between them, by tokens, is the geometric mean, but for what code does to law.
    assert law_N[1] == pytest.approx(np.sqrt(1.5 * 2.5), rel=0.01)


def test_a_rise_within_the_noise_is_no_over_fitting():
    changes = [0.0, -0.8, -1.0, -0.99]
    noisy = with_own_changes(two_domain_table(), "law", changes, stderr=0.1)
    exact = with_own_changes(two_domain_table(), "law", changes)
    assert losses(noisy, [1, 0], tokens=300)[0, 0] == pytest.approx(1.01)
    assert losses(noisy, [1, 0], tokens=600)[0, 0] < 1.0
    assert losses(exact, [1, 0], tokens=600)[0, 0] > 1.01


def test_errors_are_smallest_at_a_mixed_run_and_grow_with_the_distance():
    table = with_mixed(two_domain_table(), EQUAL_K, [1.3, 1.6], stderr=0.01)
    predicted = predictor(table).predict(np.array([[0.5, 0.5], [0.7, 0.3], [0.9, 0.1]]))
    relative_N = (predicted.stderrs_NK / predicted.losses_NK)[:, 1]
    assert np.all(np.diff(relative_N) > 0.01)
    alone = predictor(two_domain_table()).predict(np.array([[0.5, 0.5]]))
    assert (alone.stderrs_NK / alone.losses_NK)[0, 1] > 2 * relative_N[0]


def test_the_same_task_gives_the_same_numbers():
    table = with_mixed(two_domain_table(), EQUAL_K, [1.3, 1.6], stderr=0.05)
    first, second = (predictor(table).predict(EQUAL_K[None]) for _ in range(2))
    assert np.array_equal(first.losses_NK, second.losses_NK)
    assert np.array_equal(first.stderrs_NK, second.stderrs_NK)


def test_a_domain_that_was_never_trained_on_alone_is_refused_by_name():
    table = two_domain_table()
    table = dataclasses.replace(table, sources={"law": table.sources["law"]})
    with pytest.raises(ValueError, match=r"no run on code alone.*versatune reference"):
        predictor(table)


def test_a_domain_without_held_out_rows_has_no_prediction_and_still_affects_the_others():
    content = two_domain_table().to_dict()
    content["unmeasured"] = ["code"]
    for column in content["base"].values():
        del column["code"]
    for run in content["sources"].values():
        for key in ("losses", "changes", "change_stderrs"):
            del run[key]["code"]
    table = table_of(content, place="t.json")
    predicted = predictor(table).predict(np.array([[0.0, 1.0]]))
    assert predicted.losses_NK[0, 0] == pytest.approx(2.125)
    assert np.isnan(predicted.losses_NK[0, 1])
    assert np.isfinite(predicted.stderrs_NK[0, 0])
    # Without a run of its own it does nothing to the others.
    table = dataclasses.replace(table, sources={"law": table.sources["law"]})
    assert predictor(table).predict(np.array([[0.0, 1.0]])).losses_NK[0, 0] == pytest.approx(2.0)


@settings(max_examples=30)
@given(
    share=st.floats(0, 1),
    mixed=st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0.5, 3.0), st.floats(0.5, 4.0)), max_size=3),
    tokens=st.integers(1, 10**7),
)
def test_every_prediction_is_a_positive_loss_with_a_finite_error(share, mixed, tokens):
    table = two_domain_table()
    for law_share, law, code in mixed:
        table = with_mixed(table, [law_share, 1 - law_share], [law, code], stderr=0.1)
    predicted = predictor(table, tokens=tokens).predict(np.array([[share, 1 - share]]))
    assert np.all(predicted.losses_NK > 0)
    assert np.all(np.isfinite(predicted.losses_NK))
    assert np.all(np.isfinite(predicted.stderrs_NK) & (predicted.stderrs_NK > 0))


def test_a_closed_form_is_not_costly():
    assert not TransferPredictor.is_costly
