"""Which CUDA kernel computes the loss: timed once, remembered beside the library, and overridable."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from versatune_ds.kernels import build, kernel_choice
from versatune_ds.kernels.build_spec import CSRC
from versatune_ds.kernels.kernel_choice import KERNELS, fastest, loss_kernel, read_times


def test_a_kernel_must_be_more_than_3_percent_faster_than_a_simpler_one() -> None:
    assert fastest({"two_pass": 1.02, "ring_4": 1.00}) == "two_pass"
    assert fastest({"two_pass": 1.10, "ring_2": 1.01, "ring_4": 1.00}) == "ring_2"
    assert fastest({"ring_8": 0.5, "two_pass": 1.0, "one_read": 0.6}) == "ring_8"
    assert fastest({}) == "auto"


def test_the_names_are_in_the_order_of_the_enum_in_the_sources() -> None:
    text = (CSRC / "domain_ce_cuda.h").read_text(encoding="utf-8")
    names = text.partition("enum class Kernel {")[2].partition("}")[0].replace(" = 0", "").split(",")
    assert [name.strip().removeprefix("k").lower() for name in names] == [name.replace("_", "") for name in KERNELS]


class _Event:
    """Stand in for a CUDA event; every kernel takes a millisecond."""

    def __init__(self, **_: bool) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, _: _Event) -> float:
        return 1.0


def test_a_kernel_whose_rows_do_not_fit_beside_the_sums_of_many_domains_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(logits_NV: torch.Tensor, *arguments: torch.Tensor | float) -> None:
        if arguments[-1] == KERNELS.index("ring_1") and len(arguments[2]) >= shared_domains:
            raise RuntimeError("two slices of a row do not fit into a block's shared memory")

    text = (CSRC / "cuda_rows.cuh").read_text(encoding="utf-8")
    shared_domains = int(text.partition("kSharedDomains = ")[2].partition(";")[0])
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.ops.versatune, "domain_ce_gradient_", run)
    monkeypatch.setattr(kernel_choice, "_num_multiprocessors", lambda _: 1)
    times = kernel_choice.measure_kernels(torch.device("cpu"), torch.bfloat16, 64, turns=1)
    assert set(times) == set(KERNELS) - {"auto", "ring_1"}


def test_a_cpu_has_one_kernel() -> None:
    assert loss_kernel("cpu", None, torch.float32, 100) == 0


def test_an_unknown_kernel_is_refused_with_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERSATUNE_LOSS_KERNEL", "ring_3")
    with pytest.raises(ValueError, match=r"VERSATUNE_LOSS_KERNEL: unknown value 'ring_3'; set one of auto, two_pass, "):
        loss_kernel("cpu", None, torch.float32, 100)


@pytest.fixture
def timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A GPU on which ring_4 is the fastest, and the vocabularies that were timed."""
    timed: list[int] = []

    def measure(device: torch.device, dtype: torch.dtype, vocabulary: int) -> dict[str, float]:
        timed.append(vocabulary)
        return {"two_pass": 2.0, "ring_4": 1.0}

    compiled = build.Implementation(device_type="cuda", kind="compiled", reason="test")
    monkeypatch.delenv("VERSATUNE_LOSS_KERNEL", raising=False)
    monkeypatch.setattr(build, "load_kernels", lambda _: compiled)
    monkeypatch.setattr(build, "library_path", lambda _: tmp_path / "versatune_cuda.so")
    monkeypatch.setattr(kernel_choice, "build_spec_for", lambda _: None)
    monkeypatch.setattr(kernel_choice, "measure_kernels", measure)
    monkeypatch.setattr(kernel_choice, "_CHOSEN", {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Test GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return timed


def test_each_vocabulary_and_dtype_is_timed_once_by_all_processes(
    timed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert loss_kernel("cuda", 0, torch.bfloat16, 1000) == KERNELS.index("ring_4")
    assert "loss kernel for Test GPU, bfloat16, V=1000: ring_4 (ms: two_pass 2.000, ring_4 1.000)" in caplog.text
    loss_kernel("cuda", 0, torch.bfloat16, 1000)
    monkeypatch.setattr(kernel_choice, "_CHOSEN", {})  # as another process would
    assert loss_kernel("cuda", 0, torch.bfloat16, 1000) == KERNELS.index("ring_4")
    assert timed == [1000]
    loss_kernel("cuda", 0, torch.float16, 1000)
    loss_kernel("cuda", 0, torch.bfloat16, 2000)
    assert timed == [1000, 1000, 2000]
    assert len(read_times(tmp_path)) == 3


def test_the_switch_takes_a_kernel_without_timing(timed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERSATUNE_LOSS_KERNEL", "one_read")
    assert loss_kernel("cuda", 0, torch.bfloat16, 1000) == KERNELS.index("one_read")
    assert timed == []


def test_nothing_is_timed_while_a_graph_is_captured(timed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert loss_kernel("cuda", 0, torch.bfloat16, 1000) == 0
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert loss_kernel("cuda", 0, torch.bfloat16, 1000) == KERNELS.index("ring_4")
    assert timed == [1000]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 3}', '{"a": {"two_pass": "fast"}}'])
def test_a_file_of_times_that_cannot_be_read_counts_as_none(timed: list[int], tmp_path: Path, text: str) -> None:
    (tmp_path / "kernel_times.json").write_text(text)
    assert read_times(tmp_path) == {}
    assert loss_kernel("cuda", 0, torch.bfloat16, 1000) == KERNELS.index("ring_4")
    assert timed == [1000]
