"""Building: once among many processes, again after a kill, and a loud word when there is no compiler."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from versatune_ds.kernels import build

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def fake_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a compiler that notes each call in a file, takes 0.3 s (or as told) and writes an empty library."""
    calls = tmp_path / "calls"
    calls.touch()
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\necho call >> {calls}\nsleep ${{FAKE_SECONDS:-0.3}}\nfor out; do :; done\n: > "$out"\n'
    )
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    return calls


def num_calls(calls: Path) -> int:
    return len(calls.read_text().splitlines())


def test_four_processes_at_once_compile_once_and_all_find_the_library(fake_compiler: Path) -> None:
    processes = [FORK.Process(target=build.build_library, args=("cpu",)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert num_calls(fake_compiler) == 1
    assert build.build_library("cpu").is_file()
    assert num_calls(fake_compiler) == 1


def test_a_killed_build_leaves_nothing_that_others_wait_for(
    fake_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "60")
    victim = FORK.Process(target=_build_in_own_group)
    victim.start()
    while num_calls(fake_compiler) == 0:
        time.sleep(0.02)
    victim.kill()  # its compiler lives on, as an orphan
    victim.join()
    monkeypatch.setenv("FAKE_SECONDS", "0")
    started = time.monotonic()
    library = build.build_library("cpu")
    os.killpg(victim.pid, signal.SIGKILL)
    assert library.is_file()
    assert time.monotonic() - started < 20
    assert num_calls(fake_compiler) == 2


def _build_in_own_group() -> None:
    os.setpgid(0, 0)
    build.build_library("cpu")


def test_another_source_flag_or_version_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CSRC", tmp_path)
    source = tmp_path / "kernel.cpp"
    source.write_text("one")
    command = ["c++", str(source)]
    first = build.digest(command)
    assert build.digest(command) == first
    assert build.digest([*command, "-O0"]) != first
    source.write_text("two")
    assert build.digest(command) != first
    source.write_text("one")
    (tmp_path / "other.cu").write_text("does not concern this command")
    assert build.digest(command) == first
    (tmp_path / "shared.h").write_text("does")
    assert build.digest(command) != first


def load(device_type: str = "cpu") -> build.Implementation:
    """Load as a fresh process would: past the cache."""
    return build.load_kernels.__wrapped__(device_type)


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "missing"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delenv("VERSATUNE_KERNELS", raising=False)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_one_warning_line_says_that_the_slow_implementation_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="versatune_ds"):
        implementation = load()
    assert not implementation.is_compiled
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "PyTorch implementation (SLOW, same numbers: no C++ compiler" in record.getMessage()


@pytest.mark.usefixtures("no_compiler")
def test_the_switch_forbids_forces_and_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERSATUNE_KERNELS", "cpp")
    with pytest.raises(RuntimeError, match="VERSATUNE_KERNELS=cpp, but no C\\+\\+ compiler"):
        load()
    monkeypatch.setenv("VERSATUNE_KERNELS", "torch")
    assert load().reason == "VERSATUNE_KERNELS=torch"
    monkeypatch.setenv("VERSATUNE_KERNELS", "fast")
    with pytest.raises(ValueError, match="expected one of auto, torch, cpp, got 'fast'"):
        load()


@pytest.mark.usefixtures("no_compiler")
def test_a_device_without_kernels_falls_back(caplog: pytest.LogCaptureFixture) -> None:
    assert not load("xpu").is_compiled
    assert "no compiled kernels exist for xpu" in caplog.text


def test_a_failing_compiler_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'kernel.cpp:3: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"compiling failed: kernel\.cpp:3: error: no such thing"):
        build.build_library("cpu")


@pytest.mark.parametrize(
    ("listed", "expected"), [("8.0;9.0", ("80", "90")), ("9.0a 8.6+PTX", ("86", "90")), ("10.0", ("100",))]
)
def test_architectures_come_from_the_environment(
    listed: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert build.cuda_architectures() == expected


def test_the_newest_architecture_also_gets_ptx_for_later_devices() -> None:
    assert build.gencode_flags(("80", "100", "90"))[-1] == "-gencode=arch=compute_100,code=compute_100"
    assert len(build.gencode_flags(("80", "90"))) == 3


def test_importing_the_package_builds_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", "import versatune_ds.kernels"], env=environment, check=True)
    assert not (tmp_path / "cache").exists()
