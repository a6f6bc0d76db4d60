"""The loss by domain against float64, at the edges, and bit for bit over threads and chunks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.exact_loss import Case, exact_gradient, make_case
from versatune_ds.kernels import DomainLoss, LossSettings, domain_cross_entropy, ops

PLAIN = LossSettings()
EVERYTHING = LossSettings(z_loss=1e-3, softcap=5.0, label_smoothing=0.1)
# The relative rounding of one stored gradient; statistics are exact to 1e-5 in every dtype, since they are summed from
# float32 losses of the same logits.
GRADIENT_TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}


def run(case: Case, loss_settings: LossSettings = PLAIN, **options: bool) -> tuple[DomainLoss, torch.Tensor]:
    """Return the result and the gradient of the logits."""
    logits_NV = case.logits_NV.clone().requires_grad_()
    result = domain_cross_entropy(
        logits_NV * 1,  # a copy that may be overwritten
        case.labels_N,
        case.domain_ids_N,
        case.num_domains,
        loss_weights_K=case.loss_weights_K,
        ignore_index=loss_settings.ignore_index,
        z_loss=loss_settings.z_loss,
        softcap=loss_settings.softcap,
        label_smoothing=loss_settings.label_smoothing,
        **options,
    )
    result.loss.backward()
    return result, logits_NV.grad


def test_two_tokens_of_two_domains_give_the_losses_worked_out_by_hand() -> None:
    # Row 0: softmax(0, ln 3) = (1/4, 3/4), label 1 -> ln(4/3); row 1: softmax(0, 0) = (1/2, 1/2), label 0 -> ln 2.
    logits_NV = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], requires_grad=True)
    weights_K = torch.tensor([2.0, 10.0])
    result = domain_cross_entropy(
        logits_NV, torch.tensor([1, 0]), torch.tensor([0, 1]), 2, loss_weights_K=weights_K, per_token=True
    )
    result.loss.backward()
    expected_K = torch.tensor([math.log(4 / 3), math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(result.loss_sum_K, expected_K, atol=1e-7, rtol=0)
    torch.testing.assert_close(result.loss_sq_sum_K, expected_K.square(), atol=1e-6, rtol=0)
    assert result.num_loss_tokens_K.tolist() == [1, 1]
    assert result.loss.item() == pytest.approx(2 * math.log(4 / 3) + 10 * math.log(2), rel=1e-6)
    torch.testing.assert_close(logits_NV.grad, torch.tensor([[0.5, -0.5], [-5.0, 5.0]]))
    torch.testing.assert_close(result.token_losses_N.double(), expected_K, atol=1e-7, rtol=0)


@pytest.mark.parametrize("loss_settings", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("dtype", list(GRADIENT_TOLERANCE), ids=str)
@pytest.mark.parametrize("overwrite_logits", [False, True], ids=["copy", "overwrite"])
# 4, 8 or 16 lanes and blocks of 2048 elements: below, at, and off both; 1 for the degenerate softmax.
@pytest.mark.parametrize("vocabulary", [1, 7, 16, 101, 2048, 4099])
def test_loss_statistics_and_gradient_agree_with_float64(
    vocabulary: int, overwrite_logits: bool, dtype: torch.dtype, loss_settings: LossSettings
) -> None:
    case = make_case(33, vocabulary, dtype=dtype)
    exact, exact_grad_NV = exact_gradient(case, loss_settings)
    result, grad_NV = run(case, loss_settings, overwrite_logits=overwrite_logits, per_token=True)
    torch.testing.assert_close(result.loss.double(), exact.loss.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.loss_sum_K, exact.loss_sum_K, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.loss_sq_sum_K, exact.loss_sq_sum_K, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(result.token_losses_N.double(), exact.nll_N, rtol=1e-5, atol=3e-6)
    assert torch.equal(result.num_loss_tokens_K, exact.num_loss_tokens_K)
    tolerance = GRADIENT_TOLERANCE[dtype]
    torch.testing.assert_close(grad_NV.double(), exact_grad_NV, rtol=tolerance, atol=tolerance * 1e-1)


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(0, 40),
    vocabulary=st.integers(1, 300),
    num_domains=st.integers(1, 8),
    masked=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_agrees_with_float64(
    num_rows: int, vocabulary: int, num_domains: int, masked: float, seed: int
) -> None:
    case = make_case(num_rows, vocabulary, num_domains=num_domains, masked=masked, seed=seed)
    exact, exact_grad_NV = exact_gradient(case)
    result, grad_NV = run(case)
    torch.testing.assert_close(result.loss_sum_K, exact.loss_sum_K, rtol=1e-5, atol=1e-5)
    assert torch.equal(result.num_loss_tokens_K, exact.num_loss_tokens_K)
    torch.testing.assert_close(grad_NV.double(), exact_grad_NV, rtol=1e-5, atol=1e-6)


def test_an_absent_domain_is_exactly_zero() -> None:
    result, _ = run(make_case(50, 30, num_domains=5))
    assert result.loss_sum_K[4].item() == 0.0
    assert result.loss_sq_sum_K[4].item() == 0.0
    assert result.num_loss_tokens_K[4].item() == 0


@pytest.mark.parametrize("num_domains", [1, 256])
def test_one_and_256_domains_count_every_token(num_domains: int) -> None:
    case = make_case(700, 20, num_domains=num_domains)
    result, _ = run(case)
    exact, _ = exact_gradient(case)
    assert torch.equal(result.num_loss_tokens_K, exact.num_loss_tokens_K)
    torch.testing.assert_close(result.loss_sum_K, exact.loss_sum_K, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("overwrite_logits", [False, True])
def test_ignored_tokens_get_exactly_zero_whatever_their_logits_and_domain(overwrite_logits: bool) -> None:
    case = make_case(12, 37)
    ignored_N = case.labels_N == -100
    assert ignored_N.any()
    poisoned = Case(
        logits_NV=torch.where(ignored_N[:, None], float("nan"), case.logits_NV),
        labels_N=case.labels_N,
        domain_ids_N=case.domain_ids_N.where(~ignored_N, -7),
        loss_weights_K=case.loss_weights_K,
    )
    # The copy inside `run` multiplies the gradient by 1, which keeps zeros exact.
    result, grad_NV = run(poisoned, overwrite_logits=overwrite_logits, per_token=True)
    clean, clean_grad_NV = run(case, overwrite_logits=overwrite_logits)
    assert torch.equal(grad_NV, clean_grad_NV)
    assert (grad_NV[ignored_N] == 0).all()
    assert (result.token_losses_N[ignored_N] == 0).all()
    assert torch.equal(result.loss, clean.loss)


@pytest.mark.parametrize(("num_rows", "masked"), [(0, 0.0), (1, 1.0), (9, 1.0)])
def test_a_batch_without_loss_tokens_has_zero_loss_and_zero_gradient(num_rows: int, masked: float) -> None:
    case = make_case(num_rows, 10, masked=masked)
    result, grad_NV = run(case)
    assert result.loss.item() == 0.0
    assert result.loss_sum_K.tolist() == [0.0] * 4
    assert (grad_NV == 0).all()


def test_rows_with_gaps_and_columns_first_are_read_correctly() -> None:
    case = make_case(20, 50)
    for logits_NV in (torch.randn(20, 80)[:, :50], torch.randn(50, 20).t()):
        other = Case(
            logits_NV=logits_NV,
            labels_N=case.labels_N,
            domain_ids_N=case.domain_ids_N,
            loss_weights_K=case.loss_weights_K,
        )
        exact, exact_grad_NV = exact_gradient(other)
        leaf = logits_NV.detach().requires_grad_()
        result = domain_cross_entropy(leaf, other.labels_N, other.domain_ids_N, 4, loss_weights_K=other.loss_weights_K)
        result.loss.backward()
        torch.testing.assert_close(result.loss_sum_K, exact.loss_sum_K, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(leaf.grad.double(), exact_grad_NV, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", list(GRADIENT_TOLERANCE), ids=str)
def test_results_are_equal_bit_for_bit_for_any_number_of_threads(dtype: torch.dtype) -> None:
    case = make_case(257, 1003, dtype=dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(run(case, EVERYTHING))
    finally:
        torch.set_num_threads(before)
    for result, grad_NV in results[1:]:
        assert torch.equal(result.loss, results[0][0].loss)
        assert torch.equal(result.loss_sum_K, results[0][0].loss_sum_K)
        assert torch.equal(result.loss_sq_sum_K, results[0][0].loss_sq_sum_K)
        assert torch.equal(grad_NV, results[0][1])


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 200), max_size=6), seed=st.integers(0, 1000))
def test_sums_are_equal_bit_for_bit_for_any_division_into_chunks(cuts: list[int], seed: int) -> None:
    case = make_case(200, 129, seed=seed)
    undivided, _ = run(case)
    edges = [0, *sorted(cuts), 200]
    total_K = torch.zeros(4, dtype=torch.float64)
    for start, stop in itertools.pairwise(edges):
        rows = slice(start, stop)
        part = domain_cross_entropy(case.logits_NV[rows], case.labels_N[rows], case.domain_ids_N[rows], 4)
        # float64 adds multiples of 2^-24 below 2^29 without rounding
        total_K += part.loss_sum_K
    assert torch.equal(total_K, undivided.loss_sum_K)


def test_infinite_and_extreme_logits_behave_as_in_float64() -> None:
    case = make_case(6, 40, masked=0.0)
    case.logits_NV[0] *= 1e3  # differences of thousands of nats
    case.logits_NV[1, 5:] = float("-inf")
    case.labels_N[1] = 2
    case.logits_NV[2] += 1e6
    exact, exact_grad_NV = exact_gradient(case)
    result, grad_NV = run(case)
    torch.testing.assert_close(result.loss_sum_K, exact.loss_sum_K, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad_NV.double(), exact_grad_NV, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_an_invalid_token_makes_its_domain_and_the_loss_nan_and_no_other_domain(poison: float) -> None:
    case = make_case(30, 40, masked=0.0)
    row = int((case.domain_ids_N == 1).nonzero()[0])
    clean, _ = run(case)
    case.logits_NV[row, 3] = poison
    result, _ = run(case)
    assert result.loss.isnan()
    assert result.loss_sum_K[1].isnan()
    assert torch.equal(result.loss_sum_K[[0, 2, 3]], clean.loss_sum_K[[0, 2, 3]])
    assert torch.equal(result.num_loss_tokens_K, clean.num_loss_tokens_K)


@pytest.mark.parametrize(("label", "domain_id", "message"), [
    (10, 0, r"row 2: label 10 is outside 0\.\.9"),
    (-1, 0, r"row 2: label -1 is outside 0\.\.9"),
    (3, 4, r"row 2: domain id 4 is outside 0\.\.3"),
    (3, -1, r"row 2: domain id -1 is outside 0\.\.3"),
])  # fmt: skip
def test_an_id_out_of_range_is_refused_with_its_row_on_the_cpu(label: int, domain_id: int, message: str) -> None:
    case = make_case(5, 10, masked=0.0)
    case.labels_N[2], case.domain_ids_N[2] = label, domain_id
    with pytest.raises(ValueError, match=message):
        run(case)


def test_wrong_shapes_and_settings_are_refused_with_what_was_expected() -> None:
    logits_NV, ids_N = torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"logits_NV: expected .* \[N, V\]"):
        domain_cross_entropy(logits_NV[0], ids_N, ids_N, 1)
    with pytest.raises(ValueError, match=r"labels_N: expected int64 of shape \[3\], got torch.int32"):
        domain_cross_entropy(logits_NV, ids_N.int(), ids_N, 1)
    with pytest.raises(ValueError, match=r"domain_ids_N: expected int64 of shape \[3\]"):
        domain_cross_entropy(logits_NV, ids_N, ids_N[:2], 1)
    with pytest.raises(ValueError, match=r"loss_weights_K: expected shape \[2\], got \[3\]"):
        domain_cross_entropy(logits_NV, ids_N, ids_N, 2, loss_weights_K=torch.ones(3))
    with pytest.raises(ValueError, match="label_smoothing: expected a number in"):
        domain_cross_entropy(logits_NV, ids_N, ids_N, 1, label_smoothing=1.0)
    with pytest.raises(ValueError, match="num_domains: expected at least 1"):
        domain_cross_entropy(logits_NV, ids_N, ids_N, 0)


def test_finite_differences_confirm_the_gradient() -> None:
    case = make_case(4, 9, seed=3)

    def loss_of(logits_NV: torch.Tensor) -> torch.Tensor:
        return domain_cross_entropy(
            logits_NV.float(), case.labels_N, case.domain_ids_N, 4, z_loss=1e-2, softcap=6.0, label_smoothing=0.2
        ).loss.double()

    # The loss is a float32 number of about 10, known to 1e-6: a step of 1e-2 leaves differences good to 2e-4.
    logits_NV = case.logits_NV.double().requires_grad_()
    assert torch.autograd.gradcheck(loss_of, (logits_NV,), eps=1e-2, atol=2e-3, rtol=1e-2, nondet_tol=0.0)


def test_overwriting_is_refused_where_the_producer_needs_its_output() -> None:
    source_NV = torch.randn(3, 5, requires_grad=True)
    ids_N = torch.zeros(3, dtype=torch.int64)
    result = domain_cross_entropy(source_NV.exp(), ids_N, ids_N, 1, overwrite_logits=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.loss.backward()


def test_without_gradients_logits_are_never_overwritten() -> None:
    case = make_case(5, 10)
    before_NV = case.logits_NV.clone()
    domain_cross_entropy(case.logits_NV, case.labels_N, case.domain_ids_N, 4, overwrite_logits=True)
    assert torch.equal(case.logits_NV, before_NV)


def test_a_second_backward_through_overwritten_logits_is_refused_instead_of_scaled_twice() -> None:
    leaf_NV = torch.randn(3, 5, requires_grad=True)
    ids_N = torch.zeros(3, dtype=torch.int64)
    result = domain_cross_entropy(leaf_NV * 1, ids_N, ids_N, 1, overwrite_logits=True)
    (result.loss * 2).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (result.loss * 2).backward()


def allocated_bytes(function: Callable[[], object]) -> int:
    """Return the largest net allocation of any one operation inside a call, PyTorch's and ours."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    return max((event.self_cpu_memory_usage for event in profile.key_averages()), default=0)


def test_overwriting_allocates_nothing_of_the_size_of_the_logits() -> None:
    if not ops.prepare("cpu"):
        pytest.skip("the PyTorch implementation works in blocks of 16 MiB")
    case = make_case(256, 1024, masked=0.0)
    logits_NV = case.logits_NV.requires_grad_()
    arguments = (logits_NV, case.labels_N, case.domain_ids_N, 4)
    logits_bytes = logits_NV.numel() * 4

    def step(overwrite: bool) -> None:
        torch.autograd.grad(domain_cross_entropy(*arguments, overwrite_logits=overwrite).loss, logits_NV)

    step(True)
    assert allocated_bytes(lambda: step(True)) < logits_bytes / 50
    assert allocated_bytes(lambda: step(False)) >= logits_bytes  # the gradient, seen by the profiler
    with torch.no_grad():
        assert allocated_bytes(lambda: domain_cross_entropy(*arguments)) < logits_bytes / 50
