"""Find questions in tokenised examples, and generate a model's answers to them.

A question is an example cut before its last span that bears loss. So the prompt has exactly the tokens that precede the
answer in training, whatever the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from versatune_ds.data.collate import Shards
from versatune_ds.data.encoding.tokenizer import special_ids_of
from versatune_ds.data.order.permutation import domain_key, draw_indices
from versatune_ds.evaluation.equal_batches import batches_of
from versatune_ds.model.attention import dense_attention
from versatune_ds.model.router_loss import without_router_logits
from versatune_ds.progress import with_progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt and the answer that its example has."""

    domain_id: int
    prompt_ids: np.ndarray
    answer_ids: np.ndarray
    """Tokens of the answer, its end of turn included."""


def find_questions(shards: Sequence[Shards], *, max_per_domain: int, row_tokens: int) -> tuple[Question, ...]:
    """Return questions of every domain, always the same ones, domain by domain.

    Left out: plain text, which has no question, and examples as long as a row, whose answer may be truncated.

    Args:
        shards: One per domain, in id order.
        max_per_domain: Examples per domain to look at; 0 for no questions.
        row_tokens: Maximum tokens of a prepared example.
    """
    questions = []
    for domain_id, part in enumerate(shards):
        count = min(max_per_domain, part.num_examples)
        if not count:
            continue
        key = domain_key(0, f"questions of {part.name}")
        _, indices = draw_indices(key, first_draw=0, count=count, size=part.num_examples)
        for index in np.sort(indices):
            if part.lengths[index] < row_tokens:
                questions += _question_of(*part.read(int(index)), domain_id=domain_id)
    return tuple(questions)


def _question_of(input_ids: np.ndarray, is_loss: np.ndarray, *, domain_id: int) -> list[Question]:
    """Return an example cut before its last answer; nothing where the example starts with the answer.

    Example: tokens [a b c d e f] with loss on c, e and f have the prompt [a b c d] and the answer [e f].
    """
    bears_loss = np.flatnonzero(is_loss)
    start = int(bears_loss[-1])
    while is_loss[start - 1]:
        start -= 1
    if start < 2:
        return []
    end = int(bears_loss[-1]) + 1
    return [Question(domain_id=domain_id, prompt_ids=input_ids[:start], answer_ids=input_ids[start:end])]


@torch.no_grad()
def answer_greedily(
    causal_lm: Any,
    questions: Sequence[Question],
    *,
    tokenizer: Any,
    batch_size: int = 32,
    num_batches: int | None = None,
) -> list[str]:
    """Generate the model's answer to each question, with the likeliest token at every step.

    At most one token more than the longest answer of the batch is generated: an answer that continues is wrong anyway.

    Args:
        causal_lm: A transformers model in evaluation mode.
        questions: In any order.
        tokenizer: The model's.
        batch_size: Questions per generation.
        num_batches: Batches that every rank generates, where the weights are divided over the ranks (ZeRO-3): each then
            makes as many forward passes as the one with the longest answer. None where ranks are independent.
    """
    # Stop where the answers end, or at the end-of-text token.
    special_ids = set(special_ids_of(tokenizer).tolist())
    stops = {int(question.answer_ids[-1]) for question in questions} & special_ids
    stops |= {tokenizer.eos_token_id} - {None}
    pad_id = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    # Generate in batches of similar length, for little padding.
    answers = [""] * len(questions)
    by_length = sorted(range(len(questions)), key=lambda i: len(questions[i].prompt_ids))
    batches = batches_of(by_length, batch_size=batch_size, num_batches=num_batches)
    for places in with_progress(batches, num_items=len(batches), what="written answers: %s batches"):
        prompts = [questions[i].prompt_ids for i in places] or [
            np.array([pad_id])
        ]  # an idle batch: see equal_batches.py
        num_new_tokens = 1 + max((len(questions[i].answer_ids) for i in places), default=0)
        written = _generate(
            causal_lm, prompts, stops=sorted(stops), pad_id=pad_id, num_new_tokens=num_new_tokens,
            is_in_step=num_batches is not None,
        )  # fmt: skip
        for i, ids in zip(places, written, strict=bool(places)):
            answers[i] = text_of_answer(_until_stop(ids, stops=stops), tokenizer=tokenizer)
    return answers


def _generate(
    causal_lm: Any,
    prompts: Sequence[np.ndarray],
    *,
    stops: list[int],
    pad_id: int,
    num_new_tokens: int,
    is_in_step: bool = False,
) -> list[list[int]]:
    """Return the new tokens of prompts, chosen greedily, whatever the model's generation settings are.

    With `is_in_step` a rank that is done makes further passes until all are. Communication: then, one flag a token.
    """
    ids, mask = padded_left(prompts, pad_id=pad_id)
    with dense_attention(causal_lm), without_router_logits(causal_lm):
        generated = causal_lm.generate(
            ids.to(causal_lm.device),
            attention_mask=mask.to(causal_lm.device),
            max_new_tokens=num_new_tokens,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=stops or None,
            pad_token_id=pad_id,
            synced_gpus=is_in_step,
        )
    return generated[:, ids.shape[1] :].tolist()


def padded_left(rows: Sequence[np.ndarray], *, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (ids, 1 for a token and 0 for padding), both int64 [rows, tokens of the longest]."""
    ids = [torch.from_numpy(row.astype(np.int64)) for row in rows]
    masks = [torch.ones_like(row) for row in ids]
    return (
        pad_sequence(ids, batch_first=True, padding_value=pad_id, padding_side="left"),
        pad_sequence(masks, batch_first=True, padding_side="left"),
    )


def _until_stop(ids: list[int], *, stops: set[int]) -> list[int]:
    """Return the tokens before the first stop token; padding follows it."""
    return ids[: next((place for place, token in enumerate(ids) if token in stops), len(ids))]


def text_of_answer(ids: Sequence[int] | np.ndarray, *, tokenizer: Any) -> str:
    """Return an answer's text without special tokens and without white space at its ends."""
    return tokenizer.decode(list(map(int, ids)), skip_special_tokens=True).strip()
