"""Open the models that a transfer table's runs kept, and check that they are the table's.

The recipe may have changed since the table was measured. So tokenizer, held-out rows, weights and losses are compared
with what the table recorded; a difference is an error of one line.

Shape legend: **K** domains, **M** loss tokens of all held-out examples.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from versatune_ds.config import RunConfig
from versatune_ds.data.manifest import digest_of_texts
from versatune_ds.data.sources.source_digests import SourceDigests
from versatune_ds.data.validation_loader import ValidationLoader
from versatune_ds.distributed import World
from versatune_ds.mixture.planning.predictor import PlanTask
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.model.build import build_causal_lm, special_ids_of_tokenizer
from versatune_ds.planning.kept_models import KeptModels, memory_advice
from versatune_ds.planning.kept_weights import OtherWeightsError, open_kept_weights, weight_files_of
from versatune_ds.reference.one_domain import domain_recipe
from versatune_ds.run_folder.atomic import atomic_file, read_json
from versatune_ds.run_folder.names import TRANSFER_BASE_FILE
from versatune_ds.training.held_out import HeldOutExamples, held_out_examples
from versatune_ds.training.mixture_start import loss_digests
from versatune_ds.training.prepared_data import RunSetup, cache_folder, load_or_train_tokenizer, prepare_recipe
from versatune_ds.training.worker import choose_device, set_threads

logger = logging.getLogger(__name__)

_AGAIN = "measure again with versatune reference RECIPE"
_CACHE_VERSION = "1"
_MOST_OFF = 0.02
"""Largest relative difference of a loss measured again, on another device or with another attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRuns:
    """The kept models of a transfer table, ready to run."""

    models: KeptModels
    folders: Mapping[str, Path]
    """Folder of the weights of each domain that has them."""
    cache_dir: Path
    rows_digest: str
    """Of all that a loss depends on besides the kept weights."""

    def cached_token_losses(self, name: str, weights_K: np.ndarray) -> np.ndarray:
        """Return the token losses [M] of one domain's model, from the cache, or computed and added to it."""
        files = weight_files_of(self.folders[name]) if name in self.folders else []
        digest = digest_of_texts([self.rows_digest, *SourceDigests(self.cache_dir).of(files)])
        path = self.cache_dir / "token-losses" / f"{digest}.npz"
        if path.is_file():
            with np.load(path) as content:
                return content["losses_M"]
        losses_M = self.models.token_losses(weights_K)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as stream:
            np.savez(stream, losses_M=losses_M)
        return losses_M


def kept_folders(task: PlanTask) -> dict[str, Path]:
    """Return the folder of each domain's kept weights; domains without held-out rows have none.

    Raises:
        ValueError: If weights were not kept, or are gone; with the command that measures again.
    """
    table, folders = task.table, {}
    known = [name for name in table.domain_set if name not in table.unmeasured or name in table.sources]
    without = [n for n in known if n not in table.sources or table.sources[n].model is None]
    for name in known:
        if name not in without:
            folders[name] = task.folder / str(table.sources[name].model)
    gone = [name for name, folder in folders.items() if not folder.is_dir()]
    for names, what in ((without, "no weights of"), (gone, "the folders are gone of the weights of")):
        if names:
            raise ValueError(
                f"transfer.json: {what} {', '.join(names)}; {_AGAIN} reference.keep_models=true --domains "
                f"{','.join(names)} --fresh"
            )
    return folders


def open_kept_runs(task: PlanTask) -> KeptRuns:
    """Return the models of a task's table, on its held-out rows.

    Raises:
        ValueError: If weights are missing, or model, tokenizer or held-out rows are others than the table's; one line.
    """
    folders = kept_folders(task)
    config: RunConfig = task.config
    # The rows, the same ones as in the table.
    set_threads()
    tokenizer, data = load_or_train_tokenizer(config), prepare_recipe(config)
    digests = loss_digests(config, tokenizer, data)
    _check_digests(task, digests)
    recipe = _with_complete_rows(domain_recipe(config, next(iter(folders))))
    setup = RunSetup(
        config=recipe, world=World(), device=choose_device(World()), ds_config={}, tokenizer=tokenizer, data=data
    )
    held_out = _held_out_of_table(setup, run_dir=next(iter(folders.values())).parent)
    # The models.
    models = _open_models(task, setup, folders, held_out.loader)
    check_losses(task, models.base, name=None)
    logger.info("%d kept models on %s, %d held-out examples", len(folders), setup.device, held_out.loader.num_examples)
    model = json.dumps([recipe.model.model_dump(mode="json"), recipe.train.precision, recipe.run.seed])
    rows = json.dumps([digests, list(data.domain_set), held_out.state_dict(), recipe.data.row_tokens])
    sizes = json.dumps([held_out.loader.num_examples, recipe.rows_evaluated_at_once, str(setup.device.type)])
    return KeptRuns(
        models=models,
        folders=folders,
        cache_dir=cache_folder(config),
        rows_digest=digest_of_texts([_CACHE_VERSION, model, rows, sizes]),
    )


def _check_digests(task: PlanTask, digests: dict[str, str]) -> None:
    recorded = task.table.provenance.get("digests") or {}
    for key, digest in digests.items():
        if recorded.get(key, digest) != digest:
            raise ValueError(
                f"transfer.json: its {key} is another than the recipe's, so its models' losses do not compare; "
                f"{_AGAIN} --fresh"
            )


def _with_complete_rows(recipe: RunConfig) -> RunConfig:
    """Return a recipe for one process, which shares its rows with no other."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"sequence_parallel": 1})})


def _held_out_of_table(setup: RunSetup, *, run_dir: Path) -> HeldOutExamples:
    """Return the held-out rows that the run in a folder measured, where it recorded them; else the recipe's."""
    held_out = held_out_examples(setup)
    if base := read_json(run_dir / TRANSFER_BASE_FILE):
        held_out.load_state_dict(base["chosen"])
    return held_out


def _open_models(task: PlanTask, setup: RunSetup, folders: Mapping[str, Path], loader: ValidationLoader) -> KeptModels:
    """Return the base model in memory, and the kept weights of all domains opened."""
    names, kept = list(task.table.domain_set), []
    for name in names:
        try:
            kept.append(open_kept_weights(folders[name]) if name in folders else None)
        except ValueError as error:
            raise ValueError(f"transfer.json: {name}: {error}") from None
    causal_lm = _base_model(setup)
    try:
        return KeptModels(causal_lm, kept, loader)
    except OtherWeightsError as error:
        raise ValueError(
            f"transfer.json: {names[error.number]}: its kept weights are of another model than the recipe's ({error}); "
            f"give the recipe they were made with, or {_AGAIN} --fresh"
        ) from None


def _base_model(setup: RunSetup) -> Any:
    """Return the recipe's base model on the device, without adapters."""
    config = setup.config
    if config.model.load_in_4bit:
        raise ValueError("model.load_in_4bit: weights in 4 bits cannot be averaged; plan with --planner transfer")
    torch.manual_seed(config.run.seed)
    with memory_advice():
        return build_causal_lm(
            config.model.model_copy(update={"lora": None, "freeze": (), "gradient_checkpointing": False}),
            precision=config.train.precision,
            vocab_size=len(setup.tokenizer),
            special_ids=special_ids_of_tokenizer(setup.tokenizer),
            device=setup.device,
        ).to(setup.device)


def check_losses(task: PlanTask, losses: ExampleLosses, *, name: str | None) -> None:
    """Check that a domain's kept model, or the base model (None), has the losses that the table has of it.

    Raises:
        ValueError: If one differs by more than 2 %.
    """
    table = task.table
    wanted_K = table.base_losses_K if name is None else table.sources[name].losses_SK[-1]
    off_K = np.nan_to_num(np.abs(losses.mean() / wanted_K - 1.0))
    if np.max(off_K) > _MOST_OFF:
        k = int(np.argmax(off_K))
        what = "the base model" if name is None else f"the kept model of {name}"
        raise ValueError(
            f"transfer.json: {what} has a loss of {losses.mean()[k]:.4f} on {table.domain_set.names[k]} now, and "
            f"{wanted_K[k]:.4f} in the table: model or held-out rows changed; {_AGAIN} --fresh"
        )
