"""Write what `import versatune_ds` offers as text: names, signatures, fields (tests/interface/public_names.txt).

After a change that is meant:
python tests/helpers/public_names.py > tests/interface/public_names.txt
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import versatune_ds

_KEYS_ELSEWHERE = ("RunConfig",)
"""Types whose fields are the keys of a recipe (docs/keys.md)."""


def public_names() -> str:
    """Return one line a name, argument, field, property or method, sorted by name."""
    lines: list[str] = []
    for name in sorted(versatune_ds.__all__):
        value = getattr(versatune_ds, name)
        if inspect.isclass(value):
            lines += [f"class {name}", *_members(name, value)]
        else:
            lines += [f"def {name} -> {_text(inspect.signature(value).return_annotation)}", *_arguments(value)]
    return "\n".join(lines) + "\n"


def _arguments(function: Any) -> Iterator[str]:
    """Yield one line an argument: annotation, and the default where it is a plain value."""
    for argument in inspect.signature(function).parameters.values():
        if argument.name in ("self", "cls"):
            continue
        star = "*, " if argument.kind is argument.KEYWORD_ONLY else ""
        default = "" if argument.default is argument.empty else f" = {argument.default!r}"
        yield f"    {star}{argument.name}: {_text(argument.annotation)}{default}"


def _members(name: str, kind: type) -> Iterator[str]:
    """Yield the public fields, properties and methods of a class."""
    if name in _KEYS_ELSEWHERE:
        return
    own = {item.name: item for item in fields(kind)} if is_dataclass(kind) else {}
    for item in own.values():
        if not item.name.startswith("_"):
            yield f"    field {item.name}: {_text(item.type)}"
    for member, value in sorted(vars(kind).items()):
        if member.startswith("_") or member in own:
            continue
        if isinstance(value, property):
            yield f"    property {member}: {_text(inspect.signature(value.fget).return_annotation)}"
        elif callable(value) or isinstance(value, classmethod):
            function = value.__func__ if isinstance(value, classmethod) else value
            yield f"    method {member} -> {_text(inspect.signature(function).return_annotation)}"
            yield from (f"    {line}" for line in _arguments(function))


def _text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


if __name__ == "__main__":
    print(public_names(), end="")
