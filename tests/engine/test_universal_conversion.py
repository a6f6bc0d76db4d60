"""Processes that share a conversion make the files of a single one; how many do depends on machine and memory."""

from __future__ import annotations

import errno
import logging

import pytest
import torch
from deepspeed.checkpoint import ds_to_universal
from ranks import run_ranks
from tiny_run import be_trained, tiny_config

from versatune_ds.distributed import World
from versatune_ds.engine import host_memory, universal_conversion
from versatune_ds.engine.universal_conversion import _choose_sharers, _sharers, convert
from versatune_ds.run_folder.checkpoint_files import complete_checkpoints

GIB = 2**30


@pytest.fixture(scope="module", params=[2, 3])
def checkpoint(request, tmp_path_factory):
    """Return a checkpoint of two ranks."""
    folder = tmp_path_factory.mktemp(f"zero{request.param}")
    config = tiny_config(folder, f"train.deepspeed={{zero_optimization: {{stage: {request.param}}}}}", "train.steps=2")
    (folder / "results").mkdir()
    run_ranks(lambda world: be_trained(config, world) and None, world_size=2, folder=folder / "results")
    return complete_checkpoints(config.run_dir)[0]


def converted(checkpoint, copy, *, world_size, fault=lambda world: None):
    """Convert a checkpoint; return how many files each rank wrote in the first phase."""

    def work(world):
        numbers, usual = [0], ds_to_universal.dump_param_fragment

        def dump(*arguments):
            fault(world)
            numbers[0] += 1
            usual(*arguments)

        ds_to_universal.dump_param_fragment = dump
        convert(checkpoint, copy, world=world)
        return numbers[0]

    folder = copy.with_name(f"results_{copy.name}")
    folder.mkdir()
    return run_ranks(work, world_size=world_size, folder=folder)


def values_of(path):
    return torch.load(path, weights_only=False)


def assert_same(left, right):
    """Compare what two files contain; tensors bit for bit."""
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key, value in left.items():
            assert_same(value, right[key])
    elif isinstance(left, list | tuple):
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert type(left) is type(right)
        if isinstance(left, int | float | str | bytes | None):
            assert left == right


@pytest.mark.slow
def test_three_processes_share_a_conversion_and_make_the_files_of_one(checkpoint, tmp_path):
    (whole,) = converted(checkpoint, tmp_path / "alone", world_size=1)
    shares = converted(checkpoint, tmp_path / "shared", world_size=3)
    assert sum(shares) == whole
    assert sum(share > 0 for share in shares) == 2  # one file of each of the two former ranks
    files = {path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*") if path.is_file()}
    shared = {path.relative_to(tmp_path / "shared") for path in (tmp_path / "shared").rglob("*") if path.is_file()}
    assert files == shared
    assert len(files) > 40
    for path in files:
        assert_same(values_of(tmp_path / "alone" / path), values_of(tmp_path / "shared" / path))


@pytest.mark.slow
def test_a_rank_that_cannot_do_its_share_stops_all_ranks_with_its_reason(checkpoint, tmp_path):
    def fill(world):
        if world.rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(AssertionError) as caught:
        converted(checkpoint, tmp_path / "copy", world_size=3, fault=fill)
    reason = "the checkpoint could not be converted: rank 1: [Errno 28] No space left on device"
    assert str(caught.value).count(f"_SharingError: {reason}") == 3


def fail_at(place, *, rank):
    """Return a stand-in for the converter, which fails at a place on one rank."""

    def main(settings, *, rank_here, num_phases):
        def reach(name):
            if (name, rank_here) == (place, rank):
                raise OSError(errno.EIO, "Input/output error")

        reach("before the phases")
        for phase in range(num_phases):
            ds_to_universal._do_parallel_work(lambda piece: [piece], range(4), 1)
            reach(f"after phase {phase + 1}")

    return main


@pytest.mark.parametrize(
    ("place", "rank", "num_phases", "reason"),
    [
        ("before the phases", 1, 2, "_SharingError: the checkpoint could not be converted: rank 1: [Errno 5]"),
        ("after phase 1", 0, 2, "_SharingError: the checkpoint could not be converted: rank 0: [Errno 5]"),
        ("after phase 2", 0, 2, "Input/output error"),
        (None, 0, 1, "_SharingError: the checkpoint could not be converted: rank 0: deepspeed's converter ended"),
        (None, 0, 3, "deepspeed's converter has more than 2 phases of shared work"),
    ],
)
def test_an_error_between_the_phases_or_another_number_of_them_ends_every_rank(
    tmp_path, place, rank, num_phases, reason
):
    converter = fail_at(place, rank=rank)

    def work(world):
        universal_conversion._machine = lambda: "other" if world.rank == 2 else "same"  # rank 2 only waits
        universal_conversion.available_bytes = lambda: GIB
        ds_to_universal.main = lambda settings: converter(settings, rank_here=world.rank, num_phases=num_phases)
        try:
            convert(tmp_path, tmp_path / "copy", world=world)
        except (RuntimeError, OSError) as error:
            return f"{type(error).__name__}: {error}"

    (tmp_path / "results").mkdir()
    found = run_ranks(work, world_size=3, folder=tmp_path / "results", timeout=30)
    for line in found:
        assert reason in line, found


@pytest.mark.parametrize(
    ("free", "machines", "expected"),
    [
        (100, "aaaa", [0, 1, 2, 3]),
        (100, "abab", [0, 2]),
        (20, "aaaa", [0, 1]),
        (1, "aaaa", [0]),
        (None, "aaaa", [0]),
    ],
)
def test_as_many_processes_of_rank_zeros_machine_share_as_its_memory_has_room_for(free, machines, expected):
    assert _sharers(list(machines), bytes_each=7, free=free) == expected


def test_the_log_states_how_many_processes_share_and_why(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    for name, size in {"mp_rank_00_model": 2 * GIB, "zero_pp_rank_0_mp_rank_00_optim": 4 * GIB}.items():
        with (tmp_path / f"{name}_states.pt").open("wb") as stream:
            stream.truncate(size)
    monkeypatch.setattr(universal_conversion, "available_bytes", lambda: 30 * GIB)
    assert _choose_sharers(tmp_path, world=World()) == [0]
    assert caplog.messages[0].endswith(
        "for 1 process: 1 of the 1 on rank 0's machine share the work, each with up to 7.0 GiB of 30.0 GiB free; the "
        "copy is deleted afterwards"
    )


def test_memory_is_that_of_the_machine_or_less_where_a_group_limits_it(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable: 50 kB\n")
    (tmp_path / "own").write_text("1:cpu:/x\n0::/job/step\n")
    monkeypatch.setattr(host_memory, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "_OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(host_memory, "_GROUPS", tmp_path / "groups")
    assert host_memory.available_bytes() == 50 * 1024
    for group, most, used in (("job", "40960", 30960), ("job/step", "max", 5)):
        (tmp_path / "groups" / group).mkdir(parents=True)
        (tmp_path / "groups" / group / "memory.max").write_text(f"{most}\n")
        (tmp_path / "groups" / group / "memory.current").write_text(f"{used}\n")
    assert host_memory.available_bytes() == 10_000
    (tmp_path / "groups" / "job" / "memory.current").write_text("50000\n")
    assert host_memory.available_bytes() == 0
    monkeypatch.setattr(host_memory, "_MEMORY", tmp_path / "none")
    assert host_memory.available_bytes() is None
