"""Recipes for real models start on the GPUs that they are written for, and need the memory that they state.

The models are their published shapes without weights, with a small tokenizer.
"""

import re
from pathlib import Path

import pytest
from chat_data import tiny_tokenizer
from transformers import CONFIG_MAPPING

from versatune_ds.config import load_config
from versatune_ds.model import four_bit
from versatune_ds.preflight import capacity
from versatune_ds.preflight.capacity import check_memory
from versatune_ds.preflight.memory_estimate import measure_model
from versatune_ds.preflight.pretrained import check_pretrained
from versatune_ds.preflight.subject import CheckRequest, Subject
from versatune_ds.training.start_checks import START_CHECKS

LLAMA_3 = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 131072}
QWEN_2 = {"model_type": "qwen2", "vocab_size": 152064, "max_position_embeddings": 32768}
SHAPES = {
    "meta-llama/Llama-3.2-1B-Instruct": LLAMA_3
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    | {"tie_word_embeddings": True},
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA_3
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "meta-llama/Llama-3.3-70B-Instruct": LLAMA_3
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "Qwen/Qwen2.5-7B-Instruct": QWEN_2
    | {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    | {"num_key_value_heads": 4},
    "Qwen/Qwen2.5-14B-Instruct": QWEN_2
    | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40}
    | {"num_key_value_heads": 8},
    "Qwen/Qwen3-1.7B": {"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144}
    | {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    | {"max_position_embeddings": 40960, "tie_word_embeddings": True},
}
RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "models").glob("*.yaml"))
QUICK = ("llama-3.2-1b", "qwen3-1.7b")
CASES = [pytest.param(p, marks=[] if p.stem in QUICK else [pytest.mark.slow], id=p.stem) for p in RECIPES]
STATED = re.compile(r"--gpus-per-node (\d+) --gpu-memory (\d+)`: about ([\d.]+) GiB")


def saved_shape(folder, name):
    """Write a model's config and a small tokenizer; return the folder."""
    CONFIG_MAPPING[SHAPES[name]["model_type"]](**SHAPES[name]).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def subject_of(recipe, folder, *overrides, gpus=1, gib=80.0):
    """Return a recipe on the built-in corpus, with a model that lies in a folder."""
    keys = (f"model.name_or_path={folder}", "data.folder=null", "data.synthetic={}", f"run.output_dir={folder}/runs")
    request = CheckRequest(gpus_per_node=gpus, gpu_memory_gib=gib)
    return Subject(load_config(recipe, [*keys, *overrides]), request, num_gpus_here=0)


@pytest.fixture
def measured_once(monkeypatch):
    """Measure a model with its recipe's gradient checkpointing alone: the other way takes half the time."""
    found = {}

    def measure(config, *, is_checkpointed, **settings):
        if not found:
            is_chosen = config.model.gradient_checkpointing
            found["it"] = measure_model(config, is_checkpointed=is_chosen, **settings)
        return found["it"]

    monkeypatch.setattr(capacity, "measure_model", measure)


@pytest.mark.usefixtures("measured_once")
@pytest.mark.parametrize("recipe", CASES)
def test_a_recipe_of_a_real_model_starts_and_fits_as_it_says(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(four_bit, "find_spec", lambda library: library)  # the estimate needs no bitsandbytes
    gpus, gib, stated = STATED.search(recipe.read_text()).groups()
    folder = saved_shape(tmp_path / "model", load_config(recipe).model.name_or_path)
    subject = subject_of(recipe, folder, gpus=int(gpus), gib=float(gib))
    for check in START_CHECKS:
        if "check" in check.stages and check.needs in ("nothing", "model config"):
            assert [finding for finding in check.find(subject.start) or () if finding.level != "ok"] == []
    *_, memory = check_memory(subject)
    assert (memory.level, memory.found.split(" of them")[0]) == ("ok", f"about {stated} GiB a GPU (1")
    assert list(check_pretrained(subject)) == []


def test_settings_of_random_weights_are_noticed_on_a_pretrained_model(tmp_path):
    folder = saved_shape(tmp_path / "model", "meta-llama/Llama-3.2-1B-Instruct")
    recipe = next(path for path in RECIPES if path.stem == "llama-3.2-1b")
    scratch = ("train.learning_rate=2e-3", "mixture.reference={start_fraction: 0.03}")
    rate, fraction = check_pretrained(subject_of(recipe, folder, *scratch))
    assert (rate.level, rate.key, rate.found) == (
        "warn", "train.learning_rate", "0.002 is high for all weights of a pretrained model"
    )  # fmt: skip
    assert (fraction.key, fraction.todo) == (
        "mixture.reference.start_fraction", "measure references (versatune reference), or use 0.85"
    )  # fmt: skip
    # Adapters take a higher rate, and a rule without references does not read the fraction.
    adapters = ("train.learning_rate=5e-4", "model.lora={}")
    assert list(check_pretrained(subject_of(recipe, folder, *adapters))) == []
    uniform = ("mixture.policy=uniform", "mixture.reference={start_fraction: 0.03}")
    assert list(check_pretrained(subject_of(recipe, folder, *uniform))) == []
