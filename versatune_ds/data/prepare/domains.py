"""Prepare the shards of every domain of a recipe, once: shards prepared before are found by their fingerprint.

The folder of a domain is named by a digest of everything that its tokens depend on: the bytes of its files, the
tokenizer, the template, the settings. So stale shards are never read, and after a change of a file only its own domain
is prepared again.

One process of a node calls `prepare_domains`; the others wait, then call it too and find everything prepared.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from versatune_ds.config import DataConfig, DomainFiles
from versatune_ds.data.encoding.columns import UNREAD_WAY_OUT, describe_labels, describe_text
from versatune_ds.data.encoding.data_warnings import MAX_CUT_SHARE, cut_share, describe_cut, describe_warnings
from versatune_ds.data.encoding.template_abilities import probe_template
from versatune_ds.data.encoding.templates import choose_template, template_digest
from versatune_ds.data.encoding.tokenizer import tokenizer_digest
from versatune_ds.data.manifest import digest_of_texts
from versatune_ds.data.prepare.encode_records import EncodeSettings, RecordEncoder
from versatune_ds.data.prepare.one_domain import (
    BAD_ROWS_NAME,
    DomainSummary,
    DomainTask,
    build_domain,
    check_summary,
    read_summary,
)
from versatune_ds.data.prepare.parts import delete_parts, parts_beside
from versatune_ds.data.prepare.source_changes import check_unchanged, states_of
from versatune_ds.data.prepare.split_builder import SplitCounts, format_table
from versatune_ds.data.shards import DomainShards
from versatune_ds.data.sources.domain_files import domain_files, key_of
from versatune_ds.data.sources.find_files import find_files
from versatune_ds.data.sources.source_digests import SourceDigests
from versatune_ds.domains import DomainSet
from versatune_ds.progress import with_progress
from versatune_ds.run_folder.atomic import atomic_folder
from versatune_ds.run_folder.file_lock import locked

_logger = logging.getLogger(__name__)

_PREPARE_VERSION = 3  # raise it whenever the same input gives other tokens, so that older shards are not used

_MAX_VERIFIED_BYTES = 2 << 30  # about 3 s of reading


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """The shards of all domains, in the order of their ids."""

    domain_set: DomainSet
    train: tuple[DomainShards, ...]
    valid: tuple[DomainShards, ...]
    counts: tuple[SplitCounts, ...]
    """Counts of every domain's train and valid split."""

    @property
    def table(self) -> str:
        """Return the counts as a text table, one line per split."""
        return format_table(self.counts)

    @property
    def digest(self) -> str:
        """Return a digest of the domains and the content of all their shards, equal wherever they were prepared."""
        return digest_of_texts([*self.domain_set, *(shards.digest for shards in (*self.train, *self.valid))])


def prepare_domains(data: DataConfig, *, tokenizer: Any, cache_dir: Path) -> PreparedData:
    """Prepare every domain that is not prepared yet, and open the shards of all.

    Which examples are held out depends on their content, not on a seed, so runs with different seeds can be compared.

    Shards prepared before are verified by their digests if they are below 2 GiB together. Of larger ones, which would
    take 1.5 s per GB at every start, only sizes, headers and footers are checked. Shards built in this call are not
    read back.

    Args:
        data: The recipe's data section.
        tokenizer: A transformers tokenizer.
        cache_dir: Folder of prepared data, made if absent; any number of runs and processes may share it.

    Raises:
        ValueError: If files are missing or unreadable, or a domain has no rows or too many bad ones.
        RuntimeError: If shards prepared before are corrupt, a data file changes, or a process or a disk fails.
    """
    # What the tokens depend on.
    files_of_domain = domain_files(data, cache_dir=cache_dir)
    domain_set = DomainSet(tuple(files_of_domain))
    template = choose_template(tokenizer, path=data.chat_template)
    abilities = probe_template(template, tokenizer=tokenizer)
    identity = {"tokenizer": tokenizer_digest(tokenizer), "template": template_digest(template)}
    digests = SourceDigests(cache_dir)
    # Prepare each domain, unless it was prepared before.
    folders, found, counts = [], [], []
    domains = with_progress(files_of_domain.items(), num_items=len(files_of_domain), what="data: %s domains")
    for name, files in domains:
        settings = EncodeSettings(
            row_tokens=data.row_tokens, loss_on=data.loss_on, long_examples=data.long_examples, columns=files.columns
        )
        encoder = RecordEncoder(tokenizer=tokenizer, template=template, abilities=abilities, settings=settings)
        task = _task(data, name=name, files=files, cache_dir=cache_dir)
        folder, is_found = _prepare_domain(task, encoder=encoder, identity=identity, data=data, digests=digests)
        folders.append(folder)
        if is_found:
            found.append(folder)
        counts += read_summary(folder).rows
    # Open the shards, and verify those prepared before unless they are large.
    num_bytes = sum(path.stat().st_size for folder in found for path in folder.glob("*/*.arrow"))
    verified = set(found) if num_bytes < _MAX_VERIFIED_BYTES else set()
    return PreparedData(
        domain_set=domain_set,
        train=tuple(DomainShards(folder / "train", verify=folder in verified) for folder in folders),
        valid=tuple(DomainShards(folder / "valid", verify=folder in verified) for folder in folders),
        counts=tuple(counts),
    )


def _task(data: DataConfig, *, name: str, files: DomainFiles, cache_dir: Path) -> DomainTask:
    key, valid_key = (key_of(data, domain=name, split=split) for split in ("train", "valid"))
    return DomainTask(
        name=name,
        key=key,
        train=find_files(files.train, key=key, cache_dir=cache_dir),
        valid=None if files.valid is None else find_files(files.valid, key=valid_key, cache_dir=cache_dir),
        valid_fraction=data.valid_fraction,
    )


def _prepare_domain(
    task: DomainTask, *, encoder: RecordEncoder, identity: dict[str, str], data: DataConfig, digests: SourceDigests
) -> tuple[Path, bool]:
    """Return a domain's folder of shards, and whether it existed; build it if it did not.

    Raises:
        ValueError: If the domain cannot be prepared, or was prepared with more bad rows than are allowed now.
    """
    # Find the folder by its fingerprint, or build it.
    states = states_of([*task.train, *(task.valid or ())])
    settings = {**identity, **dataclasses.asdict(encoder.settings)}
    folder = digests.cache_dir / f"{_file_name(task.name)}-{_fingerprint(task, settings=settings, digests=digests)}"
    locks = digests.cache_dir / "locks"
    with locked(locks / folder.name, what=f"the prepared data of {task.name}") as is_locked:
        is_found = folder.is_dir()
        if is_found:
            delete_parts(folder)
        else:
            with parts_beside(folder, locks=locks) as kept_parts, atomic_folder(folder) as place:
                parts = kept_parts if is_locked else place / "parts"  # without a lock, another one may use the same
                summary = build_domain(
                    place,
                    task=task,
                    states=states,
                    encoder=encoder,
                    num_processes=data.num_processes,
                    settings=settings,
                    parts=parts,
                )
                check_unchanged(states)
                bad_rows = digests.cache_dir / "refused" / f"{_file_name(task.name)}-{BAD_ROWS_NAME}"
                _check_built(place, summary=summary, task=task, max_bad_rows=data.max_bad_rows, kept_bad_rows=bad_rows)
                shutil.rmtree(place / "parts", ignore_errors=True)
    # Check and report, whether it was built now or before.
    summary, bad_rows = read_summary(folder), folder / BAD_ROWS_NAME
    check_summary(summary, task=task, max_bad_rows=data.max_bad_rows, bad_rows=bad_rows)
    _warn(summary, bad_rows=bad_rows, encoder=encoder)
    _log_unread(summary, domain=task.name)
    return folder, is_found


def _check_built(
    place: Path, *, summary: DomainSummary, task: DomainTask, max_bad_rows: float, kept_bad_rows: Path
) -> None:
    """Raise ValueError if a domain just built is refused; of such a domain, only the list of bad rows is kept."""
    try:
        check_summary(summary, task=task, max_bad_rows=max_bad_rows, bad_rows=kept_bad_rows)
    except ValueError:
        kept_bad_rows.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / BAD_ROWS_NAME, kept_bad_rows)
        raise


def _fingerprint(task: DomainTask, *, settings: dict[str, Any], digests: SourceDigests) -> str:
    """Return 16 hexadecimal digits of everything that a domain's shards depend on; of files, name and content."""
    split = ["by files", *digests.of(task.valid)] if task.valid is not None else ["by hash", repr(task.valid_fraction)]
    parts = [str(_PREPARE_VERSION), task.name, json.dumps(settings, sort_keys=True), *split, *digests.of(task.train)]
    return digest_of_texts(parts)[:16]


def _file_name(domain: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", domain)[:64].lstrip(".") or "domain"


def _log_unread(summary: DomainSummary, *, domain: str) -> None:
    """Log which columns and files of a domain are not trained on."""
    if text := describe_text(summary.unread):
        _logger.warning("%s: columns with text that is not trained on: %s; %s", domain, text, UNREAD_WAY_OUT)
    if labels := describe_labels(summary.unread):
        _logger.info("%s: columns not trained on: %s", domain, labels)
    for path in summary.empty_files:
        _logger.warning("%s: %s has no rows", domain, path)


def _warn(summary: DomainSummary, *, bad_rows: Path, encoder: RecordEncoder) -> None:
    """Log what a user should look at: dropped rows, held-out rows that are trained on, turns without an end."""
    train, valid = summary.rows
    if not encoder.abilities.closes_turns:
        _logger.warning(
            "%s: the chat template does not end turns, so a model does not learn to stop; give data.chat_template=FILE "
            "with one that does",
            train.domain,
        )
    for row in summary.rows:
        if row.num_without_loss:
            _logger.warning(
                "%s: %d of %d %s rows dropped: nothing of them bears loss within data.row_tokens; raise it, or set "
                "data.long_examples=split",
                row.domain,
                row.num_without_loss,
                row.num_rows,
                row.split,
            )
    num_bad = train.num_bad_rows + valid.num_bad_rows
    if num_bad:
        first = "; ".join(summary.problems)
        _logger.warning("%s: %d bad rows skipped (%s); all in %s", train.domain, num_bad, first, bad_rows)
    if valid.num_in_train:
        _logger.warning(
            "%s: %d of %d held-out rows are also trained on, so their loss is too low; remove them from one of the two",
            train.domain,
            valid.num_in_train,
            valid.num_rows,
        )
    _log_data_warnings(summary, encoder=encoder)


def _log_data_warnings(summary: DomainSummary, *, encoder: RecordEncoder) -> None:
    """Log the warnings about examples that are trained on, one line each, and whether too much is cut off."""
    name, settings = summary.rows[0].domain, encoder.settings
    share = cut_share(
        num_cut_tokens=sum(row.num_cut_tokens for row in summary.rows),
        num_kept_tokens=sum(row.num_tokens for row in summary.rows),
    )
    if share > MAX_CUT_SHARE:
        found, todo = describe_cut(share, row_tokens=settings.row_tokens, is_split=settings.long_examples == "split")
        _logger.warning("%s: %s; %s", name, found, todo)
    counts = sum((Counter(row.remarks) for row in summary.rows), Counter())
    num_rows = sum(row.num_rows for row in summary.rows)
    for found, warning in describe_warnings(counts, num_rows=num_rows, what="rows", abilities=encoder.abilities):
        level = logging.INFO if warning.is_minor else logging.WARNING
        _logger.log(level, "%s: %s", name, "; ".join(filter(None, (found, warning.todo))))
