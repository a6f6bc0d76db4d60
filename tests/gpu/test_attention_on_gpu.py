"""Attention without a mask on a GPU, by the real kernels, against eager attention in float32 with the model's own mask.

Run with the kernels' tests: `python -m pytest tests/gpu -m gpu`.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")
from tiny_models import build_arguments, make_model, pack

from versatune_ds.model.attention import VARLEN, varlen_parameters
from versatune_ds.model.build import DTYPES, build_causal_lm
from versatune_ds.model.domain_model import DomainModel, compile_layers
from versatune_ds.model.model_check import check_losses_are_the_models

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

DEVICE = "cuda"
ROW_TOKENS = 640
SIZES = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "initializer_range": 0.06}
ARCHITECTURES = {
    "llama": {},
    "qwen3": {"head_dim": 128},
    "mistral": {"sliding_window": 100},
    "gemma3_text": {"head_dim": 256, "num_key_value_heads": 1, "sliding_window": 64,
                    "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip
"""Windows shorter than most examples; heads of 64, 128 and 256; one head of keys, and two."""


def two_rows() -> dict[str, torch.Tensor]:
    """Return two rows of examples of 1 to 300 tokens, of which the first has padding."""
    generator = torch.Generator().manual_seed(0)
    lengths = [[300, 1, 130, 77], [128, 256, 200, 56]]
    rows = [
        pack([torch.randint(3, 61, (n,), generator=generator).tolist() for n in row], row_tokens=ROW_TOKENS)
        for row in lengths
    ]
    return {name: torch.cat([row[name] for row in rows]).to(DEVICE) for name in rows[0]}


def model_of(model_type: str, *, attention: str, precision: str) -> DomainModel:
    """Return a model on the GPU, always with the same weights."""
    arguments = build_arguments(model_type, attention=attention, **{**SIZES, **ARCHITECTURES[model_type]})
    causal_lm = build_causal_lm(**{**arguments, "precision": precision})
    reference = make_model(model_type, attention="eager", **{**SIZES, **ARCHITECTURES[model_type]}).causal_lm
    causal_lm.load_state_dict(reference.state_dict())
    return DomainModel(causal_lm.to(DTYPES[precision]), num_domains=1).to(DEVICE)


def losses_and_gradient(model: DomainModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of every position, and the gradient of the embedding."""
    output = model(**two_rows(), per_token=True)
    (gradient,) = torch.autograd.grad(output.loss_sum, [model.causal_lm.get_input_embeddings().weight])
    return output.token_losses_N.detach().float(), gradient.float()


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the root of the mean squared error, relative to the exact values."""
    return float((found - exact).norm() / exact.norm())


@pytest.fixture(autouse=True)
def _runs_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if not varlen_parameters():
        pytest.skip("this torch has no varlen_attn")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)  # which the other tests set to cpu


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_varlen_is_as_near_to_float32_as_sdpa_with_a_mask_is(model_type: str, precision: str) -> None:
    exact = losses_and_gradient(model_of(model_type, attention="eager", precision="fp32"))
    model = model_of(model_type, attention="auto", precision=precision)
    assert model.causal_lm.config._attn_implementation == VARLEN
    check_losses_are_the_models(model.causal_lm)
    masked = losses_and_gradient(model_of(model_type, attention="sdpa", precision=precision))
    for found, of_sdpa, expected in zip(losses_and_gradient(model), masked, exact, strict=True):
        assert error(found, expected) <= 1.5 * error(of_sdpa, expected) + 1e-3


def test_other_tokens_in_one_example_leave_its_neighbours_losses_as_they_were() -> None:
    model = model_of("llama", attention="varlen", precision="bf16").eval()
    rows = two_rows()
    with torch.no_grad():
        before = model(**rows, per_token=True).token_losses_N
        rows["input_ids"][0, :300] = rows["input_ids"][0, :300].flip(0)
        after = model(**rows, per_token=True).token_losses_N
    assert torch.equal(before[300:], after[300:])
    assert not torch.equal(before[:300], after[:300])


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_no_layer_waits_for_the_device_where_the_bounds_come_with_the_batch(model_type: str) -> None:
    decoder = model_of(model_type, attention="varlen", precision="bf16").causal_lm.get_decoder()
    rows = two_rows()
    bounds = torch.tensor([0, 300, 301, 431, 508, 640, 768, 1024, 1224, 1280], dtype=torch.int32, device=DEVICE)
    arguments = {"input_ids": rows["input_ids"], "position_ids": rows["positions"], "use_cache": False}
    arguments |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 300, "max_length_k": 300}
    decoder(**arguments, attention_mask=None)[0].float().square().sum().backward()  # libraries set themselves up
    torch.cuda.set_sync_debug_mode("error")
    try:
        total = decoder(**arguments, attention_mask=None)[0].float().square().sum()  # a wait would be an error
        total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert total.isfinite()


@pytest.mark.slow
def test_compiled_layers_give_what_plain_ones_give() -> None:
    plain, compiled = (model_of("mistral", attention="varlen", precision="bf16") for _ in range(2))
    compile_layers(compiled.causal_lm)
    for found, expected in zip(losses_and_gradient(compiled), losses_and_gradient(plain), strict=True):
        assert error(found, expected) <= 0.02


@pytest.mark.slow
def test_flex_attention_trains_where_scores_are_capped_and_no_package_is_installed() -> None:
    sizes = {**SIZES, "head_dim": 64, "sliding_window": 64}
    exact = losses_and_gradient(make_model("gemma2", attention="eager", **sizes).to(DEVICE))
    found = losses_and_gradient(make_model("gemma2", attention="flex_attention", **sizes).to(DEVICE))
    for flex, expected in zip(found, exact, strict=True):
        assert error(flex, expected) <= 5e-3
