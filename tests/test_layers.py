"""The layers of the package: a module imports lower layers only, and heavy libraries where they belong."""

import ast
import re
from pathlib import Path

import pytest

from versatune_ds.mixture.policies import POLICIES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "versatune_ds"
LAYERS = {
    "domains": 0, "log": 0, "progress": 0, "exit_codes": 0, "paths": 0, "text_table": 0, "json_file": 0,
    "own_code": 0,
    "mixture/policies": 1, "mixture/planning": 1,
    "config": 2,
    "distributed": 3,
    "run_folder": 4,
    "slurm": 5, "data": 5, "mixture": 5, "kernels": 5,
    "model": 6, "monitor": 6, "report": 6,
    "engine": 7,
    "training": 8,
    "export": 9, "preflight": 9,
    "launch": 10,
    "evaluation": 11, "reference": 11, "knowledge": 11,
    "planning": 12,
    "comparison": 13,
    "interface": 14, "cli": 14,
}  # fmt: skip
"""Room, or module, to its layer: a module imports its own room and lower layers (docs/architecture.md)."""

MOST_MODULES = 25
"""Modules a room may have: more is too many for a newcomer to remember."""

HOMES = {
    "deepspeed": {"engine/"},
    "bitsandbytes": {"engine/optimizer.py"},
    "lm_eval": {"evaluation/harness.py"},
    "gguf": {"model/gguf_file.py"},
    "peft": {"model/trainable_parameters.py"},
    "sentence_transformers": {"knowledge/text_encoder.py"},
    "wandb": {"monitor/wandb_sink.py"},
    "trackio": {"monitor/trackio_sink.py"},
    "swanlab": {"monitor/swanlab_sink.py"},
    "rich": {"text_table.py", "monitor/live.py"},
    "transformers": {
        "model/attention.py",
        "model/attention_choice.py",
        "model/build.py",
        "model/domain_model.py",
        "model/four_bit.py",
        "model/gguf_file.py",
        "data/encoding/tokenizer.py",
        "export/run_export.py",
        "knowledge/generate.py",
        "model/saved_weights.py",
        "model/sequence_parallel.py",
        "model/trainable_parameters.py",
    },
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def part_of(path):
    return room_of(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(parts):
    """The room of a module; policies and planning are rooms of their own, below config."""
    return "/".join(parts[:2]) if tuple(parts[:2]) in (("mixture", "policies"), ("mixture", "planning")) else parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_its_own_room_or_a_lower_layer(path):
    part = part_of(path)
    if part == "__init__":
        return
    for name in imported_names(path):
        root, _, rest = name.partition(".")
        if root != "versatune_ds" or not rest:
            continue
        other = room_of(rest.split("."))
        assert other == part or LAYERS[other] < LAYERS[part], f"{path.relative_to(ROOT)} imports {name}"


def test_every_room_has_a_layer_and_few_enough_modules():
    rooms = {part_of(path) for path in MODULES} - {"__init__"}
    assert rooms == set(LAYERS)
    for folder in {path.parent for path in MODULES}:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(modules) <= MOST_MODULES, folder


def texts_of(tree):
    """Yield the texts of a module without its docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented)]
    lines = {id(line.value) for body in bodies for line in body if isinstance(line, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in lines:
            yield node.value


OTHER_MEANINGS = {"versatune", "uniform", "proportional", "constant", "schedule", "steer"}
"""Names of policies that are other words too; of those only a text after `policy` counts."""


def test_no_module_outside_the_policies_names_a_built_in_policy():
    names = "|".join(POLICIES)
    for path in MODULES:
        if part_of(path) == "mixture/policies":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = [m[2] for text in texts_of(tree) for m in re.finditer(rf"(policy[ =:]*)({names})\b", text)]
        found += [text for text in texts_of(tree) if text in POLICIES and text not in OTHER_MEANINGS]
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "policy" and isinstance(node.value, ast.Constant):
                found += [node.value.value] if node.value.value in POLICIES else []
        assert not found, f"{path.relative_to(ROOT)} names {found}: make what it needs a field of Policy"


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_is_imported_in_its_home_only(library):
    users = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(name.split(".")[0] == library for name in imported_names(path))
    }
    assert users
    assert not [user for user in users if not user.startswith(tuple(HOMES[library]))]


def test_the_launchers_script_and_the_command_line_contain_no_logic():
    assert len((ROOT / "launcher" / "train.py").read_text(encoding="utf-8").splitlines()) <= 12
    for path in (PACKAGE / "cli").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert [node for node in ast.walk(tree) if isinstance(node, (ast.While, ast.ListComp))] == [], path
