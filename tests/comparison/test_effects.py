"""The signs of the effects, the learning rate beside the mixture, and where simple shares are enough."""

from dataclasses import replace

import pytest

from versatune_ds.comparison.cells import cells_of
from versatune_ds.comparison.plan import BaseModelPlan, ComparisonPlan
from versatune_ds.comparison.results_page.effects import effects_section, enough_sentences, rate_sentences
from versatune_ds.comparison.results_page.results import Results

NOISE = {1: -0.001, 2: 0.0, 3: 0.001}


def make_results(losses, *, runs=None, noise=None, seeds=(1, 2, 3), targets=()):
    """Return results from label to the losses of law and code, 2.0 and 1.0 before; uniform has no noise."""
    runs = runs or {label: {"mixture.policy": "uniform" if label == "uniform" else "steer"} for label in losses}
    plan = ComparisonPlan(
        name="c", recipe="r", base=BaseModelPlan(recipe="r"), runs=runs, seeds=seeds, baseline="uniform",
        targets=targets,
    )  # fmt: skip
    made = {}
    for cell in cells_of(plan):
        law, code = losses[cell.label]
        scatter = 0.0 if cell.label == "uniform" else NOISE[cell.seed] * (noise or {}).get(cell.label, 1)
        made[cell] = {"law": {"loss": law + scatter}, "code": {"loss": code + scatter}}
    return Results(
        plan=plan, base={"law": {"loss": 2.0}, "code": {"loss": 1.0}}, domains=made, split="test", weights={}
    )


LOSSES = {"uniform": (1.5, 1.0), "better": (1.4, 0.9), "worse": (1.6, 1.1), "noisy": (1.49, 0.99)}


def test_every_effect_has_its_sign_or_is_not_beyond_noise():
    text = effects_section(make_results(LOSSES, noise={"noisy": 100}))
    assert text[0] == "## Better, worse, or not beyond noise: each policy against `uniform`"
    assert text[-4].splitlines() == [
        "| policy | mean loss, nats a token | worst domain, points |",
        "|---|---:|---:|",
        "| better | better: -0.1000 ± 0.0025 | better: +10.00 ± 0.25 |",
        "| worse | worse: +0.1000 ± 0.0025 | worse: -10.00 ± 0.25 |",
        "| noisy | not beyond noise: -0.0100 ± 0.2484 | not beyond noise: +1.00 ± 24.84 |",
    ]
    # Better or worse on the same scale: with a target the gain is the first column.
    assert (
        "| policy | target's gain, points | other domains, points |"
        in effects_section(make_results(LOSSES, targets=("law",)))[-4]
    )


def test_one_pair_has_no_noise_to_compare_with():
    text = effects_section(make_results(LOSSES, seeds=(1,)))
    assert "| better | one pair alone: -0.1010 | one pair alone: +10.10 |" in text[-4]
    assert not any("enough" in line for line in text)


def test_simple_shares_are_enough_where_no_policy_is_below_them_beyond_noise():
    (sentence,) = enough_sentences(make_results({**LOSSES, "better": (1.51, 1.01)}, noise={"noisy": 100}))
    assert sentence == (
        "`uniform` is enough here for the mean loss: no policy is below it beyond noise (the widest interval of a "
        "difference is ± 0.2484 nats a token)."
    )
    assert enough_sentences(make_results(LOSSES)) == []
    assert enough_sentences(make_results({**LOSSES, "better": (1.51, 1.01)}, targets=("law",))) == []


RATED = {
    "uniform": {"mixture.policy": "uniform"},
    "uniform_low": {"mixture.policy": "uniform", "train.learning_rate": 1e-4},
    "steer": {"mixture.policy": "steer"},
    "steer_low": {"mixture.policy": "steer", "train.learning_rate": 1e-4},
}
RATED_LOSSES = {"uniform": (1.5, 1.0), "uniform_low": (1.7, 1.2), "steer": (1.48, 0.98), "steer_low": (1.6, 1.1)}


def test_the_learning_rate_alone_is_set_beside_the_mixture_alone():
    sentences = rate_sentences(make_results(RATED_LOSSES, runs=RATED))
    of_loss = (
        "Mean loss: the learning rate alone moves it by up to 0.2000 nats a token (`uniform` and `uniform_low`), the "
        "mixture alone, at one learning rate, by up to 0.1000 nats a token (`uniform_low` and `steer_low`): 2.0 times "
        "as much for the learning rate."
    )
    of_worst = (
        "Worst domain: the learning rate alone moves it by up to 20.00 points (`uniform` and `uniform_low`), the "
        "mixture alone, at one learning rate, by up to 10.00 points (`uniform_low` and `steer_low`): 2.0 times as "
        "much for the learning rate."
    )
    assert sentences == [of_loss, of_worst]
    assert rate_sentences(make_results(LOSSES)) == []


def test_a_policy_at_another_learning_rate_does_not_make_uniform_too_little():
    losses = {**RATED_LOSSES, "steer": (1.5, 1.0), "steer_low": (1.2, 0.7)}
    (sentence,) = enough_sentences(make_results(losses, runs=RATED))
    assert sentence.startswith("`uniform` is enough here for the mean loss: no policy at its learning rate is below it")


def test_a_policy_whose_runs_are_missing_has_dashes():
    results = make_results(LOSSES)
    made = {cell: domains for cell, domains in results.domains.items() if cell.label != "worse"}
    assert "| worse | - | - |" in effects_section(replace(results, domains=made))[-4]


@pytest.mark.parametrize("label", ["uniform", "better"])
def test_a_comparison_of_one_policy_has_no_section(label):
    assert effects_section(make_results({"uniform": LOSSES[label]})) == []
