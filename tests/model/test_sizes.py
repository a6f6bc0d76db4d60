"""Sizes are read from a config under every name that transformers' models use; positions are checked."""

import pytest
import torch
from tiny_models import A, B, C, build_arguments, make_model, pack
from transformers import AutoConfig

from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.sizes import check_positions, num_learned_positions, sizes_of

NONE = dict.fromkeys(
    ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
)
GPT2 = {**NONE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
OPT = {"num_key_value_heads": None, "intermediate_size": None, "ffn_dim": 48, "max_position_embeddings": 16,
       "word_embed_proj_dim": 32}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "keys", "expected"),
    [
        ("llama", {"max_position_embeddings": 99}, (99, None, None)),
        ("gpt2", {"n_positions": 99}, (99, None, None)),
        ("gptj", {"n_positions": 99}, (99, None, None)),
        ("qwen3", {"max_position_embeddings": 99}, (99, None, None)),
        ("mpt", {"max_seq_len": 99}, (99, None, None)),
        ("mixtral", {"num_local_experts": 6, "num_experts_per_tok": 3}, (131072, 6, 3)),
        ("qwen2_moe", {"num_experts": 6, "num_experts_per_tok": 3}, (32768, 6, 3)),
        ("glm4_moe", {"n_routed_experts": 6, "num_experts_per_tok": 3}, (131072, 6, 3)),
        ("dbrx", {"ffn_config": {"moe_num_experts": 6, "moe_top_k": 3}}, (2048, 6, 3)),
    ],
)
def test_a_size_is_read_under_each_of_its_names(model_type, keys, expected):
    sizes = sizes_of(AutoConfig.for_model(model_type, **keys))
    assert (sizes.max_positions, sizes.num_experts, sizes.num_experts_per_token) == expected


@pytest.mark.parametrize(
    ("model_type", "keys", "expected"),
    [
        ("llama", {"hidden_size": 64, "num_attention_heads": 4}, 16),
        ("gpt2", {"n_embd": 64, "n_head": 4}, 16),
        ("mpt", {"d_model": 64, "n_heads": 4}, 16),
        ("qwen3", {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32}, 32),
    ],
)
def test_the_size_of_a_head_is_stated_or_follows_from_the_number_of_heads(model_type, keys, expected):
    assert sizes_of(AutoConfig.for_model(model_type, **keys)).head_dim == expected


def test_a_model_of_several_parts_has_the_sizes_of_its_text_model():
    config = AutoConfig.for_model("gemma3", text_config={"vocab_size": 77, "max_position_embeddings": 99})
    sizes = sizes_of(config)
    assert (sizes.vocabulary, sizes.max_positions) == (77, 99)


def build(model_type, **keys):
    return build_causal_lm(**build_arguments(model_type, **keys))


@pytest.mark.parametrize(
    ("model_type", "keys", "expected"),
    [
        ("gpt2", GPT2, 16),
        ("opt", OPT, 16),
        ("gpt_neo", {**NONE, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
                     "attention_types": [[["global"], 2]], "max_position_embeddings": 16}, 16),
        ("gptj", {**GPT2, "rotary_dim": 4}, 16),
        ("llama", {"max_position_embeddings": 16}, None),
        ("qwen3", {"max_position_embeddings": 16}, None),
    ],
)  # fmt: skip
def test_learned_positions_are_counted_and_computed_ones_are_none(model_type, keys, expected):
    attention = "eager" if model_type in ("gptj", "gpt_neo") else "sdpa"
    assert num_learned_positions(build(model_type, attention=attention, **keys)) == expected


def test_an_example_longer_than_learned_positions_is_refused_and_than_computed_ones_logged(caplog):
    learned, computed = build("gpt2", **GPT2), build("llama", max_position_embeddings=16)
    for model in (learned, computed):
        check_positions(model, longest=16)
    assert not caplog.text
    with pytest.raises(ValueError, match=r"^data\.row_tokens: the longest example has 17 tokens, but the model has "
                                         r"learned 16 positions .*; set data\.row_tokens=16 or less$"):  # fmt: skip
        check_positions(learned, longest=17)
    check_positions(computed, longest=17)
    assert "the longest example has 17 tokens, but the model was made for 16" in caplog.text


def test_a_row_longer_than_the_positions_has_the_losses_of_its_examples_alone():
    """Sixteen positions, a row of 48: its padding alone is longer than that."""
    model = make_model("gpt2", **GPT2).eval()
    row = pack([A, B, C], row_tokens=48)
    with torch.no_grad():
        found = model(**row, per_token=True).loss_sum
        alone = sum(model(**pack([tokens], row_tokens=12)).loss_sum for tokens in (A, B, C))
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-6)
