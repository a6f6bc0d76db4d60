"""Start checks of what a run reads and writes: its folder, its model and its data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from versatune_ds.config import RunConfig
from versatune_ds.data.sources.domain_files import check_data_files
from versatune_ds.model.build import check_model_weights, config_from_mapping
from versatune_ds.model.named_model import check_saved_model, exported_from
from versatune_ds.run_folder.config_changes import has_begun
from versatune_ds.run_folder.folder import check_run_folder
from versatune_ds.run_folder.folder_lock import FolderInUseError
from versatune_ds.run_folder.links import check_unlocked
from versatune_ds.training.finding import Finding, ok, warn
from versatune_ds.training.length.extension import continuation, extension_notice
from versatune_ds.training.prepared_data import cache_folder
from versatune_ds.training.start_checks.check_input import StartCheckInput, is_made_by_another_job


def check_folder(start: StartCheckInput) -> Iterator[Finding]:
    """Check that the run's folder is free, or contains a run that this recipe may resume, perhaps with more steps."""
    _check_model_lies_outside(start.config)
    check_run_folder(start.config, is_fresh=start.is_fresh)
    line = continuation(start.config, is_fresh=start.is_fresh).line
    if line is None and (start.is_fresh or not has_begun(start.config.run_dir)):
        line = extension_notice(start.config.train)
    if line is not None:
        key, _, found = line.partition(": ")
        yield ok("files", key, found)


def _check_model_lies_outside(config: RunConfig) -> None:
    """Check that the run does not start from a model in its own folder, which --fresh would delete.

    Raises:
        ValueError: If it does.
    """
    name = config.model.name_or_path
    if name is not None and Path(name).is_dir() and config.run_dir.resolve() in Path(name).resolve().parents:
        raise ValueError(
            f"model.name_or_path: {name} lies in the folder of this run itself: a model that was exported from a run "
            "starts another one; choose another run.name"
        )


def check_owner(start: StartCheckInput) -> Iterator[Finding]:
    """Check that no other process is at work in the run's folder: a warning where the run starts later."""
    slurm = start.config.slurm
    if start.stage == "submit" and (slurm.dependency is not None or slurm.array is not None):
        return  # it starts after another job, or in folders of its tasks' own
    try:
        check_unlocked(start.config.run_dir)
    except FolderInUseError as error:
        if start.stage == "train":
            raise
        yield warn("files", str(error.folder), error.found, error.todo)


def check_model_keys(start: StartCheckInput) -> None:
    """Check that the model type knows the keys of `model.from_config`."""
    model = start.config.model
    if model.from_config is not None:
        config_from_mapping(model.from_config, vocab_size=model.tokenizer_vocab_size, special_ids={})


def check_model(start: StartCheckInput) -> Iterator[Finding]:
    """Check that a saved model is there, and that its weights are those of its config."""
    if is_made_by_another_job(start):
        return
    check_saved_model(start.config.model)
    if start.config.model.name_or_path and (run := exported_from(start.config.model.name_or_path)) is not None:
        yield ok("model", "model.name_or_path", f"the export of {run}; this is a new run, which starts at step 0")
    if check_model_weights(start.config.model):
        yield ok("model", "model.name_or_path", "names and shapes of its weights are those of its config")


def check_data(start: StartCheckInput) -> None:
    """Check that the domains' files are there, or their prepared rows."""
    if not is_made_by_another_job(start):
        check_data_files(start.config.data, cache_dir=cache_folder(start.config))
