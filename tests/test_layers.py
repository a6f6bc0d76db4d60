"""The layers of the package: a module imports lower layers only, and heavy libraries where they belong."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "versatune_ds"
LAYERS = {
    "domains": 0, "log": 0, "exit_codes": 0, "paths": 0, "text_width": 0, "json_records": 0, "config": 1, "slurm": 2,
    "distributed": 2,
    "data": 3, "mixture": 3, "kernels": 3, "training": 4, "report": 4, "knowledge": 5, "comparison": 5, "cli": 6,
}  # fmt: skip
# knowledge is above training: detection runs the model that training builds, on the devices it chooses.
HOMES = {
    "deepspeed": {
        "training/engine.py",
        "training/optimizer.py",
        "training/ds_checks.py",
        "training/checkpoint.py",
        "training/universal.py",
    },
    "bitsandbytes": {"training/optimizer.py"},
    "lm_eval": {"training/evaluation/harness.py"},
    "peft": {"training/trained.py"},
    "wandb": {"training/monitor/wandb_sink.py"},
    "rich": {"training/monitor/live.py", "training/monitor/live_frame.py"},
    "transformers": {
        "training/model.py", "data/tokenize.py", "training/export.py", "knowledge/generate.py",
        "training/saved_weights.py", "training/trained.py",
    },
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_its_own_part_or_a_lower_layer_only(path):
    part = part_of(path)
    if part == "__init__":
        return
    for name in imported_names(path):
        root, _, rest = name.partition(".")
        if root != "versatune_ds" or not rest:
            continue
        other = rest.split(".")[0]
        assert other == part or LAYERS[other] < LAYERS[part], f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_is_imported_in_its_home_only(library):
    users = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(name.split(".")[0] == library for name in imported_names(path))
    }
    assert users
    assert users <= HOMES[library]


def test_the_launchers_script_and_the_command_line_hold_no_logic():
    assert len((ROOT / "launcher" / "train.py").read_text(encoding="utf-8").splitlines()) <= 12
    for path in (PACKAGE / "cli").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert [node for node in ast.walk(tree) if isinstance(node, (ast.While, ast.ListComp))] == [], path
