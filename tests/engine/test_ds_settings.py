"""Batch sizes, precision and optimizer come from the recipe; a DeepSpeed file with other values is refused."""

import json
from pathlib import Path

import pytest

from versatune_ds.config import TrainConfig
from versatune_ds.engine.ds_names import NAMED_SETTINGS
from versatune_ds.engine.ds_settings import (
    deepspeed_config,
    grad_accum_dtype,
    num_micro_steps,
    read_deepspeed_json,
    zero_stage,
)

ROOT = Path(__file__).parents[2]


def settings(**values):
    return TrainConfig(**{"steps": 10, "rows_per_batch": 16, "rows_per_micro_batch": 2, "deepspeed": {}, **values})


def test_sixteen_rows_on_four_processes_two_at_a_time_are_two_micro_steps():
    assert num_micro_steps(settings(), world_size=4) == 2
    assert num_micro_steps(settings(), world_size=8) == 1


def test_sequence_parallel_processes_count_as_one_where_rows_are_divided():
    assert num_micro_steps(settings(sequence_parallel=2), world_size=4) == 4
    config = deepspeed_config(settings(sequence_parallel=2, precision="fp32"), world_size=4)
    # DeepSpeed checks that its batch is rows x micro-steps x processes.
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (2 * 4 * 4, 4)
    with pytest.raises(ValueError, match=r"^train\.sequence_parallel: 2 processes share a row, but 3 do not divide"):
        num_micro_steps(settings(sequence_parallel=2), world_size=3)
    with pytest.raises(ValueError, match=r"on 6 processes, 2 of which share a row; expected a multiple of 6$"):
        num_micro_steps(settings(sequence_parallel=2), world_size=6)


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


def test_the_named_settings_are_the_projects_files():
    files = {path.stem: json.loads(path.read_text()) for path in (ROOT / "ds_configs").glob("*.json")}
    assert files == NAMED_SETTINGS


@pytest.mark.parametrize("name", sorted(NAMED_SETTINGS))
def test_a_name_means_the_same_as_its_file_in_any_working_folder(name, tmp_path, monkeypatch):
    from_file = deepspeed_config(
        settings(deepspeed=ROOT / "ds_configs" / f"{name}.json", precision="fp32"), world_size=2
    )
    monkeypatch.chdir(tmp_path)
    for written in (name, name.upper().replace("_", "-")):
        assert deepspeed_config(settings(deepspeed=written, precision="fp32"), world_size=2) == from_file


def test_a_change_of_named_settings_changes_no_later_one():
    read_deepspeed_json(Path("zero3"))["zero_optimization"]["stage"] = 0
    assert read_deepspeed_json(Path("zero3"))["zero_optimization"]["stage"] == 3


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("zero3_ofload", r"no such file .*zero3_ofload; did you mean zero3_offload\?$"),
        ("ds_configs/zero2-offlod.json", r"did you mean zero2_offload\?$"),
        ("mine.json", r"; expected a JSON file or one of zero0, zero1, zero2, zero2_offload, zero3, "),
    ],
)  # fmt: skip
def test_a_misspelt_name_of_settings_gets_the_nearest_one(written, hint):
    with pytest.raises(ValueError, match=hint):
        read_deepspeed_json(Path(written))


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


@pytest.mark.parametrize(
    ("precision", "zero", "rows_per_batch", "expected"),
    [
        ("bf16", {"stage": 2}, 16, "fp32"),
        ("bf16", {"stage": 3, "offload_optimizer": {"device": "cpu"}}, 16, "fp32"),
        ("fp16", {"stage": 2}, 16, "fp32"),
        ("bf16", {"stage": 2}, 2, None),  # one micro-step: nothing is summed
        ("bf16", {"stage": 1}, 16, None),  # DeepSpeed would take another wrapper, which cannot resume earlier runs
        ("bf16", {"stage": 2, "offload_optimizer": {"device": "cpu"}}, 16, None),  # it would not act
        ("fp32", {"stage": 2}, 16, None),
        ("fp16", {"stage": 0}, 16, None),
    ],
)  # fmt: skip
def test_micro_steps_in_16_bits_are_summed_in_fp32_where_deepspeed_can(precision, zero, rows_per_batch, expected):
    train = settings(precision=precision, deepspeed={"zero_optimization": zero}, rows_per_batch=rows_per_batch)
    assert grad_accum_dtype(deepspeed_config(train, world_size=1)) == expected


def test_what_the_user_says_about_sums_and_timers_comes_first():
    given = {
        "zero_optimization": {"stage": 2},
        "data_types": {"grad_accum_dtype": "bf16"},
        "timers": {"throughput": {"enabled": True, "synchronized": False}},
    }
    config = deepspeed_config(settings(precision="bf16", deepspeed=given), world_size=1)
    assert {key: config[key] for key in given} == given


def test_the_throughput_timer_which_waits_for_the_device_is_off():
    assert deepspeed_config(settings(precision="fp32"), world_size=1)["timers"] == {"throughput": {"enabled": False}}


def test_a_sum_in_fp32_that_deepspeed_refuses_late_is_refused_with_the_stage():
    given = {"data_types": {"grad_accum_dtype": "fp32"}}
    with pytest.raises(ValueError, match=r"^train\.deepspeed: data_types\.grad_accum_dtype=fp32 needs ZeRO stage 2"):
        deepspeed_config(settings(precision="fp16", deepspeed=given), world_size=1)
