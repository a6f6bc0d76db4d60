"""A comparison on a tiny model: one command, resumed after a failure, the same result when it is repeated."""

import hashlib
import json
import multiprocessing
import re
import shutil
import time
from pathlib import Path

import pytest
import yaml
from tiny_run import tiny_config
from transfer_tables import two_domain_table

from versatune_ds.comparison import cell_runs, kept_results, start_settings, starting_point
from versatune_ds.comparison import compare as compare_module
from versatune_ds.comparison.cells import Cell, cells_of, config_of_cell
from versatune_ds.comparison.compare import CompareOptions, compare
from versatune_ds.comparison.comparison_file import read_plan
from versatune_ds.comparison.headroom import best_of, gains_of
from versatune_ds.comparison.predictions import predicted_means
from versatune_ds.comparison.start_files import digest_of_start
from versatune_ds.comparison.start_settings import check_settings
from versatune_ds.comparison.starting_point import make_starting_point, processes_of
from versatune_ds.config import load_config
from versatune_ds.launch.time_budget import TimeBudget


@pytest.fixture
def comparison(tmp_path):
    """Write a comparison of two policies, two seeds, on the tiny recipe."""
    shared = tiny_config(tmp_path / "unused", cache_dir=tmp_path / "cache").model_dump(mode="json")
    shared["train"]["steps"] = 4
    (tmp_path / "shared.yaml").write_text(yaml.safe_dump(shared))
    path = tmp_path / "mine.yaml"
    plan = {
        "name": "mine",
        "output_dir": str(tmp_path / "out"),
        "recipe": "shared.yaml",
        "base": {"recipe": "shared.yaml", "set": {"data.loss_on": "all"}},
        "detect": False,
        "reference": False,
        "seeds": [1, 2],
        "baseline": "uniform",
        "runs": {"uniform": {"mixture.policy": "uniform"}, "versatune": {}},
        "exact": 2,
        "choices": [str(tmp_path / "choices")],
    }
    (tmp_path / "choices").mkdir()
    question = {"question": "2 + 2?", "choices": ["4", "5"], "answer": 0}
    (tmp_path / "choices" / "general.jsonl").write_text(json.dumps(question) + "\n")
    path.write_text(yaml.safe_dump(plan))
    return path


def test_comparisons_share_a_starting_point_if_its_settings_are_the_same(comparison):
    plan = read_plan(comparison, ["detect=true"])
    check_settings(read_plan(comparison, ["detect=true", "base.set.train.steps=7"]))
    check_settings(plan)  # nothing was made yet with the others
    (plan.start_folder / "base").mkdir()
    (plan.start_folder / "prior.json").touch()
    check_settings(plan)
    other = read_plan(comparison, ["detect=true", "name=other", "set.mixture.sigma=9"])
    assert other.start_folder == plan.start_folder != other.folder
    check_settings(other)  # the policy's keys move neither prior nor references
    with pytest.raises(ValueError, match=r"^base: its recipe is not the one .* \(train\.steps: was 4, now 9\)"):
        check_settings(read_plan(comparison, ["base.set.train.steps=9"]))
    with pytest.raises(ValueError, match=r"^set: the shared recipe .* \(train\.steps: was 4, now 9\); use the earlier"):
        check_settings(read_plan(comparison, ["name=other", "reference=true", "set.train.steps=9"]))
    check_settings(read_plan(comparison, ["set.train.steps=9"]))  # without a stage nothing depends on it
    check_settings(read_plan(comparison, ["base.set.train.steps=9", "base.name=longer"]))


def test_a_starting_point_made_when_another_attention_was_the_default_is_used_again(comparison):
    check_settings(read_plan(comparison, ["detect=true", "set.model.attention=sdpa", "base.set.model.attention=sdpa"]))
    plan = read_plan(comparison, ["detect=true"])
    (plan.start_folder / "base").mkdir()
    (plan.start_folder / "prior.json").touch()
    check_settings(plan)


def test_a_starting_point_made_before_detect_had_methods_and_an_embedding_labeller_is_used_again(comparison):
    plan = read_plan(comparison, ["detect=true"])
    check_settings(plan)
    (plan.start_folder / "base").mkdir()
    (plan.start_folder / "prior.json").touch()
    path = plan.start_folder / "settings.json"
    kept = json.loads(path.read_text())
    for settings in kept.values():
        for later in ("embedding", "method", "likelihood_rows", "interval"):
            del settings["detect"][later]
        settings["detect"] |= {"labeller": "classifier", "rounds": 10, "tol": 0.005}
    path.write_text(json.dumps(kept))
    check_settings(plan)
    with pytest.raises(ValueError, match=r"detect\.rows_per_domain: was 2000, now 30"):
        check_settings(read_plan(comparison, ["detect=true", "set.detect.rows_per_domain=30"]))


def test_the_starting_points_digest_ignores_what_another_comparison_adds(comparison):
    plan = read_plan(comparison, [])
    detecting = read_plan(comparison, ["name=other", "detect=true"])
    (plan.start_folder / "base_model").mkdir(parents=True)
    (plan.start_folder / "base_model" / "model.safetensors").write_bytes(b"weights")
    before = digest_of_start(plan)
    (plan.start_folder / "prior.json").write_text("{}")
    assert digest_of_start(plan) == before != digest_of_start(detecting)
    (plan.start_folder / "base_model" / "model.safetensors").write_bytes(b"others")
    assert digest_of_start(plan) != before


def test_a_result_made_before_the_stages_had_further_keys_is_used_again(comparison):
    plan = read_plan(comparison, ["seeds=[1]"])
    (plan.start_folder / "base_model").mkdir(parents=True)
    cell = next(cells_of(plan))
    folder = kept_results.folder_of(plan, cell)
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text("{}")
    settings = kept_results.settings_of(plan, cell, [])
    for key in ("transfer", "mixed_run", "keep_models"):
        del settings["config"]["reference"][key]
    path = kept_results.settings_path(plan, cell)
    path.parent.mkdir()
    path.write_text(json.dumps(settings))
    assert kept_results.has_result(plan, cell, [])
    settings["config"]["train"]["steps"] = 9
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="made with other settings"):
        kept_results.has_result(plan, cell, [])


PLANNED = 'runs={uniform: {mixture.policy: uniform}, planned: {mixture.prior: "{plan:mine}"}}'


def test_a_starting_point_without_plans_has_the_digest_it_had_before_there_were_plans(comparison):
    plan = read_plan(comparison, ["reference=true"])
    (plan.start_folder / "base_model").mkdir(parents=True)
    (plan.start_folder / "base_model" / "model.safetensors").write_bytes(b"weights")
    (plan.start_folder / "reference.json").write_text("{}")
    before = hashlib.sha256(b"model.safetensorsweightsreference.json{}").hexdigest()
    assert digest_of_start(plan) == before
    assert [digest_of_start(plan, cell) for cell in cells_of(plan)] == [before] * 4
    # A plan is part of the digest of the runs that start from it, and of no other.
    planning = read_plan(comparison, ["reference=true", "plans={mine: {}}", PLANNED, "seeds=[1]"])
    planning.plan_file("mine", None).parent.mkdir()
    planning.plan_file("mine", None).write_text("[1]")
    uniform, planned = cells_of(planning)
    assert digest_of_start(planning, uniform) == before
    after = hashlib.sha256(b"model.safetensorsweightsreference.json{}mine.json[1]").hexdigest()
    assert digest_of_start(planning, planned) == after


@pytest.fixture
def stages(monkeypatch):
    """Replace the stages by writing what they would; return their commands."""
    commands = []

    def make(folder, command, *arguments, budget):
        commands.append([command, *map(str, arguments)])
        if command == "export":
            (folder / "base_model").mkdir()
            (folder / "base_model" / "tokenizer_config.json").write_text("{}")
        if command == "reference":
            (folder / "reference.json").write_text("{}")
            (folder / "transfer.json").write_text("{}")
        if command == "plan":
            digest = hashlib.sha256((folder / "transfer.json").read_bytes()).hexdigest()
            content = {"provenance": {"transfer": {"sha256": digest}}}
            arguments[-1].write_text(json.dumps(content))

    monkeypatch.setattr(starting_point, "run_stage_of", make)
    return commands


def test_a_plan_is_made_once_and_again_only_from_another_transfer_table(comparison, stages):
    plan = read_plan(comparison, ["reference=true", "plans={mine: {for: balanced, bound_all: 0.5}}", PLANNED])
    make_starting_point(plan, num_processes=1)
    assert [command for command, *_ in stages] == ["train", "export", "reference", "plan"]
    folder = plan.start_folder
    words = ["--for", "balanced", "--bound-all=0.5", "--transfer", f"{folder}/transfer.json"]
    assert stages[-1][-7:] == [*words, "--output", f"{folder}/plans/mine.json"]
    make_starting_point(plan, num_processes=1)
    other = read_plan(comparison, ["name=other", "reference=true", "plans={mine: {for: balanced, bound_all: 0.5}}"])
    make_starting_point(other, num_processes=1)
    assert len(stages) == 4
    (folder / "transfer.json").write_text("{ }")
    make_starting_point(plan, num_processes=1)
    assert [command for command, *_ in stages[4:]] == ["plan"]


def test_a_plan_for_a_target_is_made_for_each(comparison, stages):
    plan = read_plan(comparison, ["reference=true", "plans={gain: {for: target}}", "targets=[law,code]"])
    make_starting_point(plan, num_processes=1)
    made = [[word for word in words if "mixture.target" in word] for words in stages if words[0] == "plan"]
    assert made == [['mixture.target="law"'], ['mixture.target="code"']]


def test_a_plan_of_the_same_name_has_the_same_keys(comparison, stages):
    make_starting_point(read_plan(comparison, ["reference=true", "plans={mine: {for: balanced}}"]), num_processes=1)
    check_settings(read_plan(comparison, ["name=other", "reference=true", "plans={mine: {for: balanced}, more: {}}"]))
    with pytest.raises(
        ValueError, match=r"^plans\.mine: its keys .* \(bound_all: was null, now 0\.5\); .* another name$"
    ):
        check_settings(read_plan(comparison, ["reference=true", "plans={mine: {for: balanced, bound_all: 0.5}}"]))


def test_an_earlier_starting_point_is_used_again_and_named_where_plans_need_more(comparison, stages):
    plan = read_plan(comparison, ["reference=true"])
    make_starting_point(plan, num_processes=1)
    (plan.start_folder / "transfer.json").unlink()
    path = plan.start_folder / "settings.json"
    kept = json.loads(path.read_text())
    for later in ("transfer", "mixed_run", "keep_models"):
        del kept["stages"]["reference"][later]
    path.write_text(json.dumps(kept))
    check_settings(plan)
    path.write_text(json.dumps(kept))
    with pytest.raises(
        ValueError, match=r"^plans: .*transfer\.json: no such file: .*; name another .* base\.name=base2$"
    ):
        check_settings(read_plan(comparison, ["reference=true", "plans={mine: {}}"]))


def test_a_users_mistake_found_by_a_stage_is_reported_in_the_stages_words(comparison):
    with pytest.raises(ValueError, match=r"^data\.folder: nowhere/train is not a folder"):
        make_starting_point(read_plan(comparison, ["data.folder=nowhere"]), num_processes=1)


@pytest.fixture
def pretrained(tmp_path):
    """Write a folder that looks like a saved model."""
    folder = tmp_path / "pretrained"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_comparison_may_start_from_a_pretrained_model_which_is_neither_trained_nor_copied(
    comparison, stages, pretrained
):
    plan = read_plan(comparison, [f"base={{model: {pretrained}}}", "reference=true"])
    start = make_starting_point(plan, num_processes=1)
    assert [command for command, *_ in stages] == ["reference"]
    assert f'model.name_or_path="{pretrained}"' in stages[0]
    assert start[:2] == [f'model.name_or_path="{pretrained}"', "model.from_config=null"]
    assert not (plan.start_folder / "base_model").exists()
    assert plan.base.describe() == "`pretrained`, pretrained"
    before = digest_of_start(plan)
    (pretrained / "tokenizer.json").write_text("{ }")
    assert digest_of_start(plan) != before


def test_runs_of_a_recipe_with_a_gguf_file_start_from_the_base_model(comparison, stages, pretrained):
    plan = read_plan(comparison, [f"base={{model: {pretrained}}}"])
    shared = yaml.safe_load(plan.recipe.read_text())
    del shared["model"]["from_config"]
    plan.recipe.write_text(yaml.safe_dump({**shared, "model": {**shared["model"], "gguf_file": "tiny.gguf"}}))
    start = make_starting_point(plan, num_processes=1)
    model = config_of_cell(plan, next(cells_of(plan)), start=start).model
    assert (model.name_or_path, model.gguf_file) == (str(pretrained), None)


def test_a_base_recipe_that_starts_from_another_gguf_file_is_refused(comparison, stages, tmp_path, monkeypatch):
    def converted(recipe, overrides):
        """Name the folder by the file's content, as the conversion does."""
        config = load_config(recipe, overrides)
        update = {"name_or_path": Path(config.model.gguf_file).read_text()}
        return config.model_copy(update={"model": config.model.model_copy(update=update)})

    monkeypatch.setattr(start_settings, "load_recipe", converted)
    file = tmp_path / "tiny.gguf"
    file.write_text("gguf-1")
    words = ["base.set.model.from_config=null", f"base.set.model.gguf_file={file}"]
    make_starting_point(read_plan(comparison, words), num_processes=1)
    make_starting_point(read_plan(comparison, words), num_processes=1)
    file.write_text("gguf-2")
    with pytest.raises(ValueError, match=r"^base: its recipe is not .*name_or_path: was \"gguf-1\", now \"gguf-2\""):
        make_starting_point(read_plan(comparison, words), num_processes=1)


def test_references_are_used_again_with_a_copy_of_the_pretrained_model_and_refused_with_another(
    comparison, stages, pretrained, tmp_path
):
    make_starting_point(read_plan(comparison, [f"base={{model: {pretrained}}}", "reference=true"]), num_processes=1)
    copy = tmp_path / "elsewhere"
    shutil.copytree(pretrained, copy)
    make_starting_point(read_plan(comparison, [f"base={{model: {copy}}}", "reference=true"]), num_processes=1)
    assert len(stages) == 1
    (copy / "model.safetensors").write_bytes(b"others")
    with pytest.raises(ValueError, match=r"^base: its model is not the one .*sha256: was .* base\.name=base2$"):
        make_starting_point(read_plan(comparison, [f"base={{model: {copy}}}", "reference=true"]), num_processes=1)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("{}", r"^base: give exactly one of base\.recipe, which trains the base model, and base\.model"),
        ("{recipe: shared.yaml, model: a/b}", r"^base: give exactly one of base\.recipe"),
        ("{model: a/b, set: {train.steps: 4}}", r"^base\.set: keys of the base model's recipe, but"),
        ("{model: /nowhere/model}", r"^base\.model: /nowhere/model: no such folder; "),
    ],
)
def test_what_is_wrong_with_a_given_base_model_is_said_by_its_key(comparison, base, message):
    with pytest.raises(ValueError, match=message):
        make_starting_point(read_plan(comparison, [f"base={base}"]), num_processes=1)


def test_a_second_comparison_waits_for_the_starting_point_of_the_first(comparison, monkeypatch):
    """Two processes start at once; their stages, each of which logs its begin and end, do not overlap."""
    plan = read_plan(comparison, ["base.name=shared"])
    notes = plan.output_dir / "notes"

    def make(folder, command, *arguments, budget):
        with notes.open("a") as stream:
            stream.write(f"begin {command}\n")
        time.sleep(0.3)
        if command == "export":
            (plan.start_folder / "base_model").mkdir()
            (plan.start_folder / "base_model" / "tokenizer_config.json").write_text("{}")
        with notes.open("a") as stream:
            stream.write(f"end {command}\n")

    monkeypatch.setattr(starting_point, "run_stage_of", make)
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=make_starting_point, args=(plan,), kwargs={"num_processes": 1}) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert notes.read_text().split("\n")[:-1] == ["begin train", "end train", "begin export", "end export"]


@pytest.mark.parametrize(("rows", "micro", "at_most", "processes"), [(16, 4, 6, 4), (8, 4, 2, 2), (6, 2, 2, 1)])
def test_a_stage_uses_as_many_processes_as_its_batch_divides_among(tmp_path, rows, micro, at_most, processes):
    config = tiny_config(tmp_path, f"train.rows_per_batch={rows}", f"train.rows_per_micro_batch={micro}")
    assert processes_of(config, at_most=at_most) == processes


def test_the_best_drawn_mixture_is_trained_with_the_seeds_that_did_not_choose_it(comparison, monkeypatch):
    """Runs are replaced by writing their evaluation: static02 is best with seed 1, static01 would be with seed 2."""
    plan = read_plan(comparison, ["static=2", "static_seeds=1", "exact=0", "choices=[]"])
    losses = {"uniform": (2.0, 2.0), "versatune": (1.75, 1.75), "static01": (1.5, 1.0), "static02": (1.0, 1.5)}
    asked = []

    def write_results(plan, cells, **how):
        asked.append([cell.run_name for cell in cells])
        for cell in cells:
            folder = kept_results.folder_of(plan, cell)
            folder.mkdir(parents=True, exist_ok=True)
            loss = losses[cell.label][cell.seed - 1]
            (folder / "evaluation.json").write_text(json.dumps({"domains": {"law": {"loss": loss}}}))
            (folder / "metrics.jsonl").write_text("")
        return []

    monkeypatch.setattr(compare_module, "run_cells", write_results)
    monkeypatch.setattr(compare_module, "evaluate_base", lambda plan, start, **how: {"law": {"loss": 4.0}})
    monkeypatch.setattr(compare_module, "last_weights", lambda folder: {})
    results, cells = compare_module._results(plan, start=[], num_jobs=1, gpus=(), budget=TimeBudget(None))
    assert [cell.run_name for cell in cells][-1] == "static02-seed2"
    assert asked[1:] == [["static02-seed2"]]
    assert (results.uniform, results.fixed) == ("uniform", ("uniform",))
    best = best_of(gains_of(results), ["static01", "static02"], seeds=plan.seeds)
    assert (best.label, best.chosen_by, best.gains) == ("static02", 1.0, {2: 0.5})


def test_drawn_mixtures_are_predicted_from_the_transfer_table_of_the_starting_point(comparison):
    short = ["set.train.steps=1", "set.train.rows_per_batch=2"]  # 256 tokens; the table has runs of 400
    plan = read_plan(
        comparison, ["reference=true", "plans={a: {}, b: {for: balanced}, long: {budget_steps: 2}}", *short]
    )
    plan.start_folder.mkdir(parents=True)
    (plan.start_folder / "transfer.json").write_text(json.dumps(two_domain_table().to_dict()))
    mixtures = {"static01": (("code", 0.9), ("law", 0.1)), "static02": (("code", 0.1), ("law", 0.9))}
    cells = [Cell(label=label, target=None, seed=1, mixture=mixture) for label, mixture in mixtures.items()]
    predicted = predicted_means(plan, cells, start=[])
    assert list(predicted) == ["transfer, 1 steps", "transfer, 2 steps"]  # plans of one predictor are predicted once
    for means in predicted.values():
        assert 0 < means["static01"] < means["static02"] < 2.5  # code gains 2 nats of 3, law 1 of 2
    assert predicted_means(plan, [], start=[]) == {}
    assert predicted_means(read_plan(comparison, []), cells, start=[]) == {}


def without_seconds(page):
    """Return a page without the table of what it cost, whose seconds differ when a run is repeated."""
    return re.sub(r"## Compute:.*?(?=\n## )", "", page, flags=re.DOTALL)


@pytest.mark.slow
def test_a_comparison_resumes_after_a_failed_run_and_a_repeated_run_gives_the_same_page(
    comparison, tmp_path, monkeypatch, caplog
):
    folder, evaluate = tmp_path / "out" / "mine", cell_runs.evaluate

    def broken(model, options):
        if model.name == "uniform-seed1":
            raise RuntimeError("no disk")
        return evaluate(model, options)

    monkeypatch.setattr(cell_runs, "evaluate", broken)
    with pytest.raises(RuntimeError, match=r"1 of 4 runs failed: see .*logs/uniform-seed1\.log"):
        compare(comparison, [], CompareOptions(num_jobs=2))
    assert "no disk" in (folder / "logs" / "uniform-seed1.log").read_text()
    monkeypatch.undo()
    caplog.set_level("INFO")
    page = compare(comparison, [], CompareOptions(num_jobs=2))
    assert "4 runs, 3 of them done" in caplog.text
    assert page == folder / "README.md"
    text = page.read_text()
    assert "| versatune | " in text
    assert "Evaluated on test rows that no run trains on: code 2, " in text
    assert "right choices, %" in text
    assert "| chance | 50.0 | 50.0 |" in text
    assert "mean bits a byte, bits" in text
    assert re.search(r"\n\| uniform \| 4 \|( [+-]\d+\.\d \|){6}", text)  # the last of the measurements along the runs
    assert re.search(r"\n\| run of uniform \| 2 \| [1-9][\d,]* \| \d+\.\d \| 100 \| 100 \|", text)
    assert [json.loads(line)["command"] for line in (folder.parent / "base-base" / "stages.jsonl").open()] == [
        "train", "export",
    ]  # fmt: skip
    assert re.search(r"uniform-seed1 mean loss \d\.\d{4}, worst domain [+-]\d+\.\d %", caplog.text)
    for name in ("comparison.png", "retention.png", "weights.png"):
        assert (folder / name).stat().st_size > 5_000
    html = (folder / "index.html").read_text()
    assert html.count("data:image/png;base64,") == 3
    assert 'src="comparison.png' not in html
    losses = {
        path.parent.name: json.loads(path.read_text())["domains"]["law"]["loss"]
        for path in folder.glob("runs/*/evaluation.json")
    }
    assert set(losses) == {"uniform-seed1", "versatune-seed1", "uniform-seed2", "versatune-seed2"}
    assert losses["uniform-seed1"] != losses["uniform-seed2"]
    shutil.rmtree(folder / "runs" / "versatune-seed2")
    assert without_seconds(compare(comparison, [], CompareOptions(num_jobs=1)).read_text()) == without_seconds(text)
    with pytest.raises(ValueError, match="uniform-seed1: made with other settings or from another base model; remove"):
        compare(comparison, ["exact=0"], CompareOptions(num_jobs=1))
    (weights,) = (read_plan(comparison, []).start_folder / "base_model").glob("*.safetensors")
    changed = bytearray(weights.read_bytes())
    changed[-4] ^= 1  # one bit of one weight
    weights.write_bytes(changed)
    with pytest.raises(ValueError, match="uniform-seed1: made with other settings or from another base model"):
        compare(comparison, [], CompareOptions(num_jobs=1))
