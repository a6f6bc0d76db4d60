"""Fine-tune a language model on several domains at once, with a data mixture that moves while it trains.

The names in `__all__` are public (docs/python.md). Each is imported when it is first used: `import versatune_ds` itself
imports neither torch nor DeepSpeed.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from versatune_ds.config import RunConfig, load_config
    from versatune_ds.interface.checking import CheckResult, check
    from versatune_ds.interface.comparing import ComparisonResult, compare, export
    from versatune_ds.interface.evaluation import evaluate
    from versatune_ds.interface.measuring import DetectedPrior, ReferenceLosses, detect, reference
    from versatune_ds.interface.planning import Simulation, plan, prepare, simulate
    from versatune_ds.interface.run import Run, read_run
    from versatune_ds.interface.training import train
    from versatune_ds.mixture.decision import Decision
    from versatune_ds.mixture.own_signal import DomainLosses
    from versatune_ds.mixture.planning.plan_file import Plan
    from versatune_ds.mixture.policies import Policy, PolicySettings, Signals
    from versatune_ds.monitor.callbacks import StopTraining
    from versatune_ds.training.signal_context import SignalContext

__version__ = "0.1.0"

__all__ = [
    "CheckResult",
    "ComparisonResult",
    "Decision",
    "DetectedPrior",
    "DomainLosses",
    "Plan",
    "Policy",
    "PolicySettings",
    "ReferenceLosses",
    "Run",
    "RunConfig",
    "SignalContext",
    "Signals",
    "Simulation",
    "StopTraining",
    "check",
    "compare",
    "detect",
    "evaluate",
    "export",
    "load_config",
    "plan",
    "prepare",
    "read_run",
    "reference",
    "simulate",
    "train",
]

_HOMES = {
    "CheckResult": "interface.checking",
    "ComparisonResult": "interface.comparing",
    "Decision": "mixture.decision",
    "DetectedPrior": "interface.measuring",
    "DomainLosses": "mixture.own_signal",
    "Plan": "mixture.planning.plan_file",
    "Policy": "mixture.policies",
    "PolicySettings": "mixture.policies",
    "ReferenceLosses": "interface.measuring",
    "Run": "interface.run",
    "RunConfig": "config",
    "SignalContext": "training.signal_context",
    "Signals": "mixture.policies",
    "Simulation": "interface.planning",
    "StopTraining": "monitor.callbacks",
    "check": "interface.checking",
    "compare": "interface.comparing",
    "detect": "interface.measuring",
    "evaluate": "interface.evaluation",
    "export": "interface.comparing",
    "load_config": "config",
    "plan": "interface.planning",
    "prepare": "interface.planning",
    "read_run": "interface.run",
    "reference": "interface.measuring",
    "simulate": "interface.planning",
    "train": "interface.training",
}
"""Public name to the module that defines it; type checkers read the imports above instead."""


if not TYPE_CHECKING:  # type checkers would take any name for one of ours

    def __getattr__(name: str) -> Any:
        """Import a public name at its first use."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value


class _Package(ModuleType):
    """This package: a public name stays what it is where a room has the same one (`export`, `reference`).

    Importing a room sets an attribute of the package to it, which would replace the function. So `import
    versatune_ds.export.folder as f` is not possible; `from versatune_ds.export.folder import ...` is.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _HOMES):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    """List the public names, also those that were not imported yet."""
    return [*__all__, "__version__"]
