"""The losses of held-out rows that likelihood detection has measured, stored on disk so that a killed one resumes.

A micro-batch is a function of (model, rows, batch number) and one line of the file, which is named after a digest of
model and rows. A line is complete or it does not count, so to resume is to measure the micro-batches without a line, by
any number of processes.

Shape legend: **E** held-out rows.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from versatune_ds.knowledge.likelihood_rows import LikelihoodRows
from versatune_ds.run_folder.json_lines import append_to_file, restored_objects


class NatsStore:
    """Micro-batches of measured rows in a file, one line each; it is made when the first one comes."""

    def __init__(self, path: Path) -> None:
        """Read the complete lines; what a kill left of one is cut off."""
        self.path = path
        self._nats_of_batch: dict[int, dict[int, float]] = {
            values["batch"]: dict(zip(values["rows"], values["nats"], strict=True)) for values in restored_objects(path)
        }

    def __contains__(self, batch: int) -> bool:
        return batch in self._nats_of_batch

    def add(self, batch: int, nats_E: np.ndarray) -> None:
        """Store a micro-batch; it is in the file when this returns. Rows of others have 0."""
        rows = np.flatnonzero(nats_E)
        values = {"batch": batch, "rows": rows.tolist(), "nats": nats_E[rows].tolist()}
        append_to_file(self.path, values)
        self._nats_of_batch[batch] = dict(zip(values["rows"], values["nats"], strict=True))

    def nats(self, *, num_rows: int) -> np.ndarray:
        """Return the nats of every row, float64 [E]; 0 where it was not measured."""
        nats_E = np.zeros(num_rows)
        for nats_of_row in self._nats_of_batch.values():
            nats_E[list(nats_of_row)] = list(nats_of_row.values())
        return nats_E


def rows_digest(rows: LikelihoodRows) -> str:
    """Return 32 hexadecimal digits of the held-out rows: their tokens, and which of them are text."""
    digest = hashlib.blake2b(digest_size=16)
    for part in rows.held_out:
        digest.update(f"{part.name} {part.num_examples} ".encode())
        for index in range(part.num_examples):
            input_ids, is_text = part.read(index)
            digest.update(f"{len(input_ids)} ".encode())
            digest.update(np.asarray(input_ids, dtype=np.int64).tobytes())
            digest.update(np.asarray(is_text, dtype=bool).tobytes())
    return digest.hexdigest()
