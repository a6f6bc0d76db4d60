"""Stand in for trackio and swanlab, which the tests do not install: modules with their calls, which record them.

`PARAMETERS` has the parameters of every call that the sinks make, as in trackio 0.43 and swanlab 0.10; where the
packages are installed, a test compares.
"""

from __future__ import annotations

import importlib.machinery
import inspect
import sys
import threading
from types import ModuleType
from typing import Any

PARAMETERS = {
    "trackio.init": "project name group space_id server_url dataset_id bucket_id config resume settings private embed "
    "auto_log_gpu gpu_log_interval auto_log_cpu cpu_log_interval webhook_url webhook_min_level",
    "trackio.Run.log": "metrics step",
    "trackio.Run.alert": "title text level step webhook_url",
    "trackio.Run.finish": "",
    "trackio.Markdown": "text",
    "swanlab.init": "reinit log_dir mode workspace project public name color description job_type group tags id resume "
    "parallel config settings callbacks kwargs",
    "swanlab.Run.log": "data step",
    "swanlab.Run.log_text": "key data caption step",
    "swanlab.Run.define_metric": "key x_axis section_name hidden step_sync overwrite kwargs",
    "swanlab.Run.finish": "state error async_log_timeout",
}
_ONLY_BY_NAME = ("swanlab.init", "swanlab.Run.log_text")


class StandIn(ModuleType):
    """A module whose calls are recorded as (name, values by parameter).

    Attributes:
        calls: The calls so far.
        threads: Names of the threads that they came from.
        fails_at: Name of a call that raises ConnectionError; None for none.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.threads: set[str] = set()
        self.fails_at: str | None = None

    def record(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Record a call; fail as Python does on a parameter that the real function lacks."""
        kind = inspect.Parameter.KEYWORD_ONLY if name in _ONLY_BY_NAME else inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = [parameter for parameter in PARAMETERS[name].split() if parameter != "kwargs"]
        signature = inspect.Signature([inspect.Parameter(parameter, kind) for parameter in names])
        self.threads.add(threading.current_thread().name)
        if name == self.fails_at:
            raise ConnectionError("unreachable")
        self.calls.append((name, signature.bind_partial(*args, **kwargs).arguments))

    def named(self, name: str) -> list[dict[str, Any]]:
        """Return the values of all calls of a name."""
        return [values for called, values in self.calls if called == name]


class _Run:
    """A run of either package."""

    def __init__(self, module: StandIn) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self._module.record(f"{self._module.__name__}.Run.{name}", *args, **kwargs)


def install(name: str, monkeypatch: Any) -> StandIn:
    """Put a stand-in of trackio or swanlab into the place of the package, for one test."""
    module = StandIn(name)

    def init(*args: Any, **kwargs: Any) -> _Run:
        module.record(f"{name}.init", *args, **kwargs)
        return _Run(module)

    module.init = init
    module.Settings = lambda **values: values
    module.Markdown = lambda text: ("markdown", text)
    monkeypatch.setitem(sys.modules, name, module)
    return module
