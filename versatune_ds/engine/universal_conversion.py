"""Convert a checkpoint to DeepSpeed's universal form, with the processes of one machine sharing the work.

DeepSpeed's converter has two long phases of independent pieces: the files of the former ranks are cut into fragments,
then the fragments of each parameter are joined. It would fork workers for them, but forking a process that has threads
or a GPU may hang. The ranks on rank 0's machine are processes already, and wait: each takes its share of both phases.
Ranks of other machines take none, since a network file system may not show them the newest files of a folder.

Every piece is made by the converter's own functions, so the result is that of one process, bit for bit. What comes
before the phases is only read, and rank 0 alone does what comes after.
"""

from __future__ import annotations

import io
import json
import logging
import platform
import shutil
from argparse import Namespace
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from deepspeed.checkpoint import ds_to_universal

from versatune_ds.distributed import World, barrier, from_rank_zero, run_on_rank_zero, texts_of_ranks
from versatune_ds.engine.host_memory import available_bytes
from versatune_ds.text_table import counted

logger = logging.getLogger(__name__)

_NUM_PHASES = 2
_SHARD_COPIES = 1.25
"""Memory that cutting one file takes, in sizes of that file: its contents, and one fragment at a time."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class _SharingError(RuntimeError):
    """A rank could not do its share; raised on every rank."""


class _ShareDoneError(Exception):
    """Leaves the converter on a rank that has done its share of both phases."""


def convert(folder: Path, copy: Path, *, world: World) -> None:
    """Write the universal form of a checkpoint into a new folder; every rank calls it.

    Communication: an exchange of machine names and one broadcast; one exchange of texts after each phase, which waits
    for the slowest rank as long as it takes; one broadcast at the end.

    Raises:
        RuntimeError: On every rank, if one could not do its share; often because the disk has no room for the copy.
    """
    run_on_rank_zero(lambda: shutil.rmtree(copy, ignore_errors=True), world)
    sharers = _choose_sharers(folder, world=world)
    phases = _Phases(world, sharers=sharers)
    output, failure = io.StringIO(), None
    try:
        if world.rank in sharers:
            _run_converter(folder, copy, phases=phases, output=output)
        else:
            phases.wait()
    except _SharingError:
        raise
    except Exception as error:
        # Logged and not added as a note to the error: add_note came with Python 3.11.
        logger.error("converting %s for another number of processes failed: %s", folder, output.getvalue()[-300:])
        phases.fail(error)
        failure = error
    run_on_rank_zero(lambda: _raise(failure), world)


def _raise(failure: Exception | None) -> None:
    if failure is not None:
        raise failure


def _run_converter(folder: Path, copy: Path, *, phases: _Phases, output: io.StringIO) -> None:
    """Run DeepSpeed's converter, its phases shared; on other ranks than 0 only to the end of the last phase."""
    settings = Namespace(
        input_folder=str(folder),
        output_folder=str(copy),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    usual = ds_to_universal._do_parallel_work
    ds_to_universal._do_parallel_work = phases.work
    try:
        with redirect_stdout(output), redirect_stderr(output):  # progress bars
            ds_to_universal.main(settings)
        if phases.num_done != _NUM_PHASES:
            raise RuntimeError(f"deepspeed's converter ended after {phases.num_done} phases, expected {_NUM_PHASES}")
    except _ShareDoneError:
        pass
    finally:
        ds_to_universal._do_parallel_work = usual


class _Phases:
    """The phases that ranks share, in the place of the converter's own pool of workers.

    Args:
        world: This process's place.
        sharers: Ranks that take a share.
    """

    def __init__(self, world: World, *, sharers: list[int]) -> None:
        self._world, self._sharers = world, sharers
        self.num_done = 0

    def work(self, do_work: Callable[[Any], Any], pieces: Iterable[Any], num_workers: int) -> list[Any]:
        """Do this rank's share of the pieces, and return the results of all ranks, in any order.

        Raises:
            _SharingError: On every rank, if one failed.
            _ShareDoneError: On other ranks than 0 after the last phase.
            RuntimeError: On rank 0, if there is one more phase: it must not wait for the other ranks, which have left.
        """
        if self.num_done == _NUM_PHASES:
            raise RuntimeError(f"deepspeed's converter has more than {_NUM_PHASES} phases of shared work")
        results, failure = [], None
        in_order = sorted(pieces, key=str)  # a set's order differs between processes
        try:
            for piece in in_order[self._sharers.index(self._world.rank) :: len(self._sharers)]:
                found = do_work(piece)
                results.append(None if found is None else sorted(found))
        except Exception as error:
            failure = error
        results = self._exchange(results, failure=failure)
        if self.num_done == _NUM_PHASES and not self._world.is_rank_zero:
            raise _ShareDoneError
        return results

    def wait(self) -> None:
        """Wait for all phases, on a rank without a share."""
        while self.num_done < _NUM_PHASES:
            self._exchange([], failure=None)

    def fail(self, error: Exception) -> None:
        """Share an error outside of the phases with the ranks that wait at the end of the next one, if one is left."""
        if self.num_done < _NUM_PHASES:
            self._exchange([], failure=error)

    def _exchange(self, results: list[Any], *, failure: Exception | None) -> list[Any]:
        """Return the results of all ranks once all have done their share."""
        barrier()
        text = json.dumps({"results": results, "failure": None if failure is None else str(failure) or repr(failure)})
        ranks = [json.loads(text) for text in texts_of_ranks(text, self._world)]
        failures = [f"rank {i}: {rank['failure']}" for i, rank in enumerate(ranks) if rank["failure"] is not None]
        if failures:
            raise _SharingError(f"the checkpoint could not be converted: {'; '.join(failures)}") from failure
        self.num_done += 1
        return [result for rank in ranks for result in rank["results"]]


def _choose_sharers(folder: Path, *, world: World) -> list[int]:
    """Return the ranks that share the work, the same on every rank, and log how many and why."""
    machines = texts_of_ranks(_machine(), world)
    bytes_each, free = from_rank_zero(lambda: (_bytes_of_a_share(folder), available_bytes()), world)
    sharers = _sharers(machines, bytes_each=bytes_each, free=free)
    memory = "unknown" if free is None else f"{free / 2**30:.1f} GiB"
    logger.info(
        "converting %s for %s: %d of the %d on rank 0's machine share the work, each with up to %.1f GiB of %s free; "
        "the copy is deleted afterwards",
        folder.name, counted(world.world_size, "process", plural="processes"), len(sharers),
        machines.count(machines[0]), bytes_each / 2**30, memory,
    )  # fmt: skip
    return sharers


def _sharers(machines: list[str], *, bytes_each: int, free: int | None) -> list[int]:
    """Return the ranks on rank 0's machine, as many as its free memory has room for, and rank 0 in any case.

    Args:
        machines: The machine of each rank.
        bytes_each: Memory that one process needs: it reads the model's file, then cuts one rank's file at a time.
        free: Free memory of rank 0's machine; None where it is not known, and rank 0 works alone.
    """
    local = [rank for rank, machine in enumerate(machines) if machine == machines[0]]
    return local[: 1 if free is None else max(1, free // max(bytes_each, 1))]


def _machine() -> str:
    """Return what tells this machine from others, whatever its containers are called."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return platform.node()


def _bytes_of_a_share(folder: Path) -> int:
    """Return the memory that one process needs to convert its share of a checkpoint."""
    model, optimizer = (
        max((path.stat().st_size for path in folder.glob(f"*{name}_states.pt")), default=0)
        for name in ("model", "optim")
    )
    return model + int(_SHARD_COPIES * optimizer)
