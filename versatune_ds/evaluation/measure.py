"""Measure one model on its evaluation data, in one process or as one of several.

Each process fills its share of one vector of sums and leaves zeros elsewhere, so the result is the sum of the vectors
of all processes.

Shape legend: **E** held-out examples, **Q** questions, **C** options of multiple-choice questions, **K** domains.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from versatune_ds.data.batch import Batch
from versatune_ds.data.validation_loader import ValidationLoader
from versatune_ds.evaluation.data import EvaluationData
from versatune_ds.evaluation.option_losses import option_losses
from versatune_ds.evaluation.questions import answer_greedily, text_of_answer
from versatune_ds.evaluation.result import Answers, Evaluation
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.model.build import DomainModel, model_inputs
from versatune_ds.model.positions import check_positions
from versatune_ds.monitor.progress_lines import with_progress
from versatune_ds.training.held_out import sum_by_example


def evaluate_model(
    causal_lm: Any, tokenizer: Any, data: EvaluationData, *, rows_per_micro_batch: int = 4
) -> Evaluation:
    """Evaluate a model on the device it is on.

    Its head is replaced by one that returns losses too; it still returns logits.

    Args:
        causal_lm: A transformers model.
        tokenizer: The tokenizer that `data` was made with.
        data: What `evaluation_data` returned.
        rows_per_micro_batch: Packed rows, or questions with all their options, per forward pass; written answers use
            four times as many prompts.
    """
    return as_evaluation(measure(causal_lm, tokenizer, data, rows_per_micro_batch=rows_per_micro_batch), data)


def measure(
    causal_lm: Any,
    tokenizer: Any,
    data: EvaluationData,
    *,
    rows_per_micro_batch: int,
    rank: int = 0,
    world_size: int = 1,
) -> np.ndarray:
    """Return this process's share of the sums: loss of E examples, right answers of Q questions, loss of C options.

    No communication: the caller adds the vectors of all ranks.
    """
    check_positions(causal_lm, longest=_longest(data), what="the longest text")
    was_training = causal_lm.training
    model = DomainModel(causal_lm, num_domains=len(data.domain_set)).eval()
    loader = ValidationLoader(
        data.held_out,
        domain_set=data.domain_set,
        rows_per_micro_batch=rows_per_micro_batch,
        row_tokens=data.row_tokens,
        rank=rank,
        world_size=world_size,
    )
    # Losses of held-out examples.
    parts = [_held_out_losses(model, loader)]
    # Written answers: this process answers every world_size-th question.
    is_right_Q = np.zeros(len(data.questions))
    mine = range(rank, len(data.questions), world_size)
    asked = [data.questions[q] for q in mine]
    answers = answer_greedily(causal_lm, asked, tokenizer=tokenizer, batch_size=4 * rows_per_micro_batch)
    for q, question, answer in zip(mine, asked, answers, strict=True):
        is_right_Q[q] = answer == text_of_answer(question.answer_ids, tokenizer=tokenizer)
    parts.append(is_right_Q)
    # Multiple choice.
    if data.choices is not None:
        share = {"questions_per_batch": rows_per_micro_batch, "rank": rank, "world_size": world_size}
        parts.append(option_losses(model, data.choices, **share))
    causal_lm.train(was_training)
    return np.concatenate(parts)


def _longest(data: EvaluationData) -> int:
    """Return the tokens of the longest held-out example or question with an option."""
    lengths = [int(part.lengths.max()) for part in data.held_out if len(part.lengths)]
    return max([*lengths, *(len(ids) for ids, _ in (data.choices.options if data.choices else ()))], default=0)


def _held_out_losses(model: DomainModel, loader: ValidationLoader) -> np.ndarray:
    """Return the summed loss of each of this process's examples, 0 for the others: float64 [E]."""
    device = next(model.parameters()).device

    def token_losses(batch: Batch) -> torch.Tensor:
        return model(**model_inputs(batch, device=device), per_token=True).token_losses_N

    with torch.no_grad():
        batches = with_progress(loader, num_items=len(loader), what="held-out rows: %s batches")
        return sum_by_example(token_losses, batches, num_examples=loader.num_examples)


def as_evaluation(sums: np.ndarray, data: EvaluationData) -> Evaluation:
    """Turn the sums of `measure`, added over all processes, into the result."""
    # Split the vector as `measure` joined it.
    domain_ids_E = np.repeat(np.arange(len(data.held_out)), [part.num_examples for part in data.held_out])
    loss_sum_E, is_right_Q, loss_sum_C = np.split(sums, np.cumsum([len(domain_ids_E), len(data.questions)]))
    losses = ExampleLosses(
        loss_sum_E=loss_sum_E,
        num_loss_tokens_E=np.concatenate([np.asarray(part.loss_lengths) for part in data.held_out]),
        domain_ids_E=domain_ids_E,
        num_domains=len(data.domain_set),
    )
    # Answers, where there were questions.
    exact, choices = None, None
    if data.questions:
        domain_id_Q = np.array([question.domain_id for question in data.questions])
        exact = Answers(domain_set=data.domain_set, domain_id_Q=domain_id_Q, is_right_Q=is_right_Q > 0)
    if data.choices is not None:
        choices = Answers(
            domain_set=data.choices.domain_set,
            domain_id_Q=data.choices.domain_id_Q,
            is_right_Q=data.choices.is_right(loss_sum_C),
        )
    return Evaluation(
        domain_set=data.domain_set,
        losses=losses,
        num_bytes_K=data.num_bytes_K,
        exact=exact,
        choices=choices,
        tokenizer_digest=data.tokenizer_digest,
    )
