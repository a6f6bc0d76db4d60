"""Build and load the compiled kernels on first use, once per machine and version of the sources.

`torch.utils.cpp_extension` compiles in a new workspace, and the finished library is moved to its final name in one
step, under a lock that the operating system releases with the process. Ranks that find the library load it, without
compiler or ninja. A killed build blocks nobody: it leaves neither the lock file of `cpp_extension`, which outlives its
process, nor a compiler that still writes.

Installing needs no compiler. Without one, or where the compiled kernels cannot be launched, Triton's kernels (on a GPU)
or the PyTorch implementation run, and one warning is logged.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from versatune_ds.kernels import torch_reference, triton_kernels
from versatune_ds.kernels.build_spec import BuildSpec, build_spec_for, cuda_architectures, cxx_compiler, digest
from versatune_ds.kernels.cache_folder import choose_folder, close_to_others, is_writable_by_others, make_private
from versatune_ds.progress import working_on

logger = logging.getLogger(__name__)

ENVIRONMENT_SWITCH = "VERSATUNE_KERNELS"
_CHOICES = ("auto", "cpp", "triton", "torch")
_WORKSPACE = "workspace_"
_LOG = "build.log"

Kind = Literal["compiled", "triton", "torch"]
_SHOWN: dict[Kind, str] = {"compiled": "compiled C++", "triton": "Triton", "torch": "PyTorch"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """Which implementation runs on a device type, and why."""

    device_type: str
    kind: Kind
    reason: str
    is_fallback: bool = False
    """Whether a faster one was wanted and could not be had."""

    @property
    def is_compiled(self) -> bool:
        """Return whether the compiled library runs."""
        return self.kind == "compiled"

    def describe(self) -> str:
        """Return one line for the log and for `versatune check`."""
        slowness = {"triton": "slower, same numbers: ", "torch": "SLOW, same numbers: "}
        speed = slowness.get(self.kind, "") if self.is_fallback else ""
        return f"loss kernels on {self.device_type}: {_SHOWN[self.kind]} implementation ({speed}{self.reason})"


def chosen_implementation(environ: Mapping[str, str]) -> str:
    """Return the implementation that the environment asks for.

    Raises:
        ValueError: If VERSATUNE_KERNELS is set to an unknown choice.
    """
    choice = environ.get(ENVIRONMENT_SWITCH, "auto")
    if choice not in _CHOICES:
        raise ValueError(f"{ENVIRONMENT_SWITCH}: unknown value {choice!r}; set one of {', '.join(_CHOICES)}")
    return choice


@functools.cache
def load_kernels(device_type: str) -> Implementation:
    """Load the fastest implementation for a device type, building it if needed, and log which one runs.

    Args:
        device_type: "cpu", "cuda", or another one, for which only the PyTorch implementation exists.

    Raises:
        ValueError: If VERSATUNE_KERNELS is set to an unknown choice.
        RuntimeError: If VERSATUNE_KERNELS=cpp and the kernels cannot be built or launched.
    """
    implementation = _load_kernels(device_type, chosen_implementation(os.environ))
    level = logging.WARNING if implementation.is_fallback else logging.INFO
    logger.log(level, "%s", implementation.describe())
    return implementation


def _load_kernels(device_type: str, choice: str) -> Implementation:
    """Load what was chosen; without a compiler, or if a launch fails, use Triton's kernels or PyTorch."""
    if choice in ("triton", "torch"):
        if choice == "triton":
            triton_kernels.replace_operators(device_type)
        return Implementation(device_type=device_type, kind=choice, reason=f"{ENVIRONMENT_SWITCH}={choice}")
    is_loaded = False
    try:
        library = load_library(device_type)
        is_loaded = True
        check_launch(device_type)
    except (ImportError, OSError, RuntimeError) as error:
        if choice == "cpp":
            raise RuntimeError(f"{ENVIRONMENT_SWITCH}=cpp, but {error}") from error
        reason = str(error)
    else:
        return Implementation(device_type=device_type, kind="compiled", reason=library.parent.name)
    kind: Kind = "triton" if triton_kernels.is_available(device_type) else "torch"
    if kind == "triton":
        triton_kernels.replace_operators(device_type)
    elif is_loaded:  # its operators are registered and must not be called
        torch_reference.replace_operators(device_type)
    return Implementation(device_type=device_type, kind=kind, reason=reason, is_fallback=True)


def check_launch(device_type: str) -> None:
    """Compute the loss of one token, so that kernels that cannot run here fail now, and not in the first step.

    Raises:
        RuntimeError: If the launch fails or the loss is wrong.
    """
    logits_NV = torch.zeros(1, 8, device=device_type)
    ids_N = torch.zeros(1, dtype=torch.int64, device=device_type)
    settings = (-100, 0.0, 0.0, 0.0)
    loss, *_ = torch.ops.versatune.domain_ce(logits_NV, ids_N, ids_N, torch.ones(1, device=device_type), *settings)
    if not math.isclose(loss.item(), math.log(8.0), rel_tol=1e-5):
        raise RuntimeError(f"the compiled kernels give a loss of {loss.item()} where {math.log(8.0):.6f} is right")


def foresee_kernels(device_type: str) -> Implementation:
    """Return the implementation that `load_kernels` would choose on this machine, without building or loading it."""
    choice = os.environ.get(ENVIRONMENT_SWITCH, "auto")
    if choice in ("torch", "triton"):
        return Implementation(device_type=device_type, kind=choice, reason=f"{ENVIRONMENT_SWITCH}={choice}")
    try:
        spec = build_spec_for(device_type)
        library = library_path(spec)
        if _is_built(library):
            reason = f"built before: {library.parent.name}"
        else:
            with _ninja_on_path():
                _check_tools(spec)
            reason = f"built at the first start, in 10 to 60 s, by {_tools(spec)}"
    except (ImportError, OSError, RuntimeError) as error:
        kind: Kind = "triton" if triton_kernels.is_available(device_type) else "torch"
        return Implementation(device_type=device_type, kind=kind, reason=str(error), is_fallback=True)
    return Implementation(device_type=device_type, kind="compiled", reason=reason)


def _tools(spec: BuildSpec) -> str:
    """Return the compilers that a spec needs, and the GPU architectures it compiles for."""
    compiler = shutil.which(cxx_compiler())
    if spec.device_type != "cuda":
        return str(compiler)
    return f"{compiler} and nvcc for {', '.join(f'sm_{name}' for name in cuda_architectures())}"


def library_path(spec: BuildSpec) -> Path:
    """Return the path of a spec's library, built or not.

    Raises:
        RuntimeError: If other users can write to every place for it.
    """
    name = f"versatune_{spec.device_type}"
    return choose_folder(f"{name}_{digest(spec)}", library=f"{name}.so") / f"{name}.so"


def _is_built(library: Path) -> bool:
    """Return whether a library exists and other users can write neither to it nor to its folder."""
    return library.exists() and not is_writable_by_others(library.parent) and not is_writable_by_others(library)


def load_library(device_type: str) -> Path:
    """Load the library of a device type; build it first if its sources, flags, PyTorch or processor are new here.

    Returns:
        Its path. The name of its directory contains the digest of what it was built from.

    Raises:
        RuntimeError: If there are no sources for the device type, no compiler, no ninja, or compilation fails.
    """
    spec = build_spec_for(device_type)
    library = library_path(spec)
    if not _is_built(library):
        make_private(library.parent)
        asked_at = time.time()
        with working_on(f"building {library.name}, here or in another process"), exclusive(library.parent / "building"):
            close_to_others(library.parent)
            if not library.exists():
                _refuse_if_failed_since(asked_at, library.parent / _LOG)
                _build(spec, library)
    # In the process that built it, the file is loaded already under its first name; the loader recognises the inode.
    torch.ops.load_library(str(library))
    return library


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Lock a file against other processes; the operating system releases the lock if this process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _refuse_if_failed_since(asked_at: float, log: Path) -> None:
    """Raise RuntimeError if another process failed to build while this one waited, so that not every rank tries."""
    if log.exists() and log.stat().st_mtime >= asked_at:
        raise RuntimeError(_failure(log))


def _build(spec: BuildSpec, library: Path) -> None:
    """Compile in a new workspace and move the library to its final name; the caller has the lock."""
    with _ninja_on_path():
        _check_tools(spec)
        logger.info("building %s (10 to 60 s, once) ...", library)
        started = time.monotonic()
        for workspace_of_killed_build in library.parent.glob(f"{_WORKSPACE}*"):
            shutil.rmtree(workspace_of_killed_build, ignore_errors=True)
        workspace = Path(tempfile.mkdtemp(prefix=_WORKSPACE, dir=library.parent))
        _compile(spec, workspace)
    # cpp_extension adds _v1, _v2 ... to the name if one process builds more than once.
    (built,) = workspace.glob("*.so")
    built.chmod(0o700)  # the linker follows the umask, which may let the group write
    built.replace(library)
    shutil.rmtree(workspace, ignore_errors=True)
    logger.info("built %s in %.1f s", library.name, time.monotonic() - started)


def _check_tools(spec: BuildSpec) -> None:
    """Raise RuntimeError if a tool that the build needs is missing."""
    from torch.utils import cpp_extension  # not at the top: it takes 0.2 s, and needs setuptools, which runs do not

    if spec.device_type == "cuda" and torch.version.cuda is None:
        raise RuntimeError("this PyTorch is not built for CUDA")
    if shutil.which(cxx_compiler()) is None:
        raise RuntimeError(f"no C++ compiler {cxx_compiler()!r} found; install g++ or set CXX")
    cpp_extension.verify_ninja_availability()


def _compile(spec: BuildSpec, workspace: Path) -> None:
    """Compile and load through `torch.utils.cpp_extension`.

    Raises:
        RuntimeError: If a compiler fails; the message contains its first error line.
    """
    from torch.utils import cpp_extension

    try:
        cpp_extension.load(
            name=f"versatune_{spec.device_type}",
            sources=[str(path) for path in spec.sources],
            extra_cflags=list(spec.cxx_flags),
            extra_cuda_cflags=list(spec.cuda_flags),
            extra_ldflags=list(spec.link_flags),
            build_directory=str(workspace),
            with_cuda=spec.device_type == "cuda",
            is_python_module=False,
        )
    except RuntimeError as error:
        log = workspace.parent / _LOG
        log.write_text(str(error), encoding="utf-8")
        raise RuntimeError(_failure(log)) from error


def _failure(log: Path) -> str:
    """Return a message with the first error line of a compiler's log, or its last line."""
    lines = log.read_text(encoding="utf-8").strip().splitlines() or ["no message"]
    return f"compiling failed: {next((line for line in lines if 'error:' in line), lines[-1])} (see {log})"


@contextmanager
def _ninja_on_path() -> Iterator[None]:
    """Put the directory of this interpreter's ninja, if it has one, first on PATH.

    `cpp_extension` looks only on PATH, which lacks an environment's programs if its python is called by its path.
    """
    path = os.environ.get("PATH", os.defpath)
    try:
        from ninja import BIN_DIR
    except ImportError:
        BIN_DIR = ""
    os.environ["PATH"] = os.pathsep.join(filter(None, [BIN_DIR, path]))
    try:
        yield
    finally:
        os.environ["PATH"] = path
