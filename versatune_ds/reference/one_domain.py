"""The run that fine-tunes on one domain alone: its recipe, its data, when it stops, and its result.

It is a run like any other, of one domain: it stops, resumes and is reported like any other. Its reference is the lowest
held-out loss in its decisions.jsonl. The run on equal shares of all domains has the same recipe, and no early stop.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from versatune_ds.config import MixtureConfig, MonitorConfig, RunConfig
from versatune_ds.config.mixture_sections import SafeguardConfig
from versatune_ds.config.model import model_identity
from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.offline.recorded_losses import read_decisions
from versatune_ds.mixture.policies import ONE_DOMAIN
from versatune_ds.run_folder.atomic import read_json
from versatune_ds.run_folder.json_lines import json_lines
from versatune_ds.run_folder.names import DECISIONS_FILE, METRICS_FILE
from versatune_ds.training.mixture_start import loss_digests
from versatune_ds.training.prepared_data import RunSetup, cache_folder

RESULT_FILE = "result.json"
"""In a domain's folder, once it is measured."""

ALL_DOMAINS = "all domains"
"""In the place of a domain's name: the run on equal shares of all."""

MEASUREMENTS = 10
"""Held-out measurements of a domain, unless the recipe sets how often."""


def folder_name(name: str) -> str:
    """Return a domain's name as a run's; one that cannot be is made safe, and unique by a digest."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:64].lstrip("._-")
    return safe if safe == name else f"{safe or 'domain'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def domain_recipe(config: RunConfig, name: str) -> RunConfig:
    """Return the recipe of fine-tuning on one domain alone, or on equal shares of all: the run's own, without a prior.

    The steps are rounded up to a multiple of the measurements' interval, so that the last one is measured too.
    """
    settings = config.reference
    most_steps = settings.steps or max(1, config.train.steps // 2)
    every = min(settings.evaluate_every or max(1, most_steps // MEASUREMENTS), most_steps)
    steps, warmup_steps = -(-most_steps // every) * every, config.train.warmup_steps
    train = config.train.model_copy(
        update={
            "steps": steps,
            "steps_from": None,
            "learning_rate": settings.learning_rate or config.train.learning_rate,
            "early_stopping": None,  # by the domain's own loss: see EarlyStop
            "warmup_steps": None if warmup_steps is None else warmup_steps * steps // config.train.steps,
        }
    )
    data = config.data.model_copy(update={"cache_dir": cache_folder(config), "max_epochs_per_domain": None})
    # Outside the run's own folder, which --fresh would delete.
    output_dir = config.run.output_dir / "reference" / config.run.name
    run = config.run.model_copy(update={"name": folder_name(name), "output_dir": output_dir})
    return config.model_copy(
        update={
            "run": run,
            "data": data,
            "train": train,
            "model": settings.model or config.model,
            "mixture": MixtureConfig(
                policy=ONE_DOMAIN.name,
                update_every=every,
                weight_unit=config.mixture.weight_unit,
                safeguards=SafeguardConfig(overfit="off"),  # over-fitting ends the run by itself: see EarlyStop
            ),
            "monitor": MonitorConfig(log_every=every),
            "validation": config.validation.model_copy(update={"max_share": None, "tasks": None}),
            "checkpoint": config.checkpoint.model_copy(update={"best": None}),
        }
    )


def domain_data(data: PreparedData, name: str) -> PreparedData:
    """Return the prepared data of one domain alone, or of all."""
    if name == ALL_DOMAINS:
        return data
    i = data.domain_set.id_of(name)
    return PreparedData(
        domain_set=DomainSet((name,)),
        train=(data.train[i],),
        valid=(data.valid[i],),
        counts=tuple(row for row in data.counts if row.domain == name),
    )


class EarlyStop:
    """Detect when a domain's held-out loss has stopped falling; on every rank alike, since all see the same decisions.

    Args:
        name: The domain.
        patience: Measurements in a row without a new minimum that are enough.
        losses: Held-out losses of the measurements made before a resume, in order.
    """

    def __init__(self, name: str, *, patience: int, losses: Sequence[float] = ()) -> None:
        self._name = name
        self._patience = patience
        self._losses = list(losses)

    def __call__(self, decision: Decision) -> bool:
        """Record a measurement and return whether training may stop."""
        self._losses.append(loss_of(decision, self._name))
        return len(self._losses) - 1 - self._losses.index(min(self._losses)) >= self._patience


def loss_of(decision: Decision, name: str) -> float:
    """Return a decision's held-out loss of a domain; infinity if it was not finite."""
    mean = decision.losses[name]["mean"]
    return float("inf") if mean is None else float(mean)


def result_of_run(run_dir: Path, name: str) -> dict[str, Any]:
    """Return the result of a finished single-domain run, from its records alone.

    `train_loss` is the mean loss of the training batches between the last measurement before the minimum and the
    minimum. Approximate: the model was a little worse while it read them than at the minimum.

    Raises:
        ValueError: If no held-out loss was finite.
    """
    decisions = read_decisions(run_dir / DECISIONS_FILE)
    best = min(decisions, key=lambda decision: loss_of(decision, name))
    if loss_of(best, name) == float("inf"):
        raise ValueError(f"{run_dir}: no held-out loss of {name} is finite; lower reference.learning_rate")
    losses = best.losses[name]
    lines = [line.value for line in json_lines(run_dir / METRICS_FILE) if line.value is not None]
    train_losses = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
    return {
        "domain": name,
        "loss": losses["mean"],
        "stderr": losses["stderr"],
        "num_loss_tokens": losses["num_loss_tokens"],
        "base_loss": decisions[0].losses[name]["mean"],
        "step": best.decided_at_step,
        "steps_done": decisions[-1].decided_at_step,
        "train_loss": train_losses.get(best.decided_at_step),
        "held_out_losses": {str(decision.decided_at_step): decision.losses[name]["mean"] for decision in decisions},
    }


def read_result(config: RunConfig, name: str) -> dict[str, Any] | None:
    """Return a finished domain's result, None if there is none; what it was made with, as `made_with` states it."""
    result = read_json(domain_recipe(config, name).run_dir / RESULT_FILE)
    if result is None:
        return None
    saved = result["made_with"]  # of an earlier version, with the model's attention
    return {**result, "made_with": {**saved, "model": model_identity(saved.get("model", {}))}}


def made_with(setup: RunSetup, name: str) -> dict[str, Any]:
    """Return everything that a domain's reference depends on."""
    recipe, data = domain_recipe(setup.config, name), domain_data(setup.data, name)
    return {
        **loss_digests(recipe, setup.tokenizer, data),
        "data": data.digest,
        "seed": recipe.run.seed,
        "model": model_identity(recipe.model.model_dump(mode="json")),
        "patience": recipe.reference.patience,
        "reference.steps": recipe.train.steps,
        "reference.evaluate_every": recipe.mixture.update_every,
        "learning_rate": recipe.train.learning_rate,
        "rows_per_batch": recipe.train.rows_per_batch,
        "max_examples_per_domain": recipe.validation.max_examples_per_domain,
        "target_standard_error": recipe.validation.target_standard_error,
    }


def check_made_with(saved: Mapping[str, Any], current: Mapping[str, Any], *, folder: Path) -> None:
    """Raise ValueError, one line a difference, if a domain was measured in another way than is requested now."""
    lines = [
        f"{folder}: measured with {key} {saved.get(key)!r}, now {value!r}; use the earlier value, or measure again "
        "with --fresh"
        for key, value in current.items()
        if saved.get(key) != value
    ]
    if lines:
        raise ValueError("\n".join(lines))
