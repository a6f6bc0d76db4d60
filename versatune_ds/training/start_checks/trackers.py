"""Start checks of the trackers that a run reports to: their packages and keys."""

from __future__ import annotations

from versatune_ds.monitor.trackers import check_tracker_keys, check_tracker_packages
from versatune_ds.training.start_checks.check_input import StartCheckInput


def check_wandb_key(start: StartCheckInput) -> None:
    """Check that W&B has a key where it is to be online, on the machine that will need it."""
    is_elsewhere = start.stage == "train" and not start.is_here
    if start.config.monitor.wandb.mode == "online" and not is_elsewhere:
        from versatune_ds.monitor.wandb_sink import check_has_key  # importing wandb takes half a second

        check_has_key()


def check_trackers(start: StartCheckInput) -> None:
    """Check that the packages of the recipe's trackers are installed, and their keys there."""
    if start.stage == "train" and not start.is_here:
        return
    check_tracker_packages(start.config)
    check_tracker_keys(start.config)
