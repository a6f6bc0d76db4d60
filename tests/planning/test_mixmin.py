"""The planner `mixmin`: losses of mixed predictions by hand, and the optimum that the paper's own optimiser finds."""

import numpy as np
import pytest

from versatune_ds.mixture.planning.goal import Goal
from versatune_ds.mixture.planning.limits import Limits
from versatune_ds.mixture.planning.search import search
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.planning.mixmin import MixedProbabilities


def examples(loss_sum_E, num_loss_tokens_E, domain_ids_E):
    return ExampleLosses(
        loss_sum_E=loss_sum_E, num_loss_tokens_E=num_loss_tokens_E, domain_ids_E=domain_ids_E, num_domains=2
    )


HALF, QUARTER, EIGHTH = (-np.log(p) for p in (0.5, 0.25, 0.125))
BASE = examples([2.0, 3.0, 4.0, 0.0], [1, 2, 1, 0], [0, 0, 1, 1])
EXAMPLES_M = np.array([1, 2, 0, 1])
TOKENS_KM = np.array([[HALF, QUARTER, HALF, EIGHTH], [QUARTER, HALF, 200.0, EIGHTH]])


def test_the_loss_of_a_mixture_is_that_of_its_models_mixed_probabilities():
    model = MixedProbabilities(TOKENS_KM, base=BASE, token_examples_M=EXAMPLES_M)
    predicted = model.predict(np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
    # Law: example 0 has one token of .5 or almost 0, example 1 tokens of .5 or .25, and .125.
    mixed = -np.log([0.25, 0.375, 0.125])
    assert predicted.losses_NK[:, 0] == pytest.approx(
        [(2 * HALF + EIGHTH) / 3, mixed.sum() / 3, (200 + QUARTER + EIGHTH) / 3], abs=40
    )
    assert predicted.losses_NK[:2, 0] == pytest.approx([(2 * HALF + EIGHTH) / 3, mixed.sum() / 3], rel=1e-6)
    assert predicted.losses_NK[:, 1] == pytest.approx([QUARTER, -np.log(0.375), HALF], rel=1e-6)
    half = examples([mixed[0], mixed[1] + mixed[2], -np.log(0.375), 0.0], [1, 2, 1, 0], [0, 0, 1, 1])
    assert predicted.stderrs_NK[1, 0] == pytest.approx(half.change_standard_error(BASE)[0], rel=1e-5)
    assert np.isnan(predicted.stderrs_NK[1, 1])  # one example bears loss


def test_a_domain_whose_examples_bear_no_loss_is_unknown_and_leaves_the_others_alone():
    base = examples([2.0, 3.0, 0.0], [1, 2, 0], [0, 0, 1])
    model = MixedProbabilities(TOKENS_KM[:, :3], base=base, token_examples_M=np.array([1, 1, 0]))
    predicted = model.predict(np.array([[1.0, 0.0]]))
    assert predicted.losses_NK[0] == pytest.approx([(2 * HALF + QUARTER) / 3, np.nan], nan_ok=True)
    assert predicted.stderrs_NK[0, 0] > 0


def test_of_many_tokens_the_same_share_of_each_domains_examples_is_used(caplog):
    rng = np.random.default_rng(0)
    base = examples(rng.uniform(1, 3, size=300), np.full(300, 2), np.repeat([0, 1], [100, 200]))
    tokens_KM = rng.uniform(0.1, 3, size=(2, 600))
    model = MixedProbabilities(tokens_KM, base=base, token_examples_M=np.repeat(np.arange(300), 2), most_tokens=150)
    assert model._base.num_examples().tolist() == [25, 50]
    assert model.predict(np.array([[1.0, 0.0]])).losses_NK.shape == (1, 2)


def exponentiated_gradient(probabilities_KM, token_weights_M, *, rate=0.5, num_steps=4000):
    """The paper's optimiser: w_i is multiplied by exp(rate * mean of p_i / sum_j w_j p_j), then normalised."""
    weights_K = np.full(len(probabilities_KM), 1 / len(probabilities_KM))
    for _ in range(num_steps):
        gradient_K = (probabilities_KM / (weights_K @ probabilities_KM)) @ token_weights_M
        weights_K = weights_K * np.exp(rate * gradient_K)
        weights_K /= weights_K.sum()
    return weights_K


def test_the_search_finds_the_mixture_of_exponentiated_gradient():
    rng = np.random.default_rng(1)
    domain_ids_M = np.repeat([0, 1, 2], [40, 40, 60])
    probabilities_KM = rng.beta(1.5, 3.0, size=(3, 140))
    for k, boost in enumerate((0.3, 0.2, 0.1)):
        probabilities_KM[k, domain_ids_M == k] = np.clip(probabilities_KM[k, domain_ids_M == k] + boost, 0, 0.99)
    base = ExampleLosses(
        loss_sum_E=np.ones(140), num_loss_tokens_E=np.ones(140), domain_ids_E=domain_ids_M, num_domains=3
    )
    model = MixedProbabilities(-np.log(probabilities_KM), base=base, token_examples_M=np.arange(140))
    model.calibration = {}
    goal = Goal(purpose="mean", base_losses_K=np.ones(3), bounds_K=np.full(3, np.inf))
    limits = Limits(lower_K=np.zeros(3), upper_K=np.ones(3))
    found = search(model, goal, limits=limits, named={"uniform": np.full(3, 1 / 3)}, seed=0, num_predictions=1)
    counts_M = np.array([40, 40, 60])[domain_ids_M]
    wanted_K = exponentiated_gradient(probabilities_KM, 1 / (3 * counts_M))
    assert wanted_K.min() > 0.05  # inside the simplex
    assert found.weights_K == pytest.approx(wanted_K, abs=1e-3)
