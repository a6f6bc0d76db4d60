"""Fine-tune a language model on several domains at once, with a data mixture that moves while it trains.

The names in `__all__` are public (docs/python.md). Each is imported when it is first used: `import versatune_ds` itself
imports neither torch nor DeepSpeed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from versatune_ds.config import RunConfig, load_config
    from versatune_ds.interface.evaluation import evaluate
    from versatune_ds.interface.planning import Simulation, plan, prepare, simulate
    from versatune_ds.interface.run import Run, read_run
    from versatune_ds.interface.training import train
    from versatune_ds.mixture.decision import Decision
    from versatune_ds.mixture.planning.plan_file import Plan
    from versatune_ds.mixture.policies import Policy, PolicySettings, Signals

__version__ = "0.1.0"

__all__ = [
    "Decision",
    "Plan",
    "Policy",
    "PolicySettings",
    "Run",
    "RunConfig",
    "Signals",
    "Simulation",
    "evaluate",
    "load_config",
    "plan",
    "prepare",
    "read_run",
    "simulate",
    "train",
]

_HOMES = {
    "Decision": "mixture.decision",
    "Plan": "mixture.planning.plan_file",
    "Policy": "mixture.policies",
    "PolicySettings": "mixture.policies",
    "Run": "interface.run",
    "RunConfig": "config",
    "Signals": "mixture.policies",
    "Simulation": "interface.planning",
    "evaluate": "interface.evaluation",
    "load_config": "config",
    "plan": "interface.planning",
    "prepare": "interface.planning",
    "read_run": "interface.run",
    "simulate": "interface.planning",
    "train": "interface.training",
}
"""Public name to the module that defines it; type checkers read the imports above instead."""


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    """List the public names, also those that were not imported yet."""
    return [*__all__, "__version__"]
