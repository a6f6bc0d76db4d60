"""Train from Python: in this process, or in several that the launcher of the command line starts."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from versatune_ds.config import RunConfig
from versatune_ds.config.load import Recipe, load_config_with_policy, recipe_values
from versatune_ds.exit_codes import INTERRUPTED_EXIT_CODE, REQUEUE_EXIT_CODE, USER_ERROR_EXIT_CODE
from versatune_ds.interface.run import Run, read_run
from versatune_ds.log import shown_log
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.policies import Policy
from versatune_ds.own_code import is_importable


def train(
    config: Recipe,
    *,
    overrides: Sequence[str] = (),
    policy: Policy | None = None,
    on_decision: Callable[[Decision], object] | None = None,
    processes: int = 1,
    fresh: bool = False,
    quiet: bool = False,
) -> Run:
    """Train a model on several domains, or resume the run if its folder exists, and return the run.

    One process trains in this Python process and leaves it as it was: signal handlers, logging, environment,
    generators, default dtype. Several are started by the launcher that `versatune train` uses. Log lines go to stderr
    unless the program has set up logging itself. Ctrl-C, or a notebook's stop button, saves the run and stops it.

    Args:
        config: Recipe as a YAML file, a nested mapping, or a `RunConfig`. Relative paths in it start at the working
            folder.
        overrides: Texts `key=value` with dotted keys, e.g. `["train.steps=50"]`, applied in order.
        policy: Rule that decides the weights, in the place of `mixture.policy`. With several processes it must be
            importable: a variable of a module, not of a notebook or script.
        on_decision: Called with every decision after it was recorded, the first before training. What it raises ends
            the run. With one process only.
        processes: Number of processes on this machine.
        fresh: Whether an existing folder of the run is deleted first.
        quiet: Whether only warnings are shown.

    Returns:
        What the run recorded, as `read_run` returns it.

    Raises:
        ValueError: For a mistake in the recipe, its files or its data: one line each, as the command line prints it.
        RuntimeError: If training fails; the last complete checkpoint is unchanged.
        KeyboardInterrupt: After Ctrl-C; steps that were taken are saved, and the same call resumes.
    """
    with shown_log(level=logging.WARNING if quiet else logging.INFO):
        resolved = load_config_with_policy(config, overrides, policy)
        if processes == 1:
            _train_here(resolved, on_decision=on_decision, is_fresh=fresh, is_quiet=quiet)
        else:
            _launch(resolved, on_decision=on_decision, processes=processes, is_fresh=fresh, is_quiet=quiet)
    return read_run(resolved.run_dir)


def _train_here(
    config: RunConfig, *, on_decision: Callable[[Decision], object] | None, is_fresh: bool, is_quiet: bool
) -> None:
    """Train in this process."""
    from versatune_ds.evaluation.while_training import tasks_of
    from versatune_ds.export.run_export import export_into_run
    from versatune_ds.monitor.sinks import DecisionCallback
    from versatune_ds.report.finish import show_summary
    from versatune_ds.training.in_process import train_in_process

    train_in_process(
        config,
        is_fresh=is_fresh,
        sinks=() if on_decision is None else (DecisionCallback(on_decision),),
        when_complete=(lambda run_dir: None) if is_quiet else show_summary,
        export_model=export_into_run,
        make_tasks=tasks_of,
    )


def _launch(
    config: RunConfig,
    *,
    on_decision: Callable[[Decision], object] | None,
    processes: int,
    is_fresh: bool,
    is_quiet: bool,
) -> None:
    """Train in several processes, each of which reads the recipe from a file and imports the policy.

    Raises:
        ValueError: If this process has something that the others cannot have, or for a mistake in the recipe.
    """
    # What other processes cannot have.
    if on_decision is not None:
        raise ValueError(
            f"on_decision: with processes={processes} decisions are made in another process; leave it out, and look at "
            "read_run(...).decisions while the run is in progress"
        )
    if config.mixture.given_rule is not None and not is_importable(config.mixture.policy):
        raise ValueError(
            f"policy: {config.mixture.given_rule.name!r} is no variable of a module, so {processes} processes cannot "
            "import it; put it into a file and import it from there, or train with processes=1"
        )
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(f"processes={processes}: expected the main thread, which gets the signals for them")
    # Heavy imports come late, so that mistakes are found at once.
    from versatune_ds.launch.start import LaunchOptions, launch
    from versatune_ds.training.in_process import process_as_it_was

    options = LaunchOptions(processes=processes, is_fresh=is_fresh, is_quiet=is_quiet)
    with tempfile.TemporaryDirectory(prefix="versatune_train_") as folder, process_as_it_was():
        recipe = Path(folder) / f"{config.run.name}.yaml"
        recipe.write_text(yaml.safe_dump(recipe_values(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
        _raise_for(launch(recipe, (), options=options))


def _raise_for(exit_code: int) -> None:
    """Raise what an exit code of the launcher means; nothing for 0. The processes have logged the reason."""
    if exit_code in (REQUEUE_EXIT_CODE, INTERRUPTED_EXIT_CODE):
        raise KeyboardInterrupt("stopped by a signal, state saved; train again to resume")
    if exit_code == USER_ERROR_EXIT_CODE:
        raise ValueError("the processes of the run found a mistake in the recipe or its data; their log says which")
    if exit_code:
        raise RuntimeError(f"the processes of the run ended with exit code {exit_code}; their log says why")
