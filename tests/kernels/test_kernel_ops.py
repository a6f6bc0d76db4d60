"""The operators' contract with PyTorch: schemas, fake kernels, autograd, torch.compile, and the PyTorch fallback."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.kernels.exact_loss import Case, make_case
from versatune_ds.kernels import DomainLossHead, LossSettings, domain_cross_entropy, fixed_point, ops, torch_reference

EVERYTHING = LossSettings(z_loss=1e-3, softcap=5.0, label_smoothing=0.1)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def arguments_of(case: Case) -> tuple[torch.Tensor, ...]:
    return case.logits_NV, case.labels_N, case.domain_ids_N, case.loss_weights_K


@pytest.mark.parametrize("num_rows", [0, 5])
def test_the_operators_pass_pytorchs_opcheck(num_rows: int) -> None:
    ops.prepare("cpu")
    logits_NV, *rest = arguments_of(make_case(num_rows, 11))
    settings = EVERYTHING.as_arguments()
    operators = torch.ops.versatune
    torch.library.opcheck(operators.domain_ce.default, (logits_NV.clone().requires_grad_(), *rest, *settings))
    torch.library.opcheck(operators.domain_ce_gradient_.default, (logits_NV.clone(), *rest, *settings))
    normalizers_N2 = operators.domain_ce(logits_NV, *rest, *settings)[2]
    torch.library.opcheck(
        operators.domain_ce_backward.default, (logits_NV, *rest, normalizers_N2, torch.tensor(2.0), *settings)
    )
    torch.library.opcheck(operators.scale_.default, (logits_NV.clone(), torch.tensor(2.0)))


@pytest.mark.parametrize("settings", [LossSettings(), EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_pytorch_implementation_gives_the_same_numbers(dtype: torch.dtype, settings: LossSettings) -> None:
    if not ops.prepare("cpu"):
        pytest.skip("no compiled implementation on this machine to compare with")
    case = make_case(41, 133, dtype=dtype)
    arguments = (*arguments_of(case), *settings.as_arguments())
    compiled, plain = torch.ops.versatune.domain_ce(*arguments), torch_reference.domain_ce(*arguments)
    # Fixed point: one unit is 6e-8 nats; a domain's ten tokens may each round differently by a few float32 units.
    assert (compiled[1] - plain[1]).abs().max() < 2**11
    assert torch.equal(compiled[1][:, fixed_point.COUNT], plain[1][:, fixed_point.COUNT])
    ignored_N = case.labels_N == -100
    torch.testing.assert_close(compiled[2][~ignored_N], plain[2][~ignored_N], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(compiled[3], plain[3], rtol=1e-6, atol=2e-6)
    backward = (*arguments[:4], plain[2], torch.tensor(0.5), *arguments[4:])
    one = torch.ops.versatune.domain_ce_backward(*backward)
    # The last bit of a half-precision number may differ: 2^-7 and 2^-10.
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(one, torch_reference.domain_ce_backward(*backward), rtol=tolerance, atol=1e-7)


def test_the_pytorch_implementation_refuses_the_same_ids() -> None:
    case = make_case(5, 10, masked=0.0)
    case.labels_N[2] = 10
    with pytest.raises(ValueError, match=r"row 2: label 10 is outside 0\.\.9"):
        torch_reference.domain_ce(*arguments_of(case), *LossSettings().as_arguments())


def test_the_pytorch_implementation_works_in_blocks_and_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(23, 50)
    arguments = arguments_of(case)[1:]
    settings = EVERYTHING.as_arguments()
    at_once_NV, blocks_NV = case.logits_NV.clone(), case.logits_NV.clone()
    at_once = torch_reference.domain_ce_gradient_(at_once_NV, *arguments, *settings)
    monkeypatch.setattr(torch_reference, "_BLOCK_ELEMENTS", 200)
    blocks = torch_reference.domain_ce_gradient_(blocks_NV, *arguments, *settings)
    assert torch.equal(at_once_NV, blocks_NV)
    for one, other in zip(at_once, blocks, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("overwrite_logits", [False, True])
def test_compiled_loss_equals_eager_loss(overwrite_logits: bool) -> None:
    case = make_case(19, 67)

    def step(logits_NV: torch.Tensor) -> torch.Tensor:
        result = domain_cross_entropy(
            logits_NV * 2, case.labels_N, case.domain_ids_N, 4, overwrite_logits=overwrite_logits
        )
        return result.loss + result.loss_sum_K.sum()

    gradients = []
    for function in (step, torch.compile(step, fullgraph=True)):
        logits_NV = case.logits_NV.clone().requires_grad_()
        loss = function(logits_NV)
        loss.backward()
        gradients.append((loss, logits_NV.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@pytest.mark.slow
def test_compiled_head_equals_eager_head_also_with_another_number_of_valid_rows() -> None:
    linear = nn.Linear(16, 67)
    head = DomainLossHead.from_linear(linear, chunk_mib=0.003)

    def step(hidden_ND: torch.Tensor, case: Case, index: torch.Tensor, num_valid: int) -> torch.Tensor:
        result = head(
            hidden_ND, case.labels_N, case.domain_ids_N, num_domains=4, valid_index=index, num_valid=num_valid
        )
        return result.loss + result.loss_sum_K.sum()

    compiled = torch.compile(step)
    for seed in range(3):
        case = make_case(40, 67, seed=seed)
        valid = (case.labels_N != -100).nonzero()[:, 0]
        index = torch.cat([valid, valid.new_zeros(40 - len(valid))])
        outcomes = []
        for function in (step, compiled):
            head.zero_grad()
            hidden_ND = torch.randn(40, 16, generator=torch.Generator().manual_seed(seed)).requires_grad_()
            loss = function(hidden_ND, case, index, len(valid))
            loss.backward()
            outcomes.append((loss, hidden_ND.grad, linear.weight.grad.clone()))
        torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-6, atol=1e-6)


def test_meta_tensors_give_shapes_without_building_anything() -> None:
    ids_N = torch.zeros(3, dtype=torch.int64, device="meta")
    result = domain_cross_entropy(torch.zeros(3, 5, device="meta"), ids_N, ids_N, 2, per_token=True)
    assert result.loss.shape == ()
    assert result.loss_sum_K.shape == (2,)
    assert result.token_losses_N.shape == (3,)
