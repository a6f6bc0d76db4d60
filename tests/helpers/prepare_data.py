"""Prepare small data for tests, with the cache beside it."""

from __future__ import annotations

from chat_data import chat_rows, tiny_tokenizer, write_jsonl

from versatune_ds.config import DataConfig
from versatune_ds.data.prepare import record_blocks
from versatune_ds.data.prepare.domains import prepare_domains


def prepare_folder(folder, **settings):
    """Prepare a folder of domains with its cache beside it."""
    data = DataConfig(folder=folder, **settings)
    return prepare_domains(data, tokenizer=tiny_tokenizer(), cache_dir=folder.parent / "cache")


def prepare_rows(tmp_path, rows, **settings):
    """Prepare one domain `law` of given training records and one held-out record; return its counts and shards."""
    write_jsonl(tmp_path / "data" / "train" / "law.jsonl", rows)
    write_jsonl(tmp_path / "data" / "valid" / "law.jsonl", chat_rows(1, topic="held out"))
    prepared = prepare_folder(tmp_path / "data", **settings)
    return prepared.counts[0], prepared.train[0]


def texts_of(shards):
    """Return the questions and answers of a split as texts."""
    return [tiny_tokenizer().decode(shards.read(i)[0]) for i in range(len(shards))]


def prepare_without_valid(tmp_path, rows):
    write_jsonl(tmp_path / "data" / "train" / "law.jsonl", rows)
    return prepare_folder(tmp_path / "data", valid_fraction=0.2)


def small_blocks(monkeypatch, *, num_records):
    """Have few records divided among processes, in blocks of so many."""
    monkeypatch.setattr(record_blocks, "_MIN_RECORDS_PER_BLOCK", num_records)
