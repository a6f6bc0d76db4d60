"""Attention without a mask is the model's own, on stand-ins of its kernels."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from one_batch import engine_losses, make_engine
from ranks import run_ranks
from tiny_models import A, B, C, build_arguments, make_model, pack
from varlen_stand_in import H100, install, install_flash, varlen_attn, varlen_attn_of_torch_2_10

from versatune_ds.model import attention
from versatune_ds.model.attention import (
    VARLEN,
    dense_attention,
    varlen_attention,
    varlen_parameters,
)
from versatune_ds.model.build import build_causal_lm, save_model_settings
from versatune_ds.model.domain_model import DomainModel, compile_layers
from versatune_ds.model.model_check import check_losses_are_the_models

INIT = {"initializer_range": 0.3}
"""Weights large enough that attention changes the losses."""


class Layer:
    """Stand in for an attention layer."""

    is_causal = True


def attend(query, key, value, *, kernel=varlen_attn, bounds=(0, 3, 5), is_checked=True, **keys):
    """Run our function on one row [H][T][D] of five positions."""
    parameters = frozenset({"is_causal"}) if kernel is varlen_attn_of_torch_2_10 else H100.varlen
    heads = [torch.tensor(part, dtype=torch.float32)[None] for part in (query, key, value)]
    result, _ = varlen_attention(
        Layer(), *heads, kernel=kernel, parameters=parameters, is_checked=is_checked,
        cu_seq_lens_q=torch.tensor(bounds, dtype=torch.int32), max_length_q=3, **keys,
    )  # fmt: skip
    return result


FLAT = [[[0.0]] * 5]
"""Queries that give every position the same weight, so that the result is a mean of values."""
VALUES = [[[1.0], [2.0], [6.0], [10.0], [20.0]]]


@pytest.mark.parametrize(
    ("window", "expected"),
    [(None, [1, 1.5, 3, 10, 15]), (1, [1, 2, 6, 10, 20]), (2, [1, 1.5, 4, 10, 15]), (3, [1, 1.5, 3, 10, 15])],
)
def test_a_window_of_w_positions_includes_the_position_itself_and_ends_at_the_examples_start(window, expected):
    assert attend(FLAT, FLAT, VALUES, sliding_window=window).flatten().tolist() == expected


def test_a_group_of_heads_shares_its_keys_and_values_which_may_be_smaller():
    query = torch.zeros(4, 5, 2).tolist()
    two_values = [VALUES[0], [[-part[0]] for part in VALUES[0]]]
    result = attend(query, torch.zeros(2, 5, 2).tolist(), two_values)
    assert result.shape == (1, 5, 4, 1)
    assert result[0, 4].flatten().tolist() == [15, 15, -15, -15]


@pytest.mark.parametrize("scaling", [None, 0.3])
def test_torch_2_10_which_has_no_scale_gives_what_newer_versions_give(scaling):
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(num_heads, 5, 4, generator=generator).tolist() for num_heads in (4, 2, 2)]
    found, expected = (attend(*heads, kernel=k, scaling=scaling) for k in (varlen_attn_of_torch_2_10, varlen_attn))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    if scaling is not None:
        assert not torch.allclose(found, attend(*heads))


@pytest.mark.parametrize(
    ("asked", "what"),
    [({"softcap": 50.0}, "a bound on its scores"), ({"dropout": 0.1}, "dropout"), ({"is_causal": False}, "later pos"),
     ({"s_aux": torch.zeros(1)}, "sinks"), ({"position_bias": torch.zeros(1)}, "a bias by position"),
     ({"sliding_window": 2, "kernel": varlen_attn_of_torch_2_10}, "a window")],
)  # fmt: skip
def test_what_the_kernel_would_leave_out_silently_is_refused_when_it_is_called(asked, what):
    with pytest.raises(ValueError, match=f"^model.attention: varlen cannot compute the attention of Layer with {what}"):
        attend(FLAT, FLAT, VALUES, **asked)


def test_without_bounds_or_with_a_padding_mask_it_is_an_error_and_not_attention_across_examples(monkeypatch):
    with pytest.raises(RuntimeError, match="needs the bounds of packed examples"):
        attend(FLAT, FLAT, VALUES, attention_mask=torch.ones(1, 5))
    install(monkeypatch)
    model = make_model("llama", attention="auto")
    with pytest.raises(RuntimeError, match="needs the bounds of packed examples"):
        model.causal_lm.generate(torch.tensor([A]), max_new_tokens=2)


ARCHITECTURES = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 3},
    "gemma": {"head_dim": 8, "num_key_value_heads": 1},
    "gemma3_text": {"head_dim": 8, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"],
                    "query_pre_attn_scalar": 50},
    "granite": {"attention_multiplier": 0.7},
    "mixtral": {"sliding_window": 3, "num_local_experts": 4},
    "deepseek_v3": {
        "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "first_k_dense_replace": 1,
    },
}  # fmt: skip


def two_rows():
    """Return a micro-batch of two rows with other examples each."""
    first, second = pack([A, B, C]), pack([C, C, A])
    return {name: torch.cat([first[name], second[name]]) for name in first}


def losses_and_gradients(model):
    """Return the loss of every position, and all gradients in one vector."""
    output = model(**two_rows(), per_token=True)
    model.zero_grad()
    output.loss_sum.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return output.token_losses_N.detach(), torch.cat(gradients)


def assert_same(found, expected):
    """Compare losses and gradients to 1e-5 of the largest."""
    for left, right in zip(found, expected, strict=True):
        assert (left - right).abs().max() <= 1e-5 * right.abs().max()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_losses_and_gradients_without_a_mask_are_those_of_eager_attention_with_the_models_own(model_type, monkeypatch):
    keys = {**INIT, **ARCHITECTURES[model_type]}
    expected = losses_and_gradients(make_model(model_type, attention="eager", **keys))
    install(monkeypatch)
    model = make_model(model_type, attention="varlen", **keys)
    assert model.causal_lm.config._attn_implementation == VARLEN
    assert_same(losses_and_gradients(model), expected)
    if model_type != "granite":  # which scales its logits
        check_losses_are_the_models(model.causal_lm)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma3_text", "mixtral"])
def test_flash_attention_separates_examples_in_micro_batches_of_several_rows(model_type, monkeypatch):
    keys = {**INIT, **ARCHITECTURES[model_type]}
    expected = losses_and_gradients(make_model(model_type, attention="eager", **keys))
    model = make_model(model_type, **keys)
    install_flash(monkeypatch)
    model.causal_lm.config._attn_implementation = "flash_attention_2"
    assert_same(losses_and_gradients(model), expected)


@pytest.mark.slow
def test_compiled_flex_attention_caps_scores_and_keeps_to_windows_and_examples(monkeypatch):
    """As the C++ compiler makes it; forward alone, for torch has no backward of it on a CPU."""
    keys = {**INIT, "hidden_size": 64, "head_dim": 16, "sliding_window": 3}
    expected = losses_and_gradients(make_model("gemma2", attention="eager", **keys))[0]
    install(monkeypatch, machine=dataclasses.replace(H100, packages=frozenset({"triton"})))
    model = make_model("gemma2", attention="auto", **keys).eval()
    assert model.causal_lm.config._attn_implementation == "flex_attention"
    with torch.no_grad():
        found = model(**two_rows(), per_token=True).token_losses_N
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_window_of_another_size_would_be_seen(monkeypatch):
    """The control: what the test of losses and gradients would catch."""
    expected = losses_and_gradients(make_model("mistral", attention="eager", sliding_window=3, **INIT))
    install(monkeypatch)
    other = losses_and_gradients(make_model("mistral", attention="varlen", sliding_window=4, **INIT))
    with pytest.raises(AssertionError):
        assert_same(other, expected)


@pytest.mark.parametrize("attention_name", ["varlen", "sdpa"])
def test_gradient_checkpointing_changes_no_loss_and_no_gradient(attention_name, monkeypatch):
    install(monkeypatch)
    found = {}
    for is_checkpointed in (False, True):
        arguments = build_arguments("mistral", attention=attention_name, sliding_window=3, **INIT)
        settings = arguments["model"].model_copy(update={"gradient_checkpointing": is_checkpointed})
        causal_lm = build_causal_lm(**{**arguments, "model": settings})
        found[is_checkpointed] = losses_and_gradients(DomainModel(causal_lm, num_domains=2))
    assert_same(found[True], found[False])


def test_bounds_of_a_batch_are_used_as_they_come(monkeypatch):
    install(monkeypatch)
    model = make_model("llama", attention="auto", **INIT).eval()
    row = pack([A, B, C])
    bounds = torch.tensor([0, 6, 9, 16, 24], dtype=torch.int32)
    with torch.no_grad():
        expected = model(**row).loss_sum
        assert torch.equal(model(**row, cu_seqlens=bounds, longest_segment=8).loss_sum, expected)
        other = torch.tensor([0, 9, 16, 24], dtype=torch.int32)
        assert not torch.equal(model(**row, cu_seqlens=other, longest_segment=9).loss_sum, expected)


def test_a_kernel_that_lets_examples_see_each_other_is_refused_before_training(monkeypatch):
    def across(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **settings):
        bounds = torch.tensor([0, len(query)], dtype=torch.int32)
        return varlen_attn(query, key, value, bounds, bounds, len(query), len(query), **settings)

    install(monkeypatch, kernel=across)
    monkeypatch.setattr(attention, "varlen_parameters", lambda: H100.varlen)
    with pytest.raises(ValueError, match="lets the examples of a packed row see each other"):
        check_losses_are_the_models(make_model("llama", attention="auto", **INIT).causal_lm)


def test_a_kernel_that_computes_something_else_is_refused_before_training(monkeypatch):
    def doubled(*inputs, **settings):
        return 2 * varlen_attn(*inputs, **settings)

    install(monkeypatch, kernel=doubled)
    monkeypatch.setattr(attention, "varlen_parameters", lambda: H100.varlen)
    with pytest.raises(ValueError, match="computes its attention in another way"):
        check_losses_are_the_models(make_model("llama", attention="auto", **INIT).causal_lm)


def test_generation_in_a_dense_block_is_that_of_sdpa_and_training_goes_back_to_its_own(monkeypatch):
    rows = torch.tensor([[0, 0, 0, *B], A])
    mask = (rows != 0).long()
    settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    expected = make_model("llama", **INIT).causal_lm.generate(rows, **settings)
    install(monkeypatch)
    causal_lm = make_model("llama", attention="auto", **INIT).causal_lm
    with dense_attention(causal_lm):
        assert torch.equal(causal_lm.generate(rows, **settings), expected)
    assert causal_lm.config._attn_implementation == VARLEN


def test_a_saved_model_does_not_carry_the_name_of_our_implementation(tmp_path, monkeypatch):
    install(monkeypatch)
    causal_lm = build_causal_lm(**build_arguments("llama", attention="auto"))
    causal_lm.save_pretrained(tmp_path / "exported")
    (tmp_path / "settings").mkdir()
    save_model_settings(causal_lm, tmp_path / "settings")
    texts = [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(texts) >= 3
    assert not any("varlen" in text for text in texts)
    assert json.loads((tmp_path / "settings" / "config.json").read_text())["model_type"] == "llama"


@pytest.fixture
def kernels_on_the_cpu(monkeypatch):
    """Give torch's own operation, with its autograd and its form under compilation, the stand-in as its kernel."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    forward, backward = varlen._varlen_attn, varlen._varlen_attn_backward

    def settings_of(names, rest):
        given = dict(zip(names, rest, strict=False))
        return {"scale": given["scale"], "window_size": tuple(given["window_size"]), "enable_gqa": True}

    def run(query, key, value, bounds_q, bounds_k, max_q, max_k, is_causal=False, *rest):
        settings = settings_of(("scale", "window_size"), rest)
        result = varlen_attn(query, key, value, bounds_q, bounds_q, max_q, max_k, **settings)
        sums = query.new_zeros(query.shape[1], query.shape[0], dtype=torch.float32)
        return result, sums, torch.zeros(2, dtype=torch.uint64)

    def run_backward(grad, query, key, value, out, lse, bounds_q, bounds_k, max_q, max_k, is_causal, state, *rest):
        settings = settings_of(("scale", "window_size"), rest)

        def differentiate():
            inputs = [part.detach().requires_grad_() for part in (query, key, value)]
            return torch.autograd.grad(varlen_attn(*inputs, bounds_q, bounds_q, max_q, max_k, **settings), inputs, grad)

        with ThreadPoolExecutor(1) as pool:  # within an operation autograd is off, but only in its own thread
            return pool.submit(differentiate).result()

    forward.register_kernel("cpu")(run)
    backward.register_kernel("cpu")(run_backward)
    machine = dataclasses.replace(H100, varlen=varlen_parameters())
    monkeypatch.setattr("versatune_ds.model.build.machine_here", lambda precision: machine)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_torchs_own_operation_takes_our_arguments_and_gives_the_same(model_type, kernels_on_the_cpu):
    keys = {**INIT, **ARCHITECTURES[model_type]}
    expected = losses_and_gradients(make_model(model_type, attention="eager", **keys))
    assert_same(losses_and_gradients(make_model(model_type, attention="varlen", **keys)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("attention_name", ["varlen", "sdpa"])
def test_compiled_layers_give_the_same_for_batches_of_other_bounds(attention_name, kernels_on_the_cpu):
    plain, compiled = (make_model("mistral", attention=attention_name, sliding_window=3, **INIT) for _ in range(2))
    compile_layers(compiled.causal_lm)
    for examples in ([A, B, C], [C, C], [B, B, B, A], [C]):
        found, expected = (model(**pack(examples)).loss_sum for model in (compiled, plain))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same(losses_and_gradients(compiled), losses_and_gradients(plain))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_training_under_zero_has_the_losses_of_sdpa(stage, tmp_path):
    def losses(world):
        zero = {"stage": stage}
        expected = engine_losses(make_engine(world, zero=zero), rows_per_micro_batch=2)
        with pytest.MonkeyPatch.context() as patch:
            install(patch)
            engine = make_engine(world, zero=zero, settings={"attention": "auto", "gradient_checkpointing": True})
            engine.check_losses()
            return engine_losses(engine, rows_per_micro_batch=2), expected

    for found, expected in run_ranks(losses, world_size=2, folder=tmp_path):
        assert found == pytest.approx(expected, rel=1e-5)
