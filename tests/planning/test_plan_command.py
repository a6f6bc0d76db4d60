"""`versatune plan`: from transfer.json to plan.json, its text and its picture; what a user may get wrong."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
from command_line import command_of
from quadratic_predictor import quadratic

from versatune_ds.config import load_config
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.planning.plan_file import read_plan
from versatune_ds.mixture.planning.predictor import Planner
from versatune_ds.mixture.settings import starting_weights
from versatune_ds.planning import planners
from versatune_ds.planning.plan_command import PlanOptions, parse_bounds, plan_recipe

NAMES = ("law", "code", "art")
BASE = {"law": 2.0, "code": 4.0, "art": 1.0}
OWN = {"law": -0.5, "code": -0.4, "art": -0.3}
"""Relative change of each domain's loss in its own run; the others rise by a tenth there."""


def table(*, names=NAMES, **entries):
    """Return the content of a transfer.json: runs of 10 steps of 100 tokens."""
    sources = {}
    for own in names:
        changes = {name: [0.0, BASE[name] * (OWN[name] if name == own else 0.1)] for name in names}
        sources[own] = {
            "steps": [0, 10],
            "tokens": [0, 1000],
            "losses": {name: [BASE[name] + change for change in changes[name]] for name in names},
            "changes": changes,
            "change_stderrs": {name: [0.0, 0.01 if name == own else 0.2] for name in names},
            "model": None,
            "rows": 100,
            "tokens_per_epoch": {"law": 1000, "code": 3000, "art": 4000}[own],
        }
    base = {"losses": {name: BASE[name] for name in names}, "stderrs": dict.fromkeys(names, 0.1)}
    settings = {"rows_per_batch": 4, "row_tokens": 50}
    return {"domains": list(names), "base": base, "sources": sources, "unmeasured": [], "settings": settings, **entries}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Return a recipe with its transfer.json, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    lines = [
        "run: {name: tiny}",
        "model: {from_config: {model_type: llama}}",
        f"data: {{domains: {{{', '.join(f'{name}: {{train: {name}.jsonl}}' for name in NAMES)}}}, row_tokens: 50}}",
        "train: {steps: 20, rows_per_batch: 4, rows_per_micro_batch: 4}",
        "mixture: {reference: runs/tiny-reference.json, prior: {law: 0.5, code: 0.25, art: 0.25}}",
    ]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    (tmp_path / "runs").mkdir()
    write_table(tmp_path, table())
    return tmp_path / "recipe.yaml"


def write_table(folder, content):
    (folder / "runs" / "tiny-transfer.json").write_text(json.dumps(content))


@pytest.fixture
def stand_in(monkeypatch):
    """Return a function that makes `stand-in` a planner whose predictor is given; the tasks it got are in a list."""
    tasks = []

    def use(predictor):
        def make(task):
            tasks.append(task)
            return predictor

        planner = Planner(name="stand-in", make=make, needs="transfer", explain="by a formula of the test")
        monkeypatch.setitem(planners.PLANNERS, "stand-in", planner)
        return tasks

    return use


def plan(recipe, *overrides, **options):
    return plan_recipe(recipe, overrides, options=PlanOptions(planner="stand-in", **options))


BINDING = {"base": [2, 4, 1], "gain": [0.6, 1.2, 0.6], "others": [0.3, 0, 0.3]}
"""Code learns most; law and art rise by .3 - .9 w."""


def test_the_plan_is_written_with_weights_predictions_front_and_provenance(recipe, stand_in, tmp_path):
    tasks = stand_in(quadratic(**BINDING, stderr=0.018))
    made, text = plan(recipe, purpose="balanced", bounds=("law=0.12",), bound_all=0.03)
    written = json.loads((tmp_path / "runs/tiny-plan.json").read_text())
    assert written == made.to_dict()
    # .3 - .9 w = .12, and .3 - .9 w = .03
    wanted = [0.18 / 0.9, 1 - (0.18 + 0.27) / 0.9, 0.27 / 0.9]
    assert list(written["weights"].values()) == pytest.approx(wanted, abs=1e-3)
    assert written["bounds"] == {"law": 0.12, "code": 0.03, "art": 0.03}
    assert written["predicted"]["art"] == pytest.approx(
        {"loss": 1.03, "stderr": 0.018, "base": 1.0, "change": 0.03}, abs=1e-3
    )
    labels = {point["label"]: point for point in written["front"]}
    assert set(labels) == {None, "uniform", "prior", "proportional", "chosen"}
    assert labels["prior"]["weights"] == {"law": 0.5, "code": 0.25, "art": 0.25}
    assert labels["proportional"]["weights"] == {"law": 0.125, "code": 0.375, "art": 0.5}
    assert labels["chosen"]["worst_domain"] == "law"
    assert written["provenance"]["search"]["floor"] == pytest.approx(0.1 / 3)
    assert written["provenance"]["transfer"]["file"] == "runs/tiny-transfer.json"
    assert (tmp_path / "runs/tiny-plan.png").read_bytes()[:4] == b"\x89PNG"
    assert written["track"] == []  # the stand-in predicts the end alone
    assert "predicts the end of a run alone, so the plan has no track" in " ".join(text.split())
    # 20 steps of 4 rows of 50 tokens, of which half are padding, as in the table's runs.
    assert (tasks[0].num_steps, tasks[0].num_tokens) == (20, 2000)
    assert text.endswith("next   versatune train " + f"{recipe} mixture.prior=runs/tiny-plan.json")


@pytest.mark.parametrize(("steps", "warns"), [(30, False), (31, True)])
def test_a_run_more_than_three_times_as_long_as_what_was_measured_is_a_warning(recipe, stand_in, caplog, steps, warns):
    # 10 steps were measured, of 100 tokens each.
    stand_in(quadratic(**BINDING))
    plan(recipe, num_steps=steps)
    warning = (
        f"measured over 1,000 tokens a domain, planned for {steps * 100:,}, 3 times as many: the losses are extrap"
    )
    assert (warning in caplog.text) == warns


def test_the_text_has_the_table_the_losses_the_front_and_a_sentence_a_domain(recipe, stand_in, tmp_path):
    stand_in(quadratic(**BINDING))
    mixed = {**table()["sources"]["law"], "weights": dict.fromkeys(NAMES, 1 / 3)}
    mixed["changes"] = {"law": [0.0, -0.5], "code": [0.0, -0.8], "art": [0.0, 0.5]}
    mixed["change_stderrs"] = {name: [0.0, 0.1] for name in NAMES}
    write_table(tmp_path, table(mixed=[mixed]))
    _, text = plan(recipe, purpose="balanced")
    lines = text.splitlines()
    assert lines[0] == "change of each domain's loss in percent, after at most 10 steps on one domain alone"
    assert ["law", "-50.0", "(+10.0)", "(+10.0)"] in [line.split() for line in lines]
    assert ["equal", "shares", "-25.0", "-20.0", "+50.0!"] in [line.split() for line in lines]
    assert next(line for line in lines if line.startswith("code  ") and "%" in line).split()[1] == "0.333"
    margin = "For a margin of one standard error, lower a bound by the column +- divided by the base loss."
    assert f"At their bound: law, art. {margin}" in lines
    assert any(line.startswith("uniform ") for line in lines)
    # One percentage point more of law: law falls by .9 %, code's share falls by .01 * (1/3) / (2/3), so its loss rises
    # by .6 %; art rises by .45 %. The mean: (2 * -.9 + 4 * .6 + 1 * .45) / 7.
    effects = "one percentage point more of it lowers law by 0.90 % and raises code by 0.60 %, art by 0.45 %"
    assert f"law gets 0.333: {effects}; the mean changes by +0.15 %." in lines


def test_bounds_that_nothing_meets_are_said_with_the_domain_and_by_how_much(recipe, stand_in):
    stand_in(quadratic(base=[2, 4, 1], gain=0.4, others=0.5))
    made, text = plan(recipe, purpose="balanced", bound_all=0.0)
    # Each rises by .5 - .9 w, by 20 % at a third.
    assert made.worst_excess == pytest.approx(0.2, abs=1e-3)
    assert "No mixture meets the bounds. This one breaks them least:" in text
    assert "would change by +20.0 % +- 0.0 %, and its bound is +0.0 %: it lies 20.0 % beyond" in text


def test_a_balanced_plan_lets_no_domain_rise_further_than_the_worst_on_equal_shares(recipe, stand_in, caplog):
    caplog.set_level("INFO")
    # At a third law rises by .39 - .99 / 3 = 6 %, so it keeps that; art comes to it at .3 - .9 w, code gets the rest.
    stand_in(quadratic(**{**BINDING, "others": [0.39, 0, 0.3]}))
    made, _ = plan(recipe, purpose="balanced")
    assert made.bounds == pytest.approx({"law": 0.06, "code": 0.06, "art": 0.06})
    assert list(made.weights.values()) == pytest.approx([1 / 3, 0.4, 0.24 / 0.9], abs=1e-3)
    assert "balanced: no domain may rise by more than law does on equal shares, 6.0 %" in caplog.messages
    # Where none rises, none may.
    caplog.clear()
    stand_in(quadratic(base=[2, 4, 1], gain=0.6, others=0.1))
    made, _ = plan(recipe, purpose="balanced")
    assert set(made.bounds.values()) == {0.0}
    assert "balanced: no domain may end above the base model's loss, as none does on equal shares" in caplog.messages


def test_a_plan_is_taken_as_a_prior_without_a_share_of_uniform(recipe, stand_in, tmp_path):
    stand_in(quadratic(**BINDING))
    made, _ = plan(recipe)
    prior = tmp_path / "prior.json"
    prior.write_text(json.dumps({"weights": made.weights, "method": "both"}))

    def start(*overrides):
        config = load_config(recipe, overrides)
        return starting_weights(config.mixture, domain_set=DomainSet(NAMES), sizes_K=None)

    planned_K = np.array(list(made.weights.values()))
    path = "mixture.prior=runs/tiny-plan.json"
    assert start(path) == pytest.approx(planned_K)
    assert start(path, "mixture.prior_uniform_share=0.5") == pytest.approx(0.5 * planned_K + 0.5 / 3)
    assert start(f"mixture.prior={prior}") == pytest.approx(0.5 * planned_K + 0.5 / 3)
    assert start(path, "mixture.policy=constant") == pytest.approx(planned_K)
    with pytest.raises(ValueError, match=r"shares of tokens, expected examples .*set mixture\.weight_unit=tokens"):
        start(path, "mixture.weight_unit=examples")


def test_planning_again_for_a_recipe_whose_prior_is_a_plan_leaves_the_prior_out(recipe, stand_in, caplog):
    stand_in(quadratic(**BINDING))
    caplog.set_level(logging.INFO, logger="versatune_ds")
    made, text = plan(recipe, "mixture.prior=runs/tiny-plan.json")
    assert "mixture.prior: runs/tiny-plan.json: no such file; the plan is shown without the prior" in caplog.text
    assert "prior" not in [point["label"] for point in made.front]
    again, text = plan(recipe, "mixture.prior=runs/tiny-plan.json")
    assert "runs/tiny-plan.json is a plan itself" in caplog.text
    assert again.weights == made.weights
    assert text.count("mixture.prior=") == 1


def test_the_next_command_gives_a_target_the_share_that_was_planned(recipe, stand_in):
    stand_in(quadratic(**BINDING))
    made, text = plan(recipe, "mixture.target=law", purpose="target")
    assert made.target == "law"
    assert made.bounds == {"code": 0.02, "art": 0.02}
    assert "No front is shown: it weighs the mean loss against the worst domain, and this plan is for law." in text
    assert "of all mixtures predicted" not in text
    assert text.splitlines()[-1].endswith(
        f" mixture.target=law mixture.prior=runs/tiny-plan.json mixture.target_share={made.weights['law']:.6g}"
    )


def test_the_next_command_names_another_run_where_that_of_the_recipe_exists(recipe, stand_in, tmp_path):
    stand_in(quadratic(**BINDING))
    (tmp_path / "runs" / "tiny").mkdir()
    _, text = plan(recipe, "run.name=tiny")
    assert text.endswith(f" {recipe} mixture.prior=runs/tiny-plan.json run.name=tiny-planned")
    (tmp_path / "runs" / "tiny-planned").mkdir()
    _, text = plan(recipe)
    assert text.endswith(" run.name=tiny-planned-2")


def test_a_domain_that_was_not_trained_on_alone_keeps_its_share_of_the_prior(recipe, stand_in, tmp_path, caplog):
    content = table()
    del content["sources"]["art"]
    write_table(tmp_path, content)
    stand_in(quadratic(**BINDING))
    made, text = plan(recipe)
    assert made.weights["art"] == pytest.approx(0.25, abs=1e-9)
    assert "no run on art alone: they keep their share of the prior mixture" in caplog.text
    assert "art gets 0.250 as given, for no run was on it alone:" in text
    assert "proportional" not in [point["label"] for point in made.front]


def test_a_domain_without_held_out_rows_has_a_share_and_no_prediction(recipe, stand_in, tmp_path):
    content = table(unmeasured=["art"])
    for values in (
        *content["base"].values(),
        *(s[k] for s in content["sources"].values() for k in ("losses", "changes", "change_stderrs")),
    ):
        del values["art"]
    write_table(tmp_path, content)
    stand_in(quadratic(base=[2, 4, np.nan], gain=[0.6, 2, 0]))
    made, _ = plan(recipe)
    assert set(made.predicted) == {"law", "code"}
    assert made.weights["art"] == pytest.approx(0.1 / 3, abs=1e-3)
    assert read_plan(tmp_path / "runs/tiny-plan.json", what="x").predicted == made.predicted


def test_a_costly_planner_is_asked_no_more_often_than_allowed(recipe, stand_in):
    predictor = quadratic(**BINDING, is_costly=True)
    stand_in(predictor)
    made, _ = plan(recipe, num_predictions=40)
    assert len(predictor.asked) == 40
    assert made.provenance["search"]["num_mixtures"] == 35


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--planner", "stand-n"], "--planner stand-n: unknown planner; did you mean 'stand-in'?"),
        (["--planner", "merge"], "transfer.json: no weights of law, code, art; measure again with versatune ref"),
        (["--bound", "law"], "--bound law: expected DOMAIN=NUMBER, "),
        (["--bound", "lw=0.1"], "--bound lw=0.1: unknown domain; did you mean 'law'?"),
        (["--for", "target"], "--for target: mixture.target is not set; name the domain to strengthen, such as "),
        (["--budget-steps", "0"], "--budget-steps 0: expected 1 or more"),
        (["--transfer", "x.json"], "x.json: no such file; run versatune reference with this recipe"),
        (["mixture.weight_unit=examples"], "mixture.weight_unit: examples: a plan's weights are shares of tokens; "),
        (["--output", "plan.txt"], "--output: plan.txt: expected a file that ends in .json"),
        (["--predictions", "7"], "--predictions 7: expected at least 14: those of uniform, the prior"),
        (["--output", "recipe.yaml"], "--output: recipe.yaml is a file of another kind"),
    ],
)
def test_what_a_user_may_get_wrong_is_one_line_and_exit_code_2(recipe, stand_in, capsys, arguments, message):
    stand_in(quadratic(**BINDING, is_costly=True))
    result = command_of(capsys)("plan", recipe, "--planner", "stand-in", *arguments)
    assert result.code == 2
    assert result.err.strip().splitlines()[-1].startswith(f"versatune: {message}")


def test_a_table_of_other_domains_is_refused_and_one_of_another_model_is_warned_of(recipe, stand_in, tmp_path, caplog):
    stand_in(quadratic(**BINDING))
    write_table(tmp_path, table(model={"name_or_path": "other"}))
    plan(recipe)
    assert "runs/tiny-transfer.json was measured with another model than the recipe's" in caplog.text
    write_table(tmp_path, table(names=("law", "code")))
    with pytest.raises(ValueError, match=r"its domains are law, code, the recipe's law, code, art; run versatune ref"):
        plan(recipe)


def test_a_missing_table_is_answered_with_the_command_that_measures_it(recipe, stand_in, tmp_path):
    stand_in(quadratic(**BINDING))
    (tmp_path / "runs/tiny-transfer.json").unlink()
    with pytest.raises(ValueError, match="no such file; measure it first with") as error:
        plan(recipe, "run.seed=3", "resume.allow=[data]", "mixture.prior=runs/tiny-plan.json")
    command = f"versatune reference {recipe} run.seed=3 'resume.allow=[data]'"
    assert f"`{command}`, or give another one with --transfer FILE" in str(error.value)


def test_bounds_are_read_from_one_text_or_several():
    assert parse_bounds(["law=0,code=-0.1", "art=2e-2"]) == {"law": 0.0, "code": -0.1, "art": 0.02}


def test_the_rival_dynamics_plans_by_its_programme_and_says_how_far_it_sees(recipe, tmp_path, caplog):
    """A probe on each domain lowers its own loss by 1.0, 1.6 and .3 nats; a bound of 0 on art asks for w >= 1/4."""
    with caplog.at_level(logging.INFO, logger="versatune_ds"):
        plan, text = plan_recipe(
            recipe,
            ["mixture.safeguards.floor=0"],
            options=PlanOptions(purpose="mean", planner="dynamics", bounds=("art=0",)),
        )
    assert plan.planner == "dynamics"
    assert plan.weights == pytest.approx({"law": 0.0, "code": 0.75, "art": 0.25}, abs=1e-5)
    assert plan.predicted["code"]["loss"] == pytest.approx(4.0 - 1.6 * 0.75 + 0.4 * 0.25, abs=1e-4)
    assert plan.calibration == {"horizon_tokens": 1000.0}
    assert "losses are predicted after 1000 tokens, not after the run's 2000" in caplog.text
    assert "planner dynamics: the losses after the first measurement's tokens" in text


def test_the_published_name_of_a_planner_chooses_it(caplog):
    with caplog.at_level(logging.INFO, logger="versatune_ds"):
        assert planners.planner_named("mergemix") is planners.PLANNERS["merge"]
    assert "--planner mergemix: it is the planner merge here" in caplog.text


def test_the_default_planner_plans_from_the_table_alone_without_loading_torch(recipe, tmp_path):
    code = "import sys; from versatune_ds.cli import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules"
    words = ["plan", recipe, "--for", "balanced", "--json"]
    run = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit(code)", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    printed = json.loads(run.stdout)
    assert printed == json.loads((tmp_path / "runs/tiny-plan.json").read_text())
    assert printed["planner"] == "transfer"
    assert sum(printed["weights"].values()) == pytest.approx(1.0)
    assert [point["fraction"] for point in printed["track"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert printed["track"][-1]["losses"] == {name: values["loss"] for name, values in printed["predicted"].items()}
    # In its own run code falls by 1.6 nats, law by 1 and art by .3.
    assert printed["weights"]["code"] > printed["weights"]["law"] > printed["weights"]["art"]


def test_a_recipe_of_epochs_needs_its_data_unless_the_steps_are_given(recipe):
    """Of the data of this recipe there are no files."""
    with pytest.raises(ValueError, match=r"law\.jsonl"):
        plan_recipe(recipe, ["train.epochs=2"], options=PlanOptions())
    plan, _ = plan_recipe(recipe, ["train.epochs=2"], options=PlanOptions(num_steps=20))
    assert plan.budget_steps == 20
