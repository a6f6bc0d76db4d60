"""Read multiple-choice questions and score their options by likelihood.

The model is never asked for a letter. Every option is rendered as the assistant's complete answer, and the one with the
highest log-likelihood per byte wins. Per byte, so that models with different tokenizers compare, and a long option does
not lose for being long.

Shape legend: **C** options of all questions, **Q** questions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.data.encoding.encode import encode_rendered
from versatune_ds.data.encoding.loss_spans import render_example
from versatune_ds.data.encoding.template_abilities import probe_template
from versatune_ds.data.encoding.tokenizer import special_ids_of
from versatune_ds.data.sources.find_files import is_description
from versatune_ds.data.sources.readers import format_of, read_records
from versatune_ds.domains import DomainSet, domain_name
from versatune_ds.run_folder.json_lines import missing_field

Option = tuple[np.ndarray, np.ndarray]
"""An option with its question before it: (input_ids int32 [length], is_loss bool [length])."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceQuestion:
    """A question, its options and the index of the right one, from 0."""

    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChoiceSet:
    """The options of all questions, numbered question by question, domain by domain.

    Attributes:
        domain_set: Names of the files that the questions come from.
        options: The options' tokens, with loss on their own text; as many as C.
        question_C: int64, the question that each option belongs to, ascending.
        num_bytes_C: int64, UTF-8 bytes of each option.
        answer_Q: int64, the right option of each question, as a number among all options.
        domain_id_Q: int64.
    """

    domain_set: DomainSet
    options: tuple[Option, ...]
    question_C: np.ndarray
    num_bytes_C: np.ndarray
    answer_Q: np.ndarray
    domain_id_Q: np.ndarray

    def options_of(self, question: int) -> range:
        """Return the numbers of a question's options."""
        return range(*np.searchsorted(self.question_C, [question, question + 1]).tolist())

    def is_right(self, loss_sum_C: np.ndarray) -> np.ndarray:
        """Return whether the right option has the lowest loss per byte, bool [Q]; a tie goes to the first option."""
        loss_per_byte_C = loss_sum_C / self.num_bytes_C
        by_question = np.lexsort((loss_per_byte_C, self.question_C))
        _, first = np.unique(self.question_C[by_question], return_index=True)
        return by_question[first] == self.answer_Q


def read_choices(paths: Sequence[Path], *, key: str = "--choices") -> dict[str, list[ChoiceQuestion]]:
    """Return the questions of files, or of all files in folders, by the file's name without its suffixes.

    Args:
        paths: Files and folders.
        key: What named them; every message begins with it.

    Raises:
        ValueError: If there is no file, two have the same name, or a record is not a question, with file and line.
    """
    questions: dict[str, list[ChoiceQuestion]] = {}
    for path in (file for place in paths for file in _files_of(place, key=key)):
        name = domain_name(path.name.split(".")[0])
        if name in questions:
            raise ValueError(f"{key}: {path}: a second file for domain {name!r}; give each domain one")
        questions[name] = [
            _parse(record.json_text, problem=record.problem, where=f"{path}:{record.line}", key=key)
            for record in read_records(path)
        ]
        if not questions[name]:
            raise ValueError(f"{key}: {path} has no question; expected one JSON object per line")
    return questions


def _files_of(path: Path, *, key: str) -> list[Path]:
    """Return the file itself, or the data files of a folder sorted by name."""
    if path.is_file():
        return [path]
    files = sorted(file for file in path.glob("*") if file.is_file() and format_of(file) and not is_description(file))
    if not files:
        raise ValueError(
            f"{key}: {path}: no such file, or a folder without data files; expected DOMAIN.jsonl with lines "
            '{"question", "choices", "answer"}'
        )
    return files


def _parse(text: str, *, problem: str, where: str, key: str) -> ChoiceQuestion:
    """Return the question of a record."""
    try:
        record = json.loads(text)
    except ValueError as error:
        record, problem = {}, problem or f"not valid JSON: {error}"
    match record:
        case {"question": str(question), "choices": [_, _, *_] as choices, "answer": int(answer)}:
            has_texts = all(isinstance(choice, str) and choice.strip() for choice in choices)
            if has_texts and not isinstance(answer, bool) and 0 <= answer < len(choices):
                return ChoiceQuestion(question=question, choices=tuple(choices), answer=answer)
    if isinstance(record, dict):
        problem = problem or missing_field(record, ("question", "choices", "answer"))
    raise ValueError(
        f'{key}: {where}: {problem or "not a multiple-choice question"}; expected {{"question": text, '
        '"choices": [two texts or more], "answer": index of the right one, from 0}}'
    )


def encode_choices(
    questions: Mapping[str, Sequence[ChoiceQuestion]],
    *,
    tokenizer: Any,
    template: str,
    row_tokens: int,
    key: str = "--choices",
) -> ChoiceSet:
    """Tokenise the options; a question too long for a row loses its beginning.

    Args:
        questions: By domain.
        tokenizer: The model's.
        template: Chat template; the question is the user's turn, an option the assistant's.
        row_tokens: Maximum tokens of a question with an option.
        key: What named their files; every message begins with it.

    Raises:
        ValueError: If an option alone is too long for a row, or has no token.
    """
    options, counts, num_bytes, answers, domain_ids = [], [], [], [], []
    for domain_id, (name, asked) in enumerate(questions.items()):
        pairs = [(question.question, choice) for question in asked for choice in question.choices]
        options += _encode(pairs, name=name, tokenizer=tokenizer, template=template, row_tokens=row_tokens, key=key)
        for question in asked:
            answers.append(sum(counts) + question.answer)
            counts.append(len(question.choices))
            num_bytes += [len(choice.encode()) for choice in question.choices]
            domain_ids.append(domain_id)
    return ChoiceSet(
        domain_set=DomainSet(tuple(questions)),
        options=tuple(options),
        question_C=np.repeat(np.arange(len(counts)), counts),
        num_bytes_C=np.array(num_bytes, dtype=np.int64),
        answer_Q=np.array(answers, dtype=np.int64),
        domain_id_Q=np.array(domain_ids, dtype=np.int64),
    )


def _encode(
    pairs: Sequence[tuple[str, str]], *, name: str, tokenizer: Any, template: str, row_tokens: int, key: str
) -> list[Option]:
    """Tokenise each question with an option; the end of the turn bears no loss."""
    control = probe_template(template, tokenizer=tokenizer).control
    rendered = [
        render_example(
            [{"role": "user", "content": question}, {"role": "assistant", "content": choice}],
            tokenizer=tokenizer,
            template=template,
            control=control,
        )
        for question, choice in pairs
    ]
    special_ids = special_ids_of(tokenizer)
    options = []
    all_encoded = encode_rendered(rendered, tokenizer=tokenizer, control=control)
    for (_, choice), encoded in zip(pairs, all_encoded, strict=True):
        is_loss = encoded.is_loss & ~np.isin(encoded.input_ids, special_ids)
        bears_loss = np.flatnonzero(is_loss)
        # A truncated option, or an empty one, would win for lack of loss; its first token needs one before it.
        if not len(bears_loss) or len(is_loss) - bears_loss[0] >= row_tokens:
            raise ValueError(
                f"{key}: {name}: option {choice[:40]!r} has {len(bears_loss)} tokens, expected 1 or more that fit "
                f"into data.row_tokens={row_tokens} with the end of the turn; raise data.row_tokens or drop the option"
            )
        options.append((encoded.input_ids[-row_tokens:], is_loss[-row_tokens:]))
    return options
