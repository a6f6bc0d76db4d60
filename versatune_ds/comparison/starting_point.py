"""Make what all runs of a comparison start from, once: base model, detected mixture, references, plans.

Every stage is one `versatune` command that a user could run alone. It is logged, runs as a process of its own, and is
skipped if its result exists. Comparisons of one base model share all of it, one at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from versatune_ds.comparison.base_model import base_model_folder
from versatune_ds.comparison.mixture_plans import arguments_of, purpose_of
from versatune_ds.comparison.override_texts import texts
from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.comparison.stage import run_stage as run_stage_of
from versatune_ds.comparison.start_files import is_exported, transfer_file
from versatune_ds.comparison.start_settings import check_settings
from versatune_ds.config import RunConfig, load_config
from versatune_ds.launch.time_budget import TimeBudget
from versatune_ds.run_folder.atomic import read_json
from versatune_ds.run_folder.file_lock import locked


def make_starting_point(plan: ComparisonPlan, *, num_processes: int, budget: TimeBudget | None = None) -> list[str]:
    """Make base model, prior, references and plans, those that do not exist yet.

    A stage uses `num_processes`, or fewer where its batch does not divide among them.

    Returns:
        `key=value` texts that let a run start from them.

    Raises:
        ValueError: If what exists was made with other keys.
        RuntimeError: If a stage fails; the message names its log.
        OutOfTimeError: If the budget is over before all is made; a later call resumes there.
    """
    run_stage = partial(run_stage_of, budget=budget or TimeBudget(None))
    folder, model = plan.start_folder, base_model_folder(plan)
    start = texts({"model.name_or_path": str(model), "model.from_config": None})
    if load_config(plan.recipe, texts(plan.set)).model.gguf_file is not None:
        start += texts({"model.gguf_file": None})  # else the file would be looked for in the base model's folder
    with locked(folder / "lock", what="this comparison's starting point"):
        shared = load_config(plan.recipe, texts(plan.set))
        check_settings(plan)
        # The base model: given, or trained and then exported.
        if plan.base.recipe is not None and not is_exported(model):
            base = load_config(plan.base.recipe, texts(plan.base.set))
            place = texts({"run.name": "base", "run.output_dir": str(folder)})
            processes = ("--processes", processes_of(base, at_most=num_processes))
            run_stage(folder, "train", plan.base.recipe, *texts(plan.base.set), *place, *processes)
            run_stage(folder, "export", folder / "base", "--output", model, "--force")
        # What is measured with it: prior and references.
        processes = ("--processes", processes_of(shared, at_most=num_processes))
        keys = [*texts(plan.set), *texts({"run.name": "start", "run.output_dir": str(folder)}), *start]
        for is_wanted, command, key in ((plan.detect, "detect", "prior"), (plan.reference, "reference", "reference")):
            if is_wanted:
                file = folder / f"{key}.json"
                if not file.is_file():
                    run_stage(folder, command, plan.recipe, *keys, "--output", file, *processes)
                start += texts({f"mixture.{key}": str(file)})
        _make_plans(plan, run_stage, keys=[*keys, *(text for text in start if text.startswith("mixture.prior="))])
    return start


def _make_plans(plan: ComparisonPlan, run_stage: Callable[..., None], *, keys: Sequence[str]) -> None:
    """Make the plans that do not exist yet, each for every target if that is its purpose.

    Raises:
        ValueError: If there is no transfer.json, or a plan of this name was made with other keys.
    """
    for name, options in plan.plans.items():
        for target in plan.targets if purpose_of(options) == "target" else (None,):
            file = plan.plan_file(name, target)
            for_target = [] if target is None else texts({"mixture.target": target})
            transfer = transfer_file(plan)
            if not _is_plan_of(file, transfer):
                file.parent.mkdir(parents=True, exist_ok=True)
                words = [*keys, *for_target, *arguments_of(options)]
                run_stage(plan.start_folder, "plan", plan.recipe, *words, "--transfer", transfer, "--output", file)


def _is_plan_of(file: Path, transfer: Path) -> bool:
    """Return whether a plan exists and was made from the transfer.json that is there now."""
    content = read_json(file)
    if content is None:
        return False
    digest = hashlib.sha256(transfer.read_bytes()).hexdigest() if transfer.is_file() else None
    return content.get("provenance", {}).get("transfer", {}).get("sha256") == digest


def processes_of(config: RunConfig, *, at_most: int) -> int:
    """Return the largest number of processes among which a recipe's batch divides into micro-batches.

    Worked example: 16 rows in micro-batches of 4 take 4 processes of 6.
    """
    num_micro_batches = config.train.rows_per_batch // config.train.rows_per_micro_batch
    return max((n for n in range(1, at_most + 1) if num_micro_batches % n == 0), default=1)
