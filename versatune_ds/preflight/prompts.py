"""Compare, for a sample of every domain's conversations, the training text with the prompts that generation would see.

See `data/encoding/generation_prompt.py` for what is compared.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator

from versatune_ds.data.encoding.forms import Example, parse_example
from versatune_ds.data.encoding.generation_prompt import (
    PromptComparer,
    PromptComparison,
    added_system_text,
    adds_start,
)
from versatune_ds.data.encoding.prompt_differences import PROMPT_DIFFERENCES, PromptDifference
from versatune_ds.data.encoding.templates import TEMPLATE_DATE, TemplateMismatchError, has_fixed_date
from versatune_ds.data.encoding.turns import BadRowError
from versatune_ds.data.inspect import mark_masked
from versatune_ds.preflight.inspect_recipe import escape_control_characters, terminal_decoder
from versatune_ds.preflight.subject import Subject, once
from versatune_ds.training.finding import Finding, ok, warn

_PER_KIND = 8
"""Conversations compared of each kind: with or without tools, system text, reasoning, several answers."""
_MOST_SYSTEM_CHARACTERS = 60


def check_prompts(subject: Subject) -> Iterator[Finding]:
    """Report where training text and prompt differ, by domain; one line if they agree everywhere."""
    num_alike, alike, notes = 0, [], set()
    for domain in subject.readable_domains():
        compared = compare_sample(subject, domain)
        counts = Counter(difference.kind for _, found in compared for difference in found.differences)
        for kind in counts:
            first = next(d for _, found in compared for d in found.differences if d.kind == kind)
            yield _warning(subject, domain, first, num_found=counts[kind], num_compared=len(compared))
        if compared and not counts:
            alike.append(domain)
            num_alike += len(compared)
        notes.update(_notes(subject, compared))
    if alike:
        beginning = "the prompt is the beginning of the training text, and the loss starts right behind it"
        found = "; ".join([f"{', '.join(alike)}: in {num_alike} conversations {beginning}", *sorted(notes)])
        yield ok("prompt", subject.template_key, escape_control_characters(found))


@once
def compare_sample(subject: Subject, domain: str) -> list[tuple[Example, PromptComparison]]:
    """Return the comparisons of a few conversations of a domain, of all kinds that its sampled records have.

    Conversations that cannot be trained on are left out: the check of the rows reports them.
    """
    encoder, columns = subject.encoder(domain), subject.files_of_domain[domain].columns
    comparer = PromptComparer(
        tokenizer=encoder.tokenizer,
        template=encoder.template,
        loss_on=encoder.settings.loss_on,
        abilities=encoder.abilities,
    )
    compared: list[tuple[Example, PromptComparison]] = []
    num_of_kind: Counter[tuple[bool, ...]] = Counter()
    records = (record for file in subject.sample(domain, "train").files for record in file.records)
    for record in records:
        if record.problem:
            continue
        try:
            example = parse_example(record.json_text, columns=columns)
            kind = _kind(example)
            if example.text is not None or num_of_kind[kind] >= _PER_KIND:
                continue
            comparison = comparer.compare(example)
        except (BadRowError, TemplateMismatchError, RecursionError):
            continue
        if comparison is not None:
            num_of_kind[kind] += 1
            compared.append((example, comparison))
    return compared


def render_prompts(subject: Subject) -> dict[str, str]:
    """Return the complete training text of a conversation of each domain, and the prompt of its last answer.

    The conversation is the first one that differs, else the first one; parts that bear no loss are in brackets.
    """
    texts = {}
    decode = terminal_decoder(subject.tokenizer)
    for domain in subject.readable_domains():
        compared = [found for _, found in compare_sample(subject, domain)]
        if not compared:
            continue
        shown = next((found for found in compared if found.differences), compared[0])
        trained = shown.trained
        text = mark_masked(trained.input_ids.tolist(), trained.is_loss.tolist(), decode)
        prompt = decode(list(shown.prompt_ids)) if shown.prompt_ids else "(the chat template refuses to render it)"
        texts[domain] = f"{text}\n--- {domain}: the prompt from which generation would write its last answer\n{prompt}"
    return texts


def _kind(example: Example) -> tuple[bool, ...]:
    """Return what a template may treat differently in a conversation."""
    roles = [turn["role"] for turn in example.turns]
    return (
        bool(example.tools),
        "system" in roles,
        "tool" in roles or any("tool_calls" in turn for turn in example.turns),
        any("reasoning_content" in turn or "</think>" in (turn["content"] or "") for turn in example.turns),
        roles.count("assistant") > 1,
    )


def _warning(
    subject: Subject, domain: str, difference: PromptDifference, *, num_found: int, num_compared: int
) -> Finding:
    """Return a difference with its excerpts, its effect and what to do."""
    words = PROMPT_DIFFERENCES[difference.kind]
    details = [difference.detail] if difference.detail else []
    details += [
        f"{name} {json.dumps(text, ensure_ascii=False)}"
        for name, text in (("training", difference.trained), ("prompt", difference.prompt))
        if text
    ]
    found = f"{domain}: {num_found} of {num_compared} conversations: {words.found} ({', '.join(details)}): "
    return warn("prompt", subject.template_key, escape_control_characters(found + words.effect), words.todo)


def _notes(subject: Subject, compared: Iterable[tuple[Example, PromptComparison]]) -> Iterator[str]:
    """Yield what is alike in both texts and still good to know."""
    tokenizer, template, compared = subject.tokenizer, subject.template, list(compared)
    if any(found.adds_empty_thinking for _, found in compared):
        yield (
            "the template writes an empty thinking block before answers without reasoning, which bears loss: the model "
            "learns to answer without thinking"
        )
    if any(found.has_loss_behind_end for _, found in compared):
        yield "white space behind the token that ends answers bears loss too; generation stops before it"
    has_no_system = any(all(turn["role"] != "system" for turn in example.turns) for example, _ in compared)
    if has_no_system and (text := added_system_text(template, tokenizer=tokenizer)):
        shown = text if len(text) <= _MOST_SYSTEM_CHARACTERS else f"{text[: _MOST_SYSTEM_CHARACTERS - 3]}..."
        yield f"where rows have no system text, the template adds its own ({json.dumps(shown, ensure_ascii=False)})"
    if has_fixed_date(template):
        yield f"both as of {TEMPLATE_DATE:%d %b %Y}, which the exported template keeps"
    start = tokenizer.bos_token_id
    if adds_start(tokenizer) and any(found.trained.input_ids[:1].tolist() == [start] for _, found in compared):
        yield f"tokenise prompts with add_special_tokens=False, or they begin with {tokenizer.bos_token} twice"
