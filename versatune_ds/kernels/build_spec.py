"""Define what a device type's compiled library is built from: sources, flags, and a digest of both.

Everything that can change the machine code goes into the digest, and the digest into the name of the library's
directory. So a library found under its name is the right one, without further checks.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

CSRC = Path(__file__).parent / "csrc"
SOURCES = {"cpu": ("domain_ce_cpu.cpp",), "cuda": ("domain_ce_cuda.cu", "domain_ce_cuda_binding.cpp")}
_ARCHITECTURE = re.compile(r"(\d+)\.(\d)[a-z]?(\+PTX)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSpec:
    """Sources, and flags for the C++ compiler, nvcc and the linker besides those that PyTorch adds."""

    device_type: str
    sources: tuple[Path, ...]
    cxx_flags: tuple[str, ...]
    cuda_flags: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ()


def build_spec_for(device_type: str) -> BuildSpec:
    """Return the build spec of a device type's library on this machine.

    Raises:
        RuntimeError: If there are no sources for the device type, or no architecture to compile CUDA sources for.
    """
    if device_type not in SOURCES:
        raise RuntimeError(f"no compiled kernels exist for {device_type}")
    sources = tuple(CSRC / name for name in SOURCES[device_type])
    flags = ("-std=c++20", "-O3")
    if device_type == "cpu":
        native = ("-fopenmp", "-march=native", "-Wno-psabi")
        return BuildSpec(device_type="cpu", sources=sources, cxx_flags=(*flags, *native), link_flags=("-fopenmp",))
    flags = (*flags, f"-DTORCH_TARGET_VERSION={stable_abi_version()}")
    cuda_flags = (*flags, *gencode_flags(cuda_architectures()))
    # The binding's only symbol of libtorch_cuda, the current stream, is weak, so that a linker that drops libraries
    # nobody seems to need would leave it null.
    link_flags = ("-Wl,--no-as-needed",)
    return BuildSpec(device_type="cuda", sources=sources, cxx_flags=flags, cuda_flags=cuda_flags, link_flags=link_flags)


def cxx_compiler() -> str:
    """Return the C++ compiler that `torch.utils.cpp_extension` calls: CXX or c++."""
    return os.environ.get("CXX", "c++")


def stable_abi_version() -> str:
    """Return the PyTorch version whose stable interface the binding uses: the running one, at most 2.11."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return f"0x{major:02x}{min(minor, 11):02x}000000000000"


def cuda_architectures() -> tuple[str, ...]:
    """Return architectures such as ("80", "90"): from TORCH_CUDA_ARCH_LIST, else those of the visible devices.

    Raises:
        RuntimeError: If there is neither, or an entry of the list is not a number such as 9.0.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if listed and listed != ["native"]:
        return tuple(sorted({_architecture_number(name) for name in listed}))
    devices = range(torch.cuda.device_count())
    found = {"{}{}".format(*torch.cuda.get_device_capability(device)) for device in devices}
    if not found:
        raise RuntimeError("no CUDA device is visible; set TORCH_CUDA_ARCH_LIST, for example to '8.0;9.0'")
    return tuple(sorted(found))


def _architecture_number(name: str) -> str:
    match = _ARCHITECTURE.fullmatch(name)
    if match is None:
        raise RuntimeError(f"TORCH_CUDA_ARCH_LIST: expected numbers such as '8.0;9.0', got {name!r}")
    return match[1] + match[2]


def gencode_flags(architectures: Sequence[str]) -> list[str]:
    """Return nvcc's flags: machine code for each architecture, and PTX of the newest for later devices.

    With these, `torch.utils.cpp_extension` adds none of its own.
    """
    flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    newest = max(architectures, key=int)
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def digest(spec: BuildSpec) -> str:
    """Return 16 hex digits that change with any source, flag, compiler, PyTorch version or processor feature."""
    parts = hashlib.sha256()
    headers = [path for path in CSRC.iterdir() if path.suffix in (".h", ".cuh")]
    for path in sorted([*headers, *spec.sources]):
        parts.update(path.name.encode() + b"\0" + path.read_bytes())
    flags = [*spec.cxx_flags, *spec.cuda_flags, *spec.link_flags]
    parts.update("\0".join([*flags, cxx_compiler(), torch.__version__, _processor_features()]).encode())
    return parts.hexdigest()[:16]


def _processor_features() -> str:
    """Return what -march=native depends on: machines of different kinds may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.machine())
