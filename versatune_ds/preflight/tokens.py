"""Check the tokenizer and the chat template, by rendering a conversation."""

from __future__ import annotations

from collections.abc import Iterator

from versatune_ds.data.encoding.templates import TEMPLATE_DATE, has_fixed_date
from versatune_ds.data.encoding.tokenizer import tokenizer_digest
from versatune_ds.model.build import stopping_settings
from versatune_ds.preflight.rows import encode_sample
from versatune_ds.preflight.subject import Subject
from versatune_ds.training.end_tokens import ends_of_examples, ends_of_template, named_tokens, stops_of
from versatune_ds.training.finding import Finding, ok, warn


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
