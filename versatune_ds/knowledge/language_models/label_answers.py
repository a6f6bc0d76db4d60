"""Read a language model's answer about the domain of a text as a probability for every domain.

Read are a JSON object (`{"law": 0.7, "finance": 0.3}`, `{"domain": "law"}`), a list ("law (70%), finance", "A) law")
and a short sentence ("The domain is **law**."), after reasoning (`<think>...</think>`) or between other sentences.

A name counts only where nothing but names, numbers and a few words of answering (`_ANSWERING`) are beside it: in "in
general, I cannot say" and "it is not law" it is no answer. What cannot be read belongs to no domain, and so widens the
intervals; it is never a guess.

Shape legend: **K** domains.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.json_file import is_finite_number

_REASONING = r"<(?:think|thinking|thought|reasoning)>"
_REASONING_END = r"</(?:think|thinking|thought|reasoning)>"
_NO_DOMAIN = ("other", "none of them", "none of these", "none of the above", "none", "unknown", "unclear")
_ANSWERING = re.compile(
    r"""(?:
    a | about | an | and | answer | approximately | are | around | as | based | be | belong | belongs | best |
    between | lines |
    category | chance | choice | classified | clearly | confidence | content | domain | domains | falls | field
    | final | i | into | is | it | label | likely | mainly | more | most | mostly | my | of | on | option | or |
    partly | passage | primarily | probability | probably | related | say | so | subject | text | that | the |
    therefore | think | this | to | topic | under | which | with | would
    )(?![^\W\d_])""",
    re.VERBOSE,
)
"""Words that change nothing about an answer, some of the question's among them; not "in": "in general" is no answer."""
_MARKS = re.compile(r"[\s,;:/|()\[\]*_`\"'\u201c\u201d\u2018\u2019.!=+>~#&\u2022\u2013\u2014-]+")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*(%|percent\b)?")
_ENUMERATOR = re.compile(r"^\s*[(*]*([a-z]|\d{1,2})[).:](?=[\s*]|$)", re.MULTILINE)
_SENTENCE_END = re.compile(r"\n+|(?<=[.!?])\s+")
_BOLD = re.compile(r"\*\*(.+?)\*\*")
_NEGATION = re.compile(r"\b(?:not|no|neither|nor|cannot)\b|n['\u2019]t\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Part:
    """One thing in an answer: a name (`domain`, None if of no domain) or a number (`value`)."""

    is_name: bool
    domain: int | None = None
    value: float = 0.0


def read_answer(answer: str, domain_set: DomainSet) -> np.ndarray:
    """Return the probabilities in an answer, float64 [K]; zeros where it cannot be read.

    Names count in any letter case. Probabilities of a JSON object that do not sum to 1 are divided by their sum, those
    of a list only if it is above 1; names without a number share what the others leave. What is given to other names
    ("other" among them) belongs to no domain.

    Example: "law (70%), finance" gives law 0.7 and finance 0.3; "law (70%)" leaves 0.3 to no domain.
    """
    after = re.split(_REASONING_END, answer, flags=re.IGNORECASE)[-1]
    if re.search(_REASONING, after, flags=re.IGNORECASE):  # cut off before there was an answer
        return np.zeros(len(domain_set))
    if "{" in after:
        return _from_object(_first_object(after), domain_set)
    return _from_words(after, domain_set)


def _first_object(text: str) -> dict[str, Any]:
    """Return the first complete JSON object in a text; an empty one where there is none."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"\{", text):
        try:
            value, _ = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            continue
        return value
    return {}


def _from_object(values: dict[str, Any], domain_set: DomainSet) -> np.ndarray:
    """Return the probabilities in an object of names and numbers, or in one that names a domain as a value."""
    nested = [value for value in values.values() if isinstance(value, dict)]
    if len(values) == len(nested) == 1:
        values = nested[0]
    pairs = [(name.strip().casefold(), _number(value)) for name, value in values.items()]
    numbers = [number for _, number in pairs if number is not None]
    if len(numbers) == len(pairs):
        total = sum(numbers)
        if not 0 < total < np.inf:
            return np.zeros(len(domain_set))
        given: dict[str, float] = {}
        for name, number in pairs:
            given[name] = given.get(name, 0.0) + (number or 0.0)
        return np.array([given.get(name.casefold(), 0.0) / total for name in domain_set])
    # {"domain": "law", "probability": 0.7}
    named = [_from_words(value, domain_set) for value in values.values() if isinstance(value, str)]
    named = [label_K for label_K in named if label_K.any()]
    is_of_domains = {name for name, _ in pairs} & {name.casefold() for name in domain_set}
    if is_of_domains or len(named) != 1 or len(numbers) > 1:
        return np.zeros(len(domain_set))
    return named[0] * min([*numbers, 1.0])


def _number(value: Any) -> float | None:
    """Return a JSON value as a number, "70%" as 0.7; None where it is none."""
    if isinstance(value, str) and (found := _NUMBER.fullmatch(value.strip())):
        return float(found[1]) / (100 if found[2] else 1)
    return float(value) if is_finite_number(value) and value >= 0 else None


def _from_words(text: str, domain_set: DomainSet) -> np.ndarray:
    """Return the probabilities in an answer that is no JSON."""
    found = _label_of_parts(_parts(text, domain_set), domain_set)
    if found is not None:
        return found
    # Sentences and lines that are answers, consecutive ones together: they have to agree on the likeliest domain.
    blocks = [_label_of_parts(_parts(block, domain_set), domain_set) for block in _answering_blocks(text, domain_set)]
    labels = [label_K for label_K in blocks if label_K is not None]
    if not labels:
        labels = _bold_names(text, domain_set)
    is_one = len({int(label_K.argmax()) if label_K.any() else None for label_K in labels}) == 1
    return labels[0] if is_one else np.zeros(len(domain_set))


def _answering_blocks(text: str, domain_set: DomainSet) -> Iterator[str]:
    """Yield the runs of sentences in which every word may be part of an answer; questions end a run."""
    block: list[str] = []
    for sentence in [*_SENTENCE_END.split(text), "?"]:
        if not sentence.rstrip().endswith("?") and _parts(sentence, domain_set) is not None:
            block.append(sentence)
            continue
        if block:
            yield "\n".join(block)
        block = []


def _bold_names(text: str, domain_set: DomainSet) -> list[np.ndarray]:
    """Return the labels of names in bold type, outside of sentences that negate."""
    sentences = [sentence for sentence in _SENTENCE_END.split(text) if not _NEGATION.search(sentence)]
    bold = [found for sentence in sentences for found in _BOLD.findall(sentence)]
    labels = [_label_of_parts(_parts(name, domain_set), domain_set) for name in bold]
    return [label_K for label_K in labels if label_K is not None]


def _parts(text: str, domain_set: DomainSet) -> list[_Part] | None:
    """Return the names and numbers of a text in their order; None if anything in it is no part of an answer."""
    ids: dict[str, int | None] = dict.fromkeys(_NO_DOMAIN)
    ids |= {name.casefold(): k for k, name in enumerate(domain_set)}
    longest_first = sorted(ids, key=len, reverse=True)
    names = re.compile(rf"(?:{'|'.join(map(re.escape, longest_first))})(?![^\W_])")
    text = _ENUMERATOR.sub(lambda found: found[0] if found[1] in ids else " ", text.casefold())
    parts: list[_Part] = []
    place = 0
    while place < len(text):
        if found := names.match(text, place):
            parts.append(_Part(is_name=True, domain=ids[found[0]]))
        elif found := _NUMBER.match(text, place):
            number = float(found[1])
            if math.isinf(number):
                return None
            parts.append(_Part(is_name=False, value=number / 100 if found[2] or number > 1 else number))
        elif not (found := _MARKS.match(text, place) or _ANSWERING.match(text, place)):
            return None
        place = found.end()
    return parts


def _label_of_parts(parts: list[_Part] | None, domain_set: DomainSet) -> np.ndarray | None:
    """Return the label of names and numbers, float64 [K]; None if there is no name, or a number belongs to none."""
    if not parts or not any(part.is_name for part in parts):
        return None
    if not parts[0].is_name:  # "70% law, 30% finance"
        parts = parts[::-1]
    given: list[tuple[int | None, float | None]] = []
    for part in parts:
        if part.is_name:
            given.append((part.domain, None))
        elif given and given[-1][1] is None:
            given[-1] = (given[-1][0], part.value)
        else:
            return None
    given = list(dict.fromkeys(given))  # a sentence may repeat the list
    total = sum(value for _, value in given if value is not None)
    unnumbered = {domain for domain, value in given if value is None}
    label_K = np.zeros(len(domain_set))
    for domain, value in given:
        if domain is not None:
            label_K[domain] += max(1.0 - total, 0.0) / len(unnumbered) if value is None else value
    return label_K / max(total, 1.0)
