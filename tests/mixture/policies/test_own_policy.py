"""A user's own policy: found by module and attribute, imported only when it decides, errors in one line."""

import sys

import numpy as np
import pytest

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.measurement import Measurement
from versatune_ds.mixture.policies import Policy, policy_named
from versatune_ds.mixture.settings import starting_weights

DOMAINS = DomainSet(("law", "code"))
RULE = """
import numpy as np
from versatune_ds.mixture.policies import Policy

def update(weights_K, signals, step, settings):
    return np.array([0.6, 0.4])

GIVEN = Policy(name="given", update=update, uniform_share=1.0, explain=lambda *given: "it is as it is")
NO_POLICY = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module with a policy into the working folder."""
    (tmp_path / "my_rules.py").write_text(RULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_rules"
    sys.modules.pop("my_rules", None)


def section(policy, **keys):
    safeguards = {"max_kl": None}
    return MixtureConfig(policy=policy, prior={"law": 0.5, "code": 0.5}, safeguards=safeguards, **keys)


def decide(settings, policy=None):
    controller = Controller(domain_set=DOMAINS, settings=settings, weights_K=np.array([0.5, 0.5]), policy=policy)
    for step in (0, 50):
        measurement = Measurement.of_means(np.array([3.0, 1.0]))
        decision = controller.decide_measured(measurement, step=step, effective_step=step + 3)
    return decision


def test_a_policy_in_the_working_folder_decides_and_explains_itself(module):
    decision = decide(section(f"{module}:GIVEN"))
    assert decision.weights_after == pytest.approx({"law": 0.6, "code": 0.4})
    assert decision.reason.startswith("Policy my_rules:GIVEN: it is as it is; law gained most (0.5000 to 0.6000)")


def test_a_policy_given_as_a_value_decides_too():
    mine = Policy(name="mine", update=lambda weights_K, signals, step, settings: np.array([0.999, 0.001]))
    decision = decide(section("constant"), policy=mine)
    assert decision.weights_after == pytest.approx({"law": 0.9, "code": 0.1})  # the cap acts: it is no fixed mixture


def test_a_policys_uniform_share_is_the_default(module):
    settings = MixtureConfig(policy=f"{module}:GIVEN", prior={"law": 0.9, "code": 0.1})
    assert starting_weights(settings, domain_set=DOMAINS, sizes_K=None).tolist() == [0.5, 0.5]


def test_reading_a_recipe_does_not_import_the_policy(module):
    assert section("my_rules:GIVEN").policy == "my_rules:GIVEN"
    assert "my_rules" not in sys.modules


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("my_rules:GIVE", "mixture.policy: my_rules:GIVE: expected a versatune_ds Policy called 'GIVE'; it has GIVEN"),
        ("my_rules:NO_POLICY", "expected a versatune_ds Policy called 'NO_POLICY'; it has GIVEN"),
        ("no_such_module:X", "mixture.policy: no_such_module:X: cannot import 'no_such_module' (ModuleNotFoundError"),
    ],
)
def test_a_missing_policy_is_refused_in_one_line(module, policy, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared below
        policy_named(policy)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_that_is_not_module_and_attribute_is_refused_when_the_recipe_is_read():
    with pytest.raises(ValueError, match="my_module:my_policy for your own"):
        section("my rules:GIVEN")


def test_the_documented_example_moves_half_way_to_the_shares_of_the_loss():
    decision = decide(section("examples.loss_share:LOSS_SHARE"))
    assert decision.weights_after == pytest.approx({"law": 0.625, "code": 0.375})
