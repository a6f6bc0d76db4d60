"""Read the config and decisions of a run's folder; explain them, and replay them.

The folder is all that is needed. With its own settings a replay must give the run's own decisions, digest for digest;
each part of a run that was resumed with other settings is replayed with the settings of that part.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from versatune_ds.config import RunConfig, load_config
from versatune_ds.config.unread_settings import unread_settings
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.explain import decision_at, explain, replay_text
from versatune_ds.mixture.followed_plan import plan_to_follow
from versatune_ds.mixture.offline.recorded_losses import recorded_decisions
from versatune_ds.mixture.offline.replay import Part, replay
from versatune_ds.mixture.planning.plan_file import read_plan
from versatune_ds.mixture.reference import load_references
from versatune_ds.mixture.settings import guarded_start, plan_of_prior, starting_weights
from versatune_ds.run_folder.folder import former_versions, version_at
from versatune_ds.run_folder.names import CONFIG_FILE, PLAN_FILE, REFERENCE_FILE
from versatune_ds.run_folder.recorded_config import recorded_config
from versatune_ds.training.length.late_updates import late_sentence
from versatune_ds.training.mixture_start import domain_sizes
from versatune_ds.training.prepared_data import prepare_recipe
from versatune_ds.training.saved_model import with_saved_model

logger = logging.getLogger(__name__)

_START_KEYS = (
    "policy", "prior", "prior_temperature", "prior_uniform_share", "target", "target_share", "schedule", "weight_unit",
)  # fmt: skip
"""Keys of the mixture section on which the weights of step 0 depend."""

_MEASURED_KEYS = ("mixture.update_every", "mixture.signal")
"""Keys that decide when which losses are measured: a record has no losses for other values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The run's decisions, and those that a replay made."""

    domain_set: DomainSet
    recorded: tuple[Decision, ...]
    replayed: tuple[Decision, ...]

    @property
    def text(self) -> str:
        """Return a comparison of the two."""
        return replay_text(self.recorded, self.replayed, domain_set=self.domain_set)

    def to_jsonl(self) -> str:
        """Return the replayed decisions as the text of a decisions.jsonl."""
        return "".join(decision.to_json() + "\n" for decision in self.replayed)


def explain_run(run_dir: Path, *, step: int | None = None) -> str:
    """Describe the last decision a run made at or before a step; its newest one by default.

    Raises:
        ValueError: If the folder is no run's, or the step lies before the first decision or beyond the run.
    """
    num_steps = recorded_config(run_dir).train.steps
    decisions = recorded_decisions(run_dir)
    if step is not None and step > num_steps:
        raise ValueError(f"--step {step}: the run in {run_dir} has {num_steps} steps")
    decision = decisions[-1] if step is None else decision_at(decisions, step)
    late = late_sentence(decision, num_steps=num_steps)
    return f"{explain(decision)}\n{late}" if late else explain(decision)


def replay_run(run_dir: Path, overrides: Sequence[str] = ()) -> Replay:
    """Replay a run's recorded measurements, with the inputs it recorded; `mixture.` keys may be overridden.

    Raises:
        ValueError: If the folder is no run's, or a key cannot be answered from a record.
    """
    # Refuse what a record cannot answer, and log what changes nothing.
    for override in overrides:
        key = override.partition("=")[0]
        if not key.startswith("mixture.") or key in _MEASURED_KEYS:
            raise ValueError(
                f"{key}: a replay has only the losses that the run measured, when it measured them; expected "
                f"a key of mixture other than {' and '.join(_MEASURED_KEYS)}"
            )
    config = recorded_config(run_dir, overrides)
    for line in unread_settings(config, named=[override.partition("=")[0] for override in overrides]):
        logger.warning("%s", line)
    recorded = recorded_decisions(run_dir)
    domain_set = DomainSet(tuple(recorded[0].weights_before))

    # Replay each part of the run with its own settings; only another start needs the sizes of the data.
    config_files = [*former_versions(run_dir / CONFIG_FILE), (math.inf, run_dir / CONFIG_FILE)]
    own, first = load_config(config_files[0][1], ()), load_config(config_files[0][1], overrides)
    is_start_kept = all(getattr(own.mixture, key) == getattr(first.mixture, key) for key in _START_KEYS)
    replayed = replay(
        recorded,
        parts=[
            _part(run_dir, path, overrides=overrides, until_step=until, domain_set=domain_set)
            for until, path in config_files
        ],
        domain_set=domain_set,
        start_weights_K=None if is_start_kept else _start_weights(first, domain_set=domain_set),
    )
    return Replay(domain_set=domain_set, recorded=tuple(recorded), replayed=tuple(replayed))


def _part(
    run_dir: Path, config_file: Path, *, overrides: Sequence[str], until_step: float, domain_set: DomainSet
) -> Part:
    """Return the settings that replay a part of a run; its own references and plan are read from its folder."""
    config = load_config(config_file, overrides)
    own, settings = load_config(config_file, ()).mixture, config.mixture
    kept = version_at(run_dir / REFERENCE_FILE, step=until_step)
    if isinstance(settings.reference, Path) and settings.reference == own.reference and kept.is_file():
        settings = settings.model_copy(update={"reference": kept})
    is_own_plan = settings.prior == own.prior and (run_dir / PLAN_FILE).is_file()
    plan = read_plan(run_dir / PLAN_FILE, what="plan of the run") if is_own_plan else plan_of_prior(settings)
    return Part(
        settings=settings,
        references=load_references(settings, domain_set=domain_set),
        plan=plan_to_follow(settings, plan, domain_set=domain_set, num_steps=config.train.steps),
        until_step=until_step,
    )


def _start_weights(config: RunConfig, *, domain_set: DomainSet) -> np.ndarray:
    """Return the weights [K] at step 0 under other settings; the data is opened only where their sizes matter."""
    sizes_K = None
    if config.mixture.rule.needs_sizes or config.mixture.prior == "proportional":
        sizes_K = domain_sizes(prepare_recipe(with_saved_model(config)), unit=config.mixture.weight_unit)
    named_K = starting_weights(config.mixture, domain_set=domain_set, sizes_K=sizes_K)
    return guarded_start(config.mixture, named_K, domain_set=domain_set)
