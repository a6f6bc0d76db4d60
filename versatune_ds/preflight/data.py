"""Check the data as the model will read them: files, tokenizer, chat template, and a sample of every domain's records.

Sampled records go through the encoder that prepares data, so what is bad here is bad there, for the same reason.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from versatune_ds.data.encoding.columns import (
    UNREAD_WAY_OUT,
    UnreadColumn,
    UnreadCounter,
    describe_labels,
    describe_text,
)
from versatune_ds.data.encoding.data_warnings import MAX_CUT_SHARE, cut_share, describe_cut, describe_warnings
from versatune_ds.data.encoding.encode import EncodedExample
from versatune_ds.data.encoding.templates import TEMPLATE_DATE, has_fixed_date
from versatune_ds.data.encoding.tokenizer import tokenizer_digest
from versatune_ds.data.inspect import mark_masked
from versatune_ds.data.sources.domain_files import key_of
from versatune_ds.model.build import stopping_settings
from versatune_ds.preflight.inspect_recipe import escape_control_characters, terminal_decoder
from versatune_ds.preflight.subject import DomainSample, Subject, once
from versatune_ds.training.end_tokens import ends_of_examples, ends_of_template, named_tokens, stops_of
from versatune_ds.training.finding import Finding, fail, failures_of, ok, warn
from versatune_ds.training.mixture_start import is_never_measured, nothing_measured

_MAX_EXAMPLE_CHARACTERS, _MAX_EXAMPLE_LINES = 600, 12


def check_files(subject: Subject) -> Iterator[Finding]:
    """Find and sample every domain's files, and report their sizes and records."""
    data = subject.config.data
    for name in subject.files_of_domain:
        for split in ("train", "valid"):
            try:
                sample = subject.sample(name, split)
            except ValueError as error:
                yield from failures_of(error, check="files")
                continue
            if sample.files:
                yield _describe_files(sample)
        if subject.files_of_domain[name].valid == ():
            found = f"{name} has no held-out rows: its loss is not measured, and no loss of its own moves its weight"
            todo = "name files, or null to split some rows off"
            if data.folder:
                todo = f"write {data.folder}/valid/{name}.jsonl"
            yield warn("files", key_of(data, domain=name, split="valid"), found, todo)
    if is_never_measured(subject.config, num_valid_K=[files.valid != () for files in subject.files_of_domain.values()]):
        yield warn("files", "mixture.policy", *nothing_measured(subject.config).split("; "))


def _describe_files(sample: DomainSample) -> Finding:
    """Return how many files, bytes and rows a split has."""
    num_bytes = sum(file.num_bytes for file in sample.files)
    about = "" if all(file.is_counted for file in sample.files) else "about "
    found = f"{len(sample.files)} {'files' if len(sample.files) > 1 else 'file'}, {num_bytes / 2**20:,.1f} MiB, {about}"
    found += f"{sample.num_rows:,.0f} rows"
    if sample.num_rows == 0:
        return fail("files", sample.key, f"{sample.files[0].path} has no row", "give it rows or leave the domain out")
    return ok("files", f"{sample.domain} {sample.split}", found)


def check_tokenizer(subject: Subject) -> Iterator[Finding]:
    """Load the tokenizer, or train it as preparing the data would."""
    config = subject.config
    names = {"model.tokenizer": config.model.tokenizer, "model.name_or_path": config.model.name_or_path}
    key = next((key for key, name in names.items() if name), "model.tokenizer_vocab_size")
    tokenizer = subject.tokenizer
    if subject.has_own_tokenizer:
        yield ok("tokenizer", key, f"{len(tokenizer):,} tokens, digest {tokenizer_digest(tokenizer)[:12]}")
    else:
        found = f"{config.model.tokenizer_vocab_size:,} tokens, trained when data are prepared; a stand-in is used here"
        yield ok("tokenizer", key, found)


def check_template(subject: Subject) -> Iterator[Finding]:
    """Render a question and its answer with the chat template; ValueError if that fails."""
    template, key = subject.template, subject.template_key
    if subject.encoder(next(iter(subject.files_of_domain))).abilities.closes_turns:
        dated = f", as of {TEMPLATE_DATE:%d %b %Y} on every day" if has_fixed_date(template) else ""
        yield ok("template", key, f"{len(template)} characters, loss on {subject.config.data.loss_on}{dated}")
    else:
        yield warn("template", key, "ends no turn, so a model does not learn to stop", "end turns with a token")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledRows:
    """How the encoder takes a domain's sampled records."""

    num_rows: int
    bad: tuple[str, ...]
    """file:line: reason of each bad record."""
    num_without_loss: int
    longest_tokens: int
    """Tokens of the longest example as it is trained on: cut or split."""
    mean_tokens: float
    """Tokens of a record, before long ones are cut."""
    share_cut: float
    """Share of the tokens that is cut off."""
    remarks: dict[str, int]
    """Records that are unusual in some way, by the keys of `data_warnings.DATA_WARNINGS`."""
    example: EncodedExample | None
    """The first example that bears loss."""
    content_hashes: np.ndarray
    """Content hashes of the examples, uint64: the lowest ones are held out."""
    unread: tuple[UnreadColumn, ...]
    """Columns that are not trained on."""


@once
def encode_sample(subject: Subject, domain: str) -> SampledRows:
    """Send a domain's sampled records through the encoder.

    Raises:
        ValueError: If the tokenizer or the template fails.
    """
    # Encode all records of both splits as one table; `line` is a record's number here.
    files = subject.readable_files(domain)
    records = [record for file in files for record in file.records]
    places = [file.place(record) for file in files for record in file.records]
    table = pa.Table.from_pylist(
        [
            {"file": 0, "line": number, "json_text": record.json_text, "problem": record.problem}
            for number, record in enumerate(records)
        ]
    )
    lines = subject.encoder(domain)(table).to_pylist() if records else []
    # A long record may be split into several lines; its first piece has its counts.
    rows = [line for line in lines if line["piece"] == 0]
    bad = tuple(f"{places[line['line']]}: {line['problem']}" for line in rows if line["problem"])
    kept = [line for line in lines if line["input_ids"]]
    unread = UnreadCounter()
    for line in lines:
        unread.add(line["unread"], is_label=False, place=places[line["line"]])
        unread.add(line["unread_labels"], is_label=True, place=places[line["line"]])
    # Sum up what was kept, what was cut off and what is unusual.
    num_tokens = sum(line["num_row_tokens"] for line in rows)
    return SampledRows(
        num_rows=len(rows),
        bad=bad,
        num_without_loss=sum(not line["input_ids"] and not line["problem"] for line in rows),
        longest_tokens=max((len(line["input_ids"]) for line in kept), default=0),
        mean_tokens=num_tokens / max(len(rows) - len(bad), 1),
        share_cut=cut_share(
            num_cut_tokens=sum(line["num_cut_tokens"] for line in rows),
            num_kept_tokens=sum(len(line["input_ids"]) for line in kept),
        ),
        remarks=dict(Counter(remark for line in kept if line["piece"] == 0 for remark in line["warnings"])),
        example=_example_of(kept[0]) if kept else None,
        content_hashes=np.array([line["content_hash"] for line in kept if line["piece"] == 0], dtype=np.uint64),
        unread=unread.columns(),
    )


def _example_of(line: dict[str, Any]) -> EncodedExample:
    """Return the example of an output line of the encoder."""
    input_ids, loss_spans = (np.array(line[name], dtype=np.int32) for name in ("input_ids", "loss_spans"))
    return EncodedExample(input_ids=input_ids, loss_spans=loss_spans)


def check_rows(subject: Subject) -> Iterator[Finding]:
    """Encode sampled records of every domain: bad ones against data.max_bad_rows, loss, lengths."""
    row_tokens = subject.config.data.row_tokens
    for name in subject.readable_domains():
        rows = encode_sample(subject, name)
        is_whole = all(file.is_whole for file in subject.readable_files(name))
        # Bad records, and columns that would stay out of training.
        yield _judge_bad_rows(subject, name, rows, is_whole=is_whole)
        if text := describe_text(rows.unread):
            found = f"{name}: columns with text that is not trained on: {text}, of {rows.num_rows:,} sampled rows"
            key = f"data.domains.{name}.columns" if subject.config.data.domains else "data.folder"
            yield warn("rows", key, found, UNREAD_WAY_OUT)
        if rows.example is None and rows.num_rows and len(rows.bad) == rows.num_rows:
            continue  # all are bad, as the line above says; row_tokens has no part in it
        # Examples that bear no loss, and what else is unusual.
        todo = "raise it, or set data.long_examples=split"
        if rows.example is None:
            found = f"{name}: none of {rows.num_rows} sampled rows bears loss within {row_tokens} tokens"
            yield fail("rows", "data.row_tokens", found, todo)
        elif rows.num_without_loss > MAX_CUT_SHARE * rows.num_rows:
            found = f"{name}: {rows.num_without_loss} of {rows.num_rows} sampled rows bear no loss within"
            found += f" {row_tokens} tokens"
            yield warn("rows", "data.row_tokens", found, todo)
        yield from _judge_remarks(subject, name, rows)


def _judge_remarks(subject: Subject, domain: str, rows: SampledRows) -> Iterator[Finding]:
    """Yield what is unusual about a domain's sampled records, as preparing them would log it, and too large a cut."""
    data = subject.config.data
    if rows.share_cut > MAX_CUT_SHARE:
        found, todo = describe_cut(rows.share_cut, row_tokens=data.row_tokens, is_split=data.long_examples == "split")
        yield warn("rows", "data.row_tokens", f"{domain}: {found}", todo)
    described = describe_warnings(
        rows.remarks, num_rows=rows.num_rows, what="sampled rows", abilities=subject.encoder(domain).abilities
    )
    for found, remark in described:
        text = escape_control_characters(f"{domain}: {found}")
        yield warn("rows", subject.template_key, text, remark.todo) if not remark.is_minor else ok("rows", domain, text)


def _judge_bad_rows(subject: Subject, domain: str, rows: SampledRows, *, is_whole: bool) -> Finding:
    """Compare a domain's bad records with the limit, as preparing it would."""
    limit = subject.config.data.max_bad_rows
    num_rows = sum(file.num_rows for file in subject.readable_files(domain))
    expected = len(rows.bad) / max(rows.num_rows, 1) * num_rows
    allowed = int(limit * num_rows) if limit < 1 else int(limit)
    looked_at = f"all {rows.num_rows:,}" if is_whole else f"{rows.num_rows:,} sampled"
    if not rows.bad:
        cut = f", {rows.share_cut:.1%} cut off" if 0 < rows.share_cut <= MAX_CUT_SHARE else ""
        labels = describe_labels(rows.unread)
        left_out = f"; columns not trained on: {labels}" if labels else ""
        return ok("rows", domain, f"{looked_at} rows valid, {rows.mean_tokens:,.0f} tokens each{cut}{left_out}")
    first = escape_control_characters("; ".join(rows.bad[:2])).replace("\n", " ")[:400]
    found = f"{domain}: {len(rows.bad)} of {looked_at} rows bad ({first})"
    todo = f"fix them, or raise the limit of {allowed:,} rows"
    finding = fail if expected > allowed else warn
    return finding("rows", "data.max_bad_rows", found, todo)


def check_endings(subject: Subject) -> Iterator[Finding]:
    """Compare the tokens that end sampled examples with those at which the base model's generation stops."""
    examples = [encode_sample(subject, name).example for name in subject.readable_domains()]
    encoded = [(example.input_ids, example.is_loss) for example in examples if example is not None]
    tokenizer = subject.tokenizer
    ends = ends_of_examples(encoded, tokenizer=tokenizer)
    if not ends and any(not is_loss[1:].all() for _, is_loss in encoded):  # rows that are cut off end anywhere
        ends = ends_of_template(tokenizer, subject.template)
    if not ends:
        return
    is_saved = subject.config.model.name_or_path is not None
    stops = stops_of(*(stopping_settings(subject.config.model) if is_saved else [tokenizer]))
    missing = [token_id for token_id in ends if token_id not in stops]
    key = "generation_config.eos_token_id"
    if not missing:
        yield ok("endings", key, f"rows end with {named_tokens(ends, tokenizer)}, where generation stops")
        return
    found = f"rows end with {named_tokens(missing, tokenizer)}, but the base model's generation stops at "
    found += named_tokens(stops, tokenizer) or "no token"
    yield warn("endings", key, found, "versatune export adds it; elsewhere, pass eos_token_id when generating")


def render_examples(subject: Subject) -> dict[str, str]:
    """Return one example a domain as the model reads it, parts that bear no loss in brackets, safe for a terminal."""
    examples = {}
    for name in subject.readable_domains():
        example = encode_sample(subject, name).example
        if example is not None:
            decode = terminal_decoder(subject.tokenizer)
            examples[name] = _shortened(mark_masked(example.input_ids.tolist(), example.is_loss.tolist(), decode))
    return examples


def _shortened(text: str) -> str:
    """Return the beginning of a text: few lines, few characters."""
    lines = "\n".join(itertools.islice(text.splitlines(), _MAX_EXAMPLE_LINES))
    kept = lines[:_MAX_EXAMPLE_CHARACTERS]
    return kept if kept == text.rstrip("\n") else f"{kept} ..."
