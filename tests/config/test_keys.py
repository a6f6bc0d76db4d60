"""The list of recipe keys comes from the config classes, and docs/keys.md is its output."""

from pathlib import Path

import pytest

from versatune_ds.cli import main
from versatune_ds.config import RunConfig
from versatune_ds.config.keys import keys_as_markdown, recipe_keys

ROOT = Path(__file__).parents[2]
KEYS = {key.name: key for key in recipe_keys()}


def test_a_key_has_its_type_limits_default_and_meaning():
    rate = KEYS["train.learning_rate"]
    assert (rate.type, rate.default, rate.meaning) == ("number (> 0)", "2e-05", "Peak learning rate.")
    assert KEYS["run.name"].default == "required"
    assert KEYS["data.loss_on"].type == "assistant, all"
    assert KEYS["model.gradient_checkpointing"].default == "false"


def test_keys_within_mappings_and_optional_sections_are_listed():
    names = {"model.lora.rank", "data.domains.DOMAIN.train", "mixture.steer.anchor", "slurm.container.image"}
    assert names <= set(KEYS)


def test_a_section_that_can_occur_in_two_places_is_listed_once():
    assert KEYS["reference.model"].meaning.endswith("Keys as under `model`.")
    assert not any(name.startswith("reference.model.") for name in KEYS)


def test_every_section_is_listed_and_every_key_has_a_meaning():
    assert {name.split(".")[0] for name in KEYS} == set(RunConfig.model_fields)
    assert [name for name, key in KEYS.items() if not key.meaning] == []


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("learning_rate_sch", ["train.learning_rate_schedule"]), ("TRAIN.*NORM", ["train.max_grad_norm"])],
)
def test_a_pattern_selects_keys_by_name_or_meaning(pattern, found):
    assert [key.name for key in recipe_keys(pattern)] == found


def sections_of(pattern):
    return {key.name.split(".")[0] for key in recipe_keys(pattern)}


def test_the_name_of_a_section_selects_its_keys_and_keys_of_that_name_but_no_mentions():
    assert sections_of("detect") == sections_of("Detect") == {"detect"}
    assert [key.name for key in recipe_keys("reference") if not key.name.startswith("reference.")] == [
        "mixture.reference"
    ]
    assert all(key.name.startswith("mixture.safeguards.") for key in recipe_keys("safeguards"))
    assert recipe_keys("mixture.steer") == recipe_keys("steer")
    assert len(sections_of("held-out")) > 1  # no section: text anywhere


def test_a_pattern_without_a_match_is_reported_in_one_line_with_exit_code_2(capsys):
    assert main(["keys", "nosuchkey"]) == 2
    message = "versatune: 'nosuchkey': no recipe key matches; `versatune keys` lists all\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("lr", ["train.learning_rate"]),
        ("LR", ["train.learning_rate"]),
        ("per-device-train-batch-size", ["train.rows_per_batch", "train.rows_per_micro_batch"]),
        ("lora_r", ["model.lora.rank"]),
        ("train.max_steps", ["train.steps"]),
    ],
)
def test_a_name_of_another_tool_selects_our_keys_for_it_and_says_how_it_converts(capsys, pattern, found):
    assert [key.name for key in recipe_keys(pattern)] == found
    assert main(["keys", pattern]) == 0
    assert capsys.readouterr().out.startswith(f"{pattern}: here it is {found[-1]}")


def test_a_name_that_we_have_too_selects_as_ever(capsys):
    assert {"run.seed", "data.synthetic.seed"} <= {key.name for key in recipe_keys("seed")}
    assert main(["keys", "train.learning_rate"]) == 0
    assert capsys.readouterr().out.startswith("train.learning_rate  [number")


def test_a_name_of_another_tool_that_has_no_key_here_is_answered_with_why_and_exit_code_2(capsys):
    assert main(["keys", "push_to_hub"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("versatune: push_to_hub: there is none here: a run uploads nothing; ")
    assert len(captured.err.splitlines()) == 1


def test_docs_keys_md_is_what_the_command_prints():
    text = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
    assert text == keys_as_markdown(recipe_keys()), "write it again: versatune keys --markdown > docs/keys.md"
