"""The head module against a plain linear layer and float64 cross entropy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.kernels.exact_loss import Case, exact_loss, make_case
from versatune_ds.kernels import DomainLoss, DomainLossHead, LossSettings, linear_head
from versatune_ds.kernels.head_loss import chunk_rows, remaining_factor, scale_of_terms

D = 24
EVERYTHING = LossSettings(z_loss=1e-3, softcap=5.0, label_smoothing=0.1)
ONE_CHUNK, FEW_ROWS = 64.0, 0.004  # MiB; the latter has room for 10 rows of 101 float32 logits


def make_head(vocabulary: int = 101, *, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(D, vocabulary, bias=bias).to(dtype)


def make_hidden(num_rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(num_rows, D, generator=generator).to(dtype).requires_grad_()


def plan(case: Case, *, padding: int = 0) -> dict[str, object]:
    """Return valid_index, padded by repeating the first ignored position, and num_valid."""
    valid = (case.labels_N != -100).nonzero()[:, 0]
    ignored = (case.labels_N == -100).nonzero()[:1, 0]
    return {"valid_index": torch.cat([valid, ignored.repeat(padding)]), "num_valid": len(valid)}


def exact_gradients(
    hidden_ND: torch.Tensor, linear: nn.Linear, case: Case, settings: LossSettings
) -> tuple[float, torch.Tensor, list[torch.Tensor]]:
    """Return (loss, loss_sum_K, gradients of hidden, weight and bias) in float64."""
    exact_hidden_ND = hidden_ND.detach().double().requires_grad_()
    exact_linear = nn.Linear(D, linear.out_features, bias=linear.bias is not None).double()
    exact_linear.load_state_dict(linear.state_dict())
    exact = exact_loss(exact_linear(exact_hidden_ND), case, settings)
    exact.loss.backward()
    gradients = [exact_hidden_ND.grad, *(parameter.grad for parameter in exact_linear.parameters())]
    return exact.loss.item(), exact.loss_sum_K, gradients


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("settings", [LossSettings(), EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("compact", [False, True], ids=["all_rows", "valid_rows"])
@pytest.mark.parametrize("chunk_mib", [ONE_CHUNK, FEW_ROWS])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3), (torch.float16, 2e-3)])
def test_loss_and_gradients_agree_with_a_linear_layer_in_float64(
    dtype: torch.dtype, tolerance: float, bias: bool, chunk_mib: float, compact: bool, settings: LossSettings
) -> None:
    linear, hidden_ND, case = make_head(bias=bias, dtype=dtype), make_hidden(57, dtype), make_case(57, 101)
    loss, loss_sum_K, gradients = exact_gradients(hidden_ND, linear, case, settings)
    head = DomainLossHead.from_linear(linear, settings=settings, chunk_mib=chunk_mib)
    result = head(
        hidden_ND, case.labels_N, case.domain_ids_N, num_domains=4, loss_weights_K=case.loss_weights_K,
        **(plan(case, padding=5) if compact else {}),
    )  # fmt: skip
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loss, rel=tolerance)
    torch.testing.assert_close(result.loss_sum_K, loss_sum_K, rtol=tolerance, atol=tolerance)
    for actual, expected in zip((hidden_ND.grad, *(p.grad for p in head.parameters())), gradients, strict=True):
        assert relative_error(actual, expected) < tolerance
        assert actual.dtype == dtype


@pytest.mark.parametrize("chunk_mib", [ONE_CHUNK, 1.0], ids=["one_chunk", "chunks"])
@pytest.mark.parametrize("loss_scale", [512.0, 4096.0])
def test_float16_gradients_over_many_tokens_stay_in_range_if_the_caller_gives_the_scale(
    chunk_mib: float, loss_scale: float
) -> None:
    num_tokens, vocabulary = 20_000, 101
    linear = make_head(vocabulary, dtype=torch.float16)
    hidden_ND = (make_hidden(num_tokens).detach() + 8.0).half().requires_grad_()
    ids_N = torch.zeros(num_tokens, dtype=torch.int64)
    case = Case(logits_NV=torch.empty(0), labels_N=ids_N + 7, domain_ids_N=ids_N, loss_weights_K=torch.ones(1))
    _, _, gradients = exact_gradients(hidden_ND, linear, case, LossSettings())
    assert gradients[1].abs().max() > 2 * torch.finfo(torch.float16).max  # the sum before it is divided
    scale = loss_scale / num_tokens
    head = DomainLossHead.from_linear(linear, chunk_mib=chunk_mib)
    result = head(hidden_ND, case.labels_N, case.domain_ids_N, grad_scale=scale)
    (result.loss * scale).backward()
    for actual, expected in zip((hidden_ND.grad, head.weight.grad, head.bias.grad), gradients, strict=True):
        assert relative_error(actual, expected * scale) < 3e-3


def test_the_given_scale_changes_no_gradient_with_another_dtype_or_another_factor() -> None:
    case = make_case(57, 101)

    def gradients(dtype: torch.dtype, grad_scale: float | None, factor: float) -> list[torch.Tensor]:
        linear, hidden_ND = make_head(dtype=dtype), make_hidden(57, dtype)
        head = DomainLossHead.from_linear(linear)
        loss = head(hidden_ND, case.labels_N, case.domain_ids_N, num_domains=4, grad_scale=grad_scale).loss
        (loss * factor).backward()
        return [hidden_ND.grad, linear.weight.grad, linear.bias.grad]

    for dtype in (torch.float32, torch.bfloat16):
        for one, other in zip(gradients(dtype, 1 / 57, 1 / 57), gradients(dtype, None, 1 / 57), strict=True):
            assert torch.equal(one, other)
    for one, other in zip(gradients(torch.float16, 0.25, 1.0), gradients(torch.float16, None, 1.0), strict=True):
        torch.testing.assert_close(one, other, rtol=4e-3, atol=1e-3)


def test_the_scale_is_bounded_in_float16_taken_as_it_is_on_a_gpu_and_left_to_backward_on_a_cpu() -> None:
    def scale(grad_scale: float | None, dtype: torch.dtype = torch.float16, device_type: str = "cuda") -> float:
        return scale_of_terms(grad_scale, device_type=device_type, dtype=dtype, num_tokens=1000)

    assert [scale(0.5), scale(1e-6), scale(65536.0), scale(None), scale(float("nan"))] == [0.5, 1e-3, 1024.0, 1.0, 1.0]
    assert scale(0.5, device_type="cpu") == 0.5
    for dtype in (torch.bfloat16, torch.float32):
        assert [scale(1e-6, dtype), scale(None, dtype), scale(0.0, dtype)] == [1e-6, 1.0, 1.0]
        assert scale(1e-6, dtype, device_type="cpu") == 1.0


def test_a_factor_that_host_and_device_round_differently_leaves_nothing_to_scale() -> None:
    for grad_scale in (1 / 3, 1 / 57, 8 / 30011, 1e-7):
        rounded = torch.tensor(grad_scale)
        for grad_loss in (rounded, torch.nextafter(rounded, torch.tensor(1.0)), torch.nextafter(rounded, -rounded)):
            assert remaining_factor(grad_loss, grad_scale) == 1.0
    assert remaining_factor(torch.tensor(0.5), 0.25) == 2.0
    assert remaining_factor(torch.tensor(0.5), 1.0) == 0.5
    assert remaining_factor(torch.tensor(float("nan")), 0.25).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaling_every_term_gives_the_gradient_that_scaling_the_sum_gives(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(57, 101)

    def gradients(scale: float) -> list[torch.Tensor]:
        monkeypatch.setattr(linear_head, "scale_of_terms", lambda *_, **__: scale)
        linear, hidden_ND = make_head(dtype=dtype), make_hidden(57, dtype)
        head = DomainLossHead.from_linear(linear, chunk_mib=0.01)
        loss = head(hidden_ND, case.labels_N, case.domain_ids_N, num_domains=4).loss
        (loss * (1 / 4096)).backward()
        return [hidden_ND.grad, linear.weight.grad, linear.bias.grad]

    for one, other in zip(gradients(1 / 4096), gradients(1.0), strict=True):  # a power of two: the same bits
        assert torch.equal(one, other)


def test_hidden_states_may_have_a_row_axis_and_ignored_tokens_get_exactly_zero_gradient() -> None:
    head, case = DomainLossHead.from_linear(make_head()), make_case(60, 101)
    hidden_BTD = make_hidden(60).detach().view(4, 15, D).requires_grad_()
    shape = (4, 15)
    arguments = (case.labels_N.view(shape), case.domain_ids_N.view(shape))
    head(hidden_BTD, *arguments, num_domains=4, **plan(case, padding=3)).loss.backward()
    ignored_BT = arguments[0] == -100
    assert (hidden_BTD.grad[ignored_BT] == 0).all()
    assert (hidden_BTD.grad[~ignored_BT].abs().sum(dim=-1) > 0).all()


def test_padding_entries_contribute_nothing_even_if_they_repeat_a_valid_position_or_are_nan() -> None:
    case = make_case(20, 101, masked=0.5)
    valid = (case.labels_N != -100).nonzero()[:, 0]
    ignored = int((case.labels_N == -100).nonzero()[0])

    def run(index: torch.Tensor, hidden_ND: torch.Tensor) -> list[torch.Tensor]:
        head = DomainLossHead.from_linear(make_head())
        result = head(
            hidden_ND, case.labels_N, case.domain_ids_N, num_domains=4, valid_index=index, num_valid=len(valid),
            per_token=True,
        )  # fmt: skip
        result.loss.backward()
        return [result.loss, result.token_losses_N, hidden_ND.grad, head.weight.grad]

    expected = run(valid, make_hidden(20))
    repeated = run(torch.cat([valid, valid[:1].repeat(9)]), make_hidden(20))
    poisoned_ND = make_hidden(20).detach()
    poisoned_ND[ignored] = float("nan")
    poisoned = run(torch.cat([valid, torch.tensor([ignored] * 9)]), poisoned_ND.requires_grad_())
    for actual in (repeated, poisoned):
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other)


def test_evaluation_gives_the_same_numbers_without_a_graph() -> None:
    case, hidden_ND = make_case(50, 101), make_hidden(50)
    head = DomainLossHead.from_linear(make_head(), chunk_mib=FEW_ROWS)
    arguments = (hidden_ND, case.labels_N, case.domain_ids_N)
    trained = head(*arguments, num_domains=4, per_token=True)
    with torch.no_grad():
        evaluated = head(*arguments, num_domains=4, per_token=True)
    assert not evaluated.loss.requires_grad
    for one, other in zip(trained, evaluated, strict=True):
        assert torch.equal(one, other)


@given(chunk_mib=st.floats(0.0004, 0.05), compact=st.booleans())
def test_the_chunk_budget_changes_no_statistic_beyond_the_products_rounding(chunk_mib: float, compact: bool) -> None:
    case, hidden_ND = make_case(64, 101), make_hidden(64)
    options = plan(case) if compact else {}

    def run(budget: float) -> DomainLoss:
        head = DomainLossHead.from_linear(make_head(), chunk_mib=budget)
        return head(hidden_ND, case.labels_N, case.domain_ids_N, num_domains=4, **options)

    torch.testing.assert_close(run(chunk_mib).loss_sum_K, run(ONE_CHUNK).loss_sum_K, rtol=1e-6, atol=1e-6)


def test_chunks_are_of_equal_size_and_within_the_budget() -> None:
    budget = {"vocabulary": 2**18, "element_bytes": 4}  # one row is one MiB
    assert chunk_rows(10, chunk_mib=4, **budget) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert chunk_rows(10, chunk_mib=6, **budget) == [slice(0, 5), slice(5, 10)]
    assert chunk_rows(3, chunk_mib=0.5, **budget) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert chunk_rows(0, chunk_mib=4, **budget) == []


@given(num_rows=st.integers(0, 500), vocabulary=st.integers(1, 5000), chunk_mib=st.floats(0.001, 2))
def test_chunks_cover_every_row_once(num_rows: int, vocabulary: int, chunk_mib: float) -> None:
    chunks = chunk_rows(num_rows, vocabulary=vocabulary, element_bytes=2, chunk_mib=chunk_mib)
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(num_rows))


@pytest.mark.parametrize("frozen", ["weight", "hidden", "both"])
def test_frozen_parts_get_no_gradient_and_leave_the_others_unchanged(frozen: str) -> None:
    case = make_case(30, 101)
    results = {}
    for name in ("none", frozen):
        linear, hidden_ND = make_head(), make_hidden(30)
        linear.weight.requires_grad_(name not in ("weight", "both"))
        linear.bias.requires_grad_(name not in ("weight", "both"))
        hidden_ND.requires_grad_(name not in ("hidden", "both"))
        head = DomainLossHead.from_linear(linear)
        result = head(hidden_ND, case.labels_N, case.domain_ids_N, num_domains=4)
        if result.loss.requires_grad:
            result.loss.backward()
        results[name] = (hidden_ND.grad, head.weight.grad, head.bias.grad)
        assert result.loss.requires_grad == (name != "both")
    for part, free in zip(results[frozen], results["none"], strict=True):
        assert part is None or torch.equal(part, free)
    assert sum(part is None for part in results[frozen]) == {"weight": 2, "hidden": 1, "both": 3}[frozen]


def test_a_tied_embedding_stays_tied_and_sums_both_gradients() -> None:
    embedding = nn.Embedding(101, D)
    linear = nn.Linear(D, 101, bias=False)
    linear.weight = embedding.weight
    head = DomainLossHead.from_linear(linear)
    model = nn.ModuleDict({"embedding": embedding, "lm_head": head})
    assert head.weight is embedding.weight
    assert set(model.state_dict()) == {"embedding.weight", "lm_head.weight"}
    case, tokens_N = make_case(30, 101), torch.randint(0, 101, (30,))
    head(embedding(tokens_N), case.labels_N, case.domain_ids_N, num_domains=4).loss.backward()
    tied = embedding.weight.grad.clone()
    embedding.weight.grad = None
    logits_NV = embedding(tokens_N) @ embedding.weight.t()
    nn.functional.cross_entropy(logits_NV, case.labels_N, reduction="sum").backward()
    torch.testing.assert_close(tied, embedding.weight.grad, rtol=1e-5, atol=1e-6)


def test_without_labels_the_head_is_the_linear_layer() -> None:
    linear, hidden_ND = make_head(), make_hidden(5)
    assert torch.equal(DomainLossHead.from_linear(linear)(hidden_ND), linear(hidden_ND))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_of_the_head_changes_nothing(use_reentrant: bool) -> None:
    case = make_case(30, 101)

    def run(wrapped: bool) -> list[torch.Tensor]:
        head, hidden_ND = DomainLossHead.from_linear(make_head(), chunk_mib=FEW_ROWS), make_hidden(30)

        def loss_of(hidden: torch.Tensor) -> torch.Tensor:
            return head(hidden, case.labels_N, case.domain_ids_N, num_domains=4).loss

        loss = checkpoint(loss_of, hidden_ND, use_reentrant=use_reentrant) if wrapped else loss_of(hidden_ND)
        (loss / 7).backward()
        return [loss, hidden_ND.grad, head.weight.grad]

    for one, other in zip(run(True), run(False), strict=True):
        assert torch.equal(one, other)


def test_autocast_computes_in_its_dtype_and_returns_gradients_in_the_parameters() -> None:
    head, hidden_ND, case = DomainLossHead.from_linear(make_head()), make_hidden(40), make_case(40, 101)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = head(hidden_ND, case.labels_N, case.domain_ids_N, num_domains=4)
    result.loss.backward()
    low = DomainLossHead.from_linear(make_head(dtype=torch.bfloat16))
    expected = low(hidden_ND.detach().bfloat16(), case.labels_N, case.domain_ids_N, num_domains=4)
    assert torch.equal(result.loss, expected.loss)
    assert head.weight.grad.dtype == hidden_ND.grad.dtype == torch.float32


@pytest.mark.parametrize("compact", [False, True])
def test_a_batch_without_rows_has_zero_loss_and_zero_gradients(compact: bool) -> None:
    head, case = DomainLossHead.from_linear(make_head()), make_case(8 if compact else 0, 101, masked=1.0)
    hidden_ND = make_hidden(case.labels_N.shape[0])
    result = head(hidden_ND, case.labels_N, case.domain_ids_N, num_domains=4, **(plan(case) if compact else {}))
    result.loss.backward()
    assert result.loss.item() == 0.0
    for gradient in (hidden_ND.grad, head.weight.grad, head.bias.grad):
        assert (gradient == 0).all()


def test_wrong_arguments_are_refused_with_what_was_expected() -> None:
    head, ids_N = DomainLossHead.from_linear(make_head()), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="chunk_mib: expected a positive number"):
        DomainLossHead.from_linear(make_head(), chunk_mib=0)
    with pytest.raises(ValueError, match=r"hidden: expected last dimension 24 as in weight \[101, 24\], got 5"):
        head(torch.zeros(4, 5), ids_N)
    with pytest.raises(ValueError, match=r"labels: expected int64 of shape \[4\], got torch.int64 \[3\]"):
        head(make_hidden(4), ids_N[:3])
    with pytest.raises(ValueError, match=r"num_valid: expected 0\.\.4, the length of valid_index, got 5"):
        head(make_hidden(4), ids_N, valid_index=ids_N, num_valid=5)
    with pytest.raises(ValueError, match="num_valid: 3 was given without valid_index"):
        head(make_hidden(4), ids_N, num_valid=3)
