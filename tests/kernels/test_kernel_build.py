"""Building: once among many processes, again after a kill, and a warning without a compiler or ninja."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from versatune_ds.kernels import build, build_spec, ops

assert ops  # registers the operators

FORK = multiprocessing.get_context("fork")
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on this machine")

# Records each compilation in a file and takes 0.3 s (or FAKE_SECONDS) for it; links an empty library.
FAKE_COMPILER = """#!/bin/sh
case "$*" in -dump*) echo 12.2.0; exit;; esac
for out; do :; done
case "$*" in
  *" -c "*) echo call >> {calls}; sleep ${{FAKE_SECONDS:-0.3}}; : > "$out";;
  *) exec c++ -shared -x c++ /dev/null -o "$out";;
esac
"""


def install_compiler(directory: Path, monkeypatch: pytest.MonkeyPatch, *, script: str) -> None:
    compiler = directory / "g++"
    compiler.write_text(script)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(directory / "cache"))


@pytest.fixture
def fake_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    calls = tmp_path / "calls"
    calls.touch()
    install_compiler(tmp_path, monkeypatch, script=FAKE_COMPILER.format(calls=calls))
    return calls


def num_calls(calls: Path) -> int:
    return len(calls.read_text().splitlines())


@needs_compiler
def test_four_processes_at_once_compile_once_and_all_find_the_library(fake_compiler: Path) -> None:
    processes = [FORK.Process(target=build.load_library, args=("cpu",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert num_calls(fake_compiler) == 1
    assert build.load_library("cpu").is_file()
    assert num_calls(fake_compiler) == 1


@needs_compiler
def test_a_finished_library_needs_neither_compiler_nor_ninja(
    fake_compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = build.load_library("cpu")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "g++").unlink()
    assert build.load_library("cpu") == library
    assert num_calls(fake_compiler) == 1
    assert {path.name for path in library.parent.iterdir()} == {"building", "versatune_cpu.so"}


@needs_compiler
def test_a_killed_build_does_not_block_the_next_one(fake_compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "60")
    victim = FORK.Process(target=_build_in_own_group)
    victim.start()
    while num_calls(fake_compiler) == 0:
        time.sleep(0.02)
    victim.kill()  # its compiler keeps running, as an orphan
    victim.join()
    monkeypatch.setenv("FAKE_SECONDS", "0")
    assert len(list((fake_compiler.parent / "cache").glob("*/workspace_*/lock"))) == 1  # cpp_extension would wait
    started = time.monotonic()
    library = build.load_library("cpu")
    os.killpg(victim.pid, signal.SIGKILL)
    assert library.is_file()
    assert time.monotonic() - started < 20
    assert num_calls(fake_compiler) == 2
    assert not list(library.parent.glob("workspace_*"))


def _build_in_own_group() -> None:
    os.setpgid(0, 0)
    build.load_library("cpu")


def test_another_source_flag_or_compiler_gives_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_spec, "CSRC", tmp_path)
    source = tmp_path / "kernel.cpp"
    source.write_text("one")
    plain = build_spec.BuildSpec(device_type="cpu", sources=(source,), cxx_flags=("-O3",))
    first = build_spec.digest(plain)
    assert build_spec.digest(plain) == first
    assert build_spec.digest(replace(plain, cxx_flags=("-O0",))) != first
    assert build_spec.digest(replace(plain, link_flags=("-fopenmp",))) != first
    source.write_text("two")
    assert build_spec.digest(plain) != first
    source.write_text("one")
    (tmp_path / "other.cu").write_text("does not concern this library")
    assert build_spec.digest(plain) == first
    (tmp_path / "shared.h").write_text("does")
    second = build_spec.digest(plain)
    assert second != first
    monkeypatch.setenv("CXX", "another")
    assert build_spec.digest(plain) != second


def load(device_type: str = "cpu") -> build.Implementation:
    """Load without the cache, as a new process would."""
    return build.load_kernels.__wrapped__(device_type)


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delenv("VERSATUNE_KERNELS", raising=False)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_one_warning_reports_the_slow_implementation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="versatune_ds"):
        implementation = load()
    assert not implementation.is_compiled
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "PyTorch implementation (SLOW, same numbers: no C++ compiler" in record.getMessage()


@pytest.mark.usefixtures("fake_compiler", "no_ninja")
def test_without_ninja_one_warning_reports_the_slow_implementation(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not load().is_compiled
    (record,) = caplog.records
    assert "PyTorch implementation (SLOW, same numbers: Ninja is required" in record.getMessage()


@pytest.fixture
def no_ninja(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ninja", None)


def test_the_ninja_of_this_interpreter_is_found_though_it_is_not_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ninja = pytest.importorskip("ninja")
    monkeypatch.setenv("PATH", str(tmp_path))
    with build._ninja_on_path():
        assert shutil.which("ninja") == str(Path(ninja.BIN_DIR) / "ninja")
    assert os.environ["PATH"] == str(tmp_path)


@pytest.mark.usefixtures("no_compiler")
def test_the_environment_variable_forces_or_forbids_kernels_and_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERSATUNE_KERNELS", "cpp")
    with pytest.raises(RuntimeError, match="VERSATUNE_KERNELS=cpp, but no C\\+\\+ compiler"):
        load()
    monkeypatch.setenv("VERSATUNE_KERNELS", "torch")
    assert load().reason == "VERSATUNE_KERNELS=torch"
    monkeypatch.setenv("VERSATUNE_KERNELS", "fast")
    with pytest.raises(ValueError, match="unknown value 'fast'; set one of auto, cpp, triton, torch"):
        load()


@pytest.mark.usefixtures("no_compiler")
def test_a_device_without_kernels_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    assert not load("xpu").is_compiled
    assert "no compiled kernels exist for xpu" in caplog.text


LAUNCH_FAILS = """
import logging
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
import torch
from versatune_ds.kernels import build, domain_cross_entropy
real_check = build.check_launch
def check_launch(device_type):
    real_check(device_type)
    raise RuntimeError("loss kernel not launched: no kernel image")
build.check_launch = check_launch
logits_NV = torch.randn(3, 5, requires_grad=True)
ids_N = torch.tensor([0, 1, -100])
result = domain_cross_entropy(logits_NV, ids_N, ids_N.clamp(min=0), 2)
result.loss.backward()
expected = torch.nn.functional.cross_entropy(logits_NV, ids_N, reduction="sum")
torch.testing.assert_close(result.loss, expected)
import versatune_ds.kernels.torch_reference as reference
calls = []
real = reference.row_blocks
reference.row_blocks = lambda *sizes: calls.append(sizes) or real(*sizes)
domain_cross_entropy(logits_NV, ids_N, ids_N.clamp(min=0), 2)
assert calls == [(3, 5)], "the compiled operator was called"
"""


@needs_compiler
@pytest.mark.slow
def test_kernels_that_cannot_be_launched_are_replaced_with_one_loud_line() -> None:
    environment = {**os.environ, "VERSATUNE_KERNELS": "auto"}
    done = subprocess.run([sys.executable, "-c", LAUNCH_FAILS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING loss kernels")]
    assert len(warnings) == 1
    assert "PyTorch implementation (SLOW, same numbers: loss kernel not launched: no kernel image)" in warnings[0]


@needs_compiler
def test_the_loaded_kernels_are_tried_on_one_token() -> None:
    load()
    build.check_launch("cpu")


def test_a_wrong_loss_of_the_trial_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = lambda *_: (torch.tensor(0.0), None, None, None)  # noqa: E731
    monkeypatch.setattr(torch.ops.versatune, "domain_ce", wrong)
    with pytest.raises(RuntimeError, match=r"give a loss of 0\.0 where 2\.079442 is right"):
        build.check_launch("cpu")


def test_the_error_of_a_failing_compiler_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complaint = "kernel.cpp:3: error: no such thing"
    install_compiler(tmp_path, monkeypatch, script=f"#!/bin/sh\necho '{complaint}' >&2\nexit 1\n")
    with pytest.raises(RuntimeError, match=rf"compiling failed: {complaint} \(see .*build\.log\)"):
        build.load_library("cpu")
    (log,) = tmp_path.glob("cache/*/build.log")
    assert complaint in log.read_text()


def test_processes_that_waited_for_a_failed_build_do_not_repeat_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'#!/bin/sh\ncase "$*" in *" -c "*) echo call >> {tmp_path}/calls; sleep 2;; esac\nexit 1\n'
    install_compiler(tmp_path, monkeypatch, script=script)
    processes = [FORK.Process(target=_expect_failure) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert num_calls(tmp_path / "calls") == 1


def _expect_failure() -> None:
    with pytest.raises(RuntimeError, match="compiling failed"):
        build.load_library("cpu")


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch is built for CUDA")
def test_a_cpu_build_of_pytorch_refuses_to_build_for_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    with pytest.raises(RuntimeError, match="this PyTorch is not built for CUDA"):
        build.load_library("cuda")


@pytest.mark.parametrize(
    ("listed", "expected"), [("8.0;9.0", ("80", "90")), ("9.0a 8.6+PTX", ("86", "90")), ("10.0", ("100",))]
)
def test_architectures_come_from_the_environment(
    listed: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert build_spec.cuda_architectures() == expected


def test_an_architecture_that_is_not_a_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 Hopper")
    with pytest.raises(RuntimeError, match=r"expected numbers such as .*, got 'Hopper'"):
        build_spec.cuda_architectures()


def test_the_newest_architecture_also_gets_ptx_for_later_devices() -> None:
    assert build_spec.gencode_flags(("80", "100", "90"))[-1] == "-gencode=arch=compute_100,code=compute_100"
    assert len(build_spec.gencode_flags(("80", "90"))) == 3


PROGRAM = """
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
from versatune_ds.kernels import build, ops
import sys
first = "torch.utils.cpp_extension" in sys.modules
build.load_kernels("cpu")
print(first, "torch.utils.cpp_extension" in sys.modules)
"""


@needs_compiler
@pytest.mark.slow
def test_importing_builds_nothing_and_a_second_process_does_not_even_import_the_builder(tmp_path: Path) -> None:
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache"), "VERSATUNE_KERNELS": "cpp"}
    command = [sys.executable, "-c", PROGRAM]
    runs = [subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)]
    assert [run.stdout for run in runs] == ["False True\n", "False False\n"]
    assert ["built versatune_cpu.so" in run.stderr for run in runs] == [True, False]
