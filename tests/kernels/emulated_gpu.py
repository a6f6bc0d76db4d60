"""Run the CUDA kernels on the CPU: compile them with the emulator in cuda_on_cpu, and call their launchers.

Shape legend: **N** tokens, **V** vocabulary, **K** domains.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils import cpp_extension

from tests.kernels.exact_loss import Case
from versatune_ds.kernels import LossSettings, fixed_point
from versatune_ds.kernels.build_spec import CSRC
from versatune_ds.kernels.cache_folder import cache_roots
from versatune_ds.kernels.kernel_choice import KERNELS

EMULATOR = Path(__file__).with_name("cuda_on_cpu")
ELEMENTS = (torch.float32, torch.float16, torch.bfloat16)  # in the order of enum Element


class LaunchError(RuntimeError):
    """A kernel was not launched, or the emulator stopped it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedDevice:
    """The device that kernels run on; `seed` chooses the order in which threads run."""

    num_multiprocessors: int = 2
    shared_bytes: int = 232_448
    code_version: int = 90
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelResult:
    """What a launch writes. Memory that it does not write is NaN, or -1 in the bins."""

    loss: torch.Tensor
    bins_K5: torch.Tensor
    normalizers_N2: torch.Tensor
    token_losses_N: torch.Tensor
    grad_NV: torch.Tensor

    @property
    def num_loss_tokens_K(self) -> torch.Tensor:
        return self.bins_K5[:, fixed_point.COUNT]


def compile_kernels(replace: tuple[str, str] | None = None) -> ctypes.CDLL:
    """Compile the kernels for the emulator, once for each version of the sources, and load them.

    Args:
        replace: A text of the kernels' sources and what to put in its place, to break them on purpose.
    """
    sources = {path.name: path.read_text(encoding="utf-8") for path in sorted([*CSRC.iterdir(), *EMULATOR.iterdir()])}
    if replace is not None:
        assert sum(replace[0] in text for text in sources.values()) == 1, f"not in one source: {replace[0]}"
        sources = {name: text.replace(*replace) for name, text in sources.items()}
    digest = hashlib.sha256("\0".join([torch.__version__, *sources, *sources.values()]).encode()).hexdigest()[:16]
    folder = cache_roots()[0] / f"versatune_emulated_{digest}"
    library = folder / "kernels.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in sources.items():
            (folder / name).write_text(text, encoding="utf-8")
        includes = [f"-I{path}" for path in (folder, *cpp_extension.include_paths())]
        flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-DVERSATUNE_CUDA_ON_CPU", "-Wno-unknown-pragmas", *includes]
        command = [str(shutil.which("c++")), *flags, str(folder / "run_kernels.cpp"), "-o", str(folder / "unfinished")]
        subprocess.run(command, check=True)
        (folder / "unfinished").replace(library)
    loaded = ctypes.CDLL(str(library))
    loaded.run_loss.restype = ctypes.c_char_p
    return loaded


def run_kernel(
    library: ctypes.CDLL,
    kernel: str,
    case: Case,
    settings: LossSettings | None = None,
    *,
    logits_NV: torch.Tensor | None = None,
    overwrite: bool = False,
    with_gradient: bool = True,
    device: EmulatedDevice | None = None,
) -> KernelResult:
    """Run one kernel on a case.

    Args:
        library: From `compile_kernels`.
        kernel: A name of `KERNELS`.
        case: Inputs.
        settings: Constants of the loss.
        logits_NV: The case's logits with other strides.
        overwrite: Write the gradient over the logits.
        with_gradient: Whether to compute it.
        device: What is emulated.

    Raises:
        LaunchError: If the launcher or the emulator reports an error.
    """
    device, settings = device or EmulatedDevice(), settings or LossSettings()
    logits_NV = case.logits_NV.clone() if logits_NV is None else logits_NV
    (num_rows, vocabulary), num_domains = logits_NV.shape, case.num_domains
    grad_NV = logits_NV if overwrite else torch.full((num_rows, vocabulary), float("nan"), dtype=logits_NV.dtype)
    result = KernelResult(
        loss=torch.full((), float("nan")),
        bins_K5=torch.full((num_domains, fixed_point.NUM_COLUMNS), -1),
        normalizers_N2=torch.full((num_rows, 2), float("nan")),
        token_losses_N=torch.full((num_rows,), float("nan")),
        grad_NV=grad_NV,
    )
    inputs = (case.labels_N, case.domain_ids_N, case.loss_weights_K)
    outputs = (result.normalizers_N2, result.token_losses_N, result.bins_K5, result.loss)
    ignore_index, *factors = settings.as_arguments()
    library.set_device(device.num_multiprocessors, device.shared_bytes, device.code_version, device.seed)
    error = library.run_loss(
        _pointer(logits_NV), _pointer(grad_NV) if with_gradient else None, *map(_pointer, (*inputs, *outputs)),
        ctypes.c_int64(num_rows), vocabulary, ctypes.c_int64(logits_NV.stride(0)), ctypes.c_int64(grad_NV.stride(0)),
        num_domains, ctypes.c_int64(ignore_index), *map(ctypes.c_float, factors),
        ELEMENTS.index(logits_NV.dtype), KERNELS.index(kernel),
    )  # fmt: skip
    if error is not None:
        raise LaunchError(error.decode())
    return result


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
