"""Build and load the compiled kernels on first use, once per machine and version of the sources.

The one idea: a library is compiled into a file of its own and moved to its final name in one step, under a lock that
the operating system drops with the process that holds it. Ranks that find the name load it; a killed build leaves
nothing that anybody waits for. `torch.utils.cpp_extension` tells where headers and libraries are; its `load` is not
used, since its lock file outlives a killed process, it needs ninja on the PATH even for a finished build, and it
cannot link CUDA sources beside a CPU-only PyTorch, where the tests must be able to.

Installing needs no compiler. Without one, the PyTorch implementation runs and one warning line says so.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils import cpp_extension

logger = logging.getLogger(__name__)

CSRC = Path(__file__).parent / "csrc"
ENVIRONMENT_SWITCH = "VERSATUNE_KERNELS"
SOURCES = {"cpu": ("domain_ce_cpu.cpp",), "cuda": ("domain_ce_cuda.cu", "domain_ce_cuda_binding.cpp")}
_CHOICES = ("auto", "torch", "cpp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """Say which implementation runs on a device type, and why."""

    device_type: str
    is_compiled: bool
    reason: str

    def describe(self) -> str:
        """Return one line for the log and for `versatune check`."""
        name = "compiled C++" if self.is_compiled else "PyTorch"
        return f"loss kernels on {self.device_type}: {name} implementation ({self.reason})"


@functools.cache
def load_kernels(device_type: str) -> Implementation:
    """Make the best implementation for a device type available, building it if need be, and log which one runs.

    Args:
        device_type: "cpu", "cuda", or another one, for which only the PyTorch implementation exists.

    Raises:
        ValueError: If VERSATUNE_KERNELS is set to an unknown choice.
        RuntimeError: If VERSATUNE_KERNELS=cpp and the kernels cannot be built.
    """
    choice = os.environ.get(ENVIRONMENT_SWITCH, "auto")
    if choice not in _CHOICES:
        raise ValueError(f"{ENVIRONMENT_SWITCH}: expected one of {', '.join(_CHOICES)}, got {choice!r}")
    if choice == "torch":
        return _log(device_type, is_compiled=False, reason=f"{ENVIRONMENT_SWITCH}=torch")
    try:
        library = build_library(device_type)
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        if choice == "cpp":
            raise RuntimeError(f"{ENVIRONMENT_SWITCH}=cpp, but {error}") from error
        return _log(device_type, is_compiled=False, reason=f"SLOW, same numbers: {error}")
    return _log(device_type, is_compiled=True, reason=str(library.parent.name))


def _log(device_type: str, *, is_compiled: bool, reason: str) -> Implementation:
    implementation = Implementation(device_type=device_type, is_compiled=is_compiled, reason=reason)
    level = logging.WARNING if reason.startswith("SLOW") else logging.INFO
    logger.log(level, "%s", implementation.describe())
    return implementation


def build_library(device_type: str) -> Path:
    """Return the library for a device type, compiled if its sources, flags, PyTorch or processor are new here.

    Raises:
        RuntimeError: If there are no sources for the device type, no compiler, or compilation fails.
    """
    if device_type not in SOURCES:
        raise RuntimeError(f"no compiled kernels exist for {device_type}")
    command = compile_command(device_type)
    directory = cache_root() / f"versatune_{device_type}_{digest(command)}"
    library = directory / f"versatune_{device_type}.so"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        with exclusive(directory / "building"):
            if not library.exists():
                _compile(command, library)
    return library


def cache_root() -> Path:
    """Return the directory PyTorch keeps extensions in: TORCH_EXTENSIONS_DIR or the user's cache."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock on a file among processes; the operating system releases it if this process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compile_command(device_type: str) -> list[str]:
    """Return the command that compiles a device type's sources, without the output.

    Raises:
        RuntimeError: If the compiler is missing.
    """
    sources = [str(CSRC / name) for name in SOURCES[device_type]]
    includes = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    shared = ["-std=c++20", "-O3", "-shared", *includes, *sources, *libraries, "-ltorch_cpu", "-lc10"]
    if device_type == "cpu":
        return [_compiler(), "-fPIC", "-fopenmp", "-march=native", "-Wno-psabi", *shared]
    flags = ["-Xcompiler=-fPIC", "-Xptxas=-v", "-cudart=static", f"-DTORCH_TARGET_VERSION={stable_abi_version()}"]
    return [_cuda_compiler(), *flags, *gencode_flags(cuda_architectures()), *shared]


def _compiler() -> str:
    name = os.environ.get("CXX", "c++")
    path = shutil.which(name)
    if path is None:
        raise RuntimeError(f"no C++ compiler {name!r} found; install g++ or set CXX")
    return path


def _cuda_compiler() -> str:
    home = os.environ.get("CUDA_HOME") or cpp_extension.CUDA_HOME
    path = shutil.which("nvcc", path=f"{home}/bin") if home else None
    path = path or shutil.which("nvcc")
    if path is None:
        raise RuntimeError("no nvcc found; install the CUDA toolkit or set CUDA_HOME")
    return path


def stable_abi_version() -> str:
    """Return the PyTorch version whose stable interface the binding uses: that of the running one, at most 2.11."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return f"0x{major:02x}{min(minor, 11):02x}000000000000"


def cuda_architectures() -> tuple[str, ...]:
    """Return architectures such as ("80", "90"): from TORCH_CUDA_ARCH_LIST, else those of the visible devices.

    Raises:
        RuntimeError: If there is neither.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if listed:
        return tuple(sorted({re.sub(r"[^0-9]", "", name) for name in listed}))
    devices = range(torch.cuda.device_count())
    found = {"{}{}".format(*torch.cuda.get_device_capability(device)) for device in devices}
    if not found:
        raise RuntimeError("no CUDA device visible and TORCH_CUDA_ARCH_LIST not set (for example to '8.0;9.0')")
    return tuple(sorted(found))


def gencode_flags(architectures: Sequence[str]) -> list[str]:
    """Return nvcc's flags: machine code for each architecture, and PTX of the newest for later devices."""
    flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    newest = max(architectures, key=int)
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def digest(command: Sequence[str]) -> str:
    """Return 16 hex digits that change with any source, flag, the PyTorch version or the processor's features."""
    parts = hashlib.sha256()
    headers = [path for path in CSRC.iterdir() if path.suffix in (".h", ".cuh")]
    for path in sorted([*headers, *(Path(part) for part in command if part.startswith(str(CSRC)))]):
        parts.update(path.name.encode() + b"\0" + path.read_bytes())
    parts.update("\0".join([*command, torch.__version__, _processor_features()]).encode())
    return parts.hexdigest()[:16]


def _processor_features() -> str:
    """Return what -march=native depends on, since a home directory may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.machine())


def _compile(command: Sequence[str], library: Path) -> None:
    """Compile to a temporary name, then move to the final one.

    Raises:
        RuntimeError: If the compiler fails; the message holds its first error line.
    """
    logger.info("building %s (about 15 s, once) ...", library)
    started = time.monotonic()
    # A killed build's compiler may still be writing: each build has a name of its own.
    unfinished = library.with_name(f"unfinished_{os.getpid()}.so")
    done = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True, check=False)
    (library.parent / "build.log").write_text(" ".join(command) + "\n" + done.stdout + done.stderr, encoding="utf-8")
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["no message"]
        raise RuntimeError(f"compiling failed: {errors[0]} (see {library.parent / 'build.log'})")
    unfinished.replace(library)
    logger.info("built %s in %.1f s", library.name, time.monotonic() - started)
