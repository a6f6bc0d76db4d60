"""Options of `versatune reference`, and the start of its processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from versatune_ds.config import RunConfig
from versatune_ds.launch.start import launch_here, process_flags
from versatune_ds.model.named_model import check_is_no_adapter
from versatune_ds.paths import check_replaceable
from versatune_ds.reference.transfer_file import transfer_path
from versatune_ds.training.saved_model import load_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceTask:
    """Options of `versatune reference`.

    Attributes:
        domains: Domains to measure; None means all.
        scored_model: Folder or Hub name of a model to score; None fine-tunes the recipe's.
        output: Where reference.json goes, and transfer.json beside it; None puts it where `mixture.reference` looks, or
            beside the run's folder.
        is_fresh: Whether finished domains are measured again.
    """

    domains: tuple[str, ...] | None = None
    scored_model: str | None = None
    output: Path | None = None
    is_fresh: bool = False

    def flags(self) -> list[str]:
        """Return the command-line options that give a started process the same task."""
        values = {
            "--score": self.scored_model,
            "--domains": ",".join(self.domains) if self.domains else None,
            "--output": self.output,
        }
        return [f"{option}={value}" for option, value in values.items() if value is not None]


def launch_reference(
    recipe: Path, overrides: Sequence[str], *, processes: int | None, task: ReferenceTask, is_quiet: bool
) -> int:
    """Check the recipe, start the processes that measure its references, and return the launcher's exit code.

    Args:
        recipe: YAML file.
        overrides: `key=value` texts.
        processes: Number of processes; None means one per GPU, or 1 without a GPU.
        task: What to measure; the started processes get the same.
        is_quiet: Whether only warnings are shown.

    Raises:
        ValueError: If the recipe or the number of processes is wrong, before any process is started.
    """
    config = load_recipe(recipe, overrides)
    other_model(config, task)
    if config.reference.transfer and task.output is not None and task.scored_model is None:
        check_replaceable(transfer_path(task.output), mark='"domains"')
    fine_tuned = config.model_copy(update={"model": config.reference.model or config.model})
    flags = process_flags(is_fresh=task.is_fresh, is_quiet=is_quiet)
    words = [str(recipe), *overrides, *task.flags(), *flags]
    return launch_here(fine_tuned, stage="reference", processes=processes, script="reference.py", words=words)


def other_model(config: RunConfig, task: ReferenceTask) -> tuple[str, str] | None:
    """Return (key, name) of a saved model that is measured in the place of the recipe's; None for the recipe's own.

    Raises:
        ValueError: If it is adapters without a model.
    """
    key, name = "--score", task.scored_model
    if name is None and config.reference.model is not None:
        key, name = "reference.model", config.reference.model.name_or_path
    if not name:
        return None
    check_is_no_adapter(name, key=key)
    return key, name
