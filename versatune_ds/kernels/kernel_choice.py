"""Choose the CUDA kernel of the loss for a device, dtype and vocabulary, by timing the candidates once.

Which kernel is fastest depends on how a row's bytes fit into registers and shared memory, and on the device. So every
candidate that can run is timed on the first use of a vocabulary, in some 20 ms, and the times are kept beside the
compiled library: later processes and runs on this machine choose the same kernel without timing. That matters beyond
speed: two kernels add up a row in different orders, so their losses differ in the last bits.

    VERSATUNE_LOSS_KERNEL=ring_4    uses this kernel without timing; `auto` the one that is likely to be fast
"""

from __future__ import annotations

import json
import logging
import os
import statistics
from collections.abc import Mapping
from pathlib import Path

import torch

from versatune_ds.kernels import build
from versatune_ds.kernels.build_spec import build_spec_for
from versatune_ds.kernels.settings import IGNORE_INDEX
from versatune_ds.run_folder.atomic import atomic_file

logger = logging.getLogger(__name__)

KERNELS = ("auto", "two_pass", "one_read", "ring_1", "ring_2", "ring_4", "ring_8")
"""Names in the order of the operators' `kernel` argument (enum Kernel in domain_ce_cuda.h). The number of a ring is the
blocks of its cluster."""

ENVIRONMENT_SWITCH = "VERSATUNE_LOSS_KERNEL"
_SIMPLEST_FIRST = ("two_pass", "one_read", "ring_1", "ring_2", "ring_4", "ring_8")
_MARGIN = 0.03
"""A kernel must be faster by more than this to be preferred to a simpler one: less may be the noise of the timing."""
_MAX_BYTES = 256 * 2**20
"""Size of the logits that are timed, at most."""
_SHARED_DOMAINS = 512
"""Domains whose sums fill the shared memory kept for them (kSharedDomains in cuda_rows.cuh); fewer need less of it, and
more need none. Timed with one domain, a ring could be chosen whose stages no longer fit beside the sums of many."""
_TIMES_FILE = "kernel_times.json"
_CHOSEN: dict[str, str] = {}
"""Device, dtype and vocabulary -> kernel, as far as this process knows."""


def chosen_kernel(environ: Mapping[str, str]) -> str:
    """Return the kernel that the environment asks for; empty for none.

    Raises:
        ValueError: If VERSATUNE_LOSS_KERNEL is no kernel's name.
    """
    name = environ.get(ENVIRONMENT_SWITCH, "")
    if name and name not in KERNELS:
        raise ValueError(f"{ENVIRONMENT_SWITCH}: unknown value {name!r}; set one of {', '.join(KERNELS)}")
    return name


@torch.compiler.assume_constant_result
def loss_kernel(device_type: str, device_index: int | None, dtype: torch.dtype, vocabulary: int) -> int:
    """Return the number of the kernel that the operators are to use; 0, which they choose, except on CUDA.

    Under torch.compile this runs while the graph is traced.

    Raises:
        ValueError: If VERSATUNE_LOSS_KERNEL is no kernel's name.
    """
    name = chosen_kernel(os.environ)
    if device_type != "cuda" or not build.load_kernels(device_type).is_compiled:
        return 0
    return KERNELS.index(name or _timed_kernel(torch.device(device_type, device_index), dtype, vocabulary))


def _timed_kernel(device: torch.device, dtype: torch.dtype, vocabulary: int) -> str:
    """Return the fastest kernel by this process's memory, the times beside the library, or a new timing."""
    key = f"{torch.cuda.get_device_name(device)}, {str(dtype).removeprefix('torch.')}, V={vocabulary}"
    if key in _CHOSEN:
        return _CHOSEN[key]
    if torch.cuda.is_current_stream_capturing():  # a timing would wait for the device, which a capture does not allow
        return "auto"
    folder = build.library_path(build_spec_for("cuda")).parent
    with build.exclusive(folder / "timing"):  # the ranks of a machine time once
        known = read_times(folder)
        if key not in known:
            known[key] = measure_kernels(device, dtype, vocabulary)
            with atomic_file(folder / _TIMES_FILE) as file:
                file.write(json.dumps(known, indent=1).encode())
    _CHOSEN[key] = fastest(known[key])
    shown = ", ".join(f"{name} {milliseconds:.3f}" for name, milliseconds in known[key].items())
    logger.info("loss kernel for %s: %s (ms: %s)", key, _CHOSEN[key], shown or "none timed")
    return _CHOSEN[key]


def fastest(times: Mapping[str, float]) -> str:
    """Return the simplest kernel whose time is within 3 % of the best; `auto` if there are no times.

    Example: two_pass 1.02, ring_4 1.00 gives two_pass; two_pass 1.10, ring_2 1.01, ring_4 1.00 gives ring_2.
    """
    limit = min(times.values(), default=0.0) * (1.0 + _MARGIN)
    return next((name for name in _SIMPLEST_FIRST if times.get(name, float("inf")) <= limit), "auto")


def measure_kernels(device: torch.device, dtype: torch.dtype, vocabulary: int, *, turns: int = 7) -> dict[str, float]:
    """Return the median milliseconds of every kernel that can run, writing the gradient over the logits.

    Kernels take turns, so that a device that slows down slows all of them. A kernel whose rows do not fit, or that was
    not compiled for the device, is left out; without memory for the logits there are no times at all.
    """
    rows = max(1, min(4 * _num_multiprocessors(device), _MAX_BYTES // (vocabulary * dtype.itemsize)))
    try:
        logits_NV = torch.randn(rows, vocabulary, device=device).to(dtype)
    except torch.OutOfMemoryError:
        return {}
    labels_N = torch.arange(rows, device=device) % vocabulary
    loss_weights_K = torch.ones(_SHARED_DOMAINS, device=device)
    arguments = (labels_N, torch.zeros_like(labels_N), loss_weights_K, IGNORE_INDEX, 0.0, 0.0, 0.0)
    times: dict[str, list[float]] = {}
    for turn in range(turns + 1):  # the first turn warms up
        for number, name in enumerate(KERNELS[1:], start=1):
            if turn > 0 and name not in times:
                continue
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            try:
                begin.record()
                torch.ops.versatune.domain_ce_gradient_(logits_NV, *arguments, number)
                end.record()
            except RuntimeError as error:
                logger.debug("loss kernel %s left out: %s", name, error)
                continue
            end.synchronize()
            times.setdefault(name, [])
            if turn > 0:
                times[name].append(begin.elapsed_time(end))
    return {name: statistics.median(milliseconds) for name, milliseconds in times.items()}


def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def read_times(folder: Path) -> dict[str, dict[str, float]]:
    """Return the times of earlier processes; none where the file is absent or not readable as such."""
    try:
        times = json.loads((folder / _TIMES_FILE).read_text(encoding="utf-8"))
        return {str(key): {name: float(ms) for name, ms in row.items()} for key, row in times.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
