"""Say which implementation of the loss kernels will run, and what it will be built with."""

from __future__ import annotations

from collections.abc import Iterator

from versatune_ds.kernels.build import foresee_kernels
from versatune_ds.training.check.finding import Finding, ok, warn
from versatune_ds.training.check.subject import Subject


def check_kernels(subject: Subject) -> Iterator[Finding]:
    """Foresee what the processes will load, without building anything."""
    for device_type in ("cpu", "cuda"):
        if device_type == "cuda" and not (subject.num_gpus_here or subject.request.gpu_memory_gib):
            continue
        if device_type == "cpu" and subject.num_gpus_here:
            continue
        foreseen = foresee_kernels(device_type)
        text = foreseen.describe().partition(": ")[2]
        if foreseen.is_compiled or "VERSATUNE_KERNELS" in foreseen.reason:
            yield ok("kernels", device_type, text)
        else:
            yield warn("kernels", device_type, text, "a compiler on the nodes makes training faster")
