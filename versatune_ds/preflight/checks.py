"""The list of all checks, in the order in which `versatune check` makes and shows them.

The start checks come first (`training/start_checks.py`): other commands and the processes of a run make them too. What
follows reads rows, builds the model without its weights or asks programs and servers, and is made by `check` alone.
"""

from __future__ import annotations

from dataclasses import replace

from versatune_ds.preflight.disk import check_disk
from versatune_ds.preflight.files import check_files
from versatune_ds.preflight.machine import check_kernels, check_launcher, check_slurm
from versatune_ds.preflight.memory import check_memory, check_positions
from versatune_ds.preflight.mixture import check_mixture
from versatune_ds.preflight.rows import check_rows
from versatune_ds.preflight.subject import Subject
from versatune_ds.preflight.tokens import check_endings, check_template, check_tokenizer
from versatune_ds.preflight.tracking import check_tracking
from versatune_ds.training.finding import Check, Stage
from versatune_ds.training.start_checks import START_CHECKS, StartCheckInput

_CHECK: frozenset[Stage] = frozenset({"check"})


def _of_subject(check: Check[StartCheckInput]) -> Check[Subject]:
    """Return a start check as one of the recipe that `versatune check` looks at."""
    return replace(check, find=lambda subject: check.find(subject.start))  # type: ignore[return-value, arg-type]


CHECKS: tuple[Check[Subject], ...] = (
    *(_of_subject(check) for check in START_CHECKS if "check" in check.stages),
    Check(name="files", needs="files", stages=_CHECK, find=check_files),
    Check(name="tokenizer", needs="tokenizer", stages=_CHECK, find=check_tokenizer),
    Check(name="template", needs="tokenizer", stages=_CHECK, find=check_template),
    Check(name="rows", needs="rows", stages=_CHECK, find=check_rows),
    Check(name="endings", needs="rows", stages=_CHECK, find=check_endings),
    Check(name="mixture", needs="rows", stages=_CHECK, find=check_mixture),
    Check(name="model", needs="model config", stages=_CHECK, find=check_positions),
    Check(name="memory", needs="model config", stages=_CHECK, find=check_memory),
    Check(name="disk", needs="model config", stages=_CHECK, find=check_disk),
    Check(name="kernels", needs="GPU", stages=_CHECK, find=check_kernels),
    Check(name="launcher", needs="GPU", stages=_CHECK, find=check_launcher),
    Check(name="slurm", needs="Slurm", stages=_CHECK, find=check_slurm),
    Check(name="wandb", needs="network", stages=_CHECK, find=check_tracking),
)
