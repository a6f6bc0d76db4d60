"""The CUDA sources without a GPU: they compile for Ampere to Blackwell, spill nothing, and load beside any PyTorch.

Here nvcc is called directly, with the flags that `torch.utils.cpp_extension` would give it: that one cannot link CUDA
sources beside a CPU-only PyTorch. The binding's stable interface can be.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from versatune_ds.kernels import build_spec, ops
from versatune_ds.kernels.cache_folder import cache_roots

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on this machine"),
]
assert ops  # registers the schemas that the library implements


@pytest.fixture(scope="module")
def library() -> Path:
    """Compile once for each version of the sources; the assembler's report lies beside the library."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0;10.0")
        cuda = build_spec.build_spec_for("cuda")
    library = cache_roots()[0] / f"versatune_test_{build_spec.digest(cuda)}" / "versatune_cuda.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        unfinished = library.with_suffix(".unfinished")
        done = subprocess.run([*nvcc_command(cuda), "-o", str(unfinished)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (library.parent / "build.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        unfinished.replace(library)
    return library


def nvcc_command(cuda: build_spec.BuildSpec) -> list[str]:
    includes = [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]
    libraries = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch_cpu", "-lc10"]
    flags = ["-shared", "-cudart=static", "-Xcompiler=-fPIC", "-Xptxas=-v", *cpp_extension.COMMON_NVCC_FLAGS]
    return ["nvcc", *flags, *cuda.cuda_flags, *includes, *(str(path) for path in cuda.sources), *libraries]


def test_no_kernel_spills_registers_on_any_architecture(library: Path) -> None:
    report = (library.parent / "build.log").read_text(encoding="utf-8")
    kernels = re.findall(r"Compiling entry function '\w*?(\w+)' for 'sm_(\d+)'", report)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    architectures = {architecture for _, architecture in kernels}
    assert architectures == {"80", "90", "100"}
    assert len(spills) >= len(kernels) > 90
    assert {int(count) for pair in spills for count in pair} == {0}


@pytest.mark.parametrize(
    ("kernel", "count", "threads", "blocks"),
    [("one_read_kernel\\w*Li4E", 6, 512, 2), ("two_pass_kernel", 6, 512, 2), ("ring_kernel", 6, 544, 1)],
    ids=["one read, four vectors", "two passes", "ring"],
)
def test_registers_leave_room_for_the_blocks_that_share_a_multiprocessor(
    library: Path, kernel: str, count: int, threads: int, blocks: int
) -> None:
    report = (library.parent / "build.log").read_text(encoding="utf-8")
    pattern = rf"'\w*{kernel}\w*' for 'sm_90'.*?Used (\d+) registers"
    registers = [int(number) for number in re.findall(pattern, report, flags=re.DOTALL)]
    assert len(registers) == count  # three dtypes, plain and not
    assert max(registers) <= 65536 // (blocks * threads)


def test_the_sources_compile_without_spills_for_an_architecture_with_features_of_its_own(tmp_path: Path) -> None:
    flags = ["-O3", "-std=c++20", "-Xptxas=-v", "-gencode=arch=compute_90a,code=sm_90a", "-Werror", "all-warnings"]
    source = build_spec.CSRC / "domain_ce_cuda.cu"
    done = subprocess.run(
        ["nvcc", "-c", *flags, str(source), "-o", str(tmp_path / "out.o")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"(\d+) bytes spill stores", done.stdout + done.stderr)) == {"0"}


def test_the_library_registers_its_operators_without_a_gpu(library: Path) -> None:
    torch.ops.load_library(str(library))
    for name in ("domain_ce", "domain_ce_backward", "domain_ce_gradient_", "scale_"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"versatune::{name}", "CUDA")
