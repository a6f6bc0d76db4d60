"""The command line, called in this process, with what it wrote and the logger left as it was."""

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
class Called:
    """What a call returned and wrote."""

    code: int
    out: str
    err: str


@contextmanager
def logger_kept() -> Iterator[None]:
    """Undo what `main` does to the package's logger, so that later tests can read its records."""
    logger = logging.getLogger("versatune_ds")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    try:
        yield
    finally:
        logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate


def command_of(capsys) -> Callable[..., Called]:
    """Return a function that runs `versatune ARGUMENTS` in this process."""

    def versatune(*arguments: str | Path) -> Called:
        capsys.readouterr()
        with logger_kept():
            try:
                code = main([str(argument) for argument in arguments])
            except SystemExit as left:  # argparse leaves by itself
                code = left.code
        return Called(code, *capsys.readouterr())

    return versatune


def write_recipe(config: RunConfig, path: Path) -> Path:
    """Write a config as a recipe."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    return path
