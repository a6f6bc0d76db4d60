"""Batch sizes, precision and optimizer come from the recipe; a DeepSpeed file with other values is refused."""

import json
from pathlib import Path

import pytest

from versatune_ds.config import TrainConfig
from versatune_ds.engine.ds_settings import deepspeed_config, num_micro_steps, zero_stage

ROOT = Path(__file__).parents[2]


def settings(**values):
    return TrainConfig(**{"steps": 10, "rows_per_batch": 16, "rows_per_micro_batch": 2, "deepspeed": {}, **values})


def test_sixteen_rows_on_four_processes_two_at_a_time_are_two_micro_steps():
    assert num_micro_steps(settings(), world_size=4) == 2
    assert num_micro_steps(settings(), world_size=8) == 1


def test_rows_that_do_not_divide_are_refused_with_the_number_expected():
    with pytest.raises(ValueError, match=r"^train\.rows_per_batch: 16 rows .* expected a multiple of 6$"):
        num_micro_steps(settings(), world_size=3)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_projects_own_files_give_their_stage_and_the_recipes_sizes(stage):
    train = settings(deepspeed=ROOT / "ds_configs" / f"zero{stage}.json", precision="fp32")
    config = deepspeed_config(train, world_size=2)
    assert zero_stage(config) == stage
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (16, 4)
    assert (config["bf16"], config["fp16"]) == ({"enabled": False}, {"enabled": False})


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda p: p.stem)
def test_the_projects_files_contain_zero_settings_only(path):
    assert set(json.loads(path.read_text())) == {"zero_optimization"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_batch_size": 8}, r"train_batch_size=8 contradicts train\.rows_per_batch, which gives 16; drop it"),
        ({"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}},
         r"bf16=True contradicts train\.precision, which gives False; "),
        ({"optimizer": {"type": "Adam"}}, r"'optimizer' is set there"),
        ({"gradient_clipping": 0.5}, r"contradicts train\.max_grad_norm, which gives 1\.0; "),
    ],
)  # fmt: skip
def test_the_error_about_a_contradiction_contains_both_values(given, message):
    with pytest.raises(ValueError, match=message):
        deepspeed_config(settings(deepspeed=given, precision="fp32"), world_size=2)


def test_auto_and_equal_values_are_accepted():
    given = {"train_batch_size": "auto", "gradient_clipping": 1.0, "bf16": {"enabled": "auto"}}
    assert deepspeed_config(settings(deepspeed=given, precision="fp32"), world_size=2)["train_batch_size"] == 16


def test_bf16_without_partitioning_is_refused():
    with pytest.raises(ValueError, match="needs ZeRO stage 1 or higher"):
        deepspeed_config(settings(precision="bf16"), world_size=1)


def test_an_invalid_or_missing_file_is_reported_with_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"no such file .*none\.json"):
        deepspeed_config(settings(deepspeed=tmp_path / "none.json"), world_size=2)
    (tmp_path / "a.json").write_text('{"zero_optimization":\n  stage}')
    with pytest.raises(ValueError, match=r"a\.json:2: not valid JSON"):
        deepspeed_config(settings(deepspeed=tmp_path / "a.json"), world_size=2)


def test_settings_of_the_user_beside_a_derived_key_are_kept():
    given = {
        "zero_optimization": {"stage": 1},
        "fp16": {"enabled": "auto", "initial_scale_power": 8},
        "steps_per_print": 5,
    }
    config = deepspeed_config(settings(deepspeed=given, precision="fp16"), world_size=2)
    assert config["fp16"] == {"enabled": True, "initial_scale_power": 8}
    assert config["steps_per_print"] == 5


def test_an_invalid_stage_is_refused():
    with pytest.raises(ValueError, match=r"^train\.deepspeed: zero_optimization\.stage='auto': expected 0, 1, 2 or 3$"):
        deepspeed_config(settings(deepspeed={"zero_optimization": {"stage": "auto"}}), world_size=2)
