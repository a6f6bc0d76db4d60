"""Measure the CPU loss kernel and the head next to PyTorch (target K10); write benchmarks/results/kernels_cpu.md.

    python benchmarks/kernels_cpu.py [--threads 2] [--repetitions 5]

Shape legend: **N** tokens, **V** vocabulary, **K** domains, **D** hidden.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kernels_timing import Contestant, heading, interleaved_medians, processor_name, table
from versatune_ds.kernels import DomainLossHead, domain_cross_entropy
from versatune_ds.kernels.build import load_kernels

K = 6
RESULT = Path(__file__).parent / "results" / "kernels_cpu.md"
RIVAL = "F.cross_entropy + index_add"
LOSS_SHAPES = [(2048, 32000), (512, 128256)]
HEAD_SHAPE = (1024, 256, 32000)


def plain_loss(
    logits_NV: torch.Tensor, labels_N: torch.Tensor, domain_ids_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (loss, loss_sum_K) the usual way."""
    losses_N = functional.cross_entropy(logits_NV, labels_N, reduction="none")
    sums_K = torch.zeros(K, dtype=torch.float32).index_add_(0, domain_ids_N, losses_N.detach().float())
    return losses_N.sum(), sums_K


def loss_contestants(num_rows: int, vocabulary: int, dtype: torch.dtype, *, backward: bool) -> list[Contestant]:
    """Return the ways to compute the loss by domain from given logits."""
    source_NV = torch.randn(num_rows, vocabulary).mul_(3).to(dtype)
    logits_NV = source_NV.clone().requires_grad_(backward)
    labels_N, domain_ids_N = torch.randint(0, vocabulary, (num_rows,)), torch.randint(0, K, (num_rows,))
    compiled_loss = torch.compile(plain_loss)

    def restore() -> None:
        logits_NV.data.copy_(source_NV)

    def with_backward(loss_of: Callable[[], torch.Tensor]) -> Callable[[], object]:
        if not backward:
            return torch.no_grad()(loss_of)
        return lambda: torch.autograd.grad(loss_of(), logits_NV)

    def ours(overwrite: bool) -> torch.Tensor:
        return domain_cross_entropy(logits_NV, labels_N, domain_ids_N, K, overwrite_logits=overwrite).loss

    ways = {
        RIVAL: lambda: plain_loss(logits_NV, labels_N, domain_ids_N)[0],
        "the same, torch.compile": lambda: compiled_loss(logits_NV, labels_N, domain_ids_N)[0],
        "domain_cross_entropy": lambda: ours(False),
    }
    if backward:
        ways["domain_cross_entropy, overwriting the logits"] = lambda: ours(True)
    return [Contestant(name=name, run=with_backward(way), prepare=restore) for name, way in ways.items()]


def head_contestants(dtype: torch.dtype, *, masked: float) -> list[Contestant]:
    """Return the ways to compute head and loss, forward and backward."""
    num_rows, width, vocabulary = HEAD_SHAPE
    linear = nn.Linear(width, vocabulary, bias=False).to(dtype)
    head = DomainLossHead.from_linear(linear)
    hidden_ND = torch.randn(num_rows, width).to(dtype).requires_grad_()
    labels_N, domain_ids_N = torch.randint(0, vocabulary, (num_rows,)), torch.randint(0, K, (num_rows,))
    labels_N[torch.rand(num_rows) < masked] = -100
    valid_index = (labels_N != -100).nonzero()[:, 0]
    inputs = (hidden_ND, linear.weight)

    def plain() -> torch.Tensor:
        return plain_loss(linear(hidden_ND), labels_N, domain_ids_N)[0]

    def fused() -> torch.Tensor:
        return head(hidden_ND, labels_N, domain_ids_N, num_domains=K, valid_index=valid_index).loss

    logits_MV = torch.randn(len(valid_index), vocabulary).to(dtype)
    hidden_MD = hidden_ND.detach()[valid_index]

    def products() -> None:
        torch.mm(hidden_MD, linear.weight.detach().t(), out=logits_MV)
        torch.mm(logits_MV, linear.weight.detach())
        torch.mm(logits_MV.t(), hidden_MD)

    ways = {f"linear + {RIVAL}": plain, "the same, torch.compile": torch.compile(plain), "DomainLossHead": fused}
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        ways["cut_cross_entropy, impl=torch_compile (no sums by domain)"] = lambda: linear_cross_entropy(
            hidden_ND, linear.weight, labels_N, impl="torch_compile", reduction="sum"
        )
    floor = Contestant(name="the three products alone, kept rows only (floor)", run=products)
    rest = [Contestant(name=name, run=lambda way=way: torch.autograd.grad(way(), inputs)) for name, way in ways.items()]
    return [floor, *rest]


def measure(repetitions: int) -> Iterator[list[str]]:
    """Yield the report's sections."""
    for dtype in (torch.float32, torch.bfloat16):
        for num_rows, vocabulary in LOSS_SHAPES:
            for backward in (True, False):
                contestants = loss_contestants(num_rows, vocabulary, dtype, backward=backward)
                medians = interleaved_medians(contestants, repetitions=repetitions)
                direction = "forward + backward" if backward else "forward"
                yield table(f"loss, {dtype}, N={num_rows}, V={vocabulary}, {direction}", medians, rival=RIVAL)
        for masked in (0.0, 0.5):
            medians = interleaved_medians(head_contestants(dtype, masked=masked), repetitions=repetitions)
            shape = "N={}, D={}, V={}".format(*HEAD_SHAPE)
            title = f"head + loss, {dtype}, {shape}, forward + backward, {masked:.0%} masked"
            yield table(title, medians, rival=f"linear + {RIVAL}")


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    command = f"python benchmarks/kernels_cpu.py --threads {arguments.threads} --repetitions {arguments.repetitions}"
    lines = heading("Loss by domain on the CPU", f"{processor_name()}, {arguments.threads} threads", command)
    lines += [
        load_kernels("cpu").describe().split(" (")[0] + ".",
        "Liger-Kernel is left out: without a GPU it only runs in Triton's interpreter, which says nothing about speed.",
        *([] if importlib.util.find_spec("cut_cross_entropy") else ["cut_cross_entropy is not installed: left out."]),
        "",
    ]
    for section in measure(arguments.repetitions):
        print("\n".join(section), flush=True)
        lines += section
    lines.append("Load average (1, 5, 15 minutes) at the end: {:.1f}, {:.1f}, {:.1f}.\n".format(*os.getloadavg()))
    RESULT.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
