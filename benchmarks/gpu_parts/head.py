"""Time the head with the loss, from hidden states (targets K2 to K5): ours beside plain PyTorch, Liger and CCE.

Hidden states point towards their label's row of the head, so that probabilities are as peaked as a trained model's: Cut
Cross Entropy skips small ones, of which random logits have none. Its exact form is called `cce_exact` in its repository
only; release 25.1.1 has `filter_eps=None` for it. Liger is timed at its default chunks and at 8 and 16 times their
memory.

Shape legend: **N** tokens, **V** vocabulary, **D** hidden, **K** domains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.gpu_parts.kernel_table import timed_rows
from benchmarks.gpu_parts.place import Place
from benchmarks.gpu_parts.rows import Row
from benchmarks.kernels_timing import Contestant
from versatune_ds.kernels import DomainLossHead

K = 6
FLOOR = "the products alone (the floor)"
CASES = [
    ("K2, K4", 8192, 0.0, True),
    ("K3", 8192, 0.5, True),
    ("K5", 8192, 0.0, False),
    ("K2, K4", 16384, 0.0, True),
    ("K3", 16384, 0.5, True),
]
"""Target, N, masked share, and whether the backward pass is timed too."""
SHAPE = {"full": (4096, 128256), "small": (64, 512)}
"""D and V."""


def rows(place: Place) -> Iterator[Row]:
    """Yield one table a case."""
    hidden_size, vocabulary = SHAPE[place.size]
    for target, num_rows, masked, has_backward in CASES[:3] if place.is_small else CASES:
        torch.manual_seed(0)
        num_rows = num_rows // 128 if place.is_small else num_rows
        direction = "forward + backward" if has_backward else "evaluation"
        shape = f"N={num_rows}, D={hidden_size}, V={vocabulary}"
        table = f"{target}: head + loss, bf16, {shape}, {masked:.0%} masked, {direction}"
        contestants = _contestants(place.device, num_rows, hidden_size, vocabulary, masked, has_backward)
        yield from timed_rows(place, table, contestants, floor=FLOOR, floor_column="times the products")


def _contestants(
    device: str, num_rows: int, hidden_size: int, vocabulary: int, masked: float, has_backward: bool
) -> list[Contestant]:
    """Return the ways to compute head and loss of one case."""
    # One set of inputs for all.
    linear = nn.Linear(hidden_size, vocabulary, bias=False, device=device, dtype=torch.bfloat16)
    weight_VD = linear.weight
    labels_N = torch.randint(0, vocabulary, (num_rows,), device=device)
    domain_ids_N = torch.randint(0, K, (num_rows,), device=device)
    hidden_ND = realistic_hidden_states(weight_VD.detach(), labels_N).requires_grad_()
    labels_N[torch.rand(num_rows, device=device) < masked] = -100
    valid_index = (labels_N != -100).nonzero()[:, 0]
    head = DomainLossHead.from_linear(linear)

    def finish(loss_of: Callable[[], torch.Tensor]) -> Callable[[], object]:
        if not has_backward:
            return torch.no_grad()(loss_of)
        return lambda: torch.autograd.grad(loss_of(), (hidden_ND, weight_VD))

    def products() -> None:
        kept_MD = hidden_ND.detach()[valid_index]
        logits_MV = kept_MD @ weight_VD.detach().t()
        if has_backward:
            torch.mm(logits_MV, weight_VD.detach())
            torch.mm(logits_MV.t(), kept_MD)

    def plain() -> torch.Tensor:
        return functional.cross_entropy(linear(hidden_ND).float(), labels_N, reduction="sum")

    def ours() -> torch.Tensor:
        known = {"num_domains": K, "valid_index": valid_index, "grad_scale": 1.0}
        return head(hidden_ND, labels_N, domain_ids_N, **known).loss

    ways = {"linear + float32 cross_entropy": plain, "DomainLossHead": ours}
    ways |= {name: partial(way, hidden_ND, weight_VD, labels_N) for name, way in _rivals().items()}
    floor = Contestant(name=FLOOR, run=products)
    return [floor, *(Contestant(name=name, run=finish(way)) for name, way in ways.items())]


def realistic_hidden_states(weight_VD: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Return hidden states [N, D] whose loss is about one nat a token: half of the tokens sure, the others not.

    A row of `nn.Linear`'s initial weight has a squared norm of 1/3, so that a multiple 3 * ln(V) * u of the label's row
    gives the label a logit of u * ln(V). The others are small, and their logsumexp is little more than ln(V): for u < 1
    the loss is about (1 - u) * ln(V), above it falls to 0. With u uniform in 0.5 to 2 and V = 128256 the mean is
    ln(V) * 0.5^2 / 2 / 1.5 = 0.98.
    """
    strength_N = 3 * math.log(weight_VD.shape[0]) * torch.empty_like(labels_N, dtype=torch.float32).uniform_(0.5, 2.0)
    noise_ND = torch.randn(len(labels_N), weight_VD.shape[1], device=weight_VD.device)
    return (weight_VD[labels_N].float() * strength_N[:, None] + noise_ND).to(weight_VD.dtype)


def _rivals() -> dict[str, Callable[..., torch.Tensor]]:
    """Return the rivals; one that is not installed raises its ImportError when it is called."""
    ways: dict[str, Callable[..., torch.Tensor]] = {
        "cut_cross_entropy cce": partial(_cut_cross_entropy, {"impl": "cce"}),
        "cut_cross_entropy cce_exact": partial(_cut_cross_entropy, {"impl": "cce_exact"}),
        "cut_cross_entropy cce, no gradient filtered": partial(_cut_cross_entropy, {"impl": "cce", "filter_eps": None}),
    }
    return ways | {f"Liger, {times} x its default chunks": partial(_liger, times) for times in (1, 8, 16)}


def _cut_cross_entropy(options: dict[str, Any], *inputs: torch.Tensor) -> torch.Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(*inputs, reduction="sum", **options)


def _liger(times: int, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as Liger

    return Liger.apply(
        hidden_ND, weight_VD, labels_N, None, None, -100, 0.0, 0.0, "sum", None, False, None, False, False, False,
        None, None, times,
    )[0]  # fmt: skip
