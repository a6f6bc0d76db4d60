"""Compare policies over several seeds, and export a model, from Python."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from versatune_ds.interface.run import Run
from versatune_ds.log import shown_log
from versatune_ds.run_folder.names import EXPORT_FOLDER

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """What a comparison measured so far. Losses are in nats per loss token, shares between 0 and 1."""

    folder: Path
    """The comparison's folder; its runs are under runs/."""
    page: Path | None
    """The page of the results; None where the time was over before there was anything to compare."""
    _runs: tuple[Mapping[str, Any], ...]
    _domains: tuple[Mapping[str, Any], ...]

    @property
    def runs(self) -> pd.DataFrame:
        """Return one row a run that is done: `run`, `target`, `seed`, then its numbers on the test rows.

        `loss` is the plain mean over domains; `worst`, `target_fall` and `others` are falls of the loss since the base
        model as a share of it (negative: forgotten); `exact` and `choices` are shares of right answers.
        """
        import pandas as pd

        return pd.DataFrame([dict(row) for row in self._runs])

    @property
    def domains(self) -> pd.DataFrame:
        """Return one row a run and domain: `run`, `target`, `seed`, `domain`, `loss`, `base_loss`."""
        import pandas as pd

        return pd.DataFrame([dict(row) for row in self._domains])


def compare(
    comparison: str | Path,
    *,
    overrides: Sequence[str] = (),
    jobs: int | None = None,
    budget_seconds: float | None = None,
    quiet: bool = False,
) -> ComparisonResult:
    """Train and evaluate several policies on one base model, over several seeds, and write a page of the results.

    Finished stages and runs are kept: the same call continues, and once all are done it only reads them.

    Args:
        comparison: The comparison's YAML file, as those in recipes/compare/.
        overrides: Texts `key=value` that change its keys, e.g. `["seeds=[1,2]", "set.train.steps=50"]`.
        jobs: Runs at a time; by default one per GPU, else one per CPU core.
        budget_seconds: Seconds after which it ends with what is done; by default there is no limit.
        quiet: Whether only warnings are shown.

    Raises:
        ValueError: For a mistake in the file or a recipe that it names, before anything is trained.
        RuntimeError: If a stage or a run fails.
    """
    began = time.monotonic()  # the imports are part of the time budget
    path = Path(comparison).expanduser()
    with shown_log(level=logging.WARNING if quiet else logging.INFO):
        from versatune_ds.comparison.compare import CompareOptions
        from versatune_ds.comparison.compare import compare as run_comparison
        from versatune_ds.comparison.comparison_file import read_plan
        from versatune_ds.comparison.recorded_outcomes import domain_rows, run_rows
        from versatune_ds.training.in_process import process_as_it_was

        options = CompareOptions(num_jobs=jobs, budget_seconds=budget_seconds, began=began)
        with process_as_it_was(), contextlib.redirect_stdout(sys.stderr):
            page = run_comparison(path, overrides, options)
        plan = read_plan(path, overrides)
        return ComparisonResult(plan.folder, page, tuple(run_rows(plan)), tuple(domain_rows(plan)))


def export(
    run: Run | str | Path,
    *,
    output: str | Path | None = None,
    step: int | None = None,
    precision: Literal["fp32", "bf16", "fp16"] | None = None,
    lora: Literal["merged", "adapter"] = "merged",
    max_shard_size: str = "5GB",
    force: bool = False,
    quiet: bool = False,
) -> Path:
    """Export a run's model as a folder that transformers loads, with tokenizer, chat template and model card.

    Args:
        run: A run, or its folder.
        output: Folder to write; by default export/ in the run's folder.
        step: Step of the checkpoint; by default the best one where the run has `checkpoint.best`, else the newest
            valid one.
        precision: Number format of the written weights; by default the run's.
        lora: Adapters of `model.lora`: `merged` into the weights, or `adapter`, exported alone.
        max_shard_size: Largest size of a weights file, such as 500MB.
        force: Whether files of other origin in the folder may be overwritten.
        quiet: Whether only warnings are shown.

    Returns:
        The folder.

    Raises:
        ValueError: If the folder is no run's or has no such checkpoint, or the output contains something else.
        RuntimeError: If no checkpoint is valid.
    """
    from versatune_ds.export.run_export import export_run
    from versatune_ds.run_folder.folder_lock import lock_folder
    from versatune_ds.training.in_process import process_as_it_was

    if precision not in (None, "fp32", "bf16", "fp16"):
        raise ValueError(f"precision={precision!r}: expected fp32, bf16 or fp16")
    if lora not in ("merged", "adapter"):
        raise ValueError(f"lora={lora!r}: expected merged or adapter")
    run_dir = run.folder if isinstance(run, Run) else Path(run).expanduser()
    folder = run_dir / EXPORT_FOLDER if output is None else Path(output).expanduser()
    # DeepSpeed prints while it reads.
    with (
        shown_log(level=logging.WARNING if quiet else logging.INFO),
        lock_folder(folder, way_out="give another output"),
        process_as_it_was(),
        contextlib.redirect_stdout(sys.stderr),
    ):
        return export_run(
            run_dir,
            output=folder,
            precision=precision,
            step=step,
            lora=lora,
            max_shard_size=max_shard_size,
            is_forced=force,
        )
