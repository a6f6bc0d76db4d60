"""Prepare the data of an evaluation: held-out examples of every domain, questions to answer, multiple choice.

Everything is tokenised with the model's own tokenizer and template, by the code that prepares training data and into
the same cache, so a second evaluation starts at once.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.config import DataConfig, RunConfig
from versatune_ds.data.collate import Shards
from versatune_ds.data.encoding.templates import choose_template
from versatune_ds.data.encoding.tokenizer import special_ids_of, tokenizer_digest
from versatune_ds.data.prepare.domains import prepare_domains
from versatune_ds.data.sources.domain_files import test_files
from versatune_ds.domains import DomainSet
from versatune_ds.evaluation.choices import ChoiceQuestion, ChoiceSet, encode_choices
from versatune_ds.evaluation.questions import Question, find_questions
from versatune_ds.training.held_out import subsets
from versatune_ds.training.prepared_data import cache_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a model is evaluated on.

    Attributes:
        config: The recipe; its data, row length and cache are used.
        split: `valid`, or `test` (the built-in corpus, or a data folder with `test/`).
        choices: Multiple-choice questions by domain, as `read_choices` returns them.
        num_exact: Questions per domain to answer by generation; 0 for none.
        limit: Largest number of held-out examples, and of multiple-choice questions, of a domain; None for all.
    """

    config: RunConfig
    split: str
    choices: Mapping[str, Sequence[ChoiceQuestion]]
    num_exact: int
    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluationData:
    """The data that one model is evaluated on.

    Attributes:
        domain_set: Domains of the held-out examples.
        held_out: Tokenised examples, one entry per domain in this order; a domain may have none.
        num_bytes_K: int64, UTF-8 bytes of the text whose tokens bear loss, without special tokens.
        questions: Questions to answer by greedy generation.
        choices: Multiple choice, or None.
        row_tokens: Tokens of a packed row.
        tokenizer_digest: Losses per token compare only if it is equal.
    """

    domain_set: DomainSet
    held_out: tuple[Shards, ...]
    num_bytes_K: np.ndarray
    questions: tuple[Question, ...]
    choices: ChoiceSet | None
    row_tokens: int
    tokenizer_digest: str


def evaluation_data(request: Request, *, tokenizer: Any) -> EvaluationData:
    """Tokenise a split of a recipe's data, and the multiple-choice questions, with a model's tokenizer.

    Raises:
        ValueError: If the recipe's data have no such split, or a file or record is invalid.
    """
    data, cache_dir = request.config.data, cache_folder(request.config)
    domain_set, held_out = _held_out(data, split=request.split, tokenizer=tokenizer, cache_dir=cache_dir)
    if request.limit is not None:  # the same examples as a run of that many held-out examples measures
        held_out = tuple(subsets(held_out, max_examples=request.limit, seed=request.config.run.seed))
    choice_set = None
    if request.choices:
        template = choose_template(tokenizer, path=data.chat_template)
        questions = {name: tuple(asked)[: request.limit] for name, asked in request.choices.items()}
        choice_set = encode_choices(questions, tokenizer=tokenizer, template=template, row_tokens=data.row_tokens)
    return EvaluationData(
        domain_set=domain_set,
        held_out=held_out,
        num_bytes_K=np.array([num_loss_bytes(part, tokenizer=tokenizer) for part in held_out], dtype=np.int64),
        questions=find_questions(held_out, max_per_domain=request.num_exact, row_tokens=data.row_tokens),
        choices=choice_set,
        row_tokens=data.row_tokens,
        tokenizer_digest=tokenizer_digest(tokenizer),
    )


def _held_out(data: DataConfig, *, split: str, tokenizer: Any, cache_dir: Path) -> tuple[DomainSet, tuple[Shards, ...]]:
    """Return the domains and the tokenised examples of a split."""
    if split == "valid":
        prepared = prepare_domains(data, tokenizer=tokenizer, cache_dir=cache_dir)
        return prepared.domain_set, prepared.valid
    # Test files are prepared as the only files of their domains, by the code that prepares training files.
    files = test_files(data, cache_dir=cache_dir)
    only_test = data.model_copy(update={"folder": None, "synthetic": None, "domains": files})
    prepared = prepare_domains(only_test, tokenizer=tokenizer, cache_dir=cache_dir)
    return prepared.domain_set, prepared.train


def num_loss_bytes(shards: Shards, *, tokenizer: Any) -> int:
    """Return the UTF-8 bytes of the text whose tokens bear loss, decoded example by example."""
    special_ids, total = special_ids_of(tokenizer), 0
    for index in range(shards.num_examples):
        input_ids, is_loss = shards.read(index)
        ids = input_ids[is_loss]
        total += len(tokenizer.decode(ids[~np.isin(ids, special_ids)].tolist()).encode())
    return total
