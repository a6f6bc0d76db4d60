"""`versatune evaluate` on a run, on its exported folder, and against the model it started from."""

import json
import re

import pytest
import torch
from command_line import command_of, write_recipe
from opened_run import config, open_folder
from ranks import run_ranks
from tiny_run import be_trained, read_lines, tiny_config

from versatune_ds.data.sources.missing_data import MissingDataError
from versatune_ds.data.synthetic import DOMAIN_NAMES
from versatune_ds.evaluation import command
from versatune_ds.evaluation.command import EvaluateOptions, evaluate, result_name, write_result
from versatune_ds.evaluation.subject import base_subject


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config(
        folder,
        "validation.max_examples_per_domain=8",
        "data.synthetic={num_rows: 60, num_valid_rows: 8, num_test_rows: 6}",
    )
    (folder / "results").mkdir()
    run_ranks(lambda world: be_trained(config, world).step, world_size=1, folder=folder / "results")
    write_recipe(config, folder / "recipe.yaml")
    return config


@pytest.fixture
def versatune(capsys):
    return command_of(capsys)


def evaluated(versatune, *arguments):
    called = versatune("evaluate", *arguments, "--json")
    assert called.code == 0, called.err
    return json.loads(called.out)


@pytest.mark.slow
def test_losses_before_and_after_training_equal_those_the_run_recorded(versatune, trained):
    result = evaluated(versatune, trained.run_dir, "--split", "dev", "--exact", "0", "--limit", "8")
    recorded = [line for line in read_lines(trained.run_dir / "metrics.jsonl") if "validation/loss" in line]
    for name, numbers in result["domains"].items():
        assert numbers["loss"] == pytest.approx(recorded[-1][f"domain/{name}/loss"], rel=1e-5)
        before = result["base"]["domains"][name]["loss"]
        assert before == pytest.approx(recorded[0][f"domain/{name}/loss"], rel=1e-5)
        assert result["retention"][name]["loss_change"] == pytest.approx(numbers["loss"] - before, abs=1e-6)
    assert json.loads((trained.run_dir / "evaluation-valid.json").read_text()) == result


@pytest.mark.slow
def test_the_table_shows_accuracies_on_the_test_split(versatune, trained, tmp_path):
    choices = tmp_path / "law.jsonl"
    choices.write_text(json.dumps({"question": "q", "choices": ["yes", "no"], "answer": 0}) + "\n")
    called = versatune("evaluate", trained.run_dir, "--choices", choices, "--no-base", "--quiet")
    assert called.code == 0
    title, header, _, *lines = called.out.splitlines()
    assert title == f"{trained.run_dir}, test split"
    assert "exact match [95 %]" in header
    assert "choices [95 %]" in header
    assert [line.split()[0] for line in lines if line[0] != "-"] == [*sorted(DOMAIN_NAMES), "mean"]
    result = json.loads((trained.run_dir / "evaluation.json").read_text())
    num_questions = [numbers["exact_match"]["num_questions"] for numbers in result["domains"].values()]
    assert min(num_questions) > 3  # examples as long as a row are left out
    assert result["domains"]["law"]["choices"]["num_questions"] == 1
    assert "base" not in result


@pytest.mark.slow
def test_an_exported_folder_gets_the_results_of_its_run_with_one_process_or_two_and_in_sharded_evaluation(
    versatune, trained, tmp_path
):
    assert versatune("export", trained.run_dir, "--output", tmp_path / "model").code == 0
    run = evaluated(versatune, trained.run_dir, "--no-base")
    recipe = ("--recipe", trained.run_dir.parent / "recipe.yaml", "--output", tmp_path / "e.json")
    folder = evaluated(versatune, tmp_path / "model", *recipe, "--processes", "2", "--no-base")
    sharded = evaluated(
        versatune, tmp_path / "model", *recipe, "--processes", "2", "--sharded", "--no-base", "--exact", "1"
    )
    against = evaluated(versatune, tmp_path / "model", *recipe, "--against", trained.run_dir, "--exact", "0")
    for name, numbers in run["domains"].items():
        assert folder["domains"][name]["loss"] == pytest.approx(numbers["loss"], rel=1e-6)
        assert folder["domains"][name]["exact_match"] == numbers["exact_match"]
        assert sharded["domains"][name]["loss"] == pytest.approx(numbers["loss"], rel=1e-5)
        assert against["retention"][name]["loss_change"] == pytest.approx(0, abs=1e-6)
    assert json.loads((tmp_path / "e.json").read_text()) == against


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}"], "not a run's folder, so give a recipe with the data: --recipe FILE"),
        (["{run}", "--against", "nowhere"], "--against: nowhere: no such folder"),
        (["{run}", "--choices", "nowhere"], "--choices: nowhere: no such file"),
        (["{run}", "--step", "3"], "--step 3: {run} has no checkpoint of that step; there are those of 10, 12"),
        (["{run}", "--processes", "0"], "--processes=0: expected 1 or more"),
        (["{run}", "--sharded"], "--sharded divides the weights over processes: expected --processes 2 or more"),
        (["{run}", "--limit", "0"], "--limit=0: expected 1 or more"),
        (["{run}", "--output", "{folder}/no/e.json"], "--output: {folder}/no/e.json: expected a file in an existing"),
        (["{run}", "--output", "{folder}"], "--output: {folder}: expected a file in an existing folder"),
    ],
)
def test_a_wrong_option_gives_one_error_line_and_exit_code_2(versatune, trained, tmp_path, arguments, message):
    places = {"folder": str(tmp_path), "run": str(trained.run_dir)}
    called = versatune("evaluate", *(argument.format(**places) for argument in arguments), "--quiet")
    assert (called.code, called.out) == (2, "")
    assert message.format(**places) in called.err
    assert len(called.err.splitlines()) == 1


@pytest.mark.parametrize("has_own_recipe", [True, False])
def test_missing_data_of_a_moved_run_give_an_error_that_explains_how_to_locate_them(
    tmp_path, monkeypatch, has_own_recipe
):
    message = "data.domains.law.train: no such file or folder: 'law.jsonl'"

    def find_nothing(*given, **settings):
        raise MissingDataError(message)

    monkeypatch.setattr(command, "_compare", find_nothing)
    monkeypatch.setattr(command, "config_of", lambda *given, **settings: tiny_config(tmp_path))
    options = EvaluateOptions(recipe=None if has_own_recipe else tmp_path / "recipe.yaml")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as raised:
        evaluate(tmp_path, options)
    has_hint = str(raised.value).endswith(
        "were moved, specify where the data are: data.folder=FOLDER, or --recipe FILE"
    )
    assert has_hint is has_own_recipe


@pytest.mark.parametrize(
    ("split", "step", "expected"),
    [
        ("test", None, "evaluation.json"),
        ("valid", None, "evaluation-valid.json"),
        ("test", 100, "evaluation-step-100.json"),
        ("valid", 100, "evaluation-valid-step-100.json"),
    ],
)
def test_the_file_name_contains_split_and_step_unless_they_are_the_defaults(split, step, expected):
    assert result_name(split=split, default_split="test", step=step) == expected


def contents(folder):
    return {json.loads(path.read_text())["loss"]: path.name for path in folder.iterdir()}


def test_the_newest_result_gets_the_file_name_and_one_with_other_options_is_renamed(tmp_path):
    path = tmp_path / "evaluation.json"
    write_result({"loss": 1, "asked": {"exact": 0}}, path)
    write_result({"loss": 2, "asked": {"exact": 0}}, path)
    assert contents(tmp_path) == {2: "evaluation.json"}
    write_result({"loss": 3, "asked": {"exact": 50}}, path)
    assert contents(tmp_path) == {3: "evaluation.json", 2: contents(tmp_path)[2]}
    write_result({"loss": 4, "asked": {"exact": 0}}, path)
    assert set(contents(tmp_path)) == {2, 3, 4}
    assert contents(tmp_path)[4] == "evaluation.json"


@pytest.mark.parametrize("earlier", ["", "[]", '{"loss": 1}', '{"lo'])
def test_an_earlier_file_without_recorded_options_is_kept(tmp_path, earlier):
    path = tmp_path / "evaluation.json"
    path.write_text(earlier)
    write_result({"asked": {}}, path)
    (kept,) = set(tmp_path.iterdir()) - {path}
    assert kept.read_text() == earlier


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_random_weights_that_a_gpu_made_are_not_made_again_on_a_cpu(tmp_path):
    settings = config(tmp_path)
    folder = open_folder(settings, made_on="cuda")
    with pytest.raises(ValueError, match=r"its random initial weights were made on a GPU.*or use --against"):
        base_subject(folder, settings, against=None, workspace=tmp_path)
