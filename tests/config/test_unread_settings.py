"""Keys that are set without effect are listed; defaults and keys that have an effect are not."""

import numpy as np
import pytest

from versatune_ds.config.load import load_config
from versatune_ds.config.unread_settings import readers_of, unread_detect_settings, unread_settings
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.policies import POLICIES
from versatune_ds.mixture.policies.signals import Signals
from versatune_ds.mixture.settings import policy_settings, starting_weights

RECIPE = """
run: {name: mine}
model: {from_config: {model_type: llama}}
data: {domains: {law: {train: a}, code: {train: b}, art: {train: c}}}
train: {steps: 10}
mixture: {reference: {start_fraction: 0.85}}
"""
SETS = {
    "prior": {"law": 0.2, "code": 0.3, "art": 0.5}, "prior_uniform_share": 0.3, "prior_temperature": 2.0,
    "sigma": 3.0, "target": "code",
    "target_share": 0.7, "delta": 0.3, "epsilon": 5.0, "expansion.otherwise": "multi_ability",
    "exponentiated.step_size": 2.0, "exponentiated.smoothing": 0.5, "steer.rate": 0.3, "steer.anchor": 0.1,
    "steer.potential": "relative", "sigma_interval_steps": 10,
}  # fmt: skip


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    return lambda *overrides: load_config(path, overrides)


def test_keys_that_the_policy_does_not_read_share_one_line(load):
    (line,) = unread_settings(load("mixture.sigma=0.1", "mixture.delta=0.3"))
    assert line == (
        "mixture.sigma, mixture.delta: policy 'steer' does not read them; leave them out, or choose a policy that does "
        "(sigma: expansion, versatune; delta: expansion)"
    )
    assert unread_settings(load("mixture.policy=versatune", "mixture.sigma=0.1")) == []


def test_defaults_that_are_spelt_out_are_not_listed(load):
    assert unread_settings(load()) == []
    assert unread_settings(load("mixture.sigma=0.5", "mixture.delta=0.02", "train.decay_fraction=0.1")) == []
    assert unread_settings(load("mixture.safeguards.floor=0.01", "mixture.steer.anchor=0.2")) == []


def test_requested_keys_are_listed_even_with_their_default_and_others_are_not(load):
    config = load("mixture.sigma=0.5", "mixture.delta=0.3")
    (line,) = unread_settings(config, named=["mixture.sigma"])
    assert line.startswith("mixture.sigma: policy 'steer' does not read it")
    (line,) = unread_settings(load("mixture.exponentiated={step_size: 2}"), named=["mixture.exponentiated"])
    assert line.startswith("mixture.exponentiated.step_size: policy")


def test_the_papers_rule_reads_no_safeguard_and_no_interval(load):
    keys = ("mixture.safeguards.cap=0.5", "mixture.sigma_interval_steps=9")
    (line,) = unread_settings(load("mixture.paper=true", *keys))
    assert line.startswith("mixture.sigma_interval_steps, mixture.safeguards.cap: mixture.paper=true switches them off")


def test_a_fixed_mixture_says_that_over_fitting_is_only_reported(load):
    (line,) = unread_settings(load("mixture.policy=uniform", "mixture.safeguards.overfit=reduce"))
    assert line.startswith("mixture.safeguards.overfit: policy 'uniform' is a fixed mixture")
    assert unread_settings(load("mixture.policy=steer", "mixture.safeguards.overfit=reduce")) == []
    assert unread_settings(load("mixture.policy=uniform", "mixture.safeguards.overfit=off")) == []


@pytest.mark.parametrize(
    ("override", "reader"),
    [
        ("train.decay_fraction=0.3", "train.learning_rate_schedule=wsd"),
        ("train.min_learning_rate_fraction=0.2", "train.learning_rate_schedule=cosine"),
        ("validation.min_examples_per_domain=9", "validation.target_standard_error=0.1"),
        ("mixture.target_share=0.4", "mixture.target=law"),
    ],
)
def test_a_key_is_listed_unless_another_key_gives_it_an_effect(load, override, reader):
    schedule = ["train.learning_rate_schedule=constant"] if "min_learning" in override else []
    (line,) = unread_settings(load(*schedule, override))
    assert line.startswith(override.partition("=")[0])
    assert unread_settings(load(override, reader)) == []


def test_keys_of_another_labeller_are_listed(load):
    assert unread_detect_settings(load()) == []
    lines = unread_detect_settings(load("detect.openai={model: m}", "detect.label_characters=9"))
    assert sorted(line.partition(":")[0] for line in lines) == ["detect.label_characters", "detect.openai"]
    own = ("detect.labeller=openai", "detect.openai={model: m}", "detect.label_characters=9")
    assert unread_detect_settings(load(*own)) == []
    (line,) = unread_detect_settings(load(*own, "detect.prior_shift=false"))
    assert line == "detect.prior_shift: not read: only the labellers embedding, classifier read it; leave it out"


def weights_after(settings, domain_set):
    """Return the starting weights of a policy, then its weights after one update on fixed signals."""
    start_K = starting_weights(settings, domain_set=domain_set, sizes_K=np.array([1.0, 2.0, 5.0]))
    ramp_K = np.array([0.1, 0.3, 0.2])
    values = {name: ramp_K for name in Signals.__dataclass_fields__ if name.endswith("_K")}
    values |= {"loss_K": 2.0 + ramp_K, "reference_loss_K": np.array([1.0, 1.9, 2.0])}
    signals = Signals(**values, update=3)
    resolved = policy_settings(settings, domain_set=domain_set, start_weights_K=start_K).after_steps(50)
    return np.concatenate([start_K, POLICIES[settings.policy].update(start_K, signals, 50, resolved)])


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "schedule"])
def test_the_keys_that_a_policy_declares_are_the_ones_it_reads(load, policy):
    domain_set = DomainSet(("law", "code", "art"))
    needed = ["mixture.target=law"] if policy in readers_of("target") else []
    for key, value in SETS.items():
        if policy == "expansion" and key in ("delta", "expansion.otherwise"):
            needed_here = ["mixture.epsilon=9"] if key == "delta" else ["mixture.epsilon=0"]
        else:
            needed_here = []
        base_K = weights_after(load(f"mixture.policy={policy}", *needed, *needed_here).mixture, domain_set)
        changed = load(f"mixture.policy={policy}", *needed, *needed_here, f"mixture.{key}={value}")
        is_changed = not np.allclose(weights_after(changed.mixture, domain_set), base_K)
        is_listed = any(f"mixture.{key}" in line.partition(":")[0] for line in unread_settings(changed))
        assert not (is_changed and is_listed), f"{policy} reads mixture.{key}, which is listed as unread"
        is_for_safeguards = key == "sigma_interval_steps" and policy in readers_of(key)
        if not is_changed and key != "epsilon" and not is_for_safeguards:
            assert is_listed, f"{policy} does not read mixture.{key}, which is not listed"


def test_keys_of_a_method_of_detection_that_is_not_used_are_listed_in_one_line(load):
    drawn = ("detect.num_sequences=64", "detect.rounds=2", "detect.likelihood_rows=50")
    assert unread_detect_settings(load(*drawn)) == []
    assert unread_detect_settings(load(*drawn, "detect.method=likelihood")) == [
        "detect.num_sequences, detect.rounds: not read: detect.method=likelihood does not read them"
    ]
    assert unread_detect_settings(load(*drawn, "detect.method=generation")) == [
        "detect.likelihood_rows: not read: detect.method=generation does not read it"
    ]
