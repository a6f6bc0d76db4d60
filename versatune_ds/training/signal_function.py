"""Call a loss signal of the user's own (`mixture/own_signal.py`): what it is given, and where it failed.

It is called on every rank after the held-out losses were measured, with the same weights everywhere, because under
ZeRO-3 a forward pass needs all ranks. What it returns counts on rank 0 alone; the decision carries it to the others.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from versatune_ds.config import RunConfig
from versatune_ds.domains import DomainSet
from versatune_ds.engine.engine import Engine
from versatune_ds.log import first_line
from versatune_ds.mixture.own_signal import KEY, DomainLosses, OwnLosses, checked_losses
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.model.attention import dense_attention
from versatune_ds.own_code import place_of, short_path
from versatune_ds.training.signal_context import SignalContext

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnSignal:
    """A run's signal: its function, its name in the recipe, and what never changes of its context."""

    name: str
    function: Callable[[SignalContext], Any]
    domain_set: DomainSet
    num_steps: int
    tokenizer: Any

    def call(self, engine: Engine, held_out: ExampleLosses, *, step: int) -> Any:
        """Return what the function returns on this rank, unchecked.

        Communication: the function's own.

        Raises:
            ValueError: If it fails, with the line where. Failures of the machine (RuntimeError, OSError) stay what they
                are, and the log says where.
        """
        causal_lm = engine.deepspeed_engine.module.causal_lm
        context = SignalContext(
            step=step,
            num_steps=self.num_steps,
            domain_names=self.domain_set.names,
            held_out=_as_domain_losses(held_out, domain_set=self.domain_set),
            model=causal_lm,
            tokenizer=self.tokenizer,
            device=engine.device,
            rank=engine.world.rank,
            world_size=engine.world.world_size,
        )
        engine.deepspeed_engine.eval()
        try:
            with torch.no_grad(), dense_attention(causal_lm):
                return self.function(context)
        except (RuntimeError, OSError) as error:
            # Logged and not added as a note to the error: add_note came with Python 3.11.
            logger.error("%s: %s failed after step %d, at %s", KEY, self.name, step, _failed_at(error, self.function))
            raise
        except Exception as error:
            where = _failed_at(error, self.function)
            raise ValueError(
                f"{KEY}: {self.name} ({where}) raised {type(error).__name__} after step {step}: {first_line(error)}"
            ) from error

    def checked(self, returned: Any) -> OwnLosses:
        """Return what the function returned as vectors.

        Raises:
            ValueError: If it is not one finite number a domain.
        """
        return checked_losses(returned, name=self.name, where=place_of(self.function), domain_set=self.domain_set)


def own_signal_of(config: RunConfig, *, domain_set: DomainSet, tokenizer: Any) -> OwnSignal | None:
    """Return the signal of a recipe; None for the built-in ones.

    Raises:
        ValueError: If it cannot be imported.
    """
    function = config.mixture.signal_function
    if function is None:
        return None
    return OwnSignal(
        name=config.mixture.signal,
        function=function,
        domain_set=domain_set,
        num_steps=config.train.steps,
        tokenizer=tokenizer,
    )


def _as_domain_losses(losses: ExampleLosses, *, domain_set: DomainSet) -> DomainLosses:
    """Return held-out losses by name."""

    def by_name(values_K: np.ndarray) -> dict[str, float | None]:
        return {name: float(v) if np.isfinite(v) else None for name, v in zip(domain_set, values_K, strict=True)}

    return DomainLosses(mean=by_name(losses.mean()), stderr=by_name(losses.standard_error()))


def _failed_at(error: BaseException, function: Callable[..., Any]) -> str:
    """Return file and line where an error came from: of the deepest call within the function's own file."""
    file = place_of(function).rpartition(":")[0]
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if short_path(frame.filename) == file]
    return f"{file}:{lines[-1]}" if lines else place_of(function)
