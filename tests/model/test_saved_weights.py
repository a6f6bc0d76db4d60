"""A model whose files have missing or unexpected weights is refused with their number and names."""

import json
import logging

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file, save_file
from tiny_models import SPECIAL_IDS, VOCAB, build_arguments
from transformers import LlamaForSequenceClassification

from versatune_ds.config import ModelConfig, TrainConfig
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.engine.engine import share_process_group
from versatune_ds.model.build import build_causal_lm, check_model_weights
from versatune_ds.model.named_model import check_saved_model

MIXTRAL = {"num_local_experts": 3, "num_experts_per_tok": 2}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, **dict.fromkeys(SIZES)}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}


def save(folder, model_type="llama", *, change=lambda weights: weights, **keys):
    """Save a small model whose weights went through `change`."""
    build_causal_lm(**build_arguments(model_type, **keys)).save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return folder


def load(folder, **settings):
    model = ModelConfig(name_or_path=str(folder), **settings)
    return build_causal_lm(model, precision="fp32", vocab_size=VOCAB, special_ids=SPECIAL_IDS)


def without(part):
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


def renamed(weights):
    return {name.replace("model.", "transformer."): weight for name, weight in weights.items()}


def with_one(name, *shape):
    return lambda weights: {**weights, name: torch.zeros(shape)}


FAULTS = {
    "layer missing": ("llama", {}, without(".layers.1."), r"9 missing \(model\.layers\.1\.input_layernorm\.weight, "),
    "renamed": ("llama", TIED, renamed, r"20 missing \(.*\), 20 unexpected \(transformer\.emb"),
    "head missing": ("llama", UNTIED, without("lm_head"), r": 1 missing \(lm_head\.weight\);"),
    "layer too many": ("llama", {}, with_one("model.layers.2.mlp.up_proj.weight", 48, 32), r": 1 unexpected \(model"),
    "other shape": ("llama", {}, with_one("model.norm.weight", 16), r"1 of another shape \(model\.norm\.weight \[16\]"),
    "bias": ("qwen2", {}, without("q_proj.bias"), r": 2 missing \(model\.layers\.0\.self_attn\.q_proj\.bias, "),
    "expert missing": ("mixtral", MIXTRAL, without("1.block_sparse_moe.experts.2."), r"model\.layers\.1\.mlp\.exp"),
    "learned positions": ("gpt2", GPT2, without("wpe"), r": 1 missing \(transformer\.wpe\.weight\);"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_weights_that_do_not_fit_the_config_are_refused_before_and_while_loading(name, tmp_path, caplog):
    model_type, keys, change, message = FAULTS[name]
    folder = save(tmp_path / "model", model_type, change=change, **keys)
    for check in (load, lambda folder: check_model_weights(ModelConfig(name_or_path=str(folder)))):
        with pytest.raises(ValueError, match=message) as error:
            check(folder)
        assert str(error.value).startswith(f"model.name_or_path: {folder}: its weights are not those of ")
        assert len(str(error.value).splitlines()) == 1
    assert "LOAD REPORT" not in caplog.text


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("model_type", "keys"),
    [("llama", {}), ("mixtral", MIXTRAL), ("gpt2", GPT2), ("qwen3", {}), ("gemma2", {"head_dim": 8})],
)
def test_complete_files_load_without_warnings(model_type, keys, tied, tmp_path, caplog):
    attention = "eager" if model_type == "gemma2" else "sdpa"
    folder = save(tmp_path / "model", model_type, attention=attention, tie_word_embeddings=tied, **keys)
    with caplog.at_level(logging.WARNING):
        load(folder, attention=attention)
        assert check_model_weights(ModelConfig(name_or_path=str(folder)))
    assert not [record for record in caplog.records if record.name.startswith("versatune")]


def test_files_with_buffers_that_the_model_computes_itself_are_loaded(tmp_path):
    change = with_one("model.layers.0.self_attn.rotary_emb.inv_freq", 4)
    assert load(save(tmp_path / "model", change=change)) is not None


def test_a_reward_head_beside_a_complete_model_is_not_loaded_and_is_logged(tmp_path, caplog):
    folder = save(tmp_path / "model", change=with_one("score.weight", 1, 32))
    load(folder)
    assert "1 of its weights belong to another head and are not loaded: score.weight" in caplog.text


def test_a_reward_model_given_as_a_language_model_is_refused(tmp_path):
    config = build_causal_lm(**build_arguments("llama", tie_word_embeddings=False)).config
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r": 1 missing \(lm_head\.weight\);"):
        load(tmp_path)


def test_a_missing_shard_and_a_truncated_one_are_reported(tmp_path):
    build_causal_lm(**build_arguments("llama")).save_pretrained(tmp_path, max_shard_size="10KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shard = tmp_path / sorted(set(index["weight_map"].values()))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:100])
    with pytest.raises(ValueError, match=rf"cannot read {shard.name}: .*; copy it again$"):
        load(tmp_path)
    shard.unlink()
    with pytest.raises(ValueError, match=rf"model\.safetensors\.index\.json lists {shard.name}, which is missing"):
        load(tmp_path)
    shard.write_bytes(content)
    load(tmp_path)


def test_files_of_pickled_tensors_are_checked_too(tmp_path):
    folder = save(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    load(folder)
    torch.save(without("layers.1")(weights), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r": 9 missing \("):
        load(folder)


@pytest.mark.parametrize("name", ["renamed", "layer too many"])
def test_a_zero_3_model_is_checked_with_the_same_result_on_every_rank(name, tmp_path):
    """Transformers' loader for ZeRO-3 does not report unexpected weights."""
    model_type, keys, change, message = FAULTS[name]
    folder = save(tmp_path / "model", model_type, change=change, **keys)

    def refused(world):
        share_process_group()
        train = TrainConfig(steps=1, rows_per_batch=2, precision="fp32", deepspeed={"zero_optimization": {"stage": 3}})
        with pytest.raises(ValueError, match=message):
            build_causal_lm(
                ModelConfig(name_or_path=str(folder)), precision="fp32", vocab_size=VOCAB, special_ids=SPECIAL_IDS,
                zero3_config=deepspeed_config(train, world_size=world.world_size),
            )  # fmt: skip
        return True

    (tmp_path / "ranks").mkdir()
    assert run_ranks(refused, world_size=2, folder=tmp_path / "ranks") == [True, True]


def test_adapters_given_as_a_model_are_refused_with_instructions_for_merging(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "a/base", "peft_type": "LORA"}')
    message = r"^model\.name_or_path: .* contains adapters \(adapter_config\.json\), not a model; merge .*`versatune"
    with pytest.raises(ValueError, match=message):
        check_saved_model(ModelConfig(name_or_path=str(tmp_path)))
    save(tmp_path)  # beside the files of a model too: it is unclear which of the two is meant
    with pytest.raises(ValueError, match=message):
        load(tmp_path, tokenizer="another/one")
