"""Evaluate one model with one process or several on this machine, each with its own GPU where there are any.

Each process opens the prepared data itself, fills its share of one vector of sums and leaves zeros elsewhere, so the
result is the sum of the vectors of all processes. They share nothing else, unless the model is sharded: then they form
a process group, over which its weights are divided (ZeRO-3). A process that fails fails the call.

Shape legend: **E** held-out examples, **Q** questions, **C** options of multiple-choice questions, **K** domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.data.encoding.tokenizer import load_tokenizer
from versatune_ds.data.validation_loader import ValidationLoader
from versatune_ds.distributed import World
from versatune_ds.engine.sharded_model import shard_model, sharded_config
from versatune_ds.evaluation.data import EvaluationData, Request, evaluation_data
from versatune_ds.evaluation.equal_batches import num_batches_of_every_rank
from versatune_ds.evaluation.option_losses import option_losses
from versatune_ds.evaluation.questions import Question, answer_greedily, text_of_answer
from versatune_ds.evaluation.result import Answers, Evaluation
from versatune_ds.evaluation.subject import Subject, load_subject
from versatune_ds.launch.process_pool import ProcessPool, device_of
from versatune_ds.launch.sharded_pool import open_pool
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.model.domain_model import DomainModel
from versatune_ds.model.sizes import check_positions
from versatune_ds.training.held_out import losses_without_engine


def evaluate_subject(subject: Subject, request: Request, *, num_processes: int, is_sharded: bool = False) -> Evaluation:
    """Return the evaluation of a model; the data are prepared here, once, and found prepared by the processes.

    Args:
        subject: The model.
        request: What it is evaluated on.
        num_processes: Processes that share the work.
        is_sharded: Whether the weights are divided over the processes (two or more), so that none stores the model.
    """
    data = _data(subject, request)
    if is_sharded:
        load = partial(_open_sharded, subject, request)
        with open_pool(load, num_processes=num_processes, is_sharded=True) as pool:
            parts = [part for _, part in pool.map(partial(_sharded_share, request.config), range(num_processes))]
        return as_evaluation(np.sum(parts, axis=0), data)
    kept = data if num_processes == 1 else None
    with ProcessPool(partial(_open, subject, request, kept), num_processes=num_processes) as pool:
        shares = dict(pool.map(partial(_share, request.config, num_processes), range(num_processes)))
    return as_evaluation(np.sum([shares[rank] for rank in range(num_processes)], axis=0), data)


def _data(subject: Subject, request: Request) -> EvaluationData:
    tokenizer = load_tokenizer(subject.tokenizer, trust_remote_code=request.config.model.trust_remote_code)
    return evaluation_data(request, tokenizer=tokenizer)


def _open(
    subject: Subject, request: Request, data: EvaluationData | None, world: World
) -> tuple[Any, Any, EvaluationData]:
    """Return (causal_lm, tokenizer, data) in one process; the data are opened unless they are given."""
    data = _data(subject, request) if data is None else data
    causal_lm, tokenizer = load_subject(subject, request.config)
    return causal_lm.to(device_of(world)), tokenizer, data


def _open_sharded(
    subject: Subject, request: Request, world: World
) -> tuple[tuple[Any, Any, EvaluationData], dict[str, Any], World]:
    """Return (causal_lm, tokenizer, data), DeepSpeed's config and this process's place, with all other processes."""
    ds_config = sharded_config(request.config.train)
    causal_lm, tokenizer = load_subject(subject, request.config, zero3_config=ds_config)
    return (causal_lm, tokenizer, _data(subject, request)), ds_config, world


def _sharded_share(
    config: RunConfig, opened: tuple[tuple[Any, Any, EvaluationData], dict[str, Any], World], item: int
) -> np.ndarray:
    """Return a process's share of the sums, measured in step with all others; each gets one item, whichever."""
    subject, ds_config, world = opened
    share = {"rank": world.rank, "world_size": world.world_size, "ds_config": ds_config}
    return measure(*subject, rows_per_micro_batch=config.rows_evaluated_at_once, **share)


def _share(config: RunConfig, world_size: int, opened: tuple[Any, Any, EvaluationData], rank: int) -> np.ndarray:
    return measure(*opened, rows_per_micro_batch=config.rows_evaluated_at_once, rank=rank, world_size=world_size)


def measure(
    causal_lm: Any,
    tokenizer: Any,
    data: EvaluationData,
    *,
    rows_per_micro_batch: int,
    rank: int = 0,
    world_size: int = 1,
    ds_config: dict[str, Any] | None = None,
) -> np.ndarray:
    """Return this process's share of the sums: loss of E examples, right answers of Q questions, loss of C options.

    The caller adds the vectors of all ranks. The model's head is replaced by one that returns losses too; it still
    returns logits. Communication: none, but under ZeRO-3 every forward pass gathers weights, and all ranks make equally
    many.

    Args:
        causal_lm: A transformers model, on its device.
        tokenizer: The tokenizer that `data` was made with.
        data: What `evaluation_data` returned.
        rows_per_micro_batch: Packed rows, or questions with all their options, per forward pass; written answers use
            four times as many prompts.
        rank: This process; it takes every world_size-th question.
        world_size: Number of processes.
        ds_config: What `sharded_config` returned, to divide the weights over the ranks; None for a complete model.
    """
    check_positions(causal_lm, longest=_longest(data), what="the longest text")
    was_training = causal_lm.training
    model = DomainModel(causal_lm, num_domains=len(data.domain_set)).eval()
    if ds_config is not None:
        shard_model(model, ds_config=ds_config)

    def num_batches(num_questions: int, *, batch_size: int) -> int | None:
        if ds_config is None:
            return None
        return num_batches_of_every_rank(num_questions, world_size=world_size, batch_size=batch_size)

    loader = ValidationLoader(
        data.held_out,
        domain_set=data.domain_set,
        rows_per_micro_batch=rows_per_micro_batch,
        row_tokens=data.row_tokens,
        rank=rank,
        world_size=world_size,
    )
    # Losses of held-out examples.
    parts = [losses_without_engine(model, loader)]
    # Written answers.
    batch_size = 4 * rows_per_micro_batch
    in_step = num_batches(len(data.questions), batch_size=batch_size)
    how = {"tokenizer": tokenizer, "batch_size": batch_size, "num_batches": in_step}
    parts.append(_right_answers(causal_lm, data.questions, rank=rank, world_size=world_size, **how))
    # Multiple choice.
    if data.choices is not None:
        in_step = num_batches(len(data.choices.answer_Q), batch_size=rows_per_micro_batch)
        share = {"questions_per_batch": rows_per_micro_batch, "rank": rank, "world_size": world_size}
        parts.append(option_losses(model, data.choices, **share, num_batches=in_step))
    causal_lm.train(was_training)
    return np.concatenate(parts)


def _right_answers(
    causal_lm: Any, questions: Sequence[Question], *, rank: int, world_size: int, tokenizer: Any, **batches: Any
) -> np.ndarray:
    """Return which answers are right, float64 [Q]; this process answers every world_size-th question, 0 for others."""
    is_right_Q = np.zeros(len(questions))
    places = range(rank, len(questions), world_size)
    asked = [questions[q] for q in places]
    answers = answer_greedily(causal_lm, asked, tokenizer=tokenizer, **batches)
    for q, question, answer in zip(places, asked, answers, strict=True):
        is_right_Q[q] = answer == text_of_answer(question.answer_ids, tokenizer=tokenizer)
    return is_right_Q


def _longest(data: EvaluationData) -> int:
    """Return the tokens of the longest held-out example or question with an option."""
    lengths = [int(part.lengths.max()) for part in data.held_out if len(part.lengths)]
    return max([*lengths, *(len(ids) for ids, _ in (data.choices.options if data.choices else ()))], default=0)


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
