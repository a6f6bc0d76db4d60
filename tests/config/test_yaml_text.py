"""YAML is read as its author meant it: words, numbers, names and empty sections."""

import unicodedata
from pathlib import Path

import pytest

from versatune_ds.config import load_config
from versatune_ds.config.yaml_text import EMPTY, read_value, read_yaml

RECIPE = """
run: {name: mine}
model: {from_config: {model_type: llama}}
data: {domains: {law: {train: law.jsonl}}}
train: {steps: 10}
mixture: {reference: {start_fraction: 0.85}}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def written(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("mode", ["off", "Off", "'off'"])
def test_off_is_read_as_the_mode_off(recipe, mode):
    assert load_config(recipe, [f"monitor.wandb.mode={mode}"]).monitor.wandb.mode == "off"


@pytest.mark.parametrize(
    ("word", "value"), [("on", True), ("No", False), ("true", True), ("FALSE", False), ("1", True)]
)
def test_words_are_booleans_where_booleans_are_expected(recipe, word, value):
    config = load_config(recipe, [f"model.compile={word}", f"model.from_config.tie_word_embeddings={word}"])
    assert config.model.compile is value
    assert load_config(recipe, ["model.from_config.use_cache=no"]).model.from_config["use_cache"] is False
    assert load_config(recipe, ["train.deepspeed.fp16.enabled=on"]).train.deepspeed == {"fp16": {"enabled": True}}


@pytest.mark.parametrize("name", ["no", "on", "yes", "null", "true", "1", "2024", "007", "1e5", "1_000", "2024-01-05"])
def test_a_domain_keeps_its_name_as_written(tmp_path, name):
    text = RECIPE.replace("{law: {train: law.jsonl}}", f"{{{name}: {{train: {name}.jsonl}}, b: {{train: b.jsonl}}}}")
    text = text.replace("{reference:", f"{{target: {name if name != 'null' else repr(name)}, "
                        f"prior: {{{name}: 0.25, b: 0.75}}, reference:")  # fmt: skip
    config = load_config(written(tmp_path, text))
    assert list(config.data.domains) == [name, "b"]
    assert config.data.domains[name].train == (f"{name}.jsonl",)
    assert config.mixture.prior == {name: 0.25, "b": 0.75}
    assert config.mixture.target == name


@pytest.mark.parametrize("name", ["2e5", "007", "off", "1_0", "2024"])
def test_a_run_keeps_its_name_as_written(recipe, name):
    assert load_config(recipe, [f"run.name={name}"]).run.name == name


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2E-5", 2e-5),
        ("1.0e5", 1e5),
        (".5", 0.5),
        ("-3e2", -300.0),
        ("1_000.5", 1000.5),
        ("1e3", 1000),
    ],
)
def test_numbers_are_read_in_every_common_notation(text, value):
    assert read_value(text) == value


def test_times_and_hashes_of_digits_stay_text(recipe):
    overrides = ["slurm.time=1:00:00", "slurm.memory=0", "slurm.dependency=1234", "monitor.wandb.tags=[2024, no, 1e3]"]
    config = load_config(recipe, [*overrides, "data.domains.law.train={hub: a/b, revision: 12345e67}"])
    assert (config.slurm.time, config.slurm.memory, config.slurm.dependency) == ("1:00:00", "0", "1234")
    assert config.monitor.wandb.tags == ("2024", "no", "1e3")
    assert config.data.domains["law"].train[0].revision == "12345e67"


def test_numbers_in_a_config_are_plain_python_numbers(recipe):
    config = load_config(recipe, ["train.learning_rate=1e-3", "model.from_config.rope_theta=1e6"])
    assert type(config.train.learning_rate) is float
    assert type(config.model.from_config["rope_theta"]) is float
    stages = load_config(recipe, ["mixture.policy=schedule", "mixture.schedule=[[0, {law: 1.0}]]"]).mixture.schedule
    assert type(stages[0].weights["law"]) is float


def test_an_empty_section_gets_its_defaults(tmp_path):
    config = load_config(written(tmp_path, RECIPE + "monitor:\nslurm:\nresume:\ndetect: {sampling: }\n"))
    plain = load_config(written(tmp_path, RECIPE))
    assert config == plain
    assert load_config(written(tmp_path, RECIPE + "monitor:\n"), ["monitor.log_every=3"]).monitor.log_every == 3
    assert load_config(written(tmp_path, RECIPE.replace("10}", "10, deepspeed: }"))).train == plain.train


@pytest.mark.parametrize(("word", "rank"), [("true", 16), ("on", 16), ("{}", 16), ("false", None), ("No", None)])
def test_lora_may_be_turned_on_with_its_defaults_or_off(tmp_path, word, rank):
    lora = load_config(written(tmp_path, RECIPE), [f"model.lora={word}"]).model.lora
    assert (lora and lora.rank) == rank


def test_an_empty_lora_trains_adapters_and_a_null_one_does_not(tmp_path):
    text = RECIPE.replace("model: {", "model: {lora: , ")
    assert load_config(written(tmp_path, text)).model.lora.rank == 16
    assert load_config(written(tmp_path, text.replace("lora: ,", "lora: null,"))).model.lora is None


def test_an_empty_origin_is_ignored_beside_another(tmp_path):
    text = RECIPE.replace("data: {", "data: {folder: , synthetic: , ")
    assert load_config(written(tmp_path, text)).data.synthetic is None
    only = RECIPE.replace("data: {domains: {law: {train: law.jsonl}}}", "data: {synthetic: }")
    assert load_config(written(tmp_path, only)).data.synthetic is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:\n\tfolder: a\n", r"r\.yaml:2: not valid YAML: .*; indent with spaces, not tabs$"),
        ("run: {name: a}\n---\nrun: {name: b}\n", r"not valid YAML: a second document begins \(---\)"),
        ("1: a\n'1': b\n", r"r\.yaml:2: key '1' is given twice"),
        ("? [a]\n: b\n", r"r\.yaml:1: expected a word as key"),
        ("'': b\n", r"r\.yaml:1: a key is empty"),
        ("a: &a [*a]\n", r"r\.yaml:1: not valid YAML"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_reported_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_yaml(written(tmp_path, text))


def test_anchors_merges_and_a_byte_order_mark_are_read(tmp_path):
    text = "\ufeffa: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n"
    assert read_yaml(written(tmp_path, text)) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


def test_an_empty_value_differs_from_null():
    assert read_value("") is None or read_value("") is EMPTY
    assert read_value("null") is None
    assert read_value("{a: }") == {"a": EMPTY}


def test_every_path_key_expands_home_and_variables_by_one_rule(recipe, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    overrides = [
        "run.output_dir=~/runs", "data.cache_dir=$SCRATCH/cache", "data.chat_template=${SCRATCH}/t.jinja",
        "data.domains.law.train=$SCRATCH/*.jsonl", "data.domains.law.valid=[~/v.jsonl, {hub: $SCRATCH/set}]",
        "model.tokenizer=~/tok", "train.deepspeed=~/ds.json", "mixture.prior=$SCRATCH/prior.json",
        "mixture.reference=~/reference.json", "slurm.container={image: ~/i.sif, mounts: ['~/d:/d', '$SCRATCH:/s:ro']}",
    ]  # fmt: skip
    config = load_config(recipe, overrides)
    assert config.run_dir == Path("/home/me/runs/mine")
    assert str(config.data.cache_dir) == "/scratch/me/cache"
    assert str(config.data.chat_template) == "/scratch/me/t.jinja"
    law = config.data.domains["law"]
    assert (law.train, law.valid[0], law.valid[1].hub) == (
        ("/scratch/me/*.jsonl",),
        "/home/me/v.jsonl",
        "/scratch/me/set",
    )
    assert config.model.tokenizer == "/home/me/tok"
    assert str(config.train.deepspeed) == "/home/me/ds.json"
    assert (str(config.mixture.prior), str(config.mixture.reference)) == (
        "/scratch/me/prior.json", "/home/me/reference.json",
    )  # fmt: skip
    assert config.slurm.container.image == "/home/me/i.sif"
    assert config.slurm.container.mounts == ("/home/me/d:/d", "/scratch/me:/s:ro")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.output_dir=$NOWHERE/runs", r"run\.output_dir: \$NOWHERE is not set in the environment; export it"),
        ("mixture.prior=${NOWHERE}/p", r"mixture\.prior: '\$\{NOWHERE\}/p': \$NOWHERE is not set"),
        ("data.domains.law.train=$NOWHERE/a", r"data\.domains\.law\.train\.0: \$NOWHERE is not set"),
        ("model.tokenizer=~nobody-here/t", r"model\.tokenizer: no user 'nobody-here' on this machine"),
    ],
)
def test_an_unset_variable_is_refused_with_its_name(recipe, monkeypatch, override, message):
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(ValueError, match=message):
        load_config(recipe, [override])


def test_domain_names_are_normalised_in_every_section(recipe):
    name, other_form = "Médecine", unicodedata.normalize("NFD", "Médecine")
    assert name != other_form
    domains = f"data.domains={{{other_form}: {{train: a}}, law: {{train: b}}}}"
    config = load_config(recipe, [domains, f"mixture.target={other_form}", f"mixture.prior={{{name}: 0.5, law: 0.5}}"])
    assert list(config.data.domains) == [name, "law"]
    assert config.mixture.target == name
    with pytest.raises(ValueError, match=r"data\.domains: 'Médecine' is given twice, its accents written in two ways"):
        load_config(recipe, [f"data.domains={{{other_form}: {{train: a}}, {name}: {{train: b}}}}"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("project", "me/mine", "'me/mine' has /, which W&B allows in no name; give the entity in monitor.wandb.entity"),
        ("project", "'a#b?'", "'a#b?' has # ?, which W&B allows"),
        ("project", "''", "empty; give a name"),
        ("project", "x" * 129, "129 characters; W&B allows at most 128"),
        ("entity", "a:b", "has :, which W&B allows in no name"),
        ("tags", f"[ok, {'x' * 65}]", "has 65 characters; W&B allows 1 to 64"),
        ("tags", "['']", "'' is empty; W&B allows 1 to 64"),
    ],
)
def test_names_that_wandb_refuses_are_refused_before_anything_loads(recipe, key, value, message):
    name = f"monitor.wandb.{key}={value}"
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is compared)
        load_config(recipe, [name, "monitor.wandb.mode=offline"])
    assert f"monitor.wandb.{key}: " in str(caught.value)
    assert message in str(caught.value)
    assert load_config(recipe, [name]).monitor.wandb.mode == "off"
