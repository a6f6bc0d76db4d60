"""Check the tokenizer and the chat template, by rendering a conversation."""

from __future__ import annotations

from collections.abc import Iterator

from versatune_ds.data.templates import TEMPLATE_DATE, has_fixed_date
from versatune_ds.data.tokenize import tokenizer_digest
from versatune_ds.training.check.finding import Finding, ok, warn
from versatune_ds.training.check.subject import Subject


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
    """Render a question and its answer with the chat template, which raises ValueError where it fails."""
    template, key = subject.template, subject.template_key
    if subject.encoder(next(iter(subject.files_of_domain))).abilities.closes_turns:
        dated = f", as of {TEMPLATE_DATE:%d %b %Y} on every day" if has_fixed_date(template) else ""
        yield ok("template", key, f"{len(template)} characters, loss on {subject.config.data.loss_on}{dated}")
    else:
        yield warn("template", key, "ends no turn, so a model does not learn to stop", "end turns with a token")
