"""The list of the start checks, in order, and how a stage makes its own."""

from __future__ import annotations

import logging

from versatune_ds.training.finding import Check, Stage
from versatune_ds.training.start_checks.check_input import StartCheckInput
from versatune_ds.training.start_checks.files import (
    check_data,
    check_folder,
    check_model,
    check_model_keys,
    check_owner,
)
from versatune_ds.training.start_checks.mixture import (
    check_judges,
    check_policy,
    check_prior,
    check_reference,
    check_signal,
    check_tasks,
)
from versatune_ds.training.start_checks.processes import (
    check_batch,
    check_deepspeed,
    check_gpus,
    check_kernel_variables,
    check_silence_variable,
    check_slices,
    check_started_once,
)
from versatune_ds.training.start_checks.trackers import check_trackers, check_wandb_key

logger = logging.getLogger(__name__)

_TRAINING: frozenset[Stage] = frozenset({"check", "train", "submit", "reference"})
_MIXING: frozenset[Stage] = frozenset({"check", "train", "submit"})
"""Stages of a run with a mixture; the runs of `versatune reference` have one domain, and a folder each."""
_PROCESSES: frozenset[Stage] = frozenset({"every rank"})

START_CHECKS: tuple[Check[StartCheckInput], ...] = (
    Check(name="launcher", needs="nothing", stages=_TRAINING | {"detect"}, find=check_started_once),
    Check(name="batch", needs="nothing", stages=_TRAINING | _PROCESSES, find=check_batch),
    Check(name="batch", needs="nothing", stages=_TRAINING | _PROCESSES, find=check_slices),
    Check(name="deepspeed", needs="nothing", stages=_TRAINING | _PROCESSES, find=check_deepspeed),
    Check(name="kernels", needs="nothing", stages=_TRAINING | _PROCESSES, find=check_kernel_variables),
    Check(name="launcher", needs="nothing", stages=_TRAINING, find=check_silence_variable),  # a process reads it first
    Check(name="policy", needs="files", stages=_MIXING, find=check_policy),
    Check(name="files", needs="files", stages=_MIXING | _PROCESSES, find=check_judges),
    Check(name="files", needs="files", stages=_MIXING | {"rank 0"}, find=check_tasks),
    Check(name="signal", needs="files", stages=_MIXING, find=check_signal),
    Check(name="prior", needs="files", stages=_MIXING | _PROCESSES, find=check_prior),
    Check(name="reference", needs="files", stages=_MIXING | _PROCESSES, find=check_reference),
    Check(name="files", needs="files", stages=_MIXING | {"rank 0"}, find=check_folder),
    Check(name="files", needs="files", stages=_MIXING, find=check_owner),  # a process takes the folder instead
    Check(name="wandb", needs="files", stages=frozenset({"check", "train", "rank 0"}), find=check_wandb_key),
    Check(name="trackers", needs="files", stages=frozenset({"check", "train", "rank 0"}), find=check_trackers),
    Check(name="model", needs="model config", stages=_TRAINING | _PROCESSES, find=check_model_keys),
    # A process makes these two checks when it loads the model and prepares the data.
    Check(name="model", needs="files", stages=_TRAINING, find=check_model),
    Check(name="files", needs="files", stages=_TRAINING, find=check_data),
    # The commands that start processes here have seen the GPUs when they count them (launch/start.py).
    Check(name="launcher", needs="GPU", stages=frozenset({"check", "submit"}), find=check_gpus),
)
"""The start checks, in order. A submitted run's W&B key may be exported in its job (`slurm.setup`), so `submit` leaves
that one to the job; `detect` looks at the model where it fetches it (`knowledge/base_model.py`)."""


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
