"""Checks before a run's processes start: they take seconds each and read neither tokenizer nor rows.

Each check states its stages. `train`, `submit`, `reference` and `detect` run theirs before they start a process; every
process runs those of stage `every rank`, rank 0 also those of `rank 0` (`assemble.py`). `versatune check` runs all of
them, then the checks of `preflight/checks.py`, which need more. This file is not in `preflight/` because a process of a
run imports no layer above `training/`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.data.sources.domain_files import check_data_files, domain_names
from versatune_ds.distributed.gpus import UnseenGpusError, asks_for_gpus, check_torch_for, check_torch_sees_gpus
from versatune_ds.distributed.world import is_slurm_task
from versatune_ds.domains import DomainSet
from versatune_ds.engine.ds_checks import check_deepspeed_settings, check_keys, check_model_settings
from versatune_ds.engine.ds_settings import deepspeed_config, num_micro_steps, rows_at_once, zero_stage
from versatune_ds.kernels.build import chosen_implementation
from versatune_ds.kernels.kernel_choice import chosen_kernel
from versatune_ds.mixture.files import no_such_file
from versatune_ds.mixture.reference import check_has_references
from versatune_ds.mixture.settings import target_id_of
from versatune_ds.mixture.weights import as_weights
from versatune_ds.model.attention_choice import check_attention_device
from versatune_ds.model.build import check_model_weights, config_from_mapping, config_without_download
from versatune_ds.model.four_bit import check_four_bit_installed
from versatune_ds.model.fused_layers import check_fused_layers
from versatune_ds.model.named_model import check_saved_model, exported_from
from versatune_ds.model.slice_checks import check_attention_slices, check_model_slices, check_row_slices
from versatune_ds.monitor.trackers import check_tracker_keys, check_tracker_packages
from versatune_ds.run_folder.config_changes import has_begun
from versatune_ds.run_folder.folder import check_run_folder
from versatune_ds.run_folder.folder_lock import FolderInUseError
from versatune_ds.run_folder.links import check_unlocked
from versatune_ds.text_table import counted
from versatune_ds.training.best import check_judged, judging_keys
from versatune_ds.training.finding import Check, Finding, Stage, fail, ok, warn
from versatune_ds.training.length.extension import continuation, extension_notice
from versatune_ds.training.prepared_data import cache_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartCheckInput:
    """Inputs of the start checks."""

    config: RunConfig
    stage: Stage
    """Where the checks run."""
    num_processes: int = 1
    device_type: str | None = None
    """cpu or cuda, where the model will run; None where this machine cannot know."""
    is_here: bool = False
    """Whether the processes run on this machine."""
    is_fresh: bool = False
    """Whether the run starts over."""
    gpus_asked_by: str | None = None
    """The option that asks for GPUs; None leaves it to the recipe's `slurm` section and the environment."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def ds_config(self) -> dict[str, Any]:
        """Return DeepSpeed's config.

        A batch that the processes cannot share equally has its own check. Here it, or their number, is replaced by one
        that fits, so that mistakes in the batch and in the settings are reported together.
        """
        train = self.config.train
        num_groups = max(self.num_processes // train.sequence_parallel, 1)
        world_size = num_groups * train.sequence_parallel
        num_at_once = rows_at_once(train, world_size=world_size)
        if train.rows_per_batch % num_at_once:
            train = train.model_copy(update={"rows_per_batch": num_at_once})
        return deepspeed_config(train, world_size=world_size)


def check_start(start: StartCheckInput) -> None:
    """Run the start checks of a stage in order, and log their warnings.

    Raises:
        ValueError: One line for each mistake of any of them.
    """
    lines: list[str] = []
    for check in START_CHECKS:
        if start.stage not in check.stages:
            continue
        try:
            for finding in check.find(start) or ():
                if finding.level == "FAIL":
                    lines.append(finding.text)
                elif finding.level == "warn":
                    logger.warning("%s: %s", finding.key, finding.text)
        except ValueError as error:
            lines += str(error).splitlines()
    if lines:
        raise ValueError("\n".join(dict.fromkeys(lines)))


def _check_started_once(start: StartCheckInput) -> None:
    """Check that srun did not start this command as several tasks, each of which would start a run of its own.

    In the shell of `srun --ntasks=4 --pty bash` it is typed once, whatever the number of tasks.

    Raises:
        ValueError: With the way to start it.
    """
    environ = start.environ
    num_tasks = environ.get("SLURM_STEP_NUM_TASKS", "")
    if is_slurm_task(environ) and num_tasks.isdigit() and int(num_tasks) > 1 and "SLURM_PTY_PORT" not in environ:
        raise ValueError(
            f"srun started this command {num_tasks} times (SLURM_STEP_NUM_TASKS), and each would start a run: type it "
            "without srun, or let srun start the processes: srun python launcher/train.py RECIPE; in a shell where it "
            "is typed once, unset SLURM_STEP_NUM_TASKS"
        )


def _check_batch(start: StartCheckInput) -> Iterator[Finding]:
    """Divide a batch among the processes."""
    train = start.config.train
    num_steps = num_micro_steps(train, world_size=start.num_processes)
    processes = counted(start.num_processes, "process", plural="processes")
    found = (
        f"{train.rows_per_batch} rows = {counted(num_steps, 'micro-step')} x {train.rows_per_micro_batch} rows x "
        f"{processes}, {train.rows_per_batch * start.config.data.row_tokens:,} tokens a step"
    )
    yield ok("batch", "train.rows_per_batch", found)


def _check_slices(start: StartCheckInput) -> Iterator[Finding]:
    """Check that rows, attention and, where its config lies here, the model can be computed in slices."""
    train, model = start.config.train, start.config.model
    num_slices = train.sequence_parallel
    if num_slices == 1:
        return
    check_row_slices(num_slices, row_tokens=start.config.data.row_tokens, is_compiled=model.compile)
    check_attention_slices(model.attention, num_slices=num_slices)
    if (config := config_without_download(model)) is not None:
        check_model_slices(config, num_slices=num_slices)
    num_tokens = start.config.data.row_tokens // num_slices
    yield ok("batch", "train.sequence_parallel", f"{num_slices} processes share a row, {num_tokens:,} tokens each")


def _check_deepspeed(start: StartCheckInput) -> Iterator[Finding]:
    """Check DeepSpeed's settings against the recipe, the model and, where it is known, the device."""
    config, settings = start.config, start.ds_config
    check_model_settings(config.model, settings)
    if config.model.load_in_4bit and start.is_here:
        check_four_bit_installed()
    if start.device_type is None:
        check_keys(settings)
    else:
        check_deepspeed_settings(config.train, settings, device_type=start.device_type)
        check_fused_layers(config.model, device_type=start.device_type)
        check_attention_device(config.model.attention, device_type=start.device_type)
    yield ok("deepspeed", "train.deepspeed", f"ZeRO stage {zero_stage(settings)}, {config.train.precision}")


def _check_kernel_variables(start: StartCheckInput) -> None:
    """Check the environment's variables that choose the loss kernels."""
    chosen_implementation(start.environ)
    chosen_kernel(start.environ)


def _check_model_keys(start: StartCheckInput) -> None:
    """Check that the model type knows the keys of `model.from_config`."""
    model = start.config.model
    if model.from_config is not None:
        config_from_mapping(model.from_config, vocab_size=model.tokenizer_vocab_size, special_ids={})


def _check_policy(start: StartCheckInput) -> None:
    """Check that a policy of the user's own can be imported, and that the target is a domain."""
    settings, data = start.config.mixture, start.config.data
    settings.check_for_rule(settings.rule)
    names = None if _is_made_by_another_job(start) else domain_names(data, cache_dir=cache_folder(start.config))
    if settings.has_target and names is not None:
        target_id_of(settings, DomainSet(names))


def _check_judges(start: StartCheckInput) -> None:
    """Check that held-out losses are measured where a run is judged by them, and that their domain exists."""
    config = start.config
    for key, metric in judging_keys(config).items():
        names = None if _is_made_by_another_job(start) else domain_names(config.data, cache_dir=cache_folder(config))
        check_judged(key, metric, domains=names, signal=config.mixture.signal)


def _check_tasks(start: StartCheckInput) -> None:
    """Check that questions can be asked while training, and that their files exist."""
    settings = start.config.validation.tasks
    if settings is None:
        return
    missing = [path for path in settings.choices if not path.exists()]
    if missing and not _is_made_by_another_job(start):
        raise ValueError(f"validation.tasks.choices: {missing[0]}: no such file or folder; expected DOMAIN.jsonl")


def _check_signal(start: StartCheckInput) -> Iterator[Finding]:
    """Check that a loss signal of the user's own can be imported; warn of references in another unit."""
    settings = start.config.mixture
    if settings.has_own_signal and settings.signal_function is not None and isinstance(settings.reference, Path):
        yield warn(
            "signal",
            "mixture.reference",
            f"{settings.reference} has held-out losses, and mixture.signal={settings.signal} numbers of its own",
            "give references in its unit, as a mapping or {start_fraction: 0.85}, unless it is that of the file",
        )


def _check_prior(start: StartCheckInput) -> None:
    """Check that the prior's file exists, or that its weights are weights."""
    prior = start.config.mixture.prior
    if isinstance(prior, Path) and not prior.is_file():
        raise ValueError(no_such_file(prior, what="mixture.prior"))
    if isinstance(prior, dict):
        as_weights(list(prior.values()), "mixture.prior")


def _check_reference(start: StartCheckInput) -> None:
    """Check that the policy has the references it needs, and that their file exists."""
    reference = start.config.mixture.reference
    check_has_references(start.config.mixture)
    if isinstance(reference, Path) and not reference.is_file():
        raise ValueError(no_such_file(reference, what="mixture.reference"))


def _check_folder(start: StartCheckInput) -> Iterator[Finding]:
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


def _check_owner(start: StartCheckInput) -> Iterator[Finding]:
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


def _check_saved_model(start: StartCheckInput) -> Iterator[Finding]:
    """Check that a saved model is there, and that its weights are those of its config."""
    if _is_made_by_another_job(start):
        return
    check_saved_model(start.config.model)
    if start.config.model.name_or_path and (run := exported_from(start.config.model.name_or_path)) is not None:
        yield ok("model", "model.name_or_path", f"the export of {run}; this is a new run, which starts at step 0")
    if check_model_weights(start.config.model):
        yield ok("model", "model.name_or_path", "names and shapes of its weights are those of its config")


def _check_data_files(start: StartCheckInput) -> None:
    if not _is_made_by_another_job(start):
        check_data_files(start.config.data, cache_dir=cache_folder(start.config))


def _is_made_by_another_job(start: StartCheckInput) -> bool:
    """Return whether model and data may be missing because the job before this one makes them."""
    return start.config.slurm.dependency is not None and start.stage != "reference"


def _check_wandb_key(start: StartCheckInput) -> None:
    """Check that W&B has a key where it is to be online, on the machine that will need it."""
    is_elsewhere = start.stage == "train" and not start.is_here
    if start.config.monitor.wandb.mode == "online" and not is_elsewhere:
        from versatune_ds.monitor.wandb_sink import check_has_key  # importing wandb takes half a second

        check_has_key()


def _check_trackers(start: StartCheckInput) -> None:
    """Check that the packages of the recipe's trackers are installed, and their keys there."""
    if start.stage == "train" and not start.is_here:
        return
    check_tracker_packages(start.config)
    check_tracker_keys(start.config)


def _check_gpus(start: StartCheckInput) -> Iterator[Finding]:
    """Check that torch can use the requested GPUs, and sees this machine's if the run takes place here."""
    slurm, environ = start.config.slurm, start.environ
    requested_by = asks_for_gpus(slurm, environ)
    if start.gpus_asked_by is not None and not slurm.has_own_torch:
        requested_by = start.gpus_asked_by
    try:
        if requested_by is not None:
            check_torch_for(requested_by, environ)
        if start.is_here and not slurm.has_own_torch:
            check_torch_sees_gpus(environ)
    except UnseenGpusError as error:
        yield fail("launcher", "torch", error.found, error.todo)


_TRAINING: frozenset[Stage] = frozenset({"check", "train", "submit", "reference"})
_MIXING: frozenset[Stage] = frozenset({"check", "train", "submit"})
"""Stages of a run with a mixture; the runs of `versatune reference` have one domain, and a folder each."""
_PROCESSES: frozenset[Stage] = frozenset({"every rank"})

START_CHECKS: tuple[Check[StartCheckInput], ...] = (
    Check(name="launcher", needs="nothing", stages=_TRAINING | {"detect"}, find=_check_started_once),
    Check(name="batch", needs="nothing", stages=_TRAINING | _PROCESSES, find=_check_batch),
    Check(name="batch", needs="nothing", stages=_TRAINING | _PROCESSES, find=_check_slices),
    Check(name="deepspeed", needs="nothing", stages=_TRAINING | _PROCESSES, find=_check_deepspeed),
    Check(name="kernels", needs="nothing", stages=_TRAINING | _PROCESSES, find=_check_kernel_variables),
    Check(name="policy", needs="files", stages=_MIXING, find=_check_policy),
    Check(name="files", needs="files", stages=_MIXING | _PROCESSES, find=_check_judges),
    Check(name="files", needs="files", stages=_MIXING | {"rank 0"}, find=_check_tasks),
    Check(name="signal", needs="files", stages=_MIXING, find=_check_signal),
    Check(name="prior", needs="files", stages=_MIXING | _PROCESSES, find=_check_prior),
    Check(name="reference", needs="files", stages=_MIXING | _PROCESSES, find=_check_reference),
    Check(name="files", needs="files", stages=_MIXING | {"rank 0"}, find=_check_folder),
    Check(name="files", needs="files", stages=_MIXING, find=_check_owner),  # a process takes the folder instead
    Check(name="wandb", needs="files", stages=frozenset({"check", "train", "rank 0"}), find=_check_wandb_key),
    Check(name="trackers", needs="files", stages=frozenset({"check", "train", "rank 0"}), find=_check_trackers),
    Check(name="model", needs="model config", stages=_TRAINING | _PROCESSES, find=_check_model_keys),
    # A process makes these two checks when it loads the model and prepares the data.
    Check(name="model", needs="files", stages=_TRAINING, find=_check_saved_model),
    Check(name="files", needs="files", stages=_TRAINING, find=_check_data_files),
    # The commands that start processes here have seen the GPUs when they count them (launch/start.py).
    Check(name="launcher", needs="GPU", stages=frozenset({"check", "submit"}), find=_check_gpus),
)
"""The start checks, in order. A submitted run's W&B key may be exported in its job (`slurm.setup`), so `submit` leaves
that one to the job; `detect` looks at the model where it fetches it (`knowledge/base_model.py`)."""
