"""Run the encoder over files in many processes, through `datasets`, in constant memory.

One process writes the records to disk as text with their place, which is cheap. Parsing, templates and tokenising,
which are not, run in the processes of `datasets`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa

from versatune_ds.data.prepare.encode_records import OUTPUT_SCHEMA, RecordEncoder
from versatune_ds.data.sources.readers import read_records
from versatune_ds.progress import working_on

_RECORD_SCHEMA = pa.schema(
    [("file", pa.int32()), ("line", pa.int64()), ("json_text", pa.large_string()), ("problem", pa.string())]
)
_RECORDS_PER_BATCH = 256
_PR_SET_PDEATHSIG = 1
_is_asked_for = threading.Event()
_RECORDS_WITH_BAR = 20_000
"""Records from which tokenising has a progress bar of its own on a terminal."""
_MIN_RECORDS_PER_PROCESS = 2000  # with fewer, starting a process costs more than it saves


def encode_files(
    files: Sequence[Path], *, work: Path, encoder: RecordEncoder, num_processes: int
) -> Iterator[pa.RecordBatch]:
    """Yield the encoder's output lines for all records of files, in order.

    Args:
        files: Data files; `file` in the output is a position in this sequence.
        work: Existing empty folder for intermediate files; the caller deletes it.
        encoder: Turns record batches into output lines.
        num_processes: Processes that encode.

    Raises:
        ValueError: If a file cannot be read at all.
    """
    # Records to disk.
    num_records = _write_records(files, path=work / "records.arrow")
    if num_records == 0:
        return
    # Records to output lines, in many processes.
    records = datasets.Dataset.from_file(str(work / "records.arrow")).with_format("arrow")
    num_processes = min(num_processes, max(1, num_records // _MIN_RECORDS_PER_PROCESS))
    has_bar = num_records >= _RECORDS_WITH_BAR and sys.stderr.isatty()
    with (
        _quiet_progress(has_bar=has_bar),
        working_on("tokenising", has_own_bar=has_bar),
        _one_thread_each(num_processes),
        _ending_with_parent(),
    ):
        encoded = records.map(
            encoder,
            batched=True,
            batch_size=_RECORDS_PER_BATCH,
            writer_batch_size=_RECORDS_PER_BATCH,
            remove_columns=_RECORD_SCHEMA.names,
            features=datasets.Features.from_arrow_schema(OUTPUT_SCHEMA),
            num_proc=num_processes if num_processes > 1 else None,
            load_from_cache_file=False,
            cache_file_name=str(work / "encoded.arrow"),
            new_fingerprint="encoded",  # not used; by default the tokenizer is hashed, which takes seconds
            desc="tokenising",
        )
    for start in range(0, len(encoded), _RECORDS_PER_BATCH):
        yield from encoded.data.fast_slice(start, _RECORDS_PER_BATCH).to_batches()


def _write_records(files: Sequence[Path], *, path: Path) -> int:
    """Write the records of files, in order, as one Arrow stream; return their number."""
    num_records = 0
    rows = (
        {"file": number, "line": record.line, "json_text": record.json_text, "problem": record.problem}
        for number, file in enumerate(files)
        for record in read_records(file)
    )
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_stream(stream, _RECORD_SCHEMA) as writer:
        while batch := list(islice(rows, _RECORDS_PER_BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=_RECORD_SCHEMA))
            num_records += len(batch)
    return num_records


@contextlib.contextmanager
def _quiet_progress(*, has_bar: bool) -> Iterator[None]:
    """Switch the progress bars of `datasets` off, unless `has_bar`."""
    was_enabled = datasets.utils.is_progress_bar_enabled()
    if not has_bar:
        datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        if was_enabled:
            datasets.utils.enable_progress_bars()


@contextlib.contextmanager
def _one_thread_each(num_processes: int) -> Iterator[None]:
    """Keep tokenizers from starting threads in each of several processes, and from warning about it."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    if num_processes > 1:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


@contextlib.contextmanager
def _ending_with_parent() -> Iterator[None]:
    """Have children forked within the block killed when this process dies; elsewhere than on Linux, do nothing.

    `datasets` starts its own workers and offers no hook. If their parent is killed, they block forever and keep their
    memory. On Linux each child can ask the kernel, after its fork, to be killed with its parent.
    """
    if sys.platform == "linux":
        _watch_forks()
        _is_asked_for.set()
    try:
        yield
    finally:
        _is_asked_for.clear()


@functools.cache
def _watch_forks() -> None:
    """Register, once a process, what children do after a fork."""
    library = ctypes.CDLL(None)  # loaded here: a child of a process with threads should load nothing

    def ask_in_child() -> None:
        if _is_asked_for.is_set():
            library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    os.register_at_fork(after_in_child=ask_in_child)
