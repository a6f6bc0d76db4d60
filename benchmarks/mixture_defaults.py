"""Measure the defaults of the mixture section on synthetic learners: the tables of docs/defaults.md.

    python benchmarks/mixture_defaults.py

The controller is the one of training, the learners are those of `versatune simulate`. Every figure is a mean over eight
of them: a table shows how settings differ, and nothing about a real model's losses.
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

import numpy as np

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.offline.simulate import Simulation, simulate
from versatune_ds.mixture.weights import effective_num_domains
from versatune_ds.text_table import text_table

PRIOR = {"general": 0.46, "code": 0.25, "medicine": 0.10, "finance": 0.08, "science": 0.06, "law": 0.05}
DOMAINS = DomainSet(tuple(PRIOR))
NUM_LEARNERS = 8
NOISE = 0.004
"""Relative standard error of a measured change; 60 examples a domain of the built-in corpus give about this."""

Settings = dict[str, Any]
EXPANSION: Settings = {"policy": "expansion", "target": "law"}


def safe(**settings: Any) -> Settings:
    """Return settings of the safeguards."""
    return {"safeguards": settings}


SIGMA: dict[str, Settings] = {
    "prior, constant": {"policy": "constant"},
    "uniform": {"policy": "uniform"},
    **{f"sigma {sigma:g}": {"sigma": sigma} for sigma in (0.1, 0.25, 0.5, 1, 2, 4)},
    "sigma 0.5, from uniform": {"sigma": 0.5, "prior_uniform_share": 1.0},
    "sigma 0.5, prior pull 0.05": safe(prior_pull=0.05),
    "steer": {"policy": "steer"},
}
INTERVAL: dict[str, Settings] = {
    f"{policy}, every {steps}": {**settings, "update_every": steps}
    for policy, settings in (("versatune", {}), ("expansion", EXPANSION))
    for steps in (10, 25, 50, 100, 200)
}
DELTA: dict[str, Settings] = {
    **{f"delta {delta:g}": {**EXPANSION, "delta": delta} for delta in (0.005, 0.01, 0.02, 0.05, 0.1)},
    **{
        f"delta {delta:g}, budget {budget:g}": {**EXPANSION, "delta": delta, **safe(forgetting_budget=budget)}
        for delta in (0.02, 0.05)
        for budget in (0.01, 0.02)
    },
}
EPSILON: dict[str, Settings] = {
    **{f"epsilon {epsilon:g}": {**EXPANSION, "epsilon": epsilon} for epsilon in (0, 0.001, 0.003, 0.01, 0.03, 0.1)},
    **{f"epsilon 0.01, z {z:g}": {**EXPANSION, **safe(z=z)} for z in (0, 1, 2)},
}
FLOOR: dict[str, Settings] = {
    f"{what}, floor {share:g} / K": {**settings, **safe(floor=share / len(DOMAINS))}
    for what, settings in (("sigma 0.5", {}), ("sigma 4", {"sigma": 4}), ("delta 0.05", {**EXPANSION, "delta": 0.05}))
    for share in (0, 0.05, 0.1, 0.3)
}
TABLES = {
    "sigma, 400 steps": (SIGMA, 400),
    "sigma, 2000 steps": (SIGMA, 2000),
    "update_every, 2000 steps": (INTERVAL, 2000),
    "delta (expansion, target law), 2000 steps": (DELTA, 2000),
    "epsilon and z (expansion, target law), 2000 steps": (EPSILON, 2000),
    "floor, 2000 steps": (FLOOR, 2000),
}


def figures_of(simulation: Simulation) -> list[float]:
    """Return mean loss, the fall of the domain that fell least, law's weight and loss, the domains in effect."""
    first, last = simulation.decisions[0], simulation.decisions[-1]
    loss_K = np.array([last.losses[name]["mean"] for name in DOMAINS], dtype=float)
    start_K = np.array([first.losses[name]["mean"] for name in DOMAINS], dtype=float)
    weights_K = last.weights_K(DOMAINS)
    law = DOMAINS.id_of("law")
    worst = float(np.min(1.0 - loss_K / start_K))
    return [loss_K.mean(), worst, weights_K[law], loss_K[law], weights_K.min(), effective_num_domains(weights_K)]


def row_of(label: str, settings: Settings, *, num_steps: int) -> tuple[str, ...]:
    """Return one setting's line: means over the learners, and the worst learner's worst domain."""
    config = MixtureConfig(**{"policy": "versatune", "prior": PRIOR, **settings})
    runs = [
        figures_of(simulate(config, domain_set=DOMAINS, num_steps=num_steps, seed=seed, noise=NOISE))
        for seed in range(NUM_LEARNERS)
    ]
    loss, worst, law_weight, law_loss, least_weight, effective = np.mean(runs, axis=0)
    lowest = min(run[1] for run in runs)
    return (
        label,
        f"{loss:.3f}",
        f"{worst:+.1%}",
        f"{lowest:+.1%}",
        f"{law_weight:.2f}",
        f"{law_loss:.3f}",
        f"{least_weight:.3f}",
        f"{effective:.2f}",
    )


def main() -> None:
    """Print every table, or those whose title contains a text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="tables whose title contains this text, for example floor")
    only = parser.parse_args().only
    logging.getLogger("versatune_ds").setLevel(logging.ERROR)  # alarms of settings that are meant to collapse
    header = ("setting", "loss", "worst", "worst learner", "law's weight", "law's loss", "least weight", "effective")
    for title, (table, num_steps) in TABLES.items():
        if only in title:
            rows = [row_of(label, settings, num_steps=num_steps) for label, settings in table.items()]
            print(f"{title}\n{text_table(header, rows)}\n", flush=True)


if __name__ == "__main__":
    main()
