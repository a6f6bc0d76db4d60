"""Measure the losses of multiple-choice options, computing the question's tokens only once.

All options of a question start with the question. Its tokens go through the model once, and their cached keys and
values serve every option: four options of 20 tokens after a question of 150 cost 230 tokens, not 680.

Shape legend: **C** options of all questions, **Q** questions of a batch, **O** their options, **P** tokens of the
longest question, **T** of the longest option.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from versatune_ds.data.batch import IGNORE_INDEX
from versatune_ds.evaluation.choices import ChoiceSet, Option
from versatune_ds.evaluation.equal_batches import batches_of
from versatune_ds.evaluation.questions import padded_left
from versatune_ds.model.attention import dense_attention
from versatune_ds.model.domain_model import DomainModel
from versatune_ds.progress import with_progress


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Asked:
    """A question split into the tokens its options share and the options' own."""

    numbers: range
    """The options' numbers among all options."""
    shared_ids: np.ndarray
    options: tuple[Option, ...]


@torch.no_grad()
def option_losses(
    model: DomainModel,
    choices: ChoiceSet,
    *,
    questions_per_batch: int,
    rank: int = 0,
    world_size: int = 1,
    num_batches: int | None = None,
) -> np.ndarray:
    """Return the summed loss of each option of this process's questions, 0 for the others: float64 [C].

    Args:
        model: In evaluation mode, on its device.
        choices: The questions.
        questions_per_batch: Questions, with all their options, per forward pass.
        rank: This process; it takes every world_size-th question.
        world_size: Number of processes.
        num_batches: Batches that every rank runs, where the weights are divided over the ranks (ZeRO-3); None where
            ranks are independent.

    Raises:
        ValueError: If ranks run in step and the options of a question differ from their first token on: its batch would
            make one pass less than those of other ranks.
    """
    loss_sum_C = np.zeros(len(choices.options))
    asked = [_divide(choices, question) for question in range(rank, len(choices.answer_Q), world_size)]
    asked.sort(key=lambda question: len(question.shared_ids))  # similar lengths together, for little padding
    if num_batches is not None:
        check_shared_tokens(choices, key="--choices", needed_by="--sharded")
    batches = batches_of(range(len(asked)), batch_size=questions_per_batch, num_batches=num_batches)
    for places in with_progress(batches, num_items=len(batches), what="multiple choice: %s batches"):
        batch = [asked[place] for place in places]
        numbers = [number for question in batch for number in question.numbers]
        with dense_attention(model.causal_lm):  # the questions' cache and padding need it
            losses = _losses_of(model.causal_lm, batch or [_divide(choices, 0)])  # an idle batch: see equal_batches.py
        if batch:
            loss_sum_C[numbers] = losses
    return loss_sum_C


def check_shared_tokens(choices: ChoiceSet, *, key: str, needed_by: str) -> None:
    """Raise ValueError, on every rank alike, if the options of a question have no common beginning."""
    for question in range(len(choices.answer_Q)):
        if not len(_divide(choices, question).shared_ids):
            name = choices.domain_set.names[int(choices.domain_id_Q[question])]
            raise ValueError(
                f"{key}: {name}: the options of a question have no token in common with which they begin, which "
                f"{needed_by} needs; leave out {needed_by} or the question"
            )


@torch.no_grad()
def losses_of_questions(
    model: DomainModel, choices: ChoiceSet, questions: Sequence[int]
) -> tuple[list[int], np.ndarray]:
    """Return the numbers of some questions' options, and their summed losses, in one batch.

    Args:
        model: In evaluation mode, on its device.
        choices: All questions.
        questions: Their numbers.
    """
    asked = [_divide(choices, question) for question in questions]
    with dense_attention(model.causal_lm):
        losses = _losses_of(model.causal_lm, asked)
    return [number for question in asked for number in question.numbers], losses


def _divide(choices: ChoiceSet, question: int) -> _Asked:
    """Split a question into the tokens its options share and the rest.

    The token before the first one that bears loss stays with the options: its output predicts their first token.
    """
    numbers = choices.options_of(question)
    options = [choices.options[number] for number in numbers]
    num_shared = min(int(np.flatnonzero(is_loss)[0]) - 1 for _, is_loss in options)
    heads = np.stack([ids[:num_shared] for ids, _ in options])
    num_shared = int(np.cumprod((heads == heads[0]).all(axis=0)).sum())
    own = tuple((ids[num_shared:], is_loss[num_shared:]) for ids, is_loss in options)
    return _Asked(numbers=numbers, shared_ids=options[0][0][:num_shared], options=own)


def _losses_of(causal_lm: Any, batch: Sequence[_Asked]) -> np.ndarray:
    """Return the summed loss of every option of a batch of questions, float64 [O].

    Questions are padded on the left, so that all options start at the same column; options on the right, where a causal
    model's earlier positions do not see the padding.
    """
    device, decoder = causal_lm.device, causal_lm.get_decoder()
    # Pad questions and options.
    shared_QP, is_shared_QP = padded_left([question.shared_ids for question in batch], pad_id=0)
    question_O = torch.repeat_interleave(torch.tensor([len(question.options) for question in batch]))
    ids_OT, labels_OT = _padded_options([option for question in batch for option in question.options])
    length_Q = is_shared_QP.sum(dim=1)
    # Run the shared tokens once, and copy their cache to each option.
    cache = None
    if shared_QP.shape[1]:
        positions_QP = (is_shared_QP.cumsum(dim=1) - 1).clamp(min=0)
        inputs = {"input_ids": shared_QP, "attention_mask": is_shared_QP, "position_ids": positions_QP}
        cache = decoder(**_on(device, inputs), use_cache=True)[1]
        cache.reorder_cache(question_O.to(device))
    # Run the options on top of the cache.
    own_last_O = torch.tensor([len(ids) - 1 for question in batch for ids, _ in question.options])
    places_OT = torch.minimum(torch.arange(ids_OT.shape[1])[None], own_last_O[:, None])  # padding takes no position
    inputs = {
        "input_ids": ids_OT,
        "attention_mask": torch.cat([is_shared_QP[question_O], torch.ones_like(ids_OT)], dim=1),
        "position_ids": length_Q[question_O, None] + places_OT,
    }
    # transformers 5.24 renamed the argument; 5.40 removes the old name.
    name = "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"
    hidden = decoder(**_on(device, inputs), **{name: cache}, use_cache=True)[0]
    result = causal_lm.get_output_embeddings()(hidden, labels_OT.to(device), per_token=True)
    return result.token_losses_N.reshape(ids_OT.shape).double().sum(dim=1).cpu().numpy()


def _padded_options(options: Sequence[Option]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (ids [O, T], labels [O, T]), int64; the label of a token is the next token if that bears loss.

    Example: ids 7 8 9 with loss on 8 and 9 have the labels 8 9 -.
    """
    ids = [torch.from_numpy(ids.astype(np.int64)) for ids, _ in options]
    labels = [
        torch.from_numpy(np.append(np.where(is_loss[1:], ids[1:], IGNORE_INDEX), IGNORE_INDEX).astype(np.int64))
        for ids, is_loss in options
    ]
    return pad_sequence(ids, batch_first=True), pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)


def _on(device: torch.device, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
