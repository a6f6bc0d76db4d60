"""Tasks of lm-evaluation-harness: scores equal to our own multiple choice, changes, and wrong options."""

import json
import math
import random
import sys

import numpy as np
import pytest
import torch
import yaml
from chat_data import tiny_tokenizer, write_jsonl
from command_line import command_of, write_recipe
from tiny_models import build_arguments
from tiny_run import tiny_config

from versatune_ds.evaluation.harness import TaskScore, find_tasks, score_changes
from versatune_ds.evaluation.subject import Subject, load_subject
from versatune_ds.evaluation.table import evaluation_table
from versatune_ds.model.build import build_causal_lm

NUM_QUESTIONS = 40
WORDS = ["sky", "the answer", "déjà vu", "contract clause", "é", "seven", "a short reply of some length"]
TEMPLATE = (  # the prompt of the task below as a chat; no white space after the question, which both would move
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'Q: ' + message['content'] + ' A:' }}"
    "{% else %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)


@pytest.fixture
def versatune(capsys):
    return command_of(capsys)


def questions():
    rng = random.Random(0)
    return [
        {"question": f"what is {i} plus {i}", "choices": rng.sample(WORDS, 3), "answer": rng.randrange(3)}
        for i in range(NUM_QUESTIONS)
    ]


def write_task(folder, **keys):
    """Write the questions, and a task with them."""
    data = write_jsonl(folder / "trivia.jsonl", questions())
    task = {
        "task": "trivia",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Q: {{question}} A:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_bytes")
        ],
        **keys,
    }
    (folder / "trivia.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder / "trivia.yaml"


def write_model(folder, *, seed):
    """Write a model with clear preferences, from larger random weights than a new model has."""
    arguments = build_arguments("llama", initializer_range=0.3)
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    build_causal_lm(**{**arguments, "vocab_size": len(tokenizer)}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def accuracy_by_hand(folder, config):
    """Return the accuracy of the likeliest option, not normalised by length."""
    causal_lm, tokenizer = load_subject(Subject(name="", folder=str(folder), tokenizer=str(folder)), config)

    def log_likelihood(context, option):
        ids = torch.tensor([tokenizer.encode(context + option)])
        start = len(tokenizer.encode(context))
        with torch.no_grad():
            logs = causal_lm(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
        return logs.gather(-1, ids[0, start:, None]).sum().item()

    return np.mean([
        np.argmax([log_likelihood(f"Q: {row['question']} A:", option) for option in row["choices"]]) == row["answer"]
        for row in questions()
    ])  # fmt: skip


@pytest.mark.slow
def test_a_local_task_gets_the_scores_changes_and_errors_of_our_own_multiple_choice(versatune, tmp_path):
    pytest.importorskip("lm_eval", reason="needs the extra harness")
    task = write_task(tmp_path)
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    config = tiny_config(
        tmp_path,
        f"data.chat_template={tmp_path / 'template.jinja'}",
        "data.synthetic={num_rows: 20, num_valid_rows: 2, num_test_rows: 2}",
        "data.row_tokens=1024",
    )
    model, base = write_model(tmp_path / "model", seed=1), write_model(tmp_path / "base", seed=2)
    common = ("--recipe", write_recipe(config, tmp_path / "recipe.yaml"), "--exact", "0", "--against", base)
    asked = ("--choices", tmp_path / "trivia.jsonl", "--harness", "trivia", "--harness-include", tmp_path)
    called = versatune("evaluate", model, *common, *asked, "--json", "--output", tmp_path / "e.json")
    assert called.code == 0, called.err
    result = json.loads((tmp_path / "e.json").read_text())
    assert json.loads(called.out) == result
    for of_model, folder in ((result, model), (result["base"], base)):
        scores, own = of_model["harness"]["trivia"], of_model["domains"]["trivia"]["choices"]["accuracy"]
        assert scores["acc_bytes"]["value"] == pytest.approx(own, abs=1e-9)
        assert scores["acc"]["value"] == pytest.approx(accuracy_by_hand(folder, config), abs=1e-9)
        assert scores["acc_bytes"]["standard_error"] == pytest.approx(math.sqrt(own * (1 - own) / (NUM_QUESTIONS - 1)))
    changes, own = result["harness_retention"]["trivia"]["acc_bytes"], result["retention"]["trivia"]
    assert changes["change"] == pytest.approx(own["choices_change"]) != 0
    assert changes["change_standard_error"] == pytest.approx(own["choices_change_standard_error"])
    few = ("--no-base", "--harness", task, "--harness-limit", "5", "--output", tmp_path / "few.json")
    title, header, _, first, second = versatune("evaluate", model, *common[:4], *few).out.splitlines()[-5:]
    assert (title, header.split()) == ("lm-evaluation-harness", ["task", "metric", "value", "±s.e."])
    assert [first.split()[:2], second.split()[:2]] == [["trivia", "acc"], ["trivia", "acc_bytes"]]
    assert json.loads((tmp_path / "few.json").read_text())["harness"]["trivia"]["acc"]["num_examples"] == 5


def score(*values):
    value_E = np.array(values, dtype=float)
    return TaskScore(value=value_E.mean(), standard_error=0.1, num_examples=len(values), value_E=value_E)


def test_a_change_has_the_error_of_paired_differences_where_single_values_are_known():
    group = TaskScore(value=0.25, standard_error=math.nan, num_examples=8)
    after = {"a": {"acc": score(1, 1, 0, 1)}, "g": {"acc": group}}
    before = {"a": {"acc": score(0, 1, 0, 0)}, "g": {"acc": group}}
    changes = score_changes(after, before)
    assert changes["a"]["acc"] == {"change": 0.5, "change_standard_error": pytest.approx(math.sqrt((1 / 3) / 4))}
    assert changes["g"]["acc"] == {"change": 0.0, "change_standard_error": None}
    assert group.to_dict() == {"value": 0.25, "standard_error": None, "num_examples": 8}


def test_the_table_shows_each_metric_with_its_change():
    domains = {"law": {"loss": 1.0}}
    result = {
        "model": "m", "split": "test", "domains": domains,
        "harness": {"trivia": {"acc": {"value": 0.5, "standard_error": 0.05, "num_examples": 9}}},
        "harness_retention": {"trivia": {"acc": {"change": -0.25, "change_standard_error": None}}},
    }  # fmt: skip
    assert evaluation_table(result).splitlines()[-4:] == [
        "lm-evaluation-harness",
        "task    metric   value ±s.e.  change",
        "------------------------------------",
        "trivia  acc     0.500 ±0.050  -0.250",
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder that passes for a model until it is loaded, with a recipe in it."""
    folder = tmp_path_factory.mktemp("place")
    write_recipe(tiny_config(folder), folder / "recipe.yaml")
    return folder


@pytest.fixture
def without_package(monkeypatch):
    for name in ("lm_eval", "lm_eval.tasks"):
        monkeypatch.setitem(sys.modules, name, None)


def error_of(versatune, place, *arguments):
    called = versatune("evaluate", place, "--recipe", place / "recipe.yaml", "--quiet", *arguments)
    assert (called.code, called.out) == (2, "")
    assert len(called.err.splitlines()) == 1
    return called.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--harness", "trivia", "--harness-include", "nowhere"], "--harness-include: nowhere: no such folder"),
        (["--harness", "trivia", "--harness-limit", "0"], "--harness-limit=0: expected 1 example or more"),
        (["--harness-limit", "3"], "need tasks: --harness TASK[,TASK]"),
        (["--harness", "trivia,"], "--harness: an empty task name"),
    ],
)
def test_a_wrong_option_gives_one_error_line_without_the_package(versatune, place, without_package, arguments, message):
    assert message in error_of(versatune, place, *arguments)


def test_a_missing_package_gives_an_error_with_the_extra_to_install(versatune, place, without_package):
    assert "pip install 'versatune_ds[harness]'" in error_of(versatune, place, "--harness", "hellaswag")


@pytest.mark.slow
def test_an_unknown_task_and_one_that_cannot_be_loaded_give_one_error_line(versatune, place, tmp_path):
    pytest.importorskip("lm_eval", reason="needs the extra harness")
    unloadable = write_task(tmp_path, dataset_kwargs={"data_files": {"test": "nowhere.jsonl"}})
    error = error_of(versatune, place, "--harness", unloadable)
    assert f"--harness: {unloadable} cannot be loaded: FileNotFoundError" in error
    error = error_of(versatune, place, "--harness", "trivai", "--harness-include", tmp_path)
    assert "--harness: no task 'trivai'; did you mean 'trivia'?" in error


@pytest.mark.slow
def test_a_task_that_two_names_match_is_run_once(tmp_path):
    pytest.importorskip("lm_eval", reason="needs the extra harness")
    write_task(tmp_path, task="our_trivia")
    assert find_tasks(["our_*", "our_trivia"], include=tmp_path).names == ("our_trivia",)
