"""The model with its loss head: losses of packed rows, parameter names, and messages about wrong configs."""

import pytest
import torch
from tiny_models import A, B, C, build_arguments, make_model, pack

from versatune_ds.model import build
from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.model_check import check_losses_are_the_models


def test_packed_examples_have_the_loss_that_transformers_computes_one_by_one():
    model = make_model("llama")
    packed = model(**pack([A, B, C]))
    one_by_one = 0.0
    for tokens in (A, B, C):
        logits = model.causal_lm(input_ids=torch.tensor([tokens])).logits[0, :-1]
        one_by_one += torch.nn.functional.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="sum")
    torch.testing.assert_close(packed.loss_sum, one_by_one, atol=1e-4, rtol=1e-6)
    assert packed.num_loss_tokens_K.tolist() == [len(A) + len(B) + len(C) - 3, 0]


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_names_and_ties_stay_those_of_transformers(tied):
    model = make_model("llama", tie_word_embeddings=tied)
    names = set(model.causal_lm.state_dict())
    assert "lm_head.weight" in names
    weight = model.causal_lm.get_input_embeddings().weight
    assert (model.causal_lm.get_output_embeddings().weight is weight) == tied


def test_a_misspelt_model_key_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"^model\.from_config\.hiden_size: unknown to llama; did you mean 'hidden"):
        make_model("llama", hiden_size=3)
    with pytest.raises(ValueError, match=r"^model\.from_config\.model_type: 'lama' is not known"):
        make_model("lama")


def test_a_tokenizer_larger_than_the_models_embeddings_is_refused():
    with pytest.raises(ValueError, match=r"^model\.tokenizer: 61 token ids, but the model has 50 embeddings"):
        make_model("llama", vocab_size=50)


def test_an_attention_that_the_model_does_not_support_is_refused_with_an_alternative(monkeypatch):
    def refuse(*_, **__):  # which models transformers refuses it for depends on its version
        raise ValueError("Gemma2ForCausalLM does not support this attention implementation")

    monkeypatch.setattr(build, "_make", refuse)
    with pytest.raises(ValueError, match=r"^model\.attention: sdpa is not supported here; use eager"):
        make_model("gemma2")


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "mistral", "gemma"])
def test_models_whose_losses_are_computed_correctly_pass_the_check(model_type):
    check_losses_are_the_models(build_causal_lm(**build_arguments(model_type)))


def test_a_model_that_scales_its_logits_outside_its_head_is_refused():
    with pytest.raises(ValueError, match="scales its logits outside its head"):
        check_losses_are_the_models(build_causal_lm(**build_arguments("cohere", logit_scale=0.0625)))


def test_a_model_that_ignores_positions_is_refused():
    arguments = build_arguments("mamba", attention="eager", num_attention_heads=None, num_key_value_heads=None)
    with pytest.raises(ValueError, match="lets the examples of a packed row see each other"):
        check_losses_are_the_models(build_causal_lm(**arguments))
