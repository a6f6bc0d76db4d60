"""Evaluate a model by domain, from Python."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from versatune_ds.interface.run import Run
from versatune_ds.log import shown_log


def evaluate(
    model: Run | str | Path,
    *,
    overrides: Sequence[str] = (),
    split: str | None = None,
    choices: Sequence[str | Path] = (),
    exact: int | None = None,
    against: str | Path | None = None,
    base: bool = True,
    step: int | None = None,
    processes: int = 1,
    sharded: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluate a model by domain: held-out loss, written answers, multiple choice, and what it forgot.

    Of a run, the result is also written as evaluation.json into its folder, which `Run.evaluation` reads.

    Args:
        model: A run, its folder, or the folder of a model that transformers loads.
        overrides: Texts `key=value` that change the recipe of the data, such as `["data.folder=my_data"]`.
        split: `valid` or `test`; by default `test` for the built-in corpus, else `valid`.
        choices: Files DOMAIN.jsonl of multiple-choice questions, or folders of them.
        exact: Answers to write and compare in each domain; by default 100 on the built-in corpus, else none.
        against: Run or model folder to compare with; by default the model that the run started from.
        base: Whether to compare with another model at all.
        step: Step of the checkpoint; by default the best one (`checkpoint.best`), or the newest valid one.
        processes: Processes that share the work.
        sharded: Whether the model's weights are divided over the processes (ZeRO-3), for one that no single GPU holds.
        quiet: Whether only warnings are shown.

    Returns:
        The content of evaluation.json: `model`, `split`, `precision`, `domains` (loss in nats per loss token, its
        standard error, shares of right answers), and with another model `base` and `retention`.

    Raises:
        ValueError: If a file, folder or option is missing or invalid, before a model is loaded.
    """
    from versatune_ds.evaluation.command import EvaluateOptions
    from versatune_ds.evaluation.command import evaluate as evaluate_model
    from versatune_ds.training.in_process import process_as_it_was

    if split not in (None, "valid", "test"):
        raise ValueError(f"split={split!r}: expected valid or test")
    options = EvaluateOptions(
        overrides=list(overrides),
        split=split,
        choice_paths=[Path(path).expanduser() for path in choices],
        num_exact=exact,
        against=None if against is None else Path(against).expanduser(),
        has_base=base,
        step=step,
        processes=processes,
        is_sharded=sharded,
    )
    folder = model.folder if isinstance(model, Run) else Path(model).expanduser()
    level = logging.WARNING if quiet else logging.INFO
    # DeepSpeed prints while it reads.
    with shown_log(level=level), process_as_it_was(), contextlib.redirect_stdout(sys.stderr):
        return evaluate_model(folder, options)
