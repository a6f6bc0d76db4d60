"""Freezing and LoRA: adapters start without effect, merge into plain weights, and keep the loss correct."""

import peft
import pytest
import torch
from tiny_models import A, B, C, build_arguments, pack, token_losses

from versatune_ds.config import LoraConfig, ModelConfig
from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.domain_model import DomainModel, compile_layers
from versatune_ds.model.trainable_parameters import merged_weights, save_adapters


def build(model_type="llama", *, tied=False, **settings):
    """Return a small model; its weights do not depend on what is trained."""
    arguments = build_arguments(model_type, tie_word_embeddings=tied)
    return build_causal_lm(**{**arguments, "model": arguments["model"].model_copy(update=settings)})


def with_nonzero_adapters(**lora):
    """Return a model whose adapters are not zero, as after some training."""
    causal_lm = build(lora=LoraConfig(rank=4, **lora))
    for name, parameter in causal_lm.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=float("magnitude" in name), std=0.1)
    return causal_lm.eval()


def trained_names(causal_lm):
    return {name for name, parameter in causal_lm.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"use_rslora": True, "target_modules": "q_proj"}])
def test_adapters_start_without_effect_and_only_they_are_trained(lora):
    plain, adapted = build().eval(), build(lora=LoraConfig(rank=4, **lora)).eval()
    ids = torch.tensor([A])
    torch.testing.assert_close(adapted(ids).logits, plain(ids).logits, atol=1e-6, rtol=1e-5)
    names = trained_names(adapted)
    assert names
    assert all(".lora_" in name for name in names)
    assert not any("lm_head" in name for name in names)
    assert all("q_proj" in name for name in names) == ("target_modules" in lora)


@pytest.mark.parametrize("use_dora", [False, True])
def test_merged_weights_give_the_same_logits_in_a_plain_model(use_dora):
    causal_lm, ids = with_nonzero_adapters(use_dora=use_dora), torch.tensor([A])
    before = causal_lm(ids).logits
    assert not torch.allclose(before, build().eval()(ids).logits, atol=1e-3)
    on_disk = {name: weight.clone() for name, weight in causal_lm.state_dict().items()}
    weights = merged_weights(causal_lm.to("meta"), on_disk)
    merged = build().eval()
    merged.load_state_dict({name: weight.contiguous() for name, weight in weights.items()})
    torch.testing.assert_close(merged(ids).logits, before, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("target_modules", [None, ["c_attn"], ["attn.c_proj", "c_fc"]])
@pytest.mark.parametrize("use_dora", [False, True])
def test_gpt2s_linear_layers_get_adapters_that_merge(target_modules, use_dora):
    """Their weights are transposed (Conv1D)."""
    other = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    arguments = build_arguments("gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=32, **dict.fromkeys(other))
    lora = LoraConfig(rank=4, target_modules=target_modules, use_dora=use_dora)
    plain = build_causal_lm(**arguments).eval()
    causal_lm = build_causal_lm(**{**arguments, "model": arguments["model"].model_copy(update={"lora": lora})}).eval()
    expected = (
        {"c_attn", "c_proj", "c_fc"} if target_modules is None else {name[-6:].strip(".") for name in target_modules}
    )
    assert {name.partition(".lora_")[0].rpartition(".")[2] for name in trained_names(causal_lm)} == expected
    for name, parameter in causal_lm.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=float("magnitude" in name), std=0.1)
    before = causal_lm(torch.tensor([A])).logits
    assert not torch.allclose(before, plain(torch.tensor([A])).logits, atol=1e-3)
    on_disk = {name: weight.clone() for name, weight in causal_lm.state_dict().items()}
    weights = merged_weights(causal_lm.to("meta"), on_disk)
    plain.load_state_dict({name: weight.contiguous() for name, weight in weights.items()}, strict=False)
    torch.testing.assert_close(plain(torch.tensor([A])).logits, before, atol=2e-6, rtol=1e-5)


def test_peft_loads_the_saved_adapters(tmp_path):
    causal_lm, ids = with_nonzero_adapters(), torch.tensor([A])
    save_adapters(causal_lm, tmp_path / "adapters", base_model="a/base")
    reloaded = peft.PeftModel.from_pretrained(build(), tmp_path / "adapters").eval()
    assert torch.equal(reloaded(ids).logits, causal_lm(ids).logits)


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_with_adapters_has_the_loss_and_gradients_of_transformers(tied):
    """Ours against transformers' logits and torch's cross entropy, to 1e-6 relative in fp32."""
    causal_lm = build(tied=tied, lora=LoraConfig(rank=4))
    adapters = [parameter for parameter in causal_lm.parameters() if parameter.requires_grad]
    expected = sum(
        torch.nn.functional.cross_entropy(
            causal_lm(torch.tensor([tokens])).logits[0, :-1], torch.tensor(tokens[1:]), reduction="sum"
        )
        for tokens in (A, B, C)
    )
    expected_gradients = torch.autograd.grad(expected, adapters)
    found = DomainModel(causal_lm, num_domains=2)(**pack([A, B, C])).loss_sum
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)
    for gradient, other in zip(torch.autograd.grad(found, adapters), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, atol=2e-6, rtol=1e-4)
    head = causal_lm.get_output_embeddings()
    assert (head.weight is causal_lm.get_input_embeddings().weight) == tied


def test_packed_examples_with_adapters_do_not_see_each_other():
    model = DomainModel(with_nonzero_adapters(), num_domains=2)
    alone, packed = token_losses(model, [B])[: len(B)], token_losses(model, [A, B, C])[len(A) : len(A) + len(B)]
    torch.testing.assert_close(packed, alone, atol=2e-6, rtol=1e-5)


def test_parameters_that_match_a_pattern_are_frozen_and_the_others_are_not():
    causal_lm = build(freeze=("model.embed_tokens.*", "*norm.weight"))
    frozen = {name for name, _ in causal_lm.named_parameters()} - trained_names(causal_lm)
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= frozen
    assert all("embed" in name or "norm" in name for name in frozen)


def test_a_tied_weight_is_frozen_under_either_of_its_names():
    for pattern in ("lm_head.weight", "model.embed_tokens.weight"):
        assert not build(tied=True, freeze=(pattern,)).get_input_embeddings().weight.requires_grad


def test_a_frozen_head_passes_the_same_gradients_to_hidden_states():
    losses, gradients = [], []
    for freeze in ((), ("lm_head.weight",)):
        model = DomainModel(build(freeze=freeze), num_domains=2)
        losses.append(model(**pack([A, B])).loss_sum)
        losses[-1].backward()
        gradients.append(model.causal_lm.get_input_embeddings().weight.grad)
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(gradients[0], gradients[1])
    assert model.causal_lm.get_output_embeddings().weight.grad is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": ("model.embed_token.weight",)},
         r"^model\.freeze: 'model\.embed_token\.weight' matches no parameter; did you mean 'model\.embed_tok"),
        ({"freeze": ("*",)}, r"^model\.freeze: \* freeze every parameter; leave some to train$"),
        ({"lora": LoraConfig(target_modules=("q_proj", "v_porj"))},
         r"^model\.lora\.target_modules: 'v_porj' matches no linear layer; did you mean 'v_proj'"),
        ({"lora": LoraConfig(target_modules=("q_proj", "lm_head"))},
         r"^model\.lora\.target_modules: 'lm_head' is the head, .* leave it out$"),
    ],
)  # fmt: skip
def test_a_name_that_cannot_be_used_is_refused_with_the_nearest_one_or_the_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_freezing_beside_adapters_and_an_empty_list_of_layers_are_refused():
    origin = {"from_config": {"model_type": "llama"}}
    with pytest.raises(ValueError, match=r"model\.freeze: model\.lora freezes everything but the adapters"):
        ModelConfig(**origin, lora={}, freeze=("lm_head.weight",))
    with pytest.raises(ValueError, match=r"model\.lora\.target_modules: expected names such as"):
        ModelConfig(**origin, lora={"target_modules": []})


@pytest.mark.slow
def test_compiled_layers_give_the_same_loss_and_gradients_under_adapters_and_checkpointing():
    """To 1e-5 in fp32; compiling rearranges sums."""
    causal_lm = build(lora=LoraConfig(rank=4), gradient_checkpointing=True).train()
    names = list(causal_lm.state_dict())
    model = DomainModel(causal_lm, num_domains=2)
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = model(**pack([A, B, C])).loss_sum
    expected_gradients = torch.autograd.grad(expected, adapters)
    compile_layers(causal_lm)
    found = model(**pack([A, B, C])).loss_sum
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)
    for gradient, other in zip(torch.autograd.grad(found, adapters), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-4)
    assert list(causal_lm.state_dict()) == names
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
