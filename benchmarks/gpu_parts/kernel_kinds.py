"""Sort a training step's kernels into kinds by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping

KINDS = {
    "loss": r"versatune|cross_entropy|nll_loss|log_?softmax|^loss_kernel$|^gradient_kernel$",
    "attention": r"flash|fmha|attention|attn|flex|sdpa|softmax",
    "products": r"gemm|nvjet|cublas|cutlass|xmma|wgmma|splitkreduce|aten::(mm|addmm|bmm)$",
    "optimizer": r"multi_tensor|adam|foreach|lpnorm",
    "copies": r"memcpy|memset|copy_kernel|catarray|fillfunctor|nccl|aten::(copy_|fill_|zero_|cat)$",
    "norms, rotary, elementwise": r"elementwise|reduce_kernel|norm|rotary|rope|silu|swiglu|triton|embedding|index|"
    r"gather|scatter|aten::(mul|add|sub|div|pow|mean|sum|neg|rsqrt|sigmoid)_?$",
}
"""Kind to a pattern of names in lower case; the first that fits wins: attention kernels built from CUTLASS count as
attention, and the plain loss, a softmax too, as loss. Ours are in the namespace `versatune`, or Triton's by name."""

_PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
OTHER = "other"


def kind_of(name: str) -> str:
    """Return the kind of a kernel."""
    lowered = name.lower()
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(lowered)), OTHER)


def milliseconds_by_kind(milliseconds: Mapping[str, float]) -> dict[str, float]:
    """Return the sum of each kind, the largest first; `other` is last."""
    sums: dict[str, float] = {}
    for name, value in milliseconds.items():
        sums[kind_of(name)] = sums.get(kind_of(name), 0.0) + value
    return dict(sorted(sums.items(), key=lambda item: (item[0] == OTHER, -item[1])))


def largest(milliseconds: Mapping[str, float], *, count: int = 3) -> str:
    """Return the largest kernels in words, so that a kind that is too large can be looked up."""
    names = sorted(milliseconds, key=lambda name: -milliseconds[name])[:count]
    return "; ".join(f"{name[:60]} {milliseconds[name]:.2f}" for name in names)
