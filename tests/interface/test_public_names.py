"""What `import versatune_ds` offers: the list, the documents, the types, and how little it imports."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import versatune_ds as vt
from tests.helpers.public_names import public_names

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
SOURCE = ast.parse((ROOT / "versatune_ds" / "__init__.py").read_text(encoding="utf-8"))


def test_the_public_names_are_those_of_the_documents_table_and_each_has_a_docstring():
    table = re.search(r"^\| name \| what it is \|\n\|---.*?\n\n", PAGE, re.MULTILINE | re.DOTALL).group()
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(vt.__all__)
    assert [name for name in vt.__all__ if not getattr(vt, name).__doc__] == []


def test_type_checkers_see_the_same_names_from_the_same_modules():
    block = next(node for node in SOURCE.body if isinstance(node, ast.If))
    seen = {alias.name: node.module.removeprefix("versatune_ds.") for node in block.body for alias in node.names}
    assert seen == vt._HOMES
    assert sorted(vt._HOMES) == sorted(vt.__all__)


def test_every_argument_of_a_public_function_is_in_its_docstring():
    functions = [name for name in vt.__all__ if inspect.isfunction(getattr(vt, name))]
    assert len(functions) > 10
    for name in functions:
        function = getattr(vt, name)
        arguments = [key for key in function.__annotations__ if key != "return"]
        assert [key for key in arguments if f"        {key}: " not in function.__doc__] == [], name


RESULTS = ("ReferenceLosses", "DetectedPrior", "CheckResult", "ComparisonResult")
ROWS = [("Run", "attribute"), ("Simulation", "`Simulation` has"), ("SignalContext", "| `signal`")]


@pytest.mark.parametrize(("type_name", "row"), [*ROWS, *((name, "## Before and after training") for name in RESULTS)])
def test_the_public_attributes_of_a_result_are_on_the_page(type_name, row):
    text = PAGE[PAGE.index(row) :]
    public = [name for name in dir(getattr(vt, type_name)) if not name.startswith("_")]
    assert [name for name in public if not re.search(rf"`{name}\b", text)] == []


def test_public_names_and_signatures_are_those_of_the_kept_list():
    """After a change that is meant: python tests/helpers/public_names.py > tests/interface/public_names.txt."""
    kept = (Path(__file__).parent / "public_names.txt").read_text(encoding="utf-8")
    assert public_names().splitlines() == kept.splitlines()


def test_importing_the_package_imports_nothing_heavy_and_lists_what_is_there():
    program = (
        "import sys, versatune_ds as vt\n"
        "heavy = {'torch', 'numpy', 'pandas', 'pydantic', 'deepspeed', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert set(vt.__all__) <= set(dir(vt))\n"
        "from versatune_ds import read_run, Policy\n"
        "from versatune_ds import DomainLosses, SignalContext, StopTraining\n"
        "assert not {'torch', 'deepspeed', 'pandas'} & set(sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        vt.trian  # noqa: B018
