"""The package runs under every Python from the oldest one that setup.py promises."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLDEST = tuple(map(int, re.search(r'python_requires=">=(\d+)\.(\d+)"', (ROOT / "setup.py").read_text()).groups()))
FILES = sorted(
    path for folder in ("versatune_ds", "launcher", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
# Features of Python 3.11 or later: modules, names in modules, and methods whose names nothing older has.
NEWER_MODULES = {"tomllib", "wsgiref.types", "asyncio.taskgroups", "asyncio.timeouts", "pathlib.types", "annotationlib"}
NEWER_NAMES = {
    "asyncio": {"Runner", "TaskGroup", "Timeout", "timeout", "timeout_at", "Barrier", "QueueShutDown"},
    "builtins": {"BaseExceptionGroup", "ExceptionGroup", "PythonFinalizationError"},
    "contextlib": {"chdir"},
    "copy": {"replace"},
    "datetime": {"UTC"},
    "enum": {"EnumCheck", "FlagBoundary", "ReprEnum", "StrEnum", "global_enum", "member", "nonmember", "verify"},
    "hashlib": {"file_digest"},
    "inspect": {"getmembers_static", "markcoroutinefunction"},
    "itertools": {"batched"},
    "locale": {"getencoding"},
    "logging": {"getHandlerByName", "getHandlerNames", "getLevelNamesMapping"},
    "math": {"cbrt", "exp2", "fma", "sumprod"},
    "operator": {"call", "is_none", "is_not_none"},
    "os": {"process_cpu_count", "setns", "unshare"},
    "os.path": {"isjunction", "isreserved", "splitroot"},
    "queue": {"ShutDown"},
    "re": {"NOFLAG"},
    "sys": {"activate_stack_trampoline", "exception", "monitoring"},
    "types": {"get_original_bases"},
    "typing": {
        "LiteralString", "Never", "NoDefault", "NotRequired", "ReadOnly", "Required", "Self", "TypeIs", "TypeVarTuple",
        "Unpack", "assert_never", "assert_type", "clear_overloads", "dataclass_transform", "get_overloads",
        "get_protocol_members", "is_protocol", "override", "reveal_type",
    },
    "warnings": {"deprecated"},
}  # fmt: skip
NEWER_METHODS = {"add_note", "binomialvariate", "full_match", "is_junction", "walk_up"}
NEWER_ARGUMENTS = {"rmtree": {"onexc"}, "glob": {"case_sensitive", "recurse_symlinks"}, "relative_to": {"walk_up"}}


def newer_than_oldest(text):
    """Yield (line, what) of everything in a module's text that is newer than Python 3.10."""
    tree = ast.parse(text, feature_version=OLDEST)
    modules = {}  # the name under which each module is known in this file
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name in NEWER_MODULES)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            if node.module in NEWER_MODULES:
                yield node.lineno, node.module
            newer = NEWER_NAMES.get(node.module, set())
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names if alias.name in newer)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            module = modules.get(ast.unparse(node.value))
            if node.attr in NEWER_NAMES.get(module, ()) or node.attr in NEWER_METHODS:
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Name) and node.id in NEWER_NAMES["builtins"]:
            yield node.lineno, node.id
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            newer = NEWER_ARGUMENTS.get(name, set())
            yield from ((node.lineno, f"{name}({word.arg}=)") for word in node.keywords if word.arg in newer)


def test_no_file_needs_a_newer_python():
    assert len(FILES) > 300
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in FILES
        for line, what in newer_than_oldest(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("import datetime\ndatetime.datetime.now(datetime.UTC)", "datetime.UTC"),
        ("import datetime as d\nd.UTC", "d.UTC"),
        ("from datetime import UTC", "datetime.UTC"),
        ("from typing import Any, Self", "typing.Self"),
        ("import tomllib", "tomllib"),
        ("error.add_note('here')", "error.add_note"),
        ("raise ExceptionGroup('x', [])", "ExceptionGroup"),
        ("import shutil\nshutil.rmtree(path, onexc=print)", "rmtree(onexc=)"),
        ("import itertools\nitertools.batched('ab', 1)", "itertools.batched"),
    ],
)
def test_newer_features_are_found(text, what):
    assert [found for _, found in newer_than_oldest(text)] == [what]


def test_newer_syntax_is_refused():
    with pytest.raises(SyntaxError):
        list(newer_than_oldest("try:\n    pass\nexcept* ValueError:\n    pass\n"))
