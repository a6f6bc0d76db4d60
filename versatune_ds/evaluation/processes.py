"""Evaluate one model with one process or several on this machine, each with its own GPU where there are any.

Processes share nothing but the request: each opens the prepared data itself and measures its share, and the sums are
added. A process that fails fails the call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.data.encoding.tokenizer import load_tokenizer
from versatune_ds.distributed import World
from versatune_ds.evaluation.choices import ChoiceQuestion
from versatune_ds.evaluation.data import EvaluationData, evaluation_data
from versatune_ds.evaluation.measure import as_evaluation, measure
from versatune_ds.evaluation.result import Evaluation
from versatune_ds.evaluation.subject import Subject, load_subject
from versatune_ds.launch.process_pool import ProcessPool, device_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a model is evaluated on."""

    config: RunConfig
    split: str
    choices: dict[str, list[ChoiceQuestion]]
    num_exact: int
    num_processes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """Model and data in one process."""

    causal_lm: Any
    tokenizer: Any
    data: EvaluationData
    request: Request


def evaluate_subject(subject: Subject, request: Request) -> Evaluation:
    """Return the evaluation of a model; the data are prepared here, once, and found prepared by the processes."""
    data = _data(subject, request)
    kept = data if request.num_processes == 1 else None
    with ProcessPool(partial(_open, subject, request, kept), num_processes=request.num_processes) as pool:
        shares = dict(pool.map(_share, range(request.num_processes)))
    return as_evaluation(np.sum([shares[rank] for rank in range(request.num_processes)], axis=0), data)


def _data(subject: Subject, request: Request) -> EvaluationData:
    """Return a subject's evaluation data."""
    tokenizer = load_tokenizer(subject.tokenizer, trust_remote_code=request.config.model.trust_remote_code)
    return evaluation_data(
        request.config,
        tokenizer=tokenizer,
        split=request.split,
        choices=request.choices,
        num_exact=request.num_exact,
    )


def _open(subject: Subject, request: Request, data: EvaluationData | None, world: World) -> _Opened:
    """Load the model on this process's device, and the data unless they are given."""
    data = _data(subject, request) if data is None else data
    causal_lm, tokenizer = load_subject(subject, request.config)
    return _Opened(causal_lm=causal_lm.to(device_of(world)), tokenizer=tokenizer, data=data, request=request)


def _share(opened: _Opened, rank: int) -> np.ndarray:
    """Measure one process's share of the sums."""
    return measure(
        opened.causal_lm,
        opened.tokenizer,
        opened.data,
        rows_per_micro_batch=rows_at_a_time(opened.request.config),
        rank=rank,
        world_size=opened.request.num_processes,
    )


def rows_at_a_time(config: RunConfig) -> int:
    """Return the rows that go through the model at a time: those of validation, else of training."""
    return config.validation.rows_per_micro_batch or config.train.rows_per_micro_batch
