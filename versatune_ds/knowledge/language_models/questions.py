"""Ask a language model for a text's domain, and store every label on disk.

Both labellers that are language models see the same words, and no text is asked about twice: a label is stored under a
digest of the text and of everything else that the answer depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from versatune_ds.data.manifest import digest_of_texts
from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.language_models.option_letters import LETTER_ANSWER, LetteredOptions, lettered
from versatune_ds.run_folder.json_lines import append_to_file, restored_objects


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What every question about a text has in common."""

    domain_set: DomainSet
    descriptions: Mapping[str, str]
    """Domain name to what is in it; may lack names."""
    max_characters: int
    """Characters of the text that are shown."""

    def about(self, text: str, *, answer: str) -> str:
        """Return the text of the question; `answer` is a sentence that asks for a form of answer."""
        domains = "\n".join(f"- {entry}" for entry in self._entries())
        return self._with_list(f"The domains are:\n{domains}", text, answer=answer)

    def with_letters(self, text: str) -> tuple[str, LetteredOptions]:
        """Return the question with a letter before every domain, and which letter is which domain."""
        options = lettered(self._entries(), text=text)
        lines = "\n".join(options.texts)
        return self._with_list(f"The options are:\n{lines}", text, answer=LETTER_ANSWER), options

    def _entries(self) -> list[str]:
        """Return every domain's name, with its description where it has one."""
        return [f"{name}: {self.descriptions[name]}" if name in self.descriptions else name for name in self.domain_set]

    def _with_list(self, domains: str, text: str, *, answer: str) -> str:
        return (
            f"Which domain does the text between the lines belong to? {domains}\n\n{answer}\n\n"
            f"-----\n{text[: self.max_characters]}\n-----"
        )


class LabelStore:
    """Labels in a file, one line each."""

    def __init__(
        self,
        path: Path,
        *,
        domain_set: DomainSet,
        identity: Iterable[str],
        read: Callable[[str], np.ndarray] | None = None,
    ) -> None:
        """Read the labels that are there; the file is made when the first one comes.

        Args:
            path: The file.
            domain_set: Order of the probabilities.
            identity: Everything but the text that a label depends on.
            read: Reads a label from a stored answer: an answer that an earlier version could not read then counts. By
                default the stored labels are used.
        """
        self.path = path
        self._domain_set = domain_set
        self._identity = [*identity, *domain_set.names]
        self._labels: dict[str, list[float]] = {
            values["key"]: values["label"] if read is None else read(values["answer"]).tolist()
            for values in restored_objects(path)
        }

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Return the texts that have no label yet, each once."""
        return [text for text in dict.fromkeys(texts) if self._key(text) not in self._labels]

    def labels(self, texts: Iterable[str]) -> np.ndarray:
        """Return the labels of texts that all have one, float64 [N, K]."""
        return np.array([self._labels[self._key(text)] for text in texts])

    def add(self, text: str, label_K: np.ndarray, *, answer: str) -> None:
        """Store a label and the answer it was read from; both are in the file when this returns."""
        key = self._key(text)
        append_to_file(self.path, {"key": key, "label": label_K.tolist(), "answer": answer})
        self._labels[key] = label_K.tolist()

    def _key(self, text: str) -> str:
        return digest_of_texts([*self._identity, text])
