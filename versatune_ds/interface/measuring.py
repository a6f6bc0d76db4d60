"""Measure a base model before training, from Python: reference losses, and what the model knows of each domain."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from versatune_ds.config import RunConfig
from versatune_ds.config.load import Recipe, load_config
from versatune_ds.interface.processes import check_main_thread, raise_for, recipe_file
from versatune_ds.log import shown_log
from versatune_ds.paths import check_replaceable

if TYPE_CHECKING:
    import pandas as pd

    from versatune_ds.reference.command import ReferenceTask

_REFERENCE_COLUMNS = {
    "loss": "losses", "loss_stderr": "stderrs", "base_loss": "base_losses", "train_loss": "train_losses", "gap": "gaps",
    "best_step": "steps", "num_loss_tokens": "num_loss_tokens",
}  # fmt: skip
"""Column to its key in reference.json."""


@dataclass(frozen=True, slots=True)
class ReferenceLosses:
    """What `reference` measured. Losses are in nats per loss token, NaN where unknown."""

    path: Path
    """reference.json; `mixture.reference=PATH` uses it."""
    transfer_path: Path | None
    """transfer.json beside it, from which `plan` plans; None where there is none."""
    content: Mapping[str, Any]
    """The content of reference.json: losses, and how they were measured."""

    @property
    def domains(self) -> pd.DataFrame:
        """Return one row a domain (the index): `loss`, `loss_stderr`, `base_loss`, `train_loss`, `gap`, ...

        `gap` is the reference loss minus the training loss, `best_step` the optimizer step of the lowest loss.
        """
        import pandas as pd

        names = pd.Index(list(self.content["losses"]), name="domain")
        columns = {column: pd.Series(self.content.get(key) or {}, dtype="float64")
                   for column, key in _REFERENCE_COLUMNS.items()}  # fmt: skip
        return pd.DataFrame(columns).reindex(names)


@dataclass(frozen=True, slots=True)
class DetectedPrior:
    """What `detect` found: the share of each domain in what the base model writes or knows. Weights sum to 1."""

    path: Path
    """prior.json; `mixture.prior=PATH` uses it."""
    text: str
    """The tables that `versatune detect` prints."""
    content: Mapping[str, Any]
    """The content of prior.json: weights, intervals, and how they were found."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Return the weight of each domain, in the unit of the recipe's weights (`content["weight_unit"]`)."""
        return dict(self.content["weights"])

    @property
    def domains(self) -> pd.DataFrame:
        """Return one row a domain (the index): `weight`, and `low` and `high` of its 95 % interval."""
        import pandas as pd

        intervals = self.content["intervals"]
        rows = {name: (weight, *intervals[name]) for name, weight in self.content["weights"].items()}
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["weight", "low", "high"], dtype="float64")
        return frame.rename_axis("domain")


def reference(
    config: Recipe,
    *,
    overrides: Sequence[str] = (),
    domains: Sequence[str] | None = None,
    score: str | Path | None = None,
    output: str | Path | None = None,
    processes: int = 1,
    fresh: bool = False,
    quiet: bool = False,
) -> ReferenceLosses:
    """Measure each domain's reference loss: fine-tune the base model on the domain alone, or score a given model.

    One process trains in this Python process, as `train` does; several are started as `versatune reference` starts
    them. Ctrl-C ends it after the current step; what was measured is kept, and the same call continues.

    Args:
        config: Recipe as a YAML file, a nested mapping, or a `RunConfig`. Relative paths in it start at the working
            folder.
        overrides: Texts `key=value` with dotted keys, e.g. `["reference.steps=240"]`.
        domains: Domains to measure; the others keep their losses. By default all.
        score: Model folder or Hub name whose losses are used, without training.
        output: reference.json to write, transfer.json beside it; by default `mixture.reference` where it names a file,
            else NAME-reference.json in the folder of the runs.
        processes: Number of processes on this machine.
        fresh: Whether domains that are measured already are measured again.
        quiet: Whether only warnings are shown.

    Raises:
        ValueError: For a mistake in the recipe, its data or an argument, or while domains are still to be measured.
        RuntimeError: If the processes fail.
        KeyboardInterrupt: After Ctrl-C.
    """
    with shown_log(level=logging.WARNING if quiet else logging.INFO):
        resolved = load_config(config, overrides)
        # Heavy imports come late, so that mistakes are found at once.
        from versatune_ds.reference.command import ReferenceTask
        from versatune_ds.reference.transfer_file import transfer_path

        path = resolved.default_output("reference") if output is None else Path(output).expanduser()
        check_replaceable(path, mark='"losses"')
        task = ReferenceTask(
            domains=None if domains is None else tuple(domains),
            scored_model=None if score is None else str(score),
            output=None if output is None else path.absolute(),
            is_fresh=fresh,
        )
        if processes == 1:
            from versatune_ds.reference.in_process import reference_in_process

            reference_in_process(resolved, task=task)
        else:
            _launch_reference(resolved, task=task, processes=processes, is_quiet=quiet)
    if not path.is_file():
        raise ValueError(f"{path}: not written, since other domains are still to be measured; leave domains out")
    transfer = transfer_path(path)
    return ReferenceLosses(path, transfer if transfer.is_file() else None, _read(path))


def _launch_reference(config: RunConfig, *, task: ReferenceTask, processes: int, is_quiet: bool) -> None:
    """Measure in several processes, each of which reads the recipe from a file."""
    from versatune_ds.reference.command import launch_reference
    from versatune_ds.training.in_process import process_as_it_was

    check_main_thread(processes)
    with recipe_file(config) as recipe, process_as_it_was():
        exit_code = launch_reference(recipe, (), processes=processes, task=task, is_quiet=is_quiet)
    raise_for(exit_code, again="call it again to continue")


def detect(
    config: Recipe,
    *,
    overrides: Sequence[str] = (),
    labelled: str | Path | None = None,
    output: str | Path | None = None,
    processes: int | None = None,
    sharded: bool = False,
    quiet: bool = False,
) -> DetectedPrior:
    """Estimate the share of each domain in what the base model knows, and write it as prior.json with a chart.

    The model writes texts, which are labelled, or held-out rows are scored: keys under `detect`. What was drawn is
    kept, so an interrupted call continues.

    Args:
        config: Recipe as a YAML file, a nested mapping, or a `RunConfig`.
        overrides: Texts `key=value` with dotted keys, e.g. `["detect.num_sequences=2000"]`.
        labelled: JSON Lines of `text` and `domain` to measure the labeller on.
        output: prior.json to write; by default `mixture.prior` where it names a file, else NAME-prior.json in the
            folder of the runs.
        processes: Processes that generate; by default one per GPU, or 1 without a GPU.
        sharded: Whether the weights of the model, and of one that labels, are divided over the processes (ZeRO-3).
        quiet: Whether only warnings are shown.

    Raises:
        ValueError: For a mistake in the recipe, its model, data or labeller.
    """
    with shown_log(level=logging.WARNING if quiet else logging.INFO):
        resolved = load_config(config, overrides)
        from versatune_ds.knowledge.detect_recipe import detect_recipe
        from versatune_ds.training.in_process import process_as_it_was

        path = resolved.default_output("prior") if output is None else Path(output).expanduser()
        check_replaceable(path, mark='"weights"')
        # Libraries print while they load a model.
        with process_as_it_was(), contextlib.redirect_stdout(sys.stderr):
            text = detect_recipe(
                resolved,
                (),
                processes=processes,
                output=path,
                labelled=None if labelled is None else Path(labelled).expanduser(),
                is_sharded=sharded,
            )
    return DetectedPrior(path, text, _read(path))


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file that was just written."""
    return dict(json.loads(path.read_text(encoding="utf-8")))
