"""The package runs under every Python from the oldest one that setup.py promises."""

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
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

# Collect tests where only the packages named in LIGHT, and what they need, are there of all that the package needs.
COLLECT_WITH_SOME_PACKAGES = """
import os, re, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

def normal(name):
    return re.sub("[-_.]+", "-", name).lower()

def with_what_they_need(names):
    found, waiting = set(), [normal(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            try:
                lines = requires(name) or []
            except PackageNotFoundError:
                lines = []
            waiting += [normal(re.match("[A-Za-z0-9_.-]+", line)[0]) for line in lines if "extra ==" not in line]
    return found

class Absent:
    def find_spec(self, name, path=None, target=None):
        if absent & set(map(normal, owners.get(name.partition(".")[0], ()))):
            raise ModuleNotFoundError(f"No module named {name!r} in the small environment of .ci/run", name=name)

owners = packages_distributions()
absent = with_what_they_need(["versatune_ds"]) - with_what_they_need(os.environ["LIGHT"].split()) - {"versatune-ds"}
assert {"torch", "transformers"} <= absent, absent
sys.meta_path.insert(0, Absent())
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout", *sys.argv[1:]]))
"""


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


def is_installed():
    try:
        return bool(distribution("versatune_ds").requires)
    except PackageNotFoundError:
        return False


@pytest.mark.skipif(not is_installed(), reason="what the package needs is known only where it is installed")
def test_what_ci_runs_without_pytorch_imports_only_what_ci_installs_there():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    light = " ".join(re.findall(r"light\+?=\(([^)]*)\)", script)).split()
    arguments = re.search(r'pytest (-m "not slow" --ignore.*?)\n\}', script, re.DOTALL)[1]
    no_plugins = {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "HYPOTHESIS_NO_PLUGINS": "1",
    }  # of packages only installed here
    run = subprocess.run(
        ["bash", "-c", f'exec "$0" -c "$1" {arguments}', sys.executable, COLLECT_WITH_SOME_PACKAGES],
        cwd=ROOT,
        env=os.environ | no_plugins | {"LIGHT": " ".join(light)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
