"""Prepare one domain: turn its files into the shards of two splits, and count every record.

Whether an example is held out depends on its content alone: not on the order or number of examples, and duplicates are
never in both splits.

Shape legend: **L** output lines of a batch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa

from versatune_ds.data.encoding.columns import UnreadColumn, UnreadCounter
from versatune_ds.data.prepare.encode_files import count_files, encode_files
from versatune_ds.data.prepare.encode_records import RecordEncoder
from versatune_ds.data.prepare.output_lines import Lines, name_counts
from versatune_ds.data.prepare.parts import PartsFolder
from versatune_ds.data.prepare.source_changes import FileState
from versatune_ds.data.prepare.split_builder import SplitBuilder, SplitCounts
from versatune_ds.data.sources.records import printable

SUMMARY_NAME = "summary.json"
BAD_ROWS_NAME = "bad_rows.jsonl"
_NUM_PROBLEMS_SHOWN = 3
_MAX_PROBLEM_CHARACTERS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainTask:
    """The files of one domain, to be prepared."""

    name: str
    key: str
    """Dotted key of the recipe, for messages."""
    train: tuple[Path, ...]
    valid: tuple[Path, ...] | None
    """Files of held-out examples, none for a domain that is not measured; None holds out a share of those in
    `train`."""
    valid_fraction: float
    """Share of the training examples to hold out if `valid` is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainSummary:
    """Counts from preparing a domain, for the table and the limit on bad rows."""

    rows: tuple[SplitCounts, SplitCounts]
    """Counts of train and of valid."""
    problems: tuple[str, ...]
    """The first bad rows: file:line: reason."""
    unread: tuple[UnreadColumn, ...] = ()
    """Columns whose text is not trained on."""
    empty_files: tuple[str, ...] = ()
    """Files without records."""


def build_domain(
    folder: Path,
    *,
    task: DomainTask,
    states: dict[Path, FileState],
    encoder: RecordEncoder,
    num_processes: int,
    settings: dict[str, Any],
    parts: Path,
) -> DomainSummary:
    """Write the shards of a domain into a folder: `train/`, `valid/`, `bad_rows.jsonl`, `summary.json`.

    Args:
        folder: Existing empty folder.
        task: The domain's files.
        states: Of these files, before their digests were computed.
        encoder: Turns records into examples.
        num_processes: Processes that encode.
        settings: What the tokens depend on, for the manifests.
        parts: Folder of encoded blocks, also of an interrupted call for the same task; the caller deletes it.

    Raises:
        ValueError: If a file cannot be read at all; each is read once before anything is encoded.
        RuntimeError: If a file changes, a process that encodes was killed, or a block cannot be written.
    """
    # Encode the records, and divide the examples among the two splits.
    max_tokens = encoder.settings.row_tokens
    train, valid = (SplitBuilder(folder / name, max_tokens=max_tokens) for name in ("train", "valid"))
    files_of_split = {"train": task.train, "valid": task.valid or ()}
    num_rows = {split: np.zeros(len(files), dtype=np.int64) for split, files in files_of_split.items()}
    unread = UnreadCounter()
    with (folder / BAD_ROWS_NAME).open("w", encoding="utf-8") as bad_rows:
        batches = _encoded(
            files_of_split, states=states, parts=parts, encoder=encoder, num_processes=num_processes, domain=task.name
        )
        for split, batch in batches:
            lines, files = Lines.from_batch(batch), files_of_split[split]
            _write_bad_rows(bad_rows, lines=lines, files=files)
            _count_unread(unread, lines=lines, files=files)
            num_rows[split] += np.bincount(lines.file, minlength=len(files))
            is_valid_L = np.full(batch.num_rows, split == "valid")
            if task.valid is None:
                is_valid_L = is_held_out_by_hash(lines.content_hash, fraction=task.valid_fraction)
            train.add(lines, is_selected_L=~is_valid_L)
            valid.add(lines, is_selected_L=is_valid_L)
    # Finish the shards, and write the summary.
    num_valid_files = len(task.train if task.valid is None else task.valid)
    train_row = train.close(domain=task.name, split="train", num_files=len(task.train), settings=settings)
    valid_row = valid.close(domain=task.name, split="valid", num_files=num_valid_files, settings=settings)
    rows = (train_row, dataclasses.replace(valid_row, num_in_train=valid.num_in_train(train)))
    summary = DomainSummary(
        rows=rows,
        problems=_first_problems(folder / BAD_ROWS_NAME),
        unread=unread.columns(),
        empty_files=tuple(
            str(files[i]) for split, files in files_of_split.items() for i in np.flatnonzero(num_rows[split] == 0)
        ),
    )
    (folder / SUMMARY_NAME).write_text(json.dumps(dataclasses.asdict(summary), indent=1) + "\n", encoding="utf-8")
    return summary


def _encoded(
    files_of_split: dict[str, Sequence[Path]],
    *,
    states: dict[Path, FileState],
    parts: Path,
    encoder: RecordEncoder,
    num_processes: int,
    domain: str,
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield the splits' output lines, each batch with its split.

    Both splits are counted first, which finds files that cannot be read before anything is encoded.
    """
    splits = []
    for split, files in files_of_split.items():
        encoded = PartsFolder(parts, split=split)
        num_records = count_files(files, parts=encoded, num_processes=num_processes, domain=domain)
        splits.append((split, files, encoded, num_records))
    for split, files, encoded, num_records in splits:
        for batch in encode_files(
            files,
            states=states,
            num_records_per_file=num_records,
            parts=encoded,
            encoder=encoder,
            num_processes=num_processes,
            domain=domain,
        ):
            yield split, batch


def read_summary(folder: Path) -> DomainSummary:
    """Return the summary of a domain prepared before."""
    values = json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8"))
    train, valid = (SplitCounts(**row) for row in values["rows"])
    return DomainSummary(
        rows=(train, valid),
        problems=tuple(values["problems"]),
        unread=tuple(UnreadColumn(**column) for column in values["unread"]),
        empty_files=tuple(values["empty_files"]),
    )


def is_held_out_by_hash(content_hash_L: np.ndarray, *, fraction: float) -> np.ndarray:
    """Return which examples are held out, bool [L], by their content hashes, uint64 [L].

    The hash is uniform over 64 bits, so the hashes below `fraction` of its range belong to that share of the different
    examples.
    """
    return content_hash_L < np.uint64(int(fraction * 2**64))


def check_summary(summary: DomainSummary, *, task: DomainTask, max_bad_rows: float, bad_rows: Path) -> None:
    """Raise ValueError if a domain has too many bad rows (all are listed in a file), or a split without examples."""
    num_rows = sum(row.num_rows for row in summary.rows)
    num_bad = sum(row.num_bad_rows for row in summary.rows)
    files = ", ".join(map(str, task.train[:3]))
    if num_rows == 0:
        raise ValueError(f"{task.key}: domain {task.name!r} has no rows in {files}; give it data")
    allowed = int(max_bad_rows * num_rows) if max_bad_rows < 1 else int(max_bad_rows)
    if num_bad > allowed:
        raise ValueError(
            f"{task.key}: domain {task.name!r} has {num_bad} bad rows of {num_rows}, and data.max_bad_rows allows "
            f"{allowed}: {'; '.join(summary.problems)}; all in {bad_rows}"
        )
    for row in summary.rows:
        if row.num_examples == 0 and not (row.split == "valid" and task.valid == ()):
            raise ValueError(_without_examples(row, task=task, files=files))


def _without_examples(row: SplitCounts, *, task: DomainTask, files: str) -> str:
    """Return a message that a split is empty, why, and what to do."""
    if row.num_rows == 0 and task.valid is None and row.split == "valid":
        return (
            f"{task.key}: data.valid_fraction={task.valid_fraction:g} holds out no row of domain {task.name!r}; give "
            f"it files of held-out rows, or a larger fraction"
        )
    is_from_valid_files = row.split == "valid" and task.valid is not None
    if is_from_valid_files and task.valid:
        files = ", ".join(map(str, task.valid[:3]))
    key, way_out = task.key, ""
    if is_from_valid_files and key.endswith(".train"):
        key = key.removesuffix(".train") + ".valid"
        way_out = f"; give it held-out rows, or {key}=[] to train on the domain without measuring its loss"
    elif is_from_valid_files:
        way_out = "; give it held-out rows, or remove the file to train on the domain without measuring its loss"
    return (
        f"{key}: domain {task.name!r} has no {row.split} example: of {row.num_rows} rows in {files}, "
        f"{row.num_bad_rows} are bad and {row.num_without_loss} have no token that bears loss within data.row_tokens"
        f"{way_out}"
    )


def _write_bad_rows(stream: TextIO, *, lines: Lines, files: Sequence[Path]) -> None:
    """Append the bad rows of a batch to a file, with file, line and reason."""
    for i in np.flatnonzero(lines.is_bad).tolist():
        place = {"file": str(files[lines.file[i]]), "line": int(lines.line[i])}
        stream.write(json.dumps({**place, "reason": lines.problem[i].as_py()}, ensure_ascii=True) + "\n")


def _count_unread(counter: UnreadCounter, *, lines: Lines, files: Sequence[Path]) -> None:
    """Count the columns of a batch that are not trained on; they are on the first line of each record."""
    is_any_L = np.ones(len(lines.file), dtype=np.bool_)
    found = [(counted, False) for counted in name_counts(lines.unread, is_selected_L=is_any_L)]
    found += [(counted, True) for counted in name_counts(lines.unread_labels, is_selected_L=is_any_L)]
    for counted, is_label in sorted(found, key=lambda entry: entry[0].first_line):
        place = f"{files[lines.file[counted.first_line]]}:{lines.line[counted.first_line]}"
        counter.add([counted.name], is_label=is_label, place=place, num_rows=counted.num_lines)


def _first_problems(path: Path) -> tuple[str, ...]:
    with path.open(encoding="utf-8") as stream:
        first = [json.loads(line) for line, _ in zip(stream, range(_NUM_PROBLEMS_SHOWN), strict=False)]
    texts = (f"{entry['file']}:{entry['line']}: {entry['reason']}" for entry in first)
    return tuple(printable(text, max_characters=_MAX_PROBLEM_CHARACTERS) for text in texts)
