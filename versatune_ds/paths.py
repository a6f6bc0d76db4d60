"""Find the project's own files, expand `~` and variables in a user's paths, and protect files of other kinds.

A variable that is set is always replaced. One that is not set is an error, because nobody means a folder named
`$SCRATCH` in the working folder; only a path that exists exactly as written is used as written.
"""

from __future__ import annotations

import difflib
import os
import re
import site
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

_SIMILAR = 0.6
"""Similarity of two names without their endings, at least, for one to be a misspelling of the other."""
_BEGINNING_BYTES = 1 << 16
_VARIABLE = re.compile(r"\$(?:\{([^{}]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
"""`${NAME}` or `$NAME`: one of the two groups is the name, the other is empty."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def _project_dir() -> Path:
    """Return the folder that has launcher/, slurm/, ds_configs/ and recipes/.

    It is the checkout, or where a wheel of the package puts them: share/versatune_ds of the environment.
    """
    checkout = Path(__file__).resolve().parents[1]
    shares = (Path(root) / "share" / "versatune_ds" for root in (sysconfig.get_path("data"), site.getuserbase()))
    places = (checkout, *shares)
    return next((place for place in places if (place / "launcher" / "train.py").is_file()), checkout)


PROJECT_DIR = _project_dir()
"""Folder of the files that come with the package: launcher/, slurm/, ds_configs/, recipes/."""


def expand_path(text: str, *, environ: Mapping[str, str] | None = None) -> str:
    """Return a path with a leading `~` or `~user`, and `$NAME` and `${NAME}`, replaced.

    Args:
        text: The path as written; names without `~` and `$`, such as `owner/name` of the Hub, stay as they are.
        environ: Where variables are looked up; this process's environment by default.

    Raises:
        ValueError: If a variable is not set or there is no such user, and no such path exists as written.
    """
    text = os.fspath(text)
    environ = os.environ if environ is None else environ
    missing = [name for match in _VARIABLE.findall(text) if (name := "".join(match)) not in environ]
    if missing and os.path.lexists(text):
        return text
    if missing:
        raise ValueError(f"${missing[0] or '{}'} is not set in the environment; export it, or write the path out")
    expanded = _VARIABLE.sub(lambda match: environ[match[1] or match[2]], text)
    if not text.startswith("~"):
        return expanded
    home = os.path.expanduser(expanded)
    if home == expanded and not os.path.lexists(text):
        user = expanded.partition("/")[0].removeprefix("~")
        raise ValueError(f"no user {user!r} on this machine; write the path out, or ./{text} for a file of that name")
    return home


def is_address(text: object) -> bool:
    """Return whether a text is an address such as `s3://bucket/law.jsonl`, not a path of this machine."""
    return isinstance(text, str) and _ADDRESS.match(text) is not None


def nearest_path(path: Path) -> Path | None:
    """Return the existing path nearest to a misspelt one: the first part that is missing, replaced by a similar name.

    Example: of data/trian/law.jsonl, where data/train/law.jsonl exists, it is that file; None where no name is similar.
    """
    found = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        if not (found / part).exists():
            try:
                names = sorted(entry.name for entry in found.iterdir() if not entry.name.startswith("."))
            except OSError:
                return None
            similar = _similar_name(part, names)
            if similar is None:
                return None
            part = similar
        found /= part
    return found


def _similar_name(name: str, known: Sequence[str]) -> str | None:
    """Return the known name whose beginning is most similar, of equal ones the most similar one as a whole; or None."""
    similarities = {other: (_similarity(_stem(name), _stem(other)), _similarity(name, other)) for other in known}
    best = max(known, key=lambda other: similarities[other], default=None)
    return None if best is None or similarities[best][0] < _SIMILAR else best


def _similarity(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second).ratio()


def _stem(name: str) -> str:
    return name.partition(".")[0].lower()


def check_replaceable(path: Path | None, *, mark: str) -> None:
    """Check that the file of `--output` replaces nothing but an earlier output of its kind.

    Args:
        path: The file that will be written; None where none was requested.
        mark: Text near the beginning of every file of that kind.

    Raises:
        ValueError: If it is a folder, or a file of another kind.
    """
    if path is None or not path.exists():
        return
    if path.is_dir():
        raise ValueError(f"--output: {path} is a folder; expected a file")
    with path.open("rb") as stream:
        beginning = stream.read(_BEGINNING_BYTES)
    if beginning.strip() and mark.encode() not in beginning:
        raise ValueError(f"--output: {path} is a file of another kind; give another name, or delete it")
