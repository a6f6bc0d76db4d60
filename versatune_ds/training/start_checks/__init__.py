"""Checks before a run's processes start: they take seconds each and read neither tokenizer nor rows.

Each check states its stages. `train`, `submit`, `reference` and `detect` run theirs before they start a process; every
process runs those of stage `every rank`, rank 0 also those of `rank 0` (`assemble.py`). `versatune check` runs all of
them, then the checks of `preflight/checks.py`, which need more. They are not part of `preflight/` because a process
of a run imports no layer above `training/`.
"""

from versatune_ds.training.start_checks.check_input import StartCheckInput
from versatune_ds.training.start_checks.checks import START_CHECKS, check_start

__all__ = ["START_CHECKS", "StartCheckInput", "check_start"]
