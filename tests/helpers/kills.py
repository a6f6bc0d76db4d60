"""Kill ranks of a run with SIGKILL at moments chosen by a seed: in a step, while writing, before a rename."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
from dataclasses import dataclass
from typing import Any

import torch

from versatune_ds.engine import checkpoint
from versatune_ds.training import loop


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Which ranks to kill, and when."""

    victims: tuple[int, ...]
    moment: str
    """`step`: some time after a step began; `writing`: with half of a file written; `naming`: before the rename."""
    num_steps: int
    delay_seconds: float


def random_kill(seed: int, *, world_size: int) -> Kill:
    """Return the kill of a seed."""
    choice = random.Random(seed)
    moment = choice.choice(("step", "step", "writing", "naming"))
    one = 0 if moment == "naming" else choice.randrange(world_size)  # only rank 0 renames
    return Kill(
        victims=choice.choice((tuple(range(world_size)), (one,))),
        moment=moment,
        num_steps=choice.randrange(2, 6),
        delay_seconds=choice.uniform(0, 0.15),
    )


def arm(kill: Kill, *, rank: int) -> None:
    """Make this process kill itself at the moment, if it is a victim; call it in a forked rank, before training."""
    if rank not in kill.victims:
        return
    if kill.moment == "step":
        calls, plan_data = itertools.count(1), loop.plan_data

        def plan_and_die(run: Any, *, step: int) -> None:
            if next(calls) == kill.num_steps + run.loader.prefetch:
                threading.Timer(kill.delay_seconds, _die).start()
            plan_data(run, step=step)

        loop.plan_data = plan_and_die
    elif kill.moment == "writing":
        torch.save = lambda values, stream: (stream.write(b"PK half of it"), _die())
    else:
        write_manifest = checkpoint.write_manifest
        checkpoint.write_manifest = lambda folder, files: (write_manifest(folder, files), _die())


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
