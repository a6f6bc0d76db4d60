"""Which attention is chosen, and why."""

import dataclasses

import pytest
from tiny_models import build_arguments
from tiny_run import tiny_config
from varlen_stand_in import H100

from versatune_ds.model.attention import varlen_parameters
from versatune_ds.model.attention_choice import (
    AttentionNeeds,
    attention_needs,
    check_attention_device,
    choose_attention,
    machine_here,
    machine_of,
)
from versatune_ds.model.build import build_causal_lm

LLAMA = AttentionNeeds(head_dim=128, supports=frozenset({"sdpa", "flash", "flex", "lengths"}))
CPU = dataclasses.replace(H100, device_type="cpu", capability=None)
ALL = frozenset({"flash_attention_2", "flash_attention_3", "triton", "kernels"})


def on(**machine):
    return dataclasses.replace(H100, **machine)


def asks(**needs):
    return dataclasses.replace(LLAMA, **needs)


@pytest.mark.parametrize(
    ("needs", "machine", "name", "reason"),
    [
        (LLAMA, CPU, "sdpa", "on a CPU"),
        (asks(supports=frozenset({"flash"})), CPU, "eager", "on a CPU; no sdpa: the model does not support it"),
        (LLAMA, H100, "varlen", "the fastest; no mask, no package"),
        (LLAMA, on(packages=ALL), "varlen", "the fastest"),
        (LLAMA, on(capability=None), "varlen", "the fastest"),
        (asks(has_window=True), H100, "varlen", "the fastest"),
        (LLAMA, on(precision="fp32", packages=ALL), "flex_attention", "no varlen: needs bf16 or fp16, not fp32"),
        (LLAMA, on(precision="fp32"), "sdpa", "no flex_attention: needs Triton"),
        (
            LLAMA,
            on(capability=(7, 5), packages=ALL),
            "flex_attention",
            "capability 8.0, this GPU has 7.5",
        ),
        (LLAMA, on(varlen=frozenset(), packages=ALL), "flash_attention_3", "no varlen: needs torch 2.10 or newer"),
        (LLAMA, on(varlen=frozenset(), packages=ALL, capability=(10, 0)), "flash_attention_2", "capability 8 and 9"),
        (asks(has_window=True), on(varlen=frozenset({"is_causal"})), "sdpa", "sliding windows need torch 2.11"),
        (asks(has_softcap=True), on(packages=ALL), "flash_attention_3", "cannot bound scores"),
        (asks(has_sinks=True), on(packages=ALL), "flex_attention", "no flash_attention_2: has no attention sinks"),
        (asks(dropout=0.1), on(packages=ALL), "flash_attention_2", "no varlen: has no dropout, and the model's is 0.1"),
        (asks(dropout=0.1), on(packages=frozenset({"triton"})), "sdpa", "no flex_attention: has no dropout"),
        (asks(head_dim=100), on(packages=ALL), "flash_attention_3", "heads of a multiple of 8, here 100"),
        (asks(head_dim=512), on(packages=ALL), "flex_attention", "heads of at most 256, here 512"),
        (asks(is_causal=False), on(packages=ALL), "flex_attention", "the model's attention is not causal"),
        (asks(supports=frozenset({"sdpa", "flash"})), H100, "sdpa", "cannot pass it the lengths of packed examples"),
    ],
)
def test_auto_takes_the_first_that_machine_and_model_allow_and_says_why_not_the_others(needs, machine, name, reason):
    choice = choose_attention("auto", needs=needs, machine=machine)
    assert choice.name == name
    assert reason in choice.reason
    assert "\n" not in str(choice)


@pytest.mark.parametrize(
    ("wanted", "needs", "machine", "message"),
    [
        ("varlen", LLAMA, CPU, "varlen is not supported here (needs a GPU); use sdpa or auto"),
        ("flex_attention", LLAMA, CPU, "flex_attention is not supported here (needs a GPU); use sdpa or auto"),
        ("varlen", asks(has_softcap=True), H100, "varlen is not supported here (cannot bound scores"),
        ("flash_attention_2", LLAMA, H100, "(package flash-attn is not installed); use varlen or auto"),
        ("flash_attention_3", LLAMA, H100, "(package flash-attn-3 is not installed); use varlen or auto"),
        ("kernels-community/flash-attn2", LLAMA, H100, "(package kernels is not installed); use varlen or auto"),
        ("sdpa", asks(supports=frozenset()), H100, "sdpa is not supported here (the model does not support"),
    ],
)
def test_a_name_that_cannot_work_is_refused_with_the_reason_and_one_that_can(wanted, needs, machine, message):
    with pytest.raises(ValueError, match=r"^model\.attention: ") as raised:
        choose_attention(wanted, needs=needs, machine=machine)
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["varlen", "flash_attention_2", "kernels-community/vllm-flash-attn3", "sdpa", "eager"])
def test_a_name_that_can_work_is_taken(name):
    assert choose_attention(name, needs=LLAMA, machine=on(packages=ALL)).name == name


def test_a_recipe_names_one_of_them_or_a_kernel_of_the_hub_for_any_number_of_rows(tmp_path):
    assert tiny_config(tmp_path).model.attention == "auto"
    for name in ("varlen", "flash_attention_2", "kernels-community/flash-attn2", "kernels-community/flash-attn2@v1"):
        config = tiny_config(tmp_path, f"model.attention={name}")
        assert (config.model.attention, config.train.rows_per_micro_batch) == (name, 2)
    for name in ("sdp", "other/flash-attn2"):
        with pytest.raises(ValueError, match=r"^model\.attention: expected auto, varlen, .* or a kernel of the Hub"):
            tiny_config(tmp_path, f"model.attention={name}")


def needs_of(model_type, **keys):
    arguments = build_arguments(model_type, attention="eager", **keys)
    return attention_needs(build_causal_lm(**arguments).config)


def test_what_a_model_asks_for_is_read_from_its_config_and_its_class():
    everything = frozenset({"sdpa", "flash", "flex", "lengths"})
    assert needs_of("llama") == AttentionNeeds(head_dim=8, supports=everything)
    assert needs_of("llama", attention_dropout=0.1).dropout == 0.1
    assert needs_of("mistral", sliding_window=4).has_window
    assert not needs_of("qwen2", sliding_window=4, use_sliding_window=False).has_window
    assert needs_of("gemma2").has_softcap
    assert "sdpa" not in needs_of("gemma2").supports
    assert needs_of("gpt_oss", num_local_experts=4).has_sinks
    assert "lengths" not in needs_of("bloom", intermediate_size=None, num_key_value_heads=None).supports
    latent = {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
    assert needs_of("deepseek_v3", n_routed_experts=4, **latent).head_dim == 24


def test_this_machine_has_a_cpu_and_says_so(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert machine_here("bf16").device_type == "cpu"
    assert machine_of("cuda", precision="bf16").varlen == varlen_parameters()


def test_a_name_that_needs_a_gpu_is_refused_on_a_cpu_before_any_model_is_known():
    for name in ("auto", "sdpa", "eager"):
        check_attention_device(name, device_type="cpu")
    check_attention_device("varlen", device_type="cuda")
    refusal = r"^model\.attention: varlen is not supported here \(needs a GPU\); use sdpa or auto$"
    with pytest.raises(ValueError, match=refusal):
        check_attention_device("varlen", device_type="cpu")
