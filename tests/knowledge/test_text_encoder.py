"""Texts become vectors once: found encoders, chunks of long texts, the store on disk."""

import sys

import numpy as np
import pytest
from fake_encoder import FakeSentenceTransformer, fake_library, word_vectors

from versatune_ds.config import EmbeddingConfig
from versatune_ds.knowledge import text_encoder as text_encoder_module
from versatune_ds.knowledge.text_encoder import (
    EncoderFolder,
    TextEncoder,
    VectorStore,
    cut_into_chunks,
    find_encoder,
    mean_directions,
)


@pytest.fixture
def library(monkeypatch):
    """Let sentence-transformers look installed, and no encoder be on this machine."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", fake_library())
    monkeypatch.setattr(text_encoder_module, "_PACKAGE", "no_such_package")
    monkeypatch.setattr(text_encoder_module, "_HUB_NAME", "no/such-encoder")


def saved_encoder(folder):
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    return folder


def test_a_long_text_is_cut_after_whole_tokens():
    text = "a bb ccc dddd e"
    offsets = [(0, 1), (2, 4), (5, 8), (9, 13), (14, 15)]
    assert cut_into_chunks(text, offsets, num_tokens=2) == ["a bb", "ccc dddd", "e"]
    assert cut_into_chunks(text, offsets, num_tokens=5) == [text]


def test_the_vector_of_a_long_text_is_the_mean_direction_of_its_chunks():
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    mean = mean_directions(vectors, np.array([0, 0, 1]), num_texts=2)
    assert mean == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))


def test_a_text_is_encoded_once_also_by_a_later_detection(library, tmp_path):
    folder = EncoderFolder(name="mine", folder=saved_encoder(tmp_path / "encoder"))
    FakeSentenceTransformer.num_encoded = 0
    first = TextEncoder(folder, cache_dir=tmp_path / "cache").encode(["the court", "a cell", "the court"])
    assert FakeSentenceTransformer.num_encoded == 2
    again = TextEncoder(folder, cache_dir=tmp_path / "cache").encode(["a cell", "the court"])
    assert FakeSentenceTransformer.num_encoded == 2
    assert again == pytest.approx(first[[1, 0]])
    assert first == pytest.approx(word_vectors(["the court", "a cell", "the court"]))


def test_another_encoder_does_not_read_the_vectors_of_the_first(library, tmp_path):
    for name in ("one", "two"):
        folder = saved_encoder(tmp_path / name)
        (folder / "config.json").write_text(name)
        TextEncoder(EncoderFolder(name=name, folder=folder), cache_dir=tmp_path / "cache").encode(["a"])
    assert len(list((tmp_path / "cache").glob("embeddings-*.bin"))) == 2


def test_a_text_longer_than_the_encoder_reads_is_encoded_in_chunks(library, tmp_path):
    folder = EncoderFolder(name="mine", folder=saved_encoder(tmp_path / "encoder"))
    [vector] = TextEncoder(folder, cache_dir=tmp_path).encode(["one two three four five six seven"])
    chunks = word_vectors(["one two three four five six", "seven"]).sum(axis=0)
    assert vector == pytest.approx(chunks / np.linalg.norm(chunks), abs=1e-6)


def test_the_store_cuts_off_what_a_kill_left_of_a_record(tmp_path):
    path, lock = tmp_path / "vectors.bin", tmp_path / "lock"
    keys = [f"{i:032x}" for i in range(3)]
    VectorStore(path, lock=lock).add(keys[:2], np.eye(2, 4, dtype=np.float32))
    with path.open("ab") as file:
        file.write(b"half a record")
    store = VectorStore(path, lock=lock)
    assert keys[1] in store
    assert keys[2] not in store
    store.add(keys[2:], np.full((1, 4), 0.5, dtype=np.float32))
    assert VectorStore(path, lock=lock).vectors([keys[2], keys[0]]).tolist() == [[0.5] * 4, [1.0, 0.0, 0.0, 0.0]]


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(text_encoder_module, "_LIBRARY", "no_such_library")
    with pytest.raises(ValueError, match=r"detect.labeller: embedding needs sentence-transformers.*\[embedding\]"):
        find_encoder(EmbeddingConfig())


def test_an_encoder_is_found_by_folder_and_nothing_is_fetched_without_a_name(library, tmp_path):
    folder = saved_encoder(tmp_path / "encoder")
    assert find_encoder(EmbeddingConfig(name_or_path=str(folder))).folder == folder
    with pytest.raises(ValueError, match=r"^detect.embedding.name_or_path: no encoder is named, and none is"):
        find_encoder(EmbeddingConfig())
    with pytest.raises(ValueError, match=r"has no modules.json; expected a folder saved by sentence-transformers"):
        find_encoder(EmbeddingConfig(name_or_path=str(tmp_path)))
