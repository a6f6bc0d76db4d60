"""Check that a loader resumed after any step gives the same batches as the uninterrupted one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from versatune_ds.data.loader import MixtureLoader, StepBatch

BATCH_COLUMNS = ("input_ids", "labels", "positions", "domain_ids", "segment_ids", "valid_index")


def run_steps(
    loader: MixtureLoader, *, first: int, last: int, weights_at: Callable[[int], np.ndarray]
) -> tuple[list[StepBatch], dict[int, dict[str, Any]]]:
    """Take steps first..last as the training loop does, planning ahead; return batches and the state after each."""
    batches, states = [], {}
    for step in range(first, min(first + loader.prefetch, last + 1)):
        loader.plan(step, weights_at(step))
    for step in range(first, last + 1):
        if step + loader.prefetch <= last:
            loader.plan(step + loader.prefetch, weights_at(step + loader.prefetch))
        batches.append(loader.take(step))
        states[step] = json.loads(json.dumps(loader.state_dict(step)))
    loader.close()
    return batches, states


def same_batches(left: StepBatch, right: StepBatch) -> bool:
    """Return whether two steps of the same rank have the same tensors."""
    return len(left.micro_batches) == len(right.micro_batches) and all(
        torch.equal(getattr(a, column), getattr(b, column))
        for a, b in zip(left.micro_batches, right.micro_batches, strict=True)
        for column in BATCH_COLUMNS
    )


def assert_resumes_at_every_step(
    make: Callable[[], MixtureLoader], *, last: int, weights_at: Callable[[int], np.ndarray]
) -> None:
    """Check a resume after every step, and a resume of each resume after one more step.

    Args:
        make: Returns a new loader.
        last: Last step; steps are numbered from 1.
        weights_at: Weights of a step.
    """
    batches, states = run_steps(make(), first=1, last=last, weights_at=weights_at)
    for stopped in range(1, last):
        resumed, states_again = _resume(make, states[stopped], last=last, weights_at=weights_at)
        assert states_again == {step: states[step] for step in range(stopped + 1, last + 1)}
        for expected, found in zip(batches[stopped:], resumed, strict=True):
            assert same_batches(expected, found), f"resumed after step {stopped}, differs at {found.plan.step}"
        if stopped + 1 < last:
            twice, _ = _resume(make, states_again[stopped + 1], last=last, weights_at=weights_at)
            assert all(map(same_batches, batches[stopped + 1 :], twice))


def _resume(
    make: Callable[[], MixtureLoader], state: Mapping[str, Any], *, last: int, weights_at: Callable[[int], np.ndarray]
) -> tuple[list[StepBatch], dict[int, dict[str, Any]]]:
    """Load a state into a new loader and take the steps after it."""
    loader = make()
    loader.load_state_dict(dict(state))
    return run_steps(loader, first=int(state["step"]) + 1, last=last, weights_at=weights_at)
