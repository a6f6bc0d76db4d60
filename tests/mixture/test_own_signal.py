"""A loss signal of the user's own: its numbers, its decisions, what is refused and where it says so."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.config import MixtureConfig, load_config
from versatune_ds.config.load import load_config_with_policy, name_of_signal
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.explain import explain
from versatune_ds.mixture.offline.replay import Part, replay
from versatune_ds.mixture.own_signal import DomainLosses, checked_losses
from versatune_ds.mixture.reference import load_references
from versatune_ds.monitor.decision_views import decision_metrics
from versatune_ds.report.series import RunSeries, held_out_losses, reference_loss, training_losses

RECIPE = """
run: {name: mine}
model: {from_config: {model_type: llama}}
data: {synthetic: {}}
train: {steps: 10}
mixture: {reference: {start_fraction: 0.85}}
"""
DOMAINS = DomainSet(("law", "code"))
NAME = "my_signals:wrong_share"


def checked(returned):
    return checked_losses(returned, name=NAME, where="my_signals.py:7", domain_set=DOMAINS)


def config_of(folder, *overrides):
    """Return a config without a tokenizer or a model: CI runs these tests without PyTorch."""
    path = folder / "recipe.yaml"
    path.write_text(RECIPE)
    return load_config(path, overrides)


def half(context):
    return dict.fromkeys(context.domain_names, 0.5)


def controller_of(**keys):
    settings = MixtureConfig(
        policy="versatune", prior="uniform", reference={"law": 0.1, "code": 0.3}, signal=NAME, sigma_interval_steps=50,
        **keys,
    )  # fmt: skip
    references = load_references(settings, domain_set=DOMAINS)
    return settings, Controller(
        domain_set=DOMAINS, settings=settings, weights_K=np.array([0.5, 0.5]), references=references
    )


def decided(*means, stderr=None, **keys):
    settings, controller = controller_of(**keys)
    decisions = []
    for n, mean in enumerate(means):
        losses = checked(DomainLosses(mean=mean, stderr=stderr))
        decisions.append(controller.decide_from_own(losses, step=50 * n, effective_step=50 * n + 3))
    return settings, decisions


def test_the_mean_and_error_of_every_domain_are_vectors_in_the_order_of_the_run():
    losses = checked(DomainLosses(mean={"code": 0.25, "law": np.float32(0.5)}, stderr={"law": 0.1, "code": None}))
    assert losses.loss_K.tolist() == [0.5, 0.25]
    np.testing.assert_array_equal(losses.stderr_K, [0.1, np.nan])
    measurement = losses.measurement(previous_stderr_K=np.array([0.0, np.nan]))
    assert measurement.change_stderr_K[0] == 0.1
    assert checked({"law": 0, "code": None}).measurement(previous_stderr_K=losses.stderr_K).is_present().tolist() == [
        True, False,
    ]  # fmt: skip


def test_a_decision_is_by_the_signals_numbers_and_records_its_name():
    """Potentials (.5 - .1) / .5 = .8 and 0: law's weight times 1 + sigma * .8, by hand with sigma .5: 1.4 / 2.4."""
    _, (_, decision) = decided(
        {"law": 0.5, "code": 0.3}, {"law": 0.5, "code": 0.3}, safeguards={"max_kl": None, "floor": 0.0}
    )
    assert decision.weights_after["law"] == pytest.approx(1.4 / 2.4)
    assert decision.inputs == {"signal": NAME}
    assert decision.losses["law"] == {"mean": 0.5, "stderr": None, "num_loss_tokens": 1}
    assert f"The losses are what {NAME} returned, in its own unit, not held-out losses." in explain(decision)


def test_errors_keep_a_rise_within_the_noise_from_counting_as_forgetting():
    means = ({"law": 0.5, "code": 0.30}, {"law": 0.5, "code": 0.33})
    _, (_, without) = decided(*means)
    _, (_, noisy) = decided(*means, stderr={"law": 0.1, "code": 0.1})
    assert without.signals["code"]["forgetting_degree"] == pytest.approx(0.1)
    assert noisy.signals["code"]["forgetting_degree"] == 0


@given(
    st.lists(st.tuples(*[st.one_of(st.none(), st.floats(0, 5).map(lambda x: round(x, 6)))] * 2), min_size=1, max_size=5)
)
def test_a_replay_repeats_the_decisions_of_any_signal_without_the_function(numbers):
    means = ({"law": law, "code": code} for law, code in numbers)
    settings, decisions = decided(*means, reference_check="warn")
    _, fresh = controller_of()
    again = replay(decisions, parts=[Part(settings=settings, references=fresh._references)], domain_set=DOMAINS)
    assert [decision.digest for decision in again] == [decision.digest for decision in decisions]


WRONG = [
    ([0.5, 0.2], r"returned list: expected DomainLosses, or a mapping from domain to number; write dict\(zip"),
    (np.zeros((2, 3)), r"returned ndarray of shape \(2, 3\): expected DomainLosses"),
    (None, "returned NoneType"),
    ({"law": 0.5}, "mean: expected a number of every domain, code missing"),
    ({"law": 0.5, "code": 0.2, "cod": 1.0}, r"mean: unknown domain 'cod'; .*code"),
    ({"law": float("nan"), "code": 0.2}, "mean: law: expected a finite number of at least 0, .* got nan"),
    ({"law": 0.5, "code": -1}, "mean: code: expected a finite number of at least 0, .* got -1"),
    ({"law": 0.5, "code": "0.2"}, "mean: code: .* got '0.2'"),
    ({"law": 0.5, "code": np.ones(2)}, r"mean: code: .* got ndarray of shape \(2,\)"),
    (DomainLosses(mean={"law": 1, "code": 1}, stderr={"law": 1}), "stderr: .* code missing"),
    (DomainLosses(mean=[1, 2]), "mean: expected a mapping from domain to number, got list"),
]


@pytest.mark.parametrize(("returned", "message"), WRONG)
def test_what_is_no_finite_number_of_every_domain_is_refused_with_file_and_line(returned, message):
    with pytest.raises(ValueError, match=rf"^mixture\.signal: my_signals:wrong_share \(my_signals\.py:7\).*{message}"):
        checked(returned)


def test_a_signal_is_named_in_a_recipe_and_imported_only_where_it_is_used(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    config = config_of(tmp_path, "mixture.signal=signals_of_a_test:wrong_share")
    assert config.mixture.has_own_signal
    assert not config.mixture.watches_overfitting
    with pytest.raises(ValueError, match=r"^mixture\.signal: .*cannot import 'signals_of_a_test' \(ModuleNotFound"):
        config.mixture.signal_function  # noqa: B018
    (tmp_path / "signals_of_a_test.py").write_text("A = 1\ndef wrong_share(context): ...\n")
    assert config.mixture.signal_function.__name__ == "wrong_share"
    for name, wrong in (("A", "it is a int"), ("B", "there is none")):
        other = load_config(config, [f"mixture.signal=signals_of_a_test:{name}"])
        with pytest.raises(ValueError, match=rf"expected a function '{name}' in .*signals_of_a_test.py; {wrong}"):
            other.mixture.signal_function  # noqa: B018
    sys.modules.pop("signals_of_a_test")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("mixture.signal=valid", "mixture.signal: expected validation, train, or my_module:my_signal, got 'valid'"),
        (
            "mixture.signal=a b:c",
            "mixture.signal: 'a b:c': expected validation, train, or my_module:my_signal for",
        ),
        ("mixture={signal: 'a:b', safeguards: {overfit: reduce}}", "overfit: reduce compares .*signal=a:b decides by"),
    ],
)
def test_a_mistake_in_the_key_is_one_line(tmp_path, key, message):
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, key)


def test_a_signal_given_as_a_function_stays_until_another_is_named(tmp_path):
    config = load_config_with_policy(config_of(tmp_path), ["train.steps=7"], None, half)
    assert config.mixture.signal == f"{__name__}:half"
    assert config.mixture.signal_function is half
    assert load_config(config, ["train.steps=9"]).mixture.signal_function is half
    assert load_config(config, ["mixture.signal=validation"]).mixture.signal_function is None
    assert name_of_signal(lambda context: {}) == "__main__:_lambda_"
    with pytest.raises(ValueError, match=r"^signal: .*test_own_signal\.py:\d+: expected a function of one argument"):
        name_of_signal(lambda: {})
    with pytest.raises(ValueError, match=r"^signal: expected a function of one SignalContext, got dict"):
        name_of_signal({})


def test_reports_and_metrics_do_not_take_the_signals_numbers_for_held_out_losses(tmp_path):
    _, decisions = decided({"law": 0.5, "code": 0.3}, {"law": 0.4, "code": 0.3})
    lines = tuple(decision.to_dict() for decision in decisions)
    series = RunSeries(run_dir=tmp_path, domain_names=DOMAINS.names, metrics=(), decisions=lines)
    assert held_out_losses(series, "law").values == training_losses(series, "law").values == {}
    assert reference_loss(series, "law") is None
    values = decision_metrics(lines[-1])
    assert values["domain/law/signal"] == 0.4
    assert "domain/law/excess_loss" not in values
    assert "domain/law/loss_stderr" not in values
