"""The CUDA kernels against float64 on the CPU.

One command runs them, with torch 2.11 or later, nvcc and pytest installed, and without deepspeed:

    python -m pytest tests/gpu -m gpu
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.kernels.exact_loss import Case, exact_gradient, make_case
from versatune_ds.kernels import (
    DomainLoss,
    DomainLossHead,
    LossSettings,
    domain_cross_entropy,
    fixed_point,
    kernel_choice,
)
from versatune_ds.kernels.build import load_kernels
from versatune_ds.kernels.kernel_choice import KERNELS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

PLAIN = LossSettings()
EVERYTHING = LossSettings(z_loss=1e-3, softcap=5.0, label_smoothing=0.1)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}
# bfloat16: one block, clusters of 2, 4 and 8, eight vectors a thread, and too long for any cluster. Odd ones are not
# aligned to 16 bytes; 1 and 7 fill less than one vector.
VOCABULARIES = [1, 7, 101, 16384, 16385, 32000, 50257, 128256, 151936, 262145]


@pytest.fixture(scope="module", autouse=True)
def _kernels_are_built() -> None:
    assert load_kernels("cuda").is_compiled, "the CUDA kernels must build here, or the PyTorch fallback is tested"


def on_gpu(case: Case) -> tuple[torch.Tensor, ...]:
    return tuple(t.cuda() for t in (case.logits_NV, case.labels_N, case.domain_ids_N, case.loss_weights_K))


def run(case: Case, settings: LossSettings = PLAIN, *, overwrite: bool = False) -> tuple[DomainLoss, torch.Tensor]:
    logits_NV, labels_N, domain_ids_N, weights_K = on_gpu(case)
    leaf_NV = logits_NV.requires_grad_()
    result = domain_cross_entropy(
        leaf_NV * 1, labels_N, domain_ids_N, case.num_domains, loss_weights_K=weights_K, z_loss=settings.z_loss,
        softcap=settings.softcap, label_smoothing=settings.label_smoothing, per_token=True, overwrite_logits=overwrite,
    )  # fmt: skip
    result.loss.backward()
    return result, leaf_NV.grad


@pytest.mark.parametrize("settings", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_loss_statistics_and_gradient_agree_with_float64(
    vocabulary: int, dtype: torch.dtype, overwrite: bool, settings: LossSettings
) -> None:
    case = make_case(9, vocabulary, dtype=dtype)
    exact, exact_grad_NV = exact_gradient(case, settings)
    result, grad_NV = run(case, settings, overwrite=overwrite)
    torch.testing.assert_close(result.loss.cpu().double(), exact.loss.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.loss_sum_K.cpu(), exact.loss_sum_K, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.loss_sq_sum_K.cpu(), exact.loss_sq_sum_K, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(result.token_losses_N.cpu().double(), exact.nll_N, rtol=1e-5, atol=5e-6)
    assert torch.equal(result.num_loss_tokens_K.cpu(), exact.num_loss_tokens_K)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(grad_NV.cpu().double(), exact_grad_NV, rtol=tolerance, atol=tolerance * 0.1)


@pytest.mark.parametrize("settings", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("vocabulary", [8, 16384, 32000, 128256, 151936])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_that_can_run_agrees_with_float64(
    kernel: str, vocabulary: int, dtype: torch.dtype, settings: LossSettings
) -> None:
    case = make_case(300, vocabulary, dtype=dtype)  # more rows than stages of a ring on any device
    logits_NV, labels_N, domain_ids_N, weights_K = on_gpu(case)
    arguments = (labels_N, domain_ids_N, weights_K, *settings.as_arguments(), KERNELS.index(kernel))
    try:
        loss, bins_K5, token_losses_N = torch.ops.versatune.domain_ce_gradient_(logits_NV, *arguments)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    rows = torch.arange(0, 300, 37)  # float64 on the CPU is slow
    few = Case(
        logits_NV=case.logits_NV[rows], labels_N=case.labels_N[rows], domain_ids_N=case.domain_ids_N[rows],
        loss_weights_K=case.loss_weights_K,
    )  # fmt: skip
    exact, exact_grad_NV = exact_gradient(few, settings)
    assert loss.isfinite()
    assert bins_K5[:, fixed_point.COUNT].sum().item() == (case.labels_N != -100).sum().item()
    torch.testing.assert_close(token_losses_N.cpu()[rows].double(), exact.nll_N, rtol=1e-5, atol=5e-6)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(logits_NV.cpu()[rows].double(), exact_grad_NV, rtol=tolerance, atol=tolerance * 0.1)


def test_the_kernels_are_timed_and_the_fastest_is_taken() -> None:
    times = kernel_choice.measure_kernels(torch.device("cuda"), torch.bfloat16, 32000)
    assert "two_pass" in times
    assert all(milliseconds > 0 for milliseconds in times.values())
    number = kernel_choice.loss_kernel("cuda", torch.cuda.current_device(), torch.bfloat16, 32000)
    assert KERNELS[number] in times


@pytest.mark.parametrize("num_domains", [1, 256, 1000])
@pytest.mark.parametrize("num_rows", [0, 1, 3000])
def test_any_number_of_rows_and_domains_is_counted(num_rows: int, num_domains: int) -> None:
    case = make_case(num_rows, 200, num_domains=num_domains)
    result, _ = run(case)
    exact, _ = exact_gradient(case)
    assert torch.equal(result.num_loss_tokens_K.cpu(), exact.num_loss_tokens_K)
    torch.testing.assert_close(result.loss_sum_K.cpu(), exact.loss_sum_K, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("overwrite", [False, True])
def test_masked_rows_are_exactly_zero_even_when_poisoned(overwrite: bool) -> None:
    case = make_case(40, 32000, dtype=torch.bfloat16, masked=0.5)
    case.logits_NV[case.labels_N == -100] = float("nan")
    case.domain_ids_N[case.labels_N == -100] = -5
    result, grad_NV = run(case, overwrite=overwrite)
    assert result.loss.isfinite()
    assert (grad_NV.cpu()[case.labels_N == -100] == 0).all()
    assert (result.token_losses_N.cpu()[case.labels_N == -100] == 0).all()


def test_all_masked_means_zero() -> None:
    result, grad_NV = run(make_case(33, 1000, masked=1.0))
    assert result.loss.item() == 0.0
    assert (grad_NV == 0).all()


def test_memory_around_the_logits_is_neither_read_nor_written() -> None:
    for vocabulary in (1000, 1001):
        case = make_case(8, vocabulary, dtype=torch.bfloat16, masked=0.0)
        padded = torch.full((10, vocabulary + 24), float("nan"), device="cuda", dtype=torch.bfloat16)
        padded[1:9, 8 : 8 + vocabulary] = case.logits_NV.cuda()
        inside_NV = padded[1:9, 8 : 8 + vocabulary]
        arguments = (*on_gpu(case)[1:], *PLAIN.as_arguments())
        loss, _, _ = torch.ops.versatune.domain_ce_gradient_(inside_NV, *arguments)
        assert loss.isfinite()
        padded[1:9, 8 : 8 + vocabulary] = float("nan")
        assert padded.isnan().all()


def test_impossible_ids_give_nan_and_touch_no_foreign_memory() -> None:
    for label, domain_id in ((40, 0), (-3, 0), (1, 99), (1, -1)):
        case = make_case(6, 40, masked=0.0)
        case.labels_N[2], case.domain_ids_N[2] = label, domain_id
        result, _ = run(case)
        assert result.loss.isnan()


@pytest.mark.parametrize("vocabulary", [50257, 128256])
def test_sums_and_gradients_repeat_bit_for_bit_and_do_not_depend_on_chunks(vocabulary: int) -> None:
    case = make_case(64, vocabulary, dtype=torch.bfloat16)
    logits_NV, labels_N, domain_ids_N, weights_K = on_gpu(case)
    settings = PLAIN.as_arguments()
    whole_NV = logits_NV.clone()
    whole = torch.ops.versatune.domain_ce_gradient_(whole_NV, labels_N, domain_ids_N, weights_K, *settings)
    for rows in (1, 3, 64):
        parts_NV = logits_NV.clone()
        bins_K5 = torch.zeros_like(whole[1])
        for start in range(0, 64, rows):
            chunk = slice(start, start + rows)
            bins_K5 += torch.ops.versatune.domain_ce_gradient_(
                parts_NV[chunk], labels_N[chunk], domain_ids_N[chunk], weights_K, *settings
            )[1]
        assert torch.equal(bins_K5, whole[1])
        assert torch.equal(parts_NV, whole_NV)


def test_label_gradient_of_a_confident_token_survives_bfloat16() -> None:
    logits_NV = torch.zeros(1, 32000, dtype=torch.bfloat16)
    logits_NV[0, 7] = 19.625  # p = 0.99990...
    exact = (torch.softmax(logits_NV.double(), dim=-1)[0, 7] - 1.0).item()
    one_N = torch.ones(1, dtype=torch.int64, device="cuda")
    leaf_NV = logits_NV.cuda().requires_grad_()
    domain_cross_entropy(leaf_NV, one_N * 7, one_N * 0, 1).loss.backward()
    assert leaf_NV.grad[0, 7].item() == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("chunk_mib", [64.0, 0.5])
def test_the_head_agrees_with_a_linear_layer_in_float64(chunk_mib: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 1003).to(dtype)
    hidden_ND = torch.randn(500, 64).to(dtype)
    case = make_case(500, 1003, masked=0.5)
    exact_hidden_ND = hidden_ND.double().requires_grad_()
    exact_linear = nn.Linear(64, 1003).double()
    exact_linear.load_state_dict(linear.state_dict())
    logits_NV = exact_linear(exact_hidden_ND)
    losses_N = nn.functional.cross_entropy(logits_NV, case.labels_N, reduction="none")
    losses_N.sum().backward()
    head = DomainLossHead.from_linear(linear.cuda(), chunk_mib=chunk_mib)
    valid = (case.labels_N != -100).nonzero()[:, 0]
    ignored = (case.labels_N == -100).nonzero()[:1, 0]
    leaf_ND = hidden_ND.cuda().requires_grad_()
    result = head(
        leaf_ND, case.labels_N.cuda(), case.domain_ids_N.cuda(), num_domains=4,
        valid_index=torch.cat([valid, ignored.repeat(-len(valid) % 128)]).cuda(), num_valid=len(valid),
    )  # fmt: skip
    result.loss.backward()
    pairs = [(leaf_ND.grad, exact_hidden_ND.grad), (linear.weight.grad, exact_linear.weight.grad)]
    for actual, expected in pairs:
        error = (actual.cpu().double() - expected).norm() / expected.norm()
        assert error < {torch.float32: 2e-3, torch.bfloat16: 8e-3, torch.float16: 2e-3}[dtype]  # TF32 may be on


def test_a_step_syncs_nothing_and_can_be_captured_in_a_graph() -> None:
    head = DomainLossHead.from_linear(nn.Linear(64, 32000, device="cuda", dtype=torch.bfloat16))
    hidden_ND = torch.randn(256, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels_N = torch.randint(0, 32000, (256,), device="cuda")
    domain_ids_N = torch.randint(0, 4, (256,), device="cuda")

    def step() -> torch.Tensor:
        result = head(hidden_ND, labels_N, domain_ids_N, num_domains=4)
        gradients = torch.autograd.grad(result.loss, (hidden_ND, head.weight))
        return result.loss, result.loss_sum_K, *gradients

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.set_sync_debug_mode("error")
    try:
        # Detached: a graph kept alive would tie the capture to the default stream, on which its gradients accumulate.
        expected = [value.detach().clone() for value in step()]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    for one, other in zip(captured, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_transient_memory_stays_within_the_chunk_budget() -> None:
    num_rows, width, vocabulary, budget_mib = 4096, 256, 64000, 64
    head = DomainLossHead.from_linear(
        nn.Linear(width, vocabulary, bias=False, device="cuda", dtype=torch.bfloat16), chunk_mib=budget_mib
    )
    hidden_ND = torch.randn(num_rows, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels_N = torch.randint(0, vocabulary, (num_rows,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    head(hidden_ND, labels_N, num_domains=1)
    weight_bytes = vocabulary * width * 2
    # the gradients that remain, the float32 sum and one chunk's share of the weight's gradient, and the logits
    allowed = weight_bytes + num_rows * width * 2 + 2 * (2 * weight_bytes) + 1.2 * budget_mib * 2**20
    assert torch.cuda.max_memory_allocated() - before < allowed


def test_counts_are_columns_of_the_bins() -> None:
    case = make_case(100, 50)
    arguments = (*on_gpu(case), *PLAIN.as_arguments())
    bins_K5 = torch.ops.versatune.domain_ce(*arguments)[1]
    assert bins_K5[:, fixed_point.COUNT].sum().item() == (case.labels_N != -100).sum().item()
