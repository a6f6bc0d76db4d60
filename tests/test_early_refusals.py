"""What needs no library that takes seconds to import is answered before one is imported."""

import json
import subprocess
import sys

import pytest
from command_line import write_recipe
from tiny_run import tiny_config
from written_run import write_run

PROGRAM = """
import json, sys
from versatune_ds.cli import main
found = []
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    found.append([code, [name for name in ("torch", "transformers", "datasets", "deepspeed") if name in sys.modules]])
print(json.dumps(found))
"""


def answers(*commands):
    """Return (exit code, heavy libraries imported by then) of commands that one process runs, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([list(map(str, command)) for command in commands])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1]), done


def test_a_wrong_key_or_folder_is_refused_before_any_heavy_library_is_imported(tmp_path):
    recipe = write_recipe(tiny_config(tmp_path), tmp_path / "r.yaml")
    of_recipes = ("train", "check", "prepare", "simulate", "reference", "detect", "plan", "submit", "job")
    commands = [(name, recipe, "train.stepz=3") for name in of_recipes]
    commands += [("inspect", recipe, "train.stepz=3", "--steps", "0:1")]
    absent = tmp_path / "absent"
    commands += [(name, absent) for name in ("explain", "replay", "export", "report", "evaluate")]
    commands += [("evaluate", tmp_path)]
    found, done = answers(*commands)
    assert found == [[2, []]] * len(commands)
    lines = done.stderr.splitlines()
    assert lines[: len(of_recipes) + 1] == ["versatune: train.stepz: unknown key; did you mean 'steps'?"] * 10
    assert all(line.startswith(f"versatune: {absent}: no ") for line in lines[10:15])
    assert not absent.exists()


def test_a_complete_run_shows_its_table_without_torch(tmp_path):
    config = tiny_config(tmp_path / "runs")
    folder = write_run(config.run_dir, num_steps=12, every=4)
    recipe = write_recipe(config, folder / "config.yaml")
    checkpoint = folder / "checkpoints" / "step_00000012"
    checkpoint.mkdir(parents=True)
    (checkpoint / "versatune.json").write_text('{"is_complete": true}')
    (checkpoint / "MANIFEST").write_text('{"files": {}}')
    found, done = answers(("train", recipe), ("train", recipe, "model.lora=true"))
    assert found == [[0, []], [2, []]]
    assert f"{folder} is complete after step 12; a larger train.steps trains on" in done.stderr
    (refused,) = [line for line in done.stderr.splitlines() if line.startswith("versatune: model.lora: {alpha: 32.0, ")]
    assert f"but the run in {folder} began with null; use the earlier value" in refused
    assert f"next           versatune evaluate {folder}" in done.stdout


@pytest.mark.parametrize("option", ["--fresh", "train.steps=13"])
def test_a_run_that_starts_over_or_gets_more_steps_is_not_taken_for_complete(tmp_path, option, monkeypatch):
    from versatune_ds.cli import main
    from versatune_ds.launch import start

    launched = []
    monkeypatch.setattr(start, "launch", lambda *_, **__: launched.append(True) or 0)
    recipe = write_recipe(tiny_config(tmp_path / "runs"), tmp_path / "r.yaml")
    monkeypatch.setattr(
        "versatune_ds.run_folder.complete_run.complete_line",
        lambda config: None if config.train.steps == 13 else pytest.fail("--fresh starts over"),
    )
    assert main(["train", str(recipe), option]) == 0
    assert launched == [True]


UNWRITABLE = "/proc/none"
"""No file can be made there, not even by root."""


def test_a_folder_that_cannot_be_written_is_refused_before_torch_is_imported_or_a_process_started(tmp_path):
    recipe = write_recipe(tiny_config(tmp_path / "runs"), tmp_path / "r.yaml")
    run = write_run(tmp_path / "runs" / "written", num_steps=12, every=4)
    write_recipe(tiny_config(tmp_path / "runs"), run / "config.yaml")
    comparison = tmp_path / "c.yaml"
    runs = "{name: c, base: {model: gpt2}, seeds: [1], runs: {u: {mixture.policy: uniform}}, baseline: u"
    comparison.write_text(f"{runs}, recipe: {recipe}, output_dir: {UNWRITABLE}}}")
    output, cache = f"run.output_dir={UNWRITABLE}", f"data.cache_dir={UNWRITABLE}"
    commands = {
        ("train", recipe, output): "run.output_dir",
        ("train", recipe, cache): "data.cache_dir",
        ("prepare", recipe, cache): "data.cache_dir",
        ("reference", recipe, output): "run.output_dir",
        ("reference", recipe, cache): "data.cache_dir",
        ("detect", recipe, cache): "data.cache_dir",
        ("detect", recipe, "--output", f"{UNWRITABLE}/prior.json"): "--output",
        ("plan", recipe, output): "run.output_dir",
        ("export", run, "--output", UNWRITABLE): "--output",
        ("evaluate", run, cache): "data.cache_dir",
        ("evaluate", run, "--output", f"{UNWRITABLE}/e.json"): "--output",
        ("compare", comparison): "output_dir",
    }
    found, done = answers(*commands)
    expected = [f"versatune: {key}: /proc cannot be written; choose another folder" for key in commands.values()]
    assert done.stderr.splitlines() == expected
    assert found == [[2, []]] * len(commands)


def test_a_number_of_processes_that_the_command_line_alone_excludes_is_refused_before_torch_is_imported(tmp_path):
    recipe = write_recipe(tiny_config(tmp_path / "runs"), tmp_path / "r.yaml")
    run = write_run(tmp_path / "runs" / "written", num_steps=12, every=4)
    write_recipe(tiny_config(tmp_path / "runs"), run / "config.yaml")
    weights = "versatune: --sharded divides the weights over processes: expected --processes 2 or more"
    rows = "versatune: train.sequence_parallel: 3 processes share a row, but {} do not divide into groups of 3; "
    commands = {
        ("evaluate", run, "--sharded"): weights,
        ("detect", recipe, "--sharded", "--processes", "1"): weights,
        ("train", recipe, "train.sequence_parallel=3", "--processes", "2"): rows.format(2),
        ("train", recipe, "train.sequence_parallel=3", "--processes", "2", "--nodes", "2"): rows.format(4),
    }
    found, done = answers(*commands)
    assert all(map(str.startswith, done.stderr.splitlines(), commands.values())), done.stderr
    assert found == [[2, []]] * len(commands)
