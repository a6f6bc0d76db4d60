"""Call the command line in this process, capture its output, and leave the logger unchanged."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from versatune_ds.cli import main
from versatune_ds.config import RunConfig


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a call."""

    code: int
    out: str
    err: str


@contextmanager
def restored_logger() -> Iterator[None]:
    """Restore the package's logger after `main`, so that later tests can read its records."""
    logger = logging.getLogger("versatune_ds")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    try:
        yield
    finally:
        logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate


def command_of(capsys) -> Callable[..., CommandResult]:
    """Return a function that runs `versatune ARGUMENTS` in this process."""

    def versatune(*arguments: str | Path) -> CommandResult:
        capsys.readouterr()
        with restored_logger():
            try:
                code = main([str(argument) for argument in arguments])
            except SystemExit as system_exit:  # raised by argparse
                code = system_exit.code
        return CommandResult(code, *capsys.readouterr())

    return versatune


def write_recipe(config: RunConfig, path: Path) -> Path:
    """Write a config as a recipe."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    return path
