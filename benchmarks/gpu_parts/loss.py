"""Time the loss by domain with its gradient, from given bfloat16 logits (targets K1, K6).

Every kernel of ours is called by its name, with the logits overwritten; so are Triton's. A copy of the logits is the
floor: it reads and writes [N, V] once, as the fastest kernel must.

Shape legend: **N** tokens, **V** vocabulary, **K** domains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from benchmarks.gpu_parts.kernel_table import timed_rows
from benchmarks.gpu_parts.place import Place
from benchmarks.gpu_parts.rows import Row, Value, attempt
from benchmarks.kernels_timing import Contestant
from versatune_ds.kernels import domain_cross_entropy, ops, triton_kernels
from versatune_ds.kernels.build import load_kernels
from versatune_ds.kernels.kernel_choice import KERNELS, loss_kernel
from versatune_ds.kernels.settings import LossSettings

FLOOR = "copy of the logits (the floor)"
PLAIN = "float32 cross_entropy + index_add"
SHAPES = {
    "full": [(8192, 32000, 6), (8192, 128256, 6), (8192, 151936, 6), (8192, 128256, 256)],
    "small": [(64, 512, 6)],
}


def rows(place: Place) -> Iterator[Row]:
    """Yield which implementation runs, then one table a shape."""
    yield attempt("Loss kernels", "implementation", lambda: {"runs": load_kernels(place.device).describe()})
    ops.prepare(place.device)
    for num_rows, vocabulary, num_domains in SHAPES[place.size]:
        torch.manual_seed(0)
        yield from _rows_of_shape(place, num_rows, vocabulary, num_domains)


def _rows_of_shape(place: Place, num_rows: int, vocabulary: int, num_domains: int) -> Iterator[Row]:
    table = f"K1, K6: loss + gradient, bf16, N={num_rows}, V={vocabulary}, K={num_domains}"
    index = torch.cuda.current_device() if place.device == "cuda" else None
    chosen = KERNELS[loss_kernel(place.device, index, torch.bfloat16, vocabulary)]
    notes: dict[str, dict[str, Value]] = {f"ours, {chosen}": {"chosen": "yes"}}
    contestants = _contestants(place.device, num_rows, vocabulary, num_domains)
    yield from timed_rows(place, table, contestants, floor=FLOOR, floor_column="times the copy", notes=notes)


def _contestants(device: str, num_rows: int, vocabulary: int, num_domains: int) -> list[Contestant]:
    """Return the ways to compute loss and gradient; each starts from the same logits."""
    source_NV = torch.randn(num_rows, vocabulary, device=device, dtype=torch.bfloat16)
    logits_NV, copied_NV = source_NV.clone().requires_grad_(), torch.empty_like(source_NV)
    labels_N = torch.randint(0, vocabulary, (num_rows,), device=device)
    domain_ids_N = torch.randint(0, num_domains, (num_rows,), device=device)
    arguments = (labels_N, domain_ids_N, torch.ones(num_domains, device=device), *LossSettings().as_arguments())

    def plain() -> object:
        losses_N = functional.cross_entropy(logits_NV.float(), labels_N, reduction="none")
        torch.zeros(num_domains, device=device).index_add_(0, domain_ids_N, losses_N.detach())
        return torch.autograd.grad(losses_N.sum(), logits_NV)

    def kept() -> object:
        return torch.autograd.grad(domain_cross_entropy(logits_NV, labels_N, domain_ids_N, num_domains).loss, logits_NV)

    def liger() -> object:
        from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction as Liger

        loss = Liger.apply(logits_NV, labels_N, None, -100, 0.0, 0.0, "sum", None, False)[0]
        return torch.autograd.grad(loss, logits_NV)

    def overwriting(number: int) -> Callable[[], object]:
        return lambda: torch.ops.versatune.domain_ce_gradient_(logits_NV.detach(), *arguments, number)

    ways: dict[str, Callable[[], object]] = {FLOOR: lambda: copied_NV.copy_(source_NV), PLAIN: plain}
    names = KERNELS if device == "cuda" else KERNELS[:1]  # elsewhere there is one kernel
    ways |= {f"ours, {name}": overwriting(number) for number, name in enumerate(names)}
    ways["ours, logits kept"] = kept
    if triton_kernels.is_available(device):
        ways["ours in Triton"] = lambda: triton_kernels.domain_ce_gradient_(logits_NV.detach(), *arguments)
    ways["Liger cross entropy"] = liger

    def restore() -> None:
        logits_NV.data.copy_(source_NV)

    return [Contestant(name=name, run=way, prepare=restore) for name, way in ways.items()]
