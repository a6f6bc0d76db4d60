"""The sequences that a base model wrote, stored on disk so that a killed detection resumes.

A batch is a function of (settings, batch number) and one line of the file. A line is complete or it does not count, so
to resume is to draw the batches that have no line yet, by any number of processes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from versatune_ds.run_folder.json_lines import append_to_file, restored_objects

REPETITION_TOKENS = 4
"""Length of the runs of tokens whose repetition counts."""

REPETITIVE_SHARE = 0.5
"""A sequence is repetitive when more than this share of its runs of tokens came before in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnSequence:
    """One sequence that the base model wrote."""

    text: str
    """Without special tokens."""
    num_tokens: int
    """With the beginning token and, where it came, the end token."""
    is_cut: bool
    """Whether it was cut off at `detect.sampling.max_new_tokens`."""
    repeated_share: float
    """Share of its runs of four tokens that came before in it; 0 when it is shorter."""

    @property
    def is_empty(self) -> bool:
        """Return whether there is no text, so that it has no domain."""
        return not self.text.strip()

    @property
    def is_repetitive(self) -> bool:
        """Return whether the model was stuck in a loop."""
        return self.repeated_share > REPETITIVE_SHARE


def repeated_share(token_ids: list[int]) -> float:
    """Return the share of runs of four tokens that came before: 0 for 1 2 3 4 5, 1/2 for 1 1 1 1 1 1 and so on."""
    num_runs = len(token_ids) - REPETITION_TOKENS + 1
    if num_runs < 1:
        return 0.0
    return 1.0 - len({tuple(token_ids[i : i + REPETITION_TOKENS]) for i in range(num_runs)}) / num_runs


class SequenceStore:
    """Batches of sequences in a file, one line each; it is made when the first batch comes."""

    def __init__(self, path: Path) -> None:
        """Read the complete lines; what a kill left of one is cut off."""
        self.path = path
        self._batches = {
            values["batch"]: [DrawnSequence(**sequence) for sequence in values["sequences"]]
            for values in restored_objects(path)
        }

    def __contains__(self, batch: int) -> bool:
        return batch in self._batches

    def add(self, batch: int, sequences: list[DrawnSequence]) -> None:
        """Store a batch; it is in the file when this returns."""
        append_to_file(self.path, {"batch": batch, "sequences": [asdict(sequence) for sequence in sequences]})
        self._batches[batch] = sequences

    def first(self, num_sequences: int) -> list[DrawnSequence]:
        """Return the first sequences in the order of their numbers; all of their batches must be there."""
        found: list[DrawnSequence] = []
        for batch in sorted(self._batches):
            found += self._batches[batch]
        return found[:num_sequences]
