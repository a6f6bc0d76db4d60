"""Faults of other projects' fused losses; each test states the issue."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.exact_loss import make_case
from versatune_ds.kernels import DomainLossHead, domain_cross_entropy
from versatune_ds.kernels.head_loss import add_weight_gradient


@pytest.mark.parametrize("overwrite_logits", [False, True])
def test_label_gradient_of_a_confident_token_survives_bfloat16(overwrite_logits: bool) -> None:
    # Liger-Kernel #1268: p rounded to bfloat16 before 1 is subtracted; at p = 0.9999 the gradient became 0.
    vocabulary, p = 1024, 0.9999
    logits_NV = torch.zeros(1, vocabulary)
    logits_NV[0, 7] = torch.tensor((vocabulary - 1) * p / (1 - p)).log()
    logits_NV = logits_NV.bfloat16()
    exact = torch.softmax(logits_NV.double(), dim=-1)[0, 7] - 1.0
    assert -1.5e-4 < exact < -0.5e-4
    leaf_NV = logits_NV.clone().requires_grad_()
    ids_N = torch.zeros(1, dtype=torch.int64)
    domain_cross_entropy(leaf_NV * 1, ids_N + 7, ids_N, 1, overwrite_logits=overwrite_logits).loss.backward()
    assert leaf_NV.grad[0, 7].double().item() == pytest.approx(exact.item(), rel=0.01)


def test_token_losses_refuse_a_gradient_instead_of_giving_a_wrong_one() -> None:
    # Liger-Kernel #968: reduction="none" gave zero or wrong gradients. Ours have none, and raise an error.
    case = make_case(6, 10)
    leaf_NV = case.logits_NV.clone().requires_grad_()
    result = domain_cross_entropy(leaf_NV, case.labels_N, case.domain_ids_N, 4, per_token=True)
    assert not result.token_losses_N.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        result.token_losses_N.sum().backward()
    head = DomainLossHead.from_linear(nn.Linear(8, 10))
    result = head(torch.randn(6, 8), case.labels_N, case.domain_ids_N, num_domains=4, per_token=True)
    assert not result.token_losses_N.requires_grad


def test_loss_weights_scale_the_gradients_of_their_domains() -> None:
    # Liger-Kernel #968, from the other side: a weight of 0 turns a domain off, others are unchanged.
    case = make_case(40, 10, num_domains=3)
    leaf_NV = case.logits_NV.clone().requires_grad_()
    weights_K = torch.tensor([0.0, 1.0, 1.0])
    domain_cross_entropy(leaf_NV, case.labels_N, case.domain_ids_N, 3, loss_weights_K=weights_K).loss.backward()
    is_off_N = case.domain_ids_N == 0
    assert (leaf_NV.grad[is_off_N] == 0).all()
    assert (leaf_NV.grad[~is_off_N & (case.labels_N != -100)].abs().sum(dim=1) > 0).all()


@pytest.mark.slow
def test_loss_under_torch_compile_is_right_with_ignored_labels() -> None:
    # Liger-Kernel #1338.
    case = make_case(50, 40, masked=0.6)
    compiled = torch.compile(
        lambda logits_NV: domain_cross_entropy(logits_NV, case.labels_N, case.domain_ids_N, 4).loss, fullgraph=True
    )
    expected = functional.cross_entropy(case.logits_NV, case.labels_N, reduction="sum")
    torch.testing.assert_close(compiled(case.logits_NV), expected)


def test_weight_gradient_of_many_bfloat16_chunks_does_not_drift() -> None:
    # Liger-Kernel #512: summing chunks in bfloat16 stops at 256 equal shares, since 256 + 1 = 256 there.
    hidden_ND = torch.ones(1024, 8, dtype=torch.bfloat16)
    grad_NV = torch.ones(1024, 4, dtype=torch.bfloat16)
    total_VD = None
    for row in range(1024):
        total_VD = add_weight_gradient(total_VD, grad_NV[row : row + 1], hidden_ND[row : row + 1], is_only_chunk=False)
    assert total_VD.dtype == torch.float32
    assert (total_VD == 1024).all()


class _WidestFloat(TorchDispatchMode):
    """Record the dtypes that matrix products work on, and the largest float32 tensor made."""

    def __init__(self) -> None:
        super().__init__()
        self.product_dtypes: set[torch.dtype] = set()
        self.largest_float32 = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.product_dtypes |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        output = function(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.dtype == torch.float32:
            self.largest_float32 = max(self.largest_float32, output.numel())
        return output


def test_half_precision_is_not_upcast_before_the_product() -> None:
    # TRL #6858: float32 copies of weight and hidden states before the GEMM.
    linear = nn.Linear(16, 300, bias=False).bfloat16()
    head, case = DomainLossHead.from_linear(linear), make_case(64, 300)
    hidden_ND = torch.randn(64, 16).bfloat16().requires_grad_()
    with _WidestFloat() as seen:
        head(hidden_ND, case.labels_N, case.domain_ids_N, num_domains=4).loss.backward()
    assert seen.product_dtypes == {torch.bfloat16}
    assert seen.largest_float32 < linear.weight.numel()
