"""Evaluate one model with one process or several on this machine, each with its own GPU where there are any.

The one idea: processes share nothing but the request; each opens the prepared data itself, measures its share, and the
sums are added. A process that fails fails the call.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from versatune_ds.config import RunConfig
from versatune_ds.data.encoding.tokenizer import load_tokenizer
from versatune_ds.distributed.gpus import check_torch_sees_gpus
from versatune_ds.evaluation.choices import ChoiceQuestion
from versatune_ds.evaluation.data import EvaluationData, evaluation_data
from versatune_ds.evaluation.measure import as_evaluation, measure
from versatune_ds.evaluation.result import Evaluation
from versatune_ds.evaluation.subject import Subject, load_subject
from versatune_ds.log import configure_logging


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Say what a model is evaluated on."""

    config: RunConfig
    split: str
    choices: dict[str, list[ChoiceQuestion]]
    num_exact: int
    num_processes: int = 1


def evaluate_subject(subject: Subject, request: Request) -> Evaluation:
    """Return the evaluation of a model; the data are prepared here, once, and found prepared by the processes."""
    data = _data(subject, request)
    if request.num_processes == 1:
        return as_evaluation(_share(subject, request, rank=0, data=data), data)
    context = multiprocessing.get_context("spawn")  # a forked child cannot use CUDA, nor torch's threads
    # Before anything heavy is imported there, so that what libraries say at import goes where it does here.
    with ProcessPoolExecutor(request.num_processes, mp_context=context, initializer=configure_logging) as pool:
        level = logging.getLogger("versatune_ds").getEffectiveLevel()
        ranks = range(request.num_processes)
        shares = [pool.submit(_share_of_process, subject, request, rank=rank, log_level=level) for rank in ranks]
        return as_evaluation(np.sum([share.result() for share in shares], axis=0), data)


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


def _share_of_process(subject: Subject, request: Request, *, rank: int, log_level: int) -> np.ndarray:
    """Measure one process's share of the sums in a process of its own, which logs as its rank."""
    configure_logging(rank=rank, world_size=request.num_processes, level=log_level)
    return _share(subject, request, rank=rank, data=_data(subject, request))


def _share(subject: Subject, request: Request, *, rank: int, data: EvaluationData) -> np.ndarray:
    """Measure one process's share of the sums."""
    causal_lm, tokenizer = load_subject(subject, request.config)
    return measure(
        causal_lm.to(device_of(rank, num_processes=request.num_processes)),
        tokenizer,
        data,
        rows_per_micro_batch=rows_at_a_time(request.config),
        rank=rank,
        world_size=request.num_processes,
    )


def rows_at_a_time(config: RunConfig) -> int:
    """Return the rows that go through the model at a time: those of validation, else of training."""
    return config.validation.rows_per_micro_batch or config.train.rows_per_micro_batch


def device_of(rank: int, *, num_processes: int) -> torch.device:
    """Return a process's GPU, or the CPU, whose threads the processes share; ValueError where torch misses the GPUs."""
    check_torch_sees_gpus(os.environ)
    if torch.cuda.is_available():
        return torch.device("cuda", rank % torch.cuda.device_count())
    if num_processes > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))
    return torch.device("cpu")
