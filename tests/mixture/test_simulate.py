"""Simulation, replay and explanation: the real controller on losses that cost nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from plans import plan_content

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.explain import decision_at, explain, replay_text, simulation_text, sweep_text
from versatune_ds.mixture.inputs import Inputs
from versatune_ds.mixture.offline.curves import synthetic_curves
from versatune_ds.mixture.offline.outlook import Supply
from versatune_ds.mixture.offline.recorded_losses import read_decisions, read_losses
from versatune_ds.mixture.offline.replay import NOT_COUNTERFACTUAL, Part, first_difference, replay
from versatune_ds.mixture.offline.simulate import simulate, simulate_losses, sweep_overrides
from versatune_ds.mixture.reference import References
from versatune_ds.mixture.statistics import ExampleLosses

DOMAINS = DomainSet(("law", "code", "general"))
PRIOR = {"law": 0.2, "code": 0.3, "general": 0.5}


def settings_of(**settings):
    return MixtureConfig(**{"policy": "versatune", "prior": PRIOR} | settings)


def run(num_steps=400, **settings):
    keys = {key: settings.pop(key) for key in ("noise", "seed", "supply") if key in settings}
    return simulate(settings_of(**settings), domain_set=DOMAINS, num_steps=num_steps, **keys)


def written(tmp_path, *lines):
    path = tmp_path / "losses.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def losses_line(update, step, law, code, general):
    return {"update": update, "step": step, "losses": {"law": law, "code": code, "general": general}}


def test_recorded_losses_give_the_hand_computed_weights(tmp_path):
    path = written(tmp_path, losses_line(0, 0, 3, 3, 3), losses_line(1, 50, 2.0, 1.25, 1.0))
    settings = settings_of(prior="uniform", reference=dict.fromkeys(DOMAINS, 1.0), sigma=0.5, paper=True)
    simulation = simulate_losses(settings, read_losses(path, domain_set=DOMAINS), domain_set=DOMAINS)
    total = 1.25 + 1.1 + 1.0
    assert list(simulation.decisions[1].weights_after.values()) == pytest.approx([1.25 / total, 1.1 / total, 1 / total])
    assert len(simulation.to_jsonl().splitlines()) == 2


def test_recorded_losses_follow_the_plan_of_the_prior_and_the_synthetic_learner_does_not(tmp_path):
    plan = tmp_path / "plan.json"
    points = [
        {"fraction": f, "losses": dict.fromkeys(DOMAINS, 4 - f), "stderrs": dict.fromkeys(DOMAINS, 0.0)} for f in (0, 1)
    ]
    plan.write_text(json.dumps(plan_content(tuple(DOMAINS), track=points)))
    settings = settings_of(policy="steer", prior=plan, reference=dict.fromkeys(DOMAINS, 1.0))
    path = written(tmp_path, losses_line(0, 0, 4, 4, 4), losses_line(1, 50, 4, 4, 4), losses_line(2, 100, 3, 3, 3))
    simulation = simulate_losses(settings, read_losses(path, domain_set=DOMAINS), domain_set=DOMAINS)
    assert [decision.signals["law"]["track_loss"] for decision in simulation.decisions] == [4.0, 3.5, 3.0]
    learner = simulate(settings, domain_set=DOMAINS, num_steps=100)
    assert "track_loss" not in learner.decisions[-1].signals["law"]
    assert any("track and bounds are not followed" in note for note in learner.warnings)


def test_a_loss_may_be_absent_or_null(tmp_path):
    path = written(tmp_path, losses_line(0, 0, 3, 3, 3), {"update": 1, "step": 9, "losses": {"law": 2, "code": None}})
    record = read_losses(path, domain_set=DOMAINS)[1]
    assert record.measurement.num_loss_tokens_K.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"losses\.jsonl:2: not valid JSON"),
        ({"update": 1, "step": 5}, r"losses\.jsonl:2: expected a mapping with update, step and losses"),
        ({"update": 1, "losses": {}}, r"losses\.jsonl:2: step: expected a whole number of at least 0, got None"),
        (losses_line("1", 5, 1, 1, 1), r"losses\.jsonl:2: update: expected a whole number of at least 0, got '1'"),
        (losses_line(1, 0, 1, 1, 1), r"losses\.jsonl:2: step 0 after step 0; steps must rise"),
        ({"update": 1, "step": 5, "losses": {"lww": 1}}, r"unknown domain 'lww'; did you mean 'law'"),
        (losses_line(1, 5, "x", 1, 1), r"losses\.law: expected nats per loss token or null, got 'x'"),
    ],
)
def test_a_wrong_line_is_reported_with_file_and_line(tmp_path, line, message):
    path = written(tmp_path, losses_line(0, 0, 3, 3, 3), line)
    with pytest.raises(ValueError, match=message):
        read_losses(path, domain_set=DOMAINS)


def test_a_missing_or_empty_file_of_losses_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_losses(tmp_path / "nothing.jsonl", domain_set=DOMAINS)
    with pytest.raises(ValueError, match="no line"):
        read_losses(written(tmp_path), domain_set=DOMAINS)


def test_decisions_can_be_read_as_losses(tmp_path):
    simulation = run(noise=0.002)
    path = tmp_path / "decisions.jsonl"
    path.write_text(simulation.to_jsonl())
    records = read_losses(path, domain_set=DOMAINS)
    assert [record.step for record in records] == [decision.decided_at_step for decision in simulation.decisions]
    assert records[2].measurement.change_stderr_K[0] == simulation.decisions[2].signals["law"]["change_stderr"]


def test_a_simulation_is_a_function_of_its_seed():
    assert run(noise=0.01).to_jsonl() == run(noise=0.01).to_jsonl()
    assert run(noise=0.01).to_jsonl() != run(noise=0.01, seed=1).to_jsonl()


def test_the_learner_learns_what_it_draws_and_forgets_what_it_does_not():
    curves = synthetic_curves(np.full(3, 1 / 3))
    curves = replace(curves, transfer_KK=np.eye(3))
    after_K = curves.trained(curves.start_K, weights_K=np.array([1.0, 0.0, 0.0]), share_of_run=1.0)
    assert after_K[0] == pytest.approx(curves.start_K[0] + 1.0)
    assert after_K[1] == pytest.approx(curves.start_K[1] * np.exp(-1.5))
    assert curves.loss(after_K)[0] < curves.loss(curves.start_K)[0]
    assert curves.loss(after_K)[1] > curves.loss(curves.start_K)[1]


def test_updating_twice_as_often_hardly_changes_the_outcome():
    seldom = run(update_every=50).decisions[-1].weights_after
    often = run(update_every=25).decisions[-1].weights_after
    assert list(often.values()) == pytest.approx(list(seldom.values()), abs=0.01)


def test_a_decision_acts_prefetch_plus_one_steps_later():
    first_update = run(update_every=50).decisions[1]
    assert first_update.effective_step == first_update.decided_at_step + 3


def test_a_large_step_collapses_the_mixture_and_gives_a_warning():
    simulation = run(num_steps=2000, policy="authors_code", paper=True)
    assert any(warning.startswith("collapse: the effective number") for warning in simulation.warnings)


def test_a_controller_that_moves_nothing_gives_a_warning():
    warnings = run(reference={"start_fraction": 0.85}, sigma=0.01).warnings
    assert any("no weight moved" in warning and "`versatune reference RECIPE`" in warning for warning in warnings)
    assert not any("no weight moved" in warning for warning in run(policy="uniform").warnings)


def test_epochs_and_exhaustion_follow_the_weights():
    supply = Supply(sizes_K=np.array([100.0, 1000.0, 400.0]), units_per_step=1.0)
    simulation = run(policy="constant", supply=supply)
    assert simulation.epochs_K == pytest.approx([0.8, 0.12, 0.5])
    assert simulation.warnings == ()
    between_updates = run(num_steps=380, policy="constant", supply=supply)
    assert between_updates.epochs_K == pytest.approx([0.76, 0.114, 0.475])
    capped = run(policy="constant", supply=replace(supply, max_epochs=0.4))
    assert capped.warnings == (
        "law exhausts its 0.4 epochs from step 201 (0.80 epochs)",
        "general exhausts its 0.4 epochs from step 321 (0.50 epochs)",
    )


def test_missing_references_are_replaced_by_the_learners_own_with_a_note():
    assert run().warnings[0].startswith("mixture.reference is not given")
    assert not any("mixture.reference" in warning for warning in run(policy="odm").warnings)


# Replay.


def recorded_run(**settings):
    """Decisions of a run with examples, paired errors, a NaN, an absent domain and live control."""
    settings = settings_of(**{"reference": dict.fromkeys(DOMAINS, 1.5), "sigma": 1.0} | settings)
    references = References(losses_K=np.full(3, 1.5)) if settings.reference else None
    start_K = np.array([0.2, 0.3, 0.5])
    controller = Controller(domain_set=DOMAINS, settings=settings, weights_K=start_K, references=references)
    rng = np.random.default_rng(0)
    tokens_E, ids_E, hardness_E = rng.integers(5, 40, 60), np.arange(60) % 3, rng.normal(3, 0.3, 60)
    decisions = []
    for update in range(7):
        mean_E = hardness_E - 0.05 * update * (ids_E - 0.5) + rng.normal(0, 0.02, 60)
        if update == 3:
            mean_E[0] = np.nan
        losses = ExampleLosses(
            loss_sum_E=mean_E * tokens_E, num_loss_tokens_E=tokens_E, domain_ids_E=ids_E, num_domains=3
        )
        inputs = Inputs(pins={"code": 0.25}, sigma=2.0, supply_caps={"general": 0.4}) if update == 5 else Inputs()
        decisions.append(controller.decide(losses, step=50 * update, effective_step=50 * update + 3, inputs=inputs))
    return settings, references, decisions


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"policy": "steer", "safeguards": {"z": 0.0, "forgetting_budget": 0.001, "prior_pull": 0.1}},
        {"policy": "expansion", "target": "law"},
        {"policy": "odm", "reference": None},
        {"policy": "constant", "reference": None},
        {"paper": True},
    ],
)
def test_a_replay_with_the_runs_own_settings_gives_its_own_decisions(settings):
    settings, references, decisions = recorded_run(**settings)
    replayed = replay(decisions, parts=[Part(settings=settings, references=references)], domain_set=DOMAINS)
    assert [new.to_json() for new in replayed] == [old.to_json() for old in decisions]
    assert first_difference(decisions, replayed) is None
    text = replay_text(decisions, replayed, domain_set=DOMAINS)
    assert text == "All 7 decisions are the recorded ones, digest for digest."


def test_a_replay_from_the_file_gives_its_own_decisions(tmp_path):
    settings, references, decisions = recorded_run()
    path = written(tmp_path, *(decision.to_json() for decision in decisions))
    replayed = replay(read_decisions(path), parts=[Part(settings=settings, references=references)], domain_set=DOMAINS)
    assert first_difference(decisions, replayed) is None


def test_a_replay_with_other_settings_differs_and_carries_its_label():
    _, references, decisions = recorded_run()
    other = settings_of(reference=dict.fromkeys(DOMAINS, 1.5), sigma=0.1)
    replayed = replay(decisions, parts=[Part(settings=other, references=references)], domain_set=DOMAINS)
    assert first_difference(decisions, replayed) == "update 1 (step 50) differs in weights_after, reason"
    assert NOT_COUNTERFACTUAL in replay_text(decisions, replayed, domain_set=DOMAINS)


def test_a_changed_record_is_refused_with_file_and_line(tmp_path):
    _, _, decisions = recorded_run()
    lines = [decision.to_json() for decision in decisions]
    path = written(tmp_path, lines[0], lines[1].replace('"update": 1', '"update": 8'))
    with pytest.raises(RuntimeError, match=r"losses\.jsonl:2: .*digest"):
        read_decisions(path)
    with pytest.raises(ValueError, match="no such file"):
        read_decisions(tmp_path / "none.jsonl")


# Texts.


def test_an_explanation_contains_numbers_reason_safeguards_and_inputs():
    _, _, decisions = recorded_run()
    text = explain(decision_at(decisions, 260))
    assert text.startswith("Update 5, decided after step 250, in effect from step 253.")
    assert "has most left to learn" in text
    assert "pin: code" in text
    assert "pins={'code': 0.25}" in text
    assert decisions[5].digest in text
    loss, signals = decisions[5].losses["law"]["mean"], decisions[5].signals["law"]
    assert f" {loss - signals['reference_loss']:.4f} {signals['learnable_potential']:.4f} " in " ".join(text.split())


def test_an_explanation_of_a_skipped_update_gives_the_reason():
    _, _, decisions = recorded_run()
    assert "Update skipped: the loss of law is not a number" in explain(decision_at(decisions, 150))


def test_a_step_before_the_first_decision_is_refused():
    _, _, decisions = recorded_run()
    with pytest.raises(ValueError, match="no decision at or before step 10; the first was made after step 50"):
        decision_at(decisions[1:], 10)


def test_a_simulation_and_a_sweep_are_shown_as_short_tables():
    simulation = run(num_steps=2000)
    text = simulation_text(simulation, domain_set=DOMAINS)
    assert len(text.splitlines()) < 40
    assert "note: mixture.reference is not given" in text
    sweep = sweep_text({"mixture.sigma=0.1": run(sigma=0.1), "mixture.sigma=1": run(sigma=1.0)}, domain_set=DOMAINS)
    assert [line.split("  ")[0] for line in sweep.splitlines()[2:]] == ["mixture.sigma=0.1", "mixture.sigma=1"]


def test_a_sweep_is_every_combination_of_its_values():
    assert sweep_overrides(["mixture.sigma=0.1,0.3", "mixture.reference={law: 1, code: 2},r.json"]) == [
        ("mixture.sigma=0.1", "mixture.reference={law: 1, code: 2}"),
        ("mixture.sigma=0.1", "mixture.reference=r.json"),
        ("mixture.sigma=0.3", "mixture.reference={law: 1, code: 2}"),
        ("mixture.sigma=0.3", "mixture.reference=r.json"),
    ]
    for text in ("mixture.sigma", "mixture.sigma=", "=1", "mixture.sigma=1,"):
        with pytest.raises(ValueError, match="expected key=value,value"):
            sweep_overrides([text])
