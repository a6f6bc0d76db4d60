"""Say which implementation of the loss kernels will run, and what it will be built with."""

from __future__ import annotations

from collections.abc import Iterator

from versatune_ds.kernels.build import foresee_kernels
from versatune_ds.preflight.finding import Finding, ok, warn
from versatune_ds.preflight.subject import Subject


def check_kernels(subject: Subject) -> Iterator[Finding]:
    """Foresee what the processes will load, without building anything."""
    if not subject.num_gpus_here and subject.request.gpu_memory_gib:
        found = "built at the first start by the nodes' nvcc, for their GPUs; without nvcc, PyTorch's slower code runs"
        yield ok("kernels", "cuda", found)
        return
    device_type = "cuda" if subject.num_gpus_here else "cpu"
    foreseen = foresee_kernels(device_type)
    text = foreseen.describe().partition(": ")[2]
    if foreseen.is_compiled or "VERSATUNE_KERNELS" in foreseen.reason:
        yield ok("kernels", device_type, text)
    else:
        yield warn("kernels", device_type, text, "a compiler on the nodes makes training faster")
