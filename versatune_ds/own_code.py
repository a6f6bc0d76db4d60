"""Find a user's own code by the name that a recipe has for it, `my_module:my_object`, and the name of a given value.

Reading a recipe executes no code: names are checked for their form there, and imported where the object is used.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

MAIN_MODULE = "__main__"
"""The module of a script or a notebook, which only its own process has."""


def is_own(name: str) -> bool:
    """Return whether a name is that of a user's own code, `module:attribute`, rather than a built-in one."""
    return ":" in name


def check_own_name(name: str, *, key: str, expected: str) -> None:
    """Raise ValueError unless a name has the form `module:attribute`.

    Args:
        name: The name.
        key: The recipe's key that has it.
        expected: What the key may be, for the message.
    """
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        raise ValueError(f"{key}: {name[:60]!r}: expected {expected} for your own")


def is_importable(name: str) -> bool:
    """Return whether another process can find an object by this name."""
    return not name.startswith(f"{MAIN_MODULE}:")


def import_module_of(name: str, *, key: str) -> tuple[ModuleType, str]:
    """Return the module of a `module:attribute`, imported, and the attribute's name.

    The working folder is searched too.

    Raises:
        ValueError: If the module cannot be imported; the message begins with the recipe's key.
    """
    module_name, _, attribute = name.partition(":")
    _search_working_folder()
    try:
        return importlib.import_module(module_name), attribute
    except Exception as error:  # whatever a user's module raises while it is imported
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise ValueError(
            f"{key}: {name}: cannot import {module_name!r} ({type(error).__name__}: {reason}); "
            "expected module:attribute, the module in the working folder or on PYTHONPATH"
        ) from error


def import_function(name: str, *, key: str) -> Callable[..., Any]:
    """Return a user's function, given as `module:attribute`.

    Raises:
        ValueError: If the module cannot be imported, or has no such function; the message begins with the recipe's key.
    """
    module, attribute = import_module_of(name, key=key)
    found = getattr(module, attribute, None)
    if callable(found):
        return found
    if not is_importable(name):
        raise ValueError(
            f"{key}: {name}: it was given as a value in a Python session; put it into a file, and set "
            f"{key}=my_module:{attribute}"
        )
    wrong = "there is none" if found is None else f"it is a {type(found).__name__}"
    place = getattr(module, "__file__", None) or module.__name__
    raise ValueError(f"{key}: {name}: expected a function {attribute!r} in {short_path(place)}; {wrong}")


def place_of(function: Callable[..., Any]) -> str:
    """Return file and line of a function, or the name of its module where it has none."""
    code = getattr(inspect.unwrap(function), "__code__", None) or getattr(type(function).__call__, "__code__", None)
    if code is None:
        return str(getattr(function, "__module__", None) or "no file")
    return f"{short_path(code.co_filename)}:{code.co_firstlineno}"


def short_path(path: str) -> str:
    """Return a path as seen from the working folder, where it is inside."""
    folder = Path(os.getcwd())
    return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) else path


def name_of_value(value: Any, *, module: str | None, fallback: str) -> str:
    """Return the `module:attribute` under which a value is found.

    One that no module has (made in a function or, as `__main__`, in a script or a notebook) is `__main__:FALLBACK`,
    which no other process can import.

    Args:
        value: The object.
        module: Name of the module to look into first.
        fallback: What to call it where no module has it; made a valid name.
    """
    its_own = sys.modules.get(module or "")
    modules = [found for found in (its_own, *sys.modules.values()) if isinstance(found, ModuleType)]
    for found in sorted(modules, key=lambda found: found.__name__ == MAIN_MODULE):  # __main__ last, else as it was
        for attribute, other in list(vars(found).items()):
            if other is value:
                return f"{found.__name__}:{attribute}"
    attribute = re.sub(r"^(?=\d)|\W", "_", fallback)
    return f"{MAIN_MODULE}:{attribute}"


def names_in(module: ModuleType, *, are: type | tuple[type, ...]) -> Iterable[str]:
    """Return the names of a module's values of some types."""
    return [name for name, value in vars(module).items() if isinstance(value, are)]


def _search_working_folder() -> None:
    """Add the working folder to where modules are searched, as `python -m` does; installed commands do not."""
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)
