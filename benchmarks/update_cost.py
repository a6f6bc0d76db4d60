"""Measure what an update of the mixture sends to the other ranks and saves, however many updates came before it.

    OMP_NUM_THREADS=1 python benchmarks/update_cost.py [--domains 6,64,256] [--updates 10,1000,10000]

For each number of domains and of past updates: the bytes that rank 0 broadcasts, the CPU time of packing, unpacking
and comparing them, in one process, beside the decision itself, and the bytes of the schedule in a checkpoint. *Whole
schedule* is what comparing and saving all entries would take instead, as earlier versions did. Times are CPU time of
one process, medians.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.decision import Timer, losses_at
from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.decision_bytes import packed_decision, unpacked_decision
from versatune_ds.mixture.reference import load_references
from versatune_ds.mixture.schedule import Schedule
from versatune_ds.mixture.statistics import ExampleLosses

REPEATS = 20
T = TypeVar("T")


def main() -> None:
    """Print one line for each number of domains and of past updates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", default="6,64,256")
    parser.add_argument("--updates", default="10,1000,10000")
    parsed = parser.parse_args()
    logging.disable(logging.WARNING)
    sys.stdout.write(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}\n\n")
    header = ("domains", "past updates", "broadcast, kB", "send and compare, ms", "schedule saved, kB",
              "whole schedule, ms", "whole schedule, kB")  # fmt: skip
    sys.stdout.write(f"| {' | '.join(header)} |\n|{'---:|' * len(header)}\n")
    for num_domains in map(int, parsed.domains.split(",")):
        for num_updates in map(int, parsed.updates.split(",")):
            cells = measure(num_domains, num_updates=num_updates)
            sys.stdout.write(f"| {num_domains} | {num_updates:,} | {' | '.join(f'{cell:,.2f}' for cell in cells)} |\n")


def measure(num_domains: int, *, num_updates: int) -> tuple[float, float, float, float, float]:
    """Return the numbers of one line: kB broadcast, ms, kB saved, and ms and kB with the whole schedule."""
    decision, schedule = decision_of(num_domains), schedule_of(num_domains, num_updates=num_updates)
    step = 50 * num_updates

    def send_and_compare() -> bytes:
        packed = packed_decision(decision)
        unpacked_decision(packed)
        hashlib.blake2b(schedule.digest.encode(), digest_size=32).digest()
        return packed

    def compare_whole() -> str:
        return json.dumps(schedule.state_dict())

    packed, ms = timed(send_and_compare)
    whole, whole_ms = timed(compare_whole)
    saved = json.dumps(schedule.state_dict(from_step=step))
    return (len(packed) + 64) / 1e3, ms, len(saved) / 1e3, whole_ms, len(whole) / 1e3


def decision_of(num_domains: int) -> Decision:
    """Return a decision with signals of all domains."""
    domain_set = DomainSet(tuple(f"domain{k:03}" for k in range(num_domains)))
    settings = MixtureConfig(policy="versatune", prior="uniform", reference={"start_fraction": 0.6}, sigma=0.1)
    controller = Controller(
        domain_set=domain_set,
        settings=settings,
        weights_K=np.full(num_domains, 1 / num_domains),
        references=load_references(settings, domain_set=domain_set),
    )
    for update in range(3):
        losses = losses_at(update, num_domains=num_domains, examples_per_domain=20)
        decision = controller.decide(ExampleLosses(**losses), step=50 * update, effective_step=50 * update + 3)
    return decision


def schedule_of(num_domains: int, *, num_updates: int) -> Schedule:
    """Return a schedule with so many updates, 50 steps apart."""
    rng = np.random.default_rng(0)
    schedule = Schedule(np.full(num_domains, 1 / num_domains))
    for update, weights_K in enumerate(rng.dirichlet(np.ones(num_domains), size=num_updates)):
        schedule.append(50 * update + 3, weights_K)
    return schedule


def timed(action: Callable[[], T]) -> tuple[T, float]:
    """Return an action's result, and the median of its CPU time in milliseconds."""
    timer = Timer(action)
    results = [timer() for _ in range(REPEATS)]
    return results[-1], timer.median_ms


if __name__ == "__main__":
    main()
