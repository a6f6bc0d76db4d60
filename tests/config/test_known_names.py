"""Keys of other tools are answered with ours: the table is right about our keys, and reaches every message."""

import copy
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.config import RunConfig
from versatune_ds.config.error_messages import _keys_named
from versatune_ds.config.keys import recipe_keys
from versatune_ds.config.known_names import KNOWN_NAMES, known_name, nearest_known_name
from versatune_ds.config.load import parse_config, set_by_dotted_key

RECIPE = {
    "run": {"name": "mine"},
    "model": {"from_config": {"model_type": "llama"}},
    "data": {"synthetic": {}},
    "train": {"steps": 10},
    "mixture": {"reference": {"start_fraction": 0.85}},
}
KEYS = {key.name for key in recipe_keys()}
NAMES = [name for known in KNOWN_NAMES for name in known.names]
USUAL = (
    "lr", "batch_size", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "micro_batch_size", "global_batch_size", "num_train_epochs", "num_epochs", "max_steps", "max_seq_length",
    "sequence_len", "cutoff_len", "max_length", "load_in_4bit", "lora_r", "lora_alpha", "lora_target_modules",
    "base_model", "model_name_or_path", "output_dir", "seed", "bf16", "fp16", "warmup_ratio", "warmup_steps",
    "lr_scheduler_type", "weight_decay", "max_grad_norm", "optim", "gradient_checkpointing", "packing",
    "sample_packing", "train_on_inputs", "dataset", "datasets", "eval_steps", "save_steps", "save_total_limit",
    "logging_steps", "report_to", "wandb_project", "deepspeed", "flash_attention", "attn_implementation",
    "torch_dtype", "chat_template", "push_to_hub", "interleave_probs", "mix_strategy", "resume_from_checkpoint",
    "dataloader_num_workers",
)  # fmt: skip


def answer_to(*overrides):
    """Return what a recipe with these keys is answered with; it must be one line."""
    values = copy.deepcopy(RECIPE)
    for override in overrides:
        set_by_dotted_key(values, override)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the caller compares)
        parse_config(values)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("lr=1e-4", "lr: unknown key; here it is train.learning_rate, with the same value"),
        ("train.lr=1e-4", "train.lr: unknown key; here it is train.learning_rate, with the same value"),
        ("model.lr=1e-4", "model.lr: unknown key; here it is train.learning_rate, with the same value"),
        ("reference.lr=1e-4", "reference.lr: unknown key; here it is reference.learning_rate, with the same value"),
        ("seed=3", "seed: unknown key; here it is run.seed, with the same value"),
        ("model.lora.r=8", "model.lora.r: unknown key; here it is model.lora.rank, with the same value"),
        ("detect.openai={model: m, base_url: x}", "detect.openai.base_url: unknown key; here it is detect.openai.url"),
        ("load_in_4bit=true", "load_in_4bit: unknown key; here it is model.load_in_4bit: true keeps the weights "),
        ("load_in_8bit=true", "load_in_8bit: unknown key; there is none here: weights are loaded in train."),
        ("per_device_trian_batch_size=2",
         "per_device_trian_batch_size: unknown key; did you mean per_device_train_batch_size? here it is train.rows"),
        ("learing_rate=1", "learing_rate: unknown key; did you mean learning_rate? here it is train.learning_rate, "),
        ("train.leraning_rate=1", "train.leraning_rate: unknown key; did you mean 'learning_rate'?"),
        ("steps=3", "steps: unknown key; did you mean train.steps or reference.steps?"),
    ],
)  # fmt: skip
def test_a_foreign_key_is_answered_with_ours_wherever_it_stands(override, answer):
    assert answer_to(override).startswith(answer)


def test_batch_sizes_are_converted_with_a_worked_example():
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "global_batch_size"):
        assert "rows_per_batch = per device x accumulation x GPUs (64 = 2 x 4 x 8)" in answer_to(f"train.{name}=2")


@pytest.mark.parametrize("name", USUAL)
def test_every_usual_name_has_an_answer_in_any_section(name):
    for prefix in ("", "run.", "model.", "data.", "train.", "mixture."):
        if f"{prefix}{name}" not in KEYS:
            assert re.search("; (here it is|there is none here)", answer_to(f"{prefix}{name}=1")), prefix


def test_every_key_that_the_table_answers_with_exists():
    of_sections = {"model.lora", "data.domains"}
    assert [key for known in KNOWN_NAMES for key in known.keys if key not in KEYS | of_sections] == []


def test_every_key_that_a_text_of_the_table_mentions_exists():
    for known in KNOWN_NAMES:
        for key in re.findall(r"\b(?:run|model|data|train|mixture|checkpoint|monitor)\.[a-zA-Z0-9_.]*[a-z]", known.how):
            assert key in KEYS | {"model.lora", "data.domains.DOMAIN.train"}, (known.names[0], key)


@pytest.mark.parametrize("known", KNOWN_NAMES, ids=lambda known: known.names[0])
def test_the_example_of_every_answer_loads_and_sets_its_key(known):
    assert bool(known.keys) == bool(known.example)
    values = copy.deepcopy(RECIPE)
    for override in known.example:
        if override.startswith("data.domains"):
            values["data"].pop("synthetic", None)
        if override.startswith("model.name_or_path"):
            values["model"].pop("from_config", None)
        if override.startswith("train.epochs"):
            values["train"].pop("steps", None)
        set_by_dotted_key(values, override)
    parse_config(values)
    given = [override.partition("=")[0] for override in known.example]
    for key in known.keys[:1]:
        parts = re.escape(key).replace("DOMAIN", r"\w+")
        assert any(re.match(parts, name) or key.startswith(f"{name}.") for name in given), (key, given)


def test_every_name_is_in_the_table_once_and_none_is_a_misspelling_of_a_section():
    assert [name for name, count in Counter(NAMES).items() if count > 1] == []
    assert [name for name in NAMES if name in RunConfig.model_fields] == []


def test_a_name_of_ours_is_in_the_table_only_with_the_key_of_that_name():
    for known in KNOWN_NAMES:
        for name in known.names:
            ours = _keys_named(name, RunConfig)
            assert not ours or any(key.startswith(tuple(ours)) for key in known.keys), name


def test_answers_fit_into_a_line_of_a_terminal_or_a_few():
    assert max(len(known.answer()) for known in KNOWN_NAMES) < 330


@given(st.sampled_from(NAMES), st.lists(st.sampled_from(["train", "model", "x"]), max_size=3), st.booleans())
def test_case_dashes_and_sections_do_not_matter(name, sections, is_upper):
    written = ".".join([*sections, name.replace("_", "-")])
    assert name in known_name(written.upper() if is_upper else written).names


@given(st.text(max_size=20))
def test_any_text_has_an_answer_or_none(text):
    known = known_name(text)
    assert known is None or known.answer()
    assert nearest_known_name(text) in {None, *NAMES}
