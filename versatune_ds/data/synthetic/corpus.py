"""Generate the records of the built-in corpus, and write them to a folder.

Record i is a function of (seed, domain, split, i). The folder has one JSONL file per split and domain, and corpus.json,
which describes them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from versatune_ds.data.synthetic.number_rules import CODE_RULES, FINANCE_RULES, SCIENCE_RULES
from versatune_ds.data.synthetic.space import (
    SPLIT_LANES,
    Rule,
    Split,
    num_questions_in_split,
    question_number,
    render_question,
)
from versatune_ds.data.synthetic.word_rules import GENERAL_RULES, LAW_RULES, MEDICINE_RULES
from versatune_ds.domains import DomainSet, nearest_name
from versatune_ds.run_folder.atomic import atomic_file

_LOGGER = logging.getLogger(__name__)

ChatRecord = dict[str, list[dict[str, str]]]

RULES_OF_DOMAIN: dict[str, tuple[Rule, ...]] = {
    "law": LAW_RULES,
    "medicine": MEDICINE_RULES,
    "finance": FINANCE_RULES,
    "science": SCIENCE_RULES,
    "code": CODE_RULES,
    "general": GENERAL_RULES,
}
DOMAIN_NAMES: tuple[str, ...] = tuple(RULES_OF_DOMAIN)

_DESCRIPTION_NAME = "corpus.json"
FORMAT_VERSION = 1
"""Raise it whenever a rule, word list or key changes, so that an old folder is written again."""
DEFAULT_NUM_ROWS: dict[str, int] = {
    "law": 1000,
    "medicine": 1400,
    "finance": 1600,
    "science": 2000,
    "code": 2500,
    "general": 3500,
}


def generate_records(domain: str, *, split: Split, num_rows: int, seed: int) -> Iterator[ChatRecord]:
    """Return an iterator over the first `num_rows` records of a domain's split, in constant memory.

    Rules take turns in blocks as long as the sum of their weights. So every prefix has about the same share of each
    rule, and a longer corpus begins with the shorter one.

    Args:
        domain: One of DOMAIN_NAMES.
        split: "train", "valid" or "test"; no two splits share a question, of any domain, for any two seeds.
        num_rows: Number of records, at most `num_available_records`.
        seed: Decides which questions are asked, and their order.

    Returns:
        Records as `{"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}`.

    Raises:
        ValueError: If the domain or split is unknown or has fewer records; at the call, not at the first record.
    """
    num_available = num_available_records(domain, split=split)
    if not 0 <= num_rows <= num_available:
        raise ValueError(
            f"num_rows: {domain}/{split} has {num_available} rows without repeating a question; got {num_rows}"
        )
    # One block: each rule as often as its weight, with the number of its earlier turns in the block.
    turns = [(rule, turn) for rule in RULES_OF_DOMAIN[domain] for turn in range(rule.weight)]
    return (_record(turns, split=split, index=index, order_key=f"{seed}/{domain}") for index in range(num_rows))


def num_available_records(domain: str, *, split: Split) -> int:
    """Return how many records a domain's split has before one of its rules runs out of new questions.

    Raises:
        ValueError: If the domain or the split is unknown.
    """
    if domain not in RULES_OF_DOMAIN:
        raise ValueError(f"domain: unknown domain {domain!r}; {nearest_name(domain, DOMAIN_NAMES)}")
    if split not in SPLIT_LANES:
        raise ValueError(f"split: unknown split {split!r}; {nearest_name(split, tuple(SPLIT_LANES))}")
    rules = RULES_OF_DOMAIN[domain]
    num_blocks = min(num_questions_in_split(rule, split) // rule.weight for rule in rules)
    return num_blocks * sum(rule.weight for rule in rules)


def _record(turns: list[tuple[Rule, int]], *, split: str, index: int, order_key: str) -> ChatRecord:
    block, place = divmod(index, len(turns))
    rule, turn = turns[place]
    number = question_number(rule, split=split, counter=block * rule.weight + turn, order_key=order_key)
    question, answer = render_question(rule, number)
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_corpus(
    folder: Path, *, num_rows: Mapping[str, int] | int, num_valid_rows: int, num_test_rows: int, seed: int
) -> None:
    """Write folder/{train,valid,test}/<domain>.jsonl, unless they exist already with these settings.

    Files are complete or absent. corpus.json is written first, to mark the folder, and gets the files' digests last, so
    that an interrupted call is completed by the next one.

    Args:
        folder: Where to write; made if absent.
        num_rows: Training records: a mapping by domain, or one number for all.
        num_valid_rows: Validation records of every domain.
        num_test_rows: Test records of every domain.
        seed: See `generate_records`.

    Raises:
        ValueError: If a domain is unknown, missing or too small, or if the folder has files that this function did not
            write; those are never overwritten.
    """
    settings = _settings(num_rows, num_valid_rows=num_valid_rows, num_test_rows=num_test_rows, seed=seed)
    rows_of_file = _rows_of_file(settings)
    if _is_complete(folder, settings=settings, file_names=rows_of_file.keys()):
        _LOGGER.debug("built-in corpus in %s is up to date", folder)
        return
    _check_is_free(folder, file_names=rows_of_file.keys())
    _write_description(folder, settings=settings, sha256_of_file={})
    for name, rows in rows_of_file.items():
        _write_atomically(folder / name, (json.dumps(row).encode("ascii") + b"\n" for row in rows))
    sha256_of_file = {name: _sha256(folder / name) for name in rows_of_file}
    _write_description(folder, settings=settings, sha256_of_file=sha256_of_file)
    _LOGGER.info("wrote the built-in corpus to %s", folder)


def _settings(
    num_rows: Mapping[str, int] | int, *, num_valid_rows: int, num_test_rows: int, seed: int
) -> dict[str, Any]:
    """Return everything that the corpus's bytes depend on, as JSON values."""
    if isinstance(num_rows, Mapping):
        DomainSet(DOMAIN_NAMES).from_dict(num_rows, what="num_rows")
    num_train_rows = {name: num_rows if isinstance(num_rows, int) else num_rows[name] for name in DOMAIN_NAMES}
    counts = {
        "train": num_train_rows,
        "valid": dict.fromkeys(DOMAIN_NAMES, num_valid_rows),
        "test": dict.fromkeys(DOMAIN_NAMES, num_test_rows),
    }
    return {"format_version": FORMAT_VERSION, "seed": seed, "num_rows": counts}


def _rows_of_file(settings: Mapping[str, Any]) -> dict[str, Iterator[Any]]:
    """Return the records of every file; asking for too many fails here, before anything is written."""
    return {
        f"{split}/{name}.jsonl": generate_records(
            name, split=split, num_rows=settings["num_rows"][split][name], seed=settings["seed"]
        )
        for split in SPLIT_LANES
        for name in DOMAIN_NAMES
    }


def _read_description(folder: Path) -> dict[str, Any] | None:
    """Return the content of corpus.json, or None if this module did not write one."""
    try:
        description = json.loads((folder / _DESCRIPTION_NAME).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    is_ours = isinstance(description, dict) and description.keys() == {"settings", "sha256"}
    return description if is_ours else None


def _is_complete(folder: Path, *, settings: Mapping[str, Any], file_names: Iterable[str]) -> bool:
    """Return whether the folder has exactly the files that were written with these settings."""
    description = _read_description(folder)
    if description is None or description["settings"] != settings:
        return False
    return all(
        (folder / name).exists() and _sha256(folder / name) == description["sha256"].get(name) for name in file_names
    )


def _check_is_free(folder: Path, *, file_names: Iterable[str]) -> None:
    """Raise ValueError if a file would be overwritten in a folder without our description."""
    if _read_description(folder) is not None:
        return
    for name in (_DESCRIPTION_NAME, *file_names):
        if (folder / name).exists():
            raise ValueError(
                f"{folder / name}: not written by the built-in corpus, so not overwritten; give another folder"
            )


def _write_description(folder: Path, *, settings: Mapping[str, Any], sha256_of_file: Mapping[str, str]) -> None:
    """Write corpus.json: the settings, and the files' digests once all files are written."""
    text = json.dumps({"settings": settings, "sha256": sha256_of_file}, indent=2)
    _write_atomically(folder / _DESCRIPTION_NAME, [text.encode("ascii") + b"\n"])


def _write_atomically(path: Path, chunks: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.writelines(chunks)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
