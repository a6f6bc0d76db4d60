"""The model with its loss head: losses of packed rows, parameter names, and messages about wrong configs."""

from types import SimpleNamespace

import pytest
import torch
from tiny_models import SPECIAL_IDS, VOCAB, A, B, C, build_arguments, make_model, pack
from transformers import AutoModelForCausalLM

from versatune_ds.config import ModelConfig
from versatune_ds.model import build
from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.model_check import check_losses_are_the_models
from versatune_ds.training import model_engine


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
    with pytest.raises(ValueError, match=r"^model\.attention: sdpa is not supported here .*; use eager"):
        make_model("gemma2")


def test_an_unknown_model_key_about_flash_attention_is_not_taken_for_an_attention_that_cannot_work():
    with pytest.raises(ValueError, match=r"^model\.from_config\.use_flash_attn: unknown to llama"):
        make_model("llama", use_flash_attn=True)


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


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_on_a_cpu_random_weights_are_those_that_transformers_makes(device):
    ours = build_causal_lm(**build_arguments("llama"), device=device)
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(ours.config)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_random_weights_are_made_on_the_device():
    """The meta device stands in for a GPU."""
    made = build_causal_lm(**build_arguments("llama"), device=torch.device("meta"))
    assert {part.device.type for part in (*made.parameters(), *made.buffers())} == {"meta"}


def load_recording(monkeypatch, folder, *, has_accelerate=True, **arguments):
    """Load a saved model as onto a GPU, though to the CPU, and return where it was to be loaded."""
    places, load = [], AutoModelForCausalLM.from_pretrained

    def from_pretrained(name, *, device_map=None, **settings):
        places.append(device_map)
        return load(name, **settings)

    monkeypatch.setattr(build.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(build, "find_spec", lambda name: "installed" if has_accelerate else None)
    model = ModelConfig(name_or_path=str(folder))
    build_causal_lm(model, precision="fp32", vocab_size=VOCAB, special_ids=SPECIAL_IDS, **arguments)
    return places


def test_a_saved_model_is_read_straight_to_a_gpu_and_on_a_cpu_as_before(monkeypatch, tmp_path, caplog):
    build_causal_lm(**build_arguments("llama")).save_pretrained(tmp_path)
    gpu = torch.device("cuda", 1)
    assert load_recording(monkeypatch, tmp_path, device=gpu) == [{"": gpu}]
    assert load_recording(monkeypatch, tmp_path, device=torch.device("cpu")) == [None]
    with caplog.at_level("INFO", logger="versatune_ds"):
        assert load_recording(monkeypatch, tmp_path, device=gpu, has_accelerate=False) == [None]
    assert caplog.messages == [
        "the model is loaded through the host's memory; pip install accelerate loads it straight to a GPU"
    ]


class Tokenizer:
    """Stand in for a tokenizer: its size and special ids."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __len__(self):
        return VOCAB


@pytest.mark.parametrize(
    ("zero", "expected"),
    [({"stage": 2}, "cuda"), ({"stage": 3}, "cuda"), ({"stage": 3, "offload_param": {"device": "cpu"}}, None)],
)
def test_a_run_makes_its_model_on_its_device_unless_parameters_are_offloaded(monkeypatch, zero, expected):
    monkeypatch.setattr(model_engine, "share_process_group", lambda: None)
    monkeypatch.setattr(model_engine, "build_causal_lm", lambda model, **settings: settings["device"])
    config = SimpleNamespace(run=SimpleNamespace(seed=1), model=None, train=SimpleNamespace(precision="bf16"))
    setup = SimpleNamespace(
        config=config, tokenizer=Tokenizer(), ds_config={"zero_optimization": zero}, zero_stage=zero["stage"],
        device=torch.device("cuda"),
    )  # fmt: skip
    device = model_engine.build_model(setup)
    assert (None if device is None else device.type) == expected
