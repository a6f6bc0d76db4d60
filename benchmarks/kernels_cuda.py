"""Measure the CUDA kernels on a GPU (targets K1 to K6); write benchmarks/results/kernels_cuda.md.

    python benchmarks/kernels_cuda.py [--repetitions 20]

Rivals that are not installed (liger-kernel, cut-cross-entropy) are left out, and the report says so. Liger is timed at
its default chunk size and at 8 and 16 times it.

Shape legend: **N** tokens, **V** vocabulary, **K** domains, **D** hidden.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kernels_timing import Contestant, heading, interleaved_medians, table
from versatune_ds.kernels import DomainLossHead, domain_cross_entropy
from versatune_ds.kernels.build import load_kernels

K, D = 6, 4096
RESULT = Path(__file__).parent / "results" / "kernels_cuda.md"
PLAIN = "float F.cross_entropy + index_add"
HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None
HAS_CCE = importlib.util.find_spec("cut_cross_entropy") is not None


def random_ids(num_rows: int, size: int) -> torch.Tensor:
    """Return int64 ids [N] on the device."""
    return torch.randint(0, size, (num_rows,), device="cuda")


def loss_contestants(num_rows: int, vocabulary: int, num_domains: int) -> list[Contestant]:
    """Return the ways to compute loss and gradient of given bfloat16 logits (K1, K6)."""
    source_NV = torch.randn(num_rows, vocabulary, device="cuda", dtype=torch.bfloat16)
    logits_NV = source_NV.clone().requires_grad_()
    copied_NV = torch.empty_like(source_NV)
    labels_N, domain_ids_N = random_ids(num_rows, vocabulary), random_ids(num_rows, num_domains)

    def plain() -> torch.Tensor:
        losses_N = functional.cross_entropy(logits_NV.float(), labels_N, reduction="none")
        torch.zeros(num_domains, device="cuda").index_add_(0, domain_ids_N, losses_N.detach())
        return losses_N.sum()

    def ours(overwrite: bool) -> torch.Tensor:
        return domain_cross_entropy(logits_NV, labels_N, domain_ids_N, num_domains, overwrite_logits=overwrite).loss

    def gradient(loss_of: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss_of(), logits_NV)

    def restore() -> None:
        logits_NV.data.copy_(source_NV)

    ways: dict[str, Callable[[], object]] = {
        "copy of the logits (the floor)": lambda: copied_NV.copy_(source_NV),
        PLAIN: gradient(plain),
        "domain_cross_entropy": gradient(lambda: ours(False)),
        "domain_cross_entropy, overwriting the logits": gradient(lambda: ours(True)),
    }
    if HAS_LIGER:
        from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction as Liger

        ways["Liger cross entropy"] = gradient(
            lambda: Liger.apply(logits_NV, labels_N, None, -100, 0.0, 0.0, "sum", None, False)[0]
        )
    return [Contestant(name=name, run=way, prepare=restore) for name, way in ways.items()]


def head_contestants(num_rows: int, vocabulary: int, *, masked: float, backward: bool) -> list[Contestant]:
    """Return the ways to compute head and loss (K2 to K5); hidden states are scaled so that losses are realistic."""
    linear = nn.Linear(D, vocabulary, bias=False, device="cuda", dtype=torch.bfloat16)
    head = DomainLossHead.from_linear(linear)
    labels_N, domain_ids_N = random_ids(num_rows, vocabulary), random_ids(num_rows, K)
    # Towards the label's row, so that probabilities are peaked as a trained model's are; random ones favour nobody.
    towards_ND = linear.weight.detach()[labels_N] * 600 + torch.randn(num_rows, D, device="cuda")
    hidden_ND = towards_ND.bfloat16().requires_grad_()
    labels_N[torch.rand(num_rows, device="cuda") < masked] = -100
    valid_index = (labels_N != -100).nonzero()[:, 0]
    gradient_VD = torch.empty_like(linear.weight)

    def finish(loss_of: Callable[[], torch.Tensor]) -> Callable[[], object]:
        if not backward:
            return torch.no_grad()(loss_of)
        return lambda: torch.autograd.grad(loss_of(), (hidden_ND, linear.weight))

    def products() -> None:
        logits_NV = hidden_ND.detach() @ linear.weight.detach().t()
        if backward:
            torch.mm(logits_NV, linear.weight.detach())
            torch.mm(logits_NV.t(), hidden_ND.detach(), out=gradient_VD)

    def ours() -> torch.Tensor:
        return head(hidden_ND, labels_N, domain_ids_N, num_domains=K, valid_index=valid_index).loss

    ways: dict[str, Callable[[], object]] = {
        "the products alone": products,
        f"linear + {PLAIN}": finish(
            lambda: functional.cross_entropy(linear(hidden_ND).float(), labels_N, reduction="sum")
        ),
        "DomainLossHead": finish(ours),
    }
    ways |= {name: finish(way) for name, way in rival_heads(hidden_ND, linear.weight, labels_N).items()}
    return [Contestant(name=name, run=way) for name, way in ways.items()]


def rival_heads(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, labels_N: torch.Tensor
) -> dict[str, Callable[[], torch.Tensor]]:
    """Return the rivals that are installed."""
    ways: dict[str, Callable[[], torch.Tensor]] = {}
    if HAS_CCE:
        from cut_cross_entropy import linear_cross_entropy

        for implementation in ("cce", "cce_exact"):
            ways[f"cut_cross_entropy {implementation}"] = lambda implementation=implementation: linear_cross_entropy(
                hidden_ND, weight_VD, labels_N, impl=implementation, reduction="sum"
            )
    if HAS_LIGER:
        from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as Liger

        for times in (1, 8, 16):  # its chunks' memory in multiples of the default
            ways[f"Liger fused linear cross entropy, {times} x default chunks"] = lambda times=times: Liger.apply(
                hidden_ND, weight_VD, labels_N, None, None, -100, 0.0, 0.0, "sum", None, False, None, False, False,
                False, None, None, times,
            )[0]  # fmt: skip
    return ways


def measure(repetitions: int) -> Iterator[list[str]]:
    """Yield the report's sections."""
    options = {"repetitions": repetitions, "synchronize": torch.cuda.synchronize}
    for vocabulary in (32000, 128256, 151936):
        for num_domains in (K,) if vocabulary != 128256 else (K, 256):
            medians = interleaved_medians(loss_contestants(8192, vocabulary, num_domains), **options)
            yield table(f"K1, K6: loss, N=8192, V={vocabulary}, K={num_domains}", medians, rival=PLAIN)
    for target, num_rows, masked, backward in (
        ("K2, K4", 8192, 0.0, True),
        ("K2, K4", 16384, 0.0, True),
        ("K3", 8192, 0.5, True),
        ("K3", 16384, 0.5, True),
        ("K5", 8192, 0.0, False),
    ):
        medians = interleaved_medians(head_contestants(num_rows, 128256, masked=masked, backward=backward), **options)
        title = f"{target}: head + loss, N={num_rows}, D={D}, V=128256, {masked:.0%} masked"
        yield table(title + ("" if backward else ", evaluation"), medians, rival=f"linear + {PLAIN}")


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/kernels_cuda.py needs a CUDA device; nothing was measured")
    torch.manual_seed(0)
    command = f"python benchmarks/kernels_cuda.py --repetitions {arguments.repetitions}"
    lines = heading("Loss by domain on CUDA", torch.cuda.get_device_name(), command)
    lines += [load_kernels("cuda").describe().split(" (")[0] + "."]
    lines += [] if HAS_LIGER else ["liger-kernel is not installed: left out."]
    lines += [] if HAS_CCE else ["cut-cross-entropy is not installed: left out."]
    lines += [""]
    for section in measure(arguments.repetitions):
        print("\n".join(section), flush=True)
        lines += section
    RESULT.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
