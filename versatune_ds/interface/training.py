"""Train from Python: in this process, or in several that the launcher of the command line starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from versatune_ds.config import RunConfig
from versatune_ds.config.load import Recipe, load_config_with_policy
from versatune_ds.interface.processes import check_main_thread, raise_for, recipe_file
from versatune_ds.interface.run import Run, read_run
from versatune_ds.log import shown_log
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.own_signal import DomainLosses
from versatune_ds.mixture.policies import Policy
from versatune_ds.monitor.callbacks import Callbacks
from versatune_ds.own_code import is_importable

if TYPE_CHECKING:
    from versatune_ds.training.signal_context import SignalContext

Signal = Callable[["SignalContext"], DomainLosses | Mapping[str, float | None]]
"""A loss signal of the user's own (docs/extend.md)."""


def train(
    config: Recipe,
    *,
    overrides: Sequence[str] = (),
    policy: Policy | None = None,
    signal: Signal | None = None,
    on_step: Callable[[int], object] | None = None,
    on_metrics: Callable[[int, Mapping[str, float]], object] | None = None,
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
        signal: Function of a `SignalContext` that returns `DomainLosses` (or a mapping from domain to number): what
            decisions use as losses, in the place of `mixture.signal`. With several processes it must be importable, as
            a policy.
        on_step: Called after every optimizer step with its number, from 1. Like the other callbacks, what it returns is
            ignored, training waits for it, `StopTraining` raised in it ends the run after the current step, saved, and
            anything else ends it with that. With one process only.
        on_metrics: Called with the step and the metrics by name, after every `monitor.log_every` steps and after every
            measurement: losses in nats per loss token, times in seconds.
        on_decision: Called with every decision after it was recorded, the first before training.
        processes: Number of processes on this machine.
        fresh: Whether an existing folder of the run is deleted first.
        quiet: Whether only warnings are shown.

    Returns:
        What the run recorded, as `read_run` returns it; after StopTraining, up to the step it was stopped after.

    Raises:
        ValueError: For a mistake in the recipe, its files or its data: one line each, as the command line prints it.
        RuntimeError: If training fails; the last complete checkpoint is unchanged.
        KeyboardInterrupt: After Ctrl-C; steps that were taken are saved, and the same call resumes.
    """
    with shown_log(level=logging.WARNING if quiet else logging.INFO):
        resolved = load_config_with_policy(config, overrides, policy, signal)
        callbacks = Callbacks(on_step=on_step, on_metrics=on_metrics, on_decision=on_decision)
        if processes == 1:
            _train_here(resolved, callbacks=callbacks, is_fresh=fresh, is_quiet=quiet)
        else:
            _launch(resolved, callbacks=callbacks, processes=processes, is_fresh=fresh, is_quiet=quiet)
    return read_run(resolved.run_dir)


def _train_here(config: RunConfig, *, callbacks: Callbacks, is_fresh: bool, is_quiet: bool) -> None:
    """Train in this process."""
    from versatune_ds.evaluation.while_training import tasks_of
    from versatune_ds.export.run_export import export_into_run
    from versatune_ds.report.finish import show_summary
    from versatune_ds.training.in_process import train_in_process

    train_in_process(
        config,
        is_fresh=is_fresh,
        callbacks=callbacks,
        when_complete=(lambda run_dir: None) if is_quiet else show_summary,
        export_model=export_into_run,
        make_tasks=tasks_of,
    )


def _launch(
    config: RunConfig,
    *,
    callbacks: Callbacks,
    processes: int,
    is_fresh: bool,
    is_quiet: bool,
) -> None:
    """Train in several processes, each of which reads the recipe from a file and imports the policy and the signal.

    Raises:
        ValueError: If this process has something that the others cannot have, or for a mistake in the recipe.
    """
    # What other processes cannot have.
    if callbacks.given():
        raise ValueError(
            f"{', '.join(callbacks.given())}: with processes={processes} training is in other processes; leave it out, "
            "and look at read_run(...) while the run is in progress"
        )
    for what, given, name in (
        ("policy", config.mixture.given_rule, config.mixture.policy),
        ("signal", config.mixture.given_signal, config.mixture.signal),
    ):
        if given is not None and not is_importable(name):
            raise ValueError(
                f"{what}: {name.partition(':')[2]!r} is no variable of a module, so {processes} processes cannot "
                "import it; put it into a file and import it from there, or train with processes=1"
            )
    check_main_thread(processes)
    # Heavy imports come late, so that mistakes are found at once.
    from versatune_ds.launch.start import LaunchOptions, launch
    from versatune_ds.training.in_process import process_as_it_was

    options = LaunchOptions(processes=processes, is_fresh=is_fresh, is_quiet=is_quiet)
    with recipe_file(config) as recipe, process_as_it_was():
        exit_code = launch(recipe, (), options=options)
    raise_for(exit_code)
