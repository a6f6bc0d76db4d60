"""Weights in 4 bits: their size to the byte, what stays unquantised, what is refused."""

import json

import pytest
import torch
from pydantic import ValidationError
from tiny_models import build_arguments

from versatune_ds.config import LoraConfig, ModelConfig
from versatune_ds.engine.deepspeed_quirks import full_shape
from versatune_ds.engine.ds_checks import check_model_settings
from versatune_ds.model import four_bit
from versatune_ds.model.build import build_causal_lm, save_model_settings
from versatune_ds.model.domain_model import DomainModel
from versatune_ds.model.four_bit import describe_four_bit, four_bit_bytes, quantisable_sizes

REASON = "needs bitsandbytes: pip install -e '.[qlora]'"


@pytest.fixture
def base(tmp_path):
    build_causal_lm(**build_arguments("llama", tie_word_embeddings=False)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(base, precision="fp32", *, in_4bit=True, reads_weights=True):
    model = ModelConfig(name_or_path=str(base), lora=LoraConfig(rank=2), load_in_4bit=in_4bit)
    torch.manual_seed(0)
    return build_causal_lm(
        model, precision=precision, vocab_size=10, special_ids={}, reads_weights=reads_weights
    ).eval()  # fmt: skip


def test_the_worked_example_of_the_size_of_a_layer():
    assert four_bit_bytes(2**20) == 524_288 + 16_384 + 4 * 64 + 1_088
    assert four_bit_bytes(1) == 0.5 + 1 + 4 + 1_088


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_linear_layers_are_in_4_bits_and_the_rest_is_in_the_precision_of_training(base, precision):
    pytest.importorskip("bitsandbytes", reason=REASON)
    causal_lm = load(base, precision)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    packed = {name: part for name, part in causal_lm.named_parameters() if hasattr(part, "quant_state")}
    assert all(name.endswith("_proj.base_layer.weight") for name in packed)
    assert not any(part.requires_grad for part in packed.values())
    others = [part for name, part in causal_lm.named_parameters() if name not in packed and ".lora_" not in name]
    assert {part.dtype for part in others} == {dtype}
    assert causal_lm.lm_head.weight.dtype == dtype
    # The estimate counts the same weights, and their bytes, without loading them.
    sizes = quantisable_sizes(load(base, precision, reads_weights=False))
    assert sorted(sizes) == sorted(full_shape(part).numel() for part in packed.values())
    for part in packed.values():
        state = part.quant_state
        stored = [part, state.absmax, state.code, state.state2.absmax, state.state2.code]
        expected = four_bit_bytes(state.shape.numel())
        assert sum(tensor.nbytes for tensor in stored) == pytest.approx(expected, abs=1)
    assert f"{len(packed)} linear layers in 4 bits" in describe_four_bit(causal_lm)


def test_the_loss_head_gives_the_losses_of_the_quantised_model(base):
    pytest.importorskip("bitsandbytes", reason=REASON)
    causal_lm, plain = load(base), load(base, in_4bit=False)
    ids = torch.arange(3, 11)[None]
    logits = causal_lm(ids).logits
    assert (logits - plain(ids).logits).abs().max() > 1e-3  # it is quantised
    labels = ids.roll(-1, 1)
    labels[0, -1] = -100
    expected = torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="sum")
    packed = {"positions": torch.arange(8)[None], "domain_ids": torch.zeros_like(ids)}
    model = DomainModel(causal_lm, num_domains=1)
    losses = model(input_ids=ids, labels=labels, **packed)
    torch.testing.assert_close(losses.loss_sum, expected, atol=1e-5, rtol=1e-5)
    losses.loss_sum.backward()
    assert {name for name, part in model.named_parameters() if part.grad is not None} == {
        name for name, part in model.named_parameters() if ".lora_" in name
    }


def test_a_runs_folder_describes_the_model_without_its_quantisation(base, tmp_path):
    pytest.importorskip("bitsandbytes", reason=REASON)
    causal_lm = load(base)
    save_model_settings(causal_lm, tmp_path / "model")
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())
    assert causal_lm.config.quantization_config is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name_or_path": "x"}, "weights in 4 bits cannot be trained; add model.lora=true, or leave it out"),
        ({"from_config": {"model_type": "llama"}, "lora": {}}, r"needs a saved model \(model.name_or_path\), not "),
    ],
)
def test_what_cannot_be_trained_in_4_bits_is_refused(settings, message):
    with pytest.raises(ValidationError, match=f"model.load_in_4bit: {message}"):
        ModelConfig(load_in_4bit=True, **settings)


def test_a_recipe_without_the_key_is_written_as_before():
    assert "load_in_4bit" not in ModelConfig(name_or_path="x", lora={}).model_dump()
    assert ModelConfig(name_or_path="x", lora={}, load_in_4bit=True).model_dump()["load_in_4bit"] is True


def test_stage_3_is_refused_in_one_sentence():
    model = ModelConfig(name_or_path="x", lora={}, load_in_4bit=True)
    with pytest.raises(ValueError, match=r"^model.load_in_4bit: not supported under ZeRO stage 3, .*=zero1\)$"):
        check_model_settings(model, {"zero_optimization": {"stage": 3}})
    check_model_settings(model, {"zero_optimization": {"stage": 2}})


def test_a_missing_library_is_answered_with_the_extra_to_install(base, monkeypatch):
    monkeypatch.setattr(four_bit, "find_spec", lambda name: None if name == "bitsandbytes" else object())
    with pytest.raises(ValueError, match=r"^model.load_in_4bit: needs bitsandbytes; pip install -e '\.\[qlora\]'$"):
        load(base)


def test_a_model_that_is_quantised_already_is_refused(base, monkeypatch):
    monkeypatch.setattr(four_bit, "find_spec", lambda name: object())
    config = json.loads((base / "config.json").read_text())
    quantised = {**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (base / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(
        ValueError, match=r"^model.load_in_4bit: the weights of .*base are quantised already .* made from$"
    ):
        load(base)
