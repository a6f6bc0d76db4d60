"""A comparison's file: every run is the shared recipe with a few keys set, and a mistake is found before training."""

from pathlib import Path

import pytest
import yaml

from versatune_ds.cli import build_parser
from versatune_ds.comparison.cell_runs import evaluation_options
from versatune_ds.comparison.cells import cells_of, config_of_cell, plans_of_cell
from versatune_ds.comparison.comparison_file import read_plan
from versatune_ds.comparison.mixture_plans import arguments_of
from versatune_ds.comparison.override_texts import texts
from versatune_ds.comparison.start_settings import check_settings
from versatune_ds.config import load_config

ROOT = Path(__file__).parents[2]
RECIPE = {
    "run": {"name": "shared"},
    "model": {"from_config": {"model_type": "llama"}},
    "data": {"synthetic": {}},
    "train": {"steps": 10},
    "mixture": {"reference": {"start_fraction": 0.5}},
}
PLAN = {
    "name": "mine",
    "recipe": "shared.yaml",
    "base": {"recipe": "shared.yaml"},
    "seeds": [1, 2],
    "baseline": "uniform",
    "runs": {"uniform": {"mixture.policy": "uniform"}, "moves": {"mixture.sigma": 0.25}},
}


@pytest.fixture
def write(tmp_path):
    def write_files(**changed):
        (tmp_path / "shared.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
        path = tmp_path / "comparison.yaml"
        path.write_text(yaml.safe_dump({**PLAN, **changed}, sort_keys=False))
        return path

    return write_files


def test_every_run_is_made_for_every_seed_and_seeds_change_slowest(write):
    cells = list(cells_of(read_plan(write(), [])))
    assert [cell.run_name for cell in cells] == ["uniform-seed1", "moves-seed1", "uniform-seed2", "moves-seed2"]


def test_a_run_is_the_shared_recipe_with_its_keys_seed_and_folder(write):
    plan = read_plan(write(set={"train.steps": 7}, output_dir="out"), [])
    config = config_of_cell(plan, list(cells_of(plan))[3], start=["mixture.prior=uniform"])
    assert (config.train.steps, config.mixture.sigma, config.mixture.prior) == (7, 0.25, "uniform")
    assert (config.run.seed, str(config.run_dir)) == (2, "out/mine/runs/moves-seed2")


def test_a_runs_own_keys_come_after_what_it_starts_from(write):
    plan = read_plan(write(runs={"uniform": {"mixture.prior": "proportional"}}), [])
    (cell, _) = cells_of(plan)
    assert config_of_cell(plan, cell, start=["mixture.prior=uniform"]).mixture.prior == "proportional"


def test_each_run_is_repeated_for_every_target_which_replaces_the_mark(write):
    runs = {"only": {"mixture.policy": "target_only", "mixture.target": "{target}"}}
    plan = read_plan(write(runs=runs, baseline="only", targets=["law", "code"], seeds=[5]), [])
    cells = list(cells_of(plan))
    assert [cell.run_name for cell in cells] == ["only-law-seed5", "only-code-seed5"]
    assert [config_of_cell(plan, cell).mixture.target for cell in cells] == ["law", "code"]


def test_a_run_that_names_a_plan_starts_from_its_file(write):
    runs = {"uniform": {}, "planned": {"mixture.prior": "{plan:bold}"}}
    plan = read_plan(write(plans={"bold": {"bound_all": 0.5}}, runs=runs, output_dir="out"), [])
    uniform, planned, *_ = cells_of(plan)
    assert config_of_cell(plan, planned).mixture.prior == Path("out/base-base/plans/bold.json")
    assert (plans_of_cell(plan, uniform), plans_of_cell(plan, planned)) == ([], [plan.plan_file("bold", None)])


def test_a_plan_for_a_target_has_a_file_for_each(write):
    runs = {"uniform": {"mixture.prior": "{plan:gain}", "mixture.target": "{target}"}}
    plan = read_plan(write(plans={"gain": {"for": "target"}}, runs=runs, targets=["law", "code"], seeds=[1]), [])
    assert [config_of_cell(plan, cell).mixture.prior.name for cell in cells_of(plan)] == [
        "gain-law.json", "gain-code.json"
    ]  # fmt: skip


def test_the_options_of_a_plan_are_those_of_the_command_line(write):
    keys = {"for": "mean", "bound": {"law": -0.5, "code": 0.25}, "bound_all": 0.5, "budget_steps": 7}
    plan = read_plan(write(plans={"mine": keys, "default": {}}), [])
    assert arguments_of(plan.plans["default"]) == ["--for", "balanced"]
    assert arguments_of(plan.plans["mine"]) == [
        "--for", "mean", "--bound=law=-0.5,code=0.25", "--bound-all=0.5", "--budget-steps=7"
    ]  # fmt: skip
    for keys in plan.plans.values():
        build_parser().parse_args(["plan", "recipe.yaml", *arguments_of(keys)])


@pytest.mark.parametrize(("seeds", "names"), [(None, ["static01", "static02"] * 2), (1, ["static01", "static02"])])
def test_fixed_mixtures_are_run_after_the_policies_of_each_seed_they_have(write, seeds, names):
    plan = read_plan(write(static=2, static_seeds=seeds), [])
    cells = list(cells_of(plan))
    assert [cell.label for cell in cells if cell.mixture is not None] == names
    assert [cell.run_name for cell in cells[:4]] == ["uniform-seed1", "moves-seed1", "static01-seed1", "static02-seed1"]
    mixture = config_of_cell(plan, cells[2]).mixture
    assert (mixture.policy, mixture.prior, mixture.prior_uniform_share) == ("constant", dict(cells[2].mixture), 0.0)
    assert sum(mixture.prior.values()) == pytest.approx(1.0)
    assert plans_of_cell(plan, cells[2]) == []


def test_keys_of_the_comparison_and_of_its_recipes_can_be_set_on_the_command_line(write):
    overrides = ["seeds=[9]", "set.train.steps=3", "base.set.train.steps=4", "set.mixture.prior={law: 1.0}"]
    plan = read_plan(write(), overrides)
    assert (plan.seeds, plan.set["train.steps"], plan.base.set) == ((9,), 3, {"train.steps": 4})
    assert config_of_cell(plan, next(cells_of(plan))).mixture.prior == {"law": 1.0}


def test_the_users_data_replace_those_of_the_recipes_in_the_base_model_and_every_run(write):
    plan = read_plan(write(), ["data.folder=mine", "data.row_tokens=64"])
    base = load_config(plan.base.recipe, texts(plan.base.set)).data
    run = config_of_cell(plan, next(cells_of(plan))).data
    for data in (base, run):
        assert (data.folder, data.synthetic, data.row_tokens) == (Path("mine"), None, 64)
    longer = read_plan(write(data={"row_tokens": 64}), [])
    assert config_of_cell(longer, next(cells_of(longer))).data.synthetic is not None


@pytest.mark.parametrize(("has_test", "split"), [(True, "test"), (False, "valid")])
def test_models_are_evaluated_on_test_rows_where_the_users_folder_has_them(write, tmp_path, has_test, split):
    (tmp_path / "rows" / "train").mkdir(parents=True)
    (tmp_path / "rows" / "test").mkdir()
    if has_test:
        (tmp_path / "rows" / "test" / "law.jsonl").write_text("")
    plan = read_plan(write(), [f"data.folder={tmp_path / 'rows'}"])
    assert evaluation_options(plan).split == split


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"baseline": "unifrom"}, r"^baseline: no run 'unifrom'; did you mean 'uniform'"),
        ({"seeds": [1, 1]}, r"seeds: expected each once, got \[1, 1\]"),
        ({"seeds": []}, r"seeds: expected at least 1 entry"),
        ({"seed": [1]}, r"seed: unknown key; did you mean 'seeds'"),
        ({"runs": {"uniform": {"mixture.sigmo": 1}}}, r"runs.uniform: mixture.sigmo: unknown key; did you mean"),
        ({"base": {"recipe": "nowhere.yaml"}}, r"nowhere.yaml: no such recipe"),
        ({"name": "base-base"}, r"name: 'base-base' is the folder of the starting point; give the comparison another"),
        ({"data": {"foldr": "mine"}}, r"data.foldr: unknown key; did you mean 'folder'"),
        ({"runs": {"uniform": {}, "p": {"mixture.prior": "{plan:mean}"}}},
         r"^runs.p: \{plan:mean\}: no plan 'mean'; the comparison has no plans"),
        ({"plans": {"mine": {}}, "runs": {"uniform": {}, "p": {"mixture.prior": "{plan:mein}"}}},
         r"^runs.p: \{plan:mein\}: no plan 'mein'; did you mean 'mine'"),
        ({"set": {"mixture.prior": "{plan:mean}"}}, r"^set: \{plan:mean\}: only a run can name a plan"),
        ({"plans": {"mean": {}}, "reference": False}, r"^plans: expected reference: true"),
        ({"plans": {"mean": {"for": "target"}}}, r"^plans.mean.for: target: expected targets in the comparison"),
        ({"plans": {"mean": {"for": "men"}}}, r"^plans.mean.for: expected 'mean', 'balanced' or 'target'"),
        ({"plans": {"mean": {"bound_al": 0}}}, r"^plans.mean.bound_al: unknown key; did you mean 'bound_all'"),
        ({"plans": {"mean": {"planner": "transfre"}}}, r"^plans.mean.planner: unknown planner; did you mean"),
        ({"plans": {"mean": {"bound": {"lav": 0}}}}, r"^plans.mean.bound: no domain 'lav'; did you mean 'law'"),
        ({"plans": {"mean": {}}, "set": {"mixture.weight_unit": "examples"}},
         r"^plans: a plan's weights are shares of tokens; set mixture.weight_unit: tokens under set"),
        ({"static": 2, "targets": ["law"]}, r"^static: fixed mixtures are judged by mean loss and worst domain"),
        ({"static": 2, "runs": {"uniform": {}, "static02": {}}}, r"^runs.static02: the name of a fixed mixture"),
        ({"static": 2, "runs": {"uniform": {}}}, r"^static: expected a run with mixture.policy: uniform"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_in_one_line_with_the_key(write, changed, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_plan(write(**changed), [])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "path", [p for p in sorted(ROOT.glob("recipes/compare/*.yaml")) if "\nruns:" in p.read_text()], ids=lambda p: p.stem
)
def test_every_comparison_of_the_project_is_valid(path):
    assert len(list(cells_of(read_plan(path, [])))) >= 9


def test_an_ablation_changes_only_what_its_name_states():
    """One key a run, but for memorised references, the pair with a budget, a fixed mixture, and sigma."""
    plan = read_plan(ROOT / "recipes" / "compare" / "ablations.yaml", [])
    several = {label for label, values in plan.runs.items() if len(values) > 1}
    sigmas = {"sigma_0.5", "sigma_2", "sigma_8"}
    assert several == {"reference_memorised", "budget_z_0", "static_hindsight"} | sigmas
    start = {"mixture.policy": "versatune", "mixture.prior_uniform_share": 0.5}
    assert all(plan.runs[label] == {**start, "mixture.sigma": float(label[6:])} for label in sigmas)
    assert plan.runs[plan.baseline] == {}


@pytest.mark.parametrize(
    ("names", "start"),
    [(("multi_ability", "expansion", "ablations"), "base-base"), (("planned", "planned_expansion"), "base-planned")],
)
def test_the_small_comparisons_of_the_project_share_their_starting_points(tmp_path, names, start):
    for name in names:
        check_settings(read_plan(ROOT / "recipes" / "compare" / f"{name}.yaml", [f"output_dir={tmp_path}"]))
    assert [folder.name for folder in tmp_path.iterdir()] == [start]
