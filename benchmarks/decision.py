"""Measure the cost of one decision of the controller, and how much of it is recording it.

    python benchmarks/decision.py

Times are CPU time of one process, medians over many updates, so other processes on the machine hardly matter.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture import controller as controller_module
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.decision_bytes import packed_decision, unpacked_decision
from versatune_ds.mixture.reference import load_references
from versatune_ds.mixture.statistics import ExampleLosses

UPDATES = 200


def main() -> None:
    """Print one line for each number of domains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", default="6,64,256", help="numbers of domains, separated by commas")
    parser.add_argument("--examples", type=int, default=40, help="held-out examples a domain")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    sys.stdout.write(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}\n")
    header = ("domains", "examples", "rule ms", "record ms", "decision ms", "receive ms")
    sys.stdout.write("  ".join(header) + "\n")
    for num_domains in map(int, chosen.domains.split(",")):
        decision, record, receive = measure(num_domains, examples_per_domain=chosen.examples)
        counts = f"{num_domains:7}  {num_domains * chosen.examples:8}"
        sys.stdout.write(f"{counts}  {decision - record:7.2f}  {record:9.2f}  {decision:11.2f}  {receive:10.2f}\n")


def measure(num_domains: int, *, examples_per_domain: int) -> tuple[float, float, float]:
    """Return the CPU milliseconds of a decision, recording it (part of the former), and receiving it on a rank."""
    domain_set = DomainSet(tuple(f"domain{k:03}" for k in range(num_domains)))
    settings = MixtureConfig(policy="versatune", prior="uniform", reference={"start_fraction": 0.6}, sigma=0.1)
    controller = Controller(
        domain_set=domain_set,
        settings=settings,
        weights_K=np.full(num_domains, 1 / num_domains),
        references=load_references(settings, domain_set=domain_set),
    )
    record = Timer(controller_module.write_decision)
    controller_module.write_decision = record
    decide = Timer(lambda losses, **steps: controller.decide(ExampleLosses(**losses), **steps))
    receive = Timer(unpacked_decision)
    for update in range(UPDATES):
        losses = losses_at(update, num_domains=num_domains, examples_per_domain=examples_per_domain)
        decision = decide(losses, step=50 * update, effective_step=50 * update + 3)
        receive(packed_decision(decision))
    controller_module.write_decision = record.function
    return decide.median_ms, record.median_ms, receive.median_ms


class Timer:
    """Call a function and record the CPU time of each call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._seconds: list[float] = []

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Return what the function returns."""
        started = time.process_time()
        result = self.function(*arguments, **keywords)
        self._seconds.append(time.process_time() - started)
        return result

    @property
    def median_ms(self) -> float:
        """Return the median in milliseconds."""
        return 1000 * statistics.median(self._seconds)


def losses_at(update: int, *, num_domains: int, examples_per_domain: int) -> dict[str, Any]:
    """Return synthetic losses of the same examples at an update: each domain's falls at its own pace."""
    rng = np.random.default_rng(0)
    num_examples = num_domains * examples_per_domain
    tokens_E, hardness_E = rng.integers(5, 60, num_examples), rng.normal(3.0, 0.5, num_examples)
    ids_E = np.repeat(np.arange(num_domains), examples_per_domain)
    mean_E = hardness_E * (1 + np.exp(-update * (1 + ids_E) / (20 * num_domains)))
    return {
        "loss_sum_E": tokens_E * mean_E,
        "num_loss_tokens_E": tokens_E,
        "domain_ids_E": ids_E,
        "num_domains": num_domains,
    }


if __name__ == "__main__":
    main()
