"""The real launcher starts real processes: train, resume, refuse."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_run import ROOT, read_lines, tiny_config

VERSATUNE = [sys.executable, "-m", "versatune_ds.cli"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    config = tiny_config(folder).model_dump(mode="json")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def versatune(*arguments):
    return subprocess.run([*VERSATUNE, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_train_starts_two_processes_ends_with_the_table_and_a_second_call_only_shows_it(recipe):
    first = versatune("train", recipe, "--processes", 2, "run.name=launched", "train.steps=6")
    assert first.returncode == 0, first.stderr
    run_dir = recipe.parent / "launched"
    assert f"run directory  {run_dir}" in first.stdout
    assert (run_dir / "report" / "weights.png").is_file()
    metrics = (run_dir / "metrics.jsonl").read_text()
    assert read_lines(run_dir / "metrics.jsonl")[-1]["step"] == 6
    again = versatune("train", recipe, "--processes", 2, "run.name=launched", "train.steps=6")
    assert again.returncode == 0, again.stderr
    assert "resuming after step 6" in again.stderr
    assert f"run directory  {run_dir}" in again.stdout
    assert (run_dir / "metrics.jsonl").read_text() == metrics


@pytest.mark.slow
def test_one_process_needs_no_launcher_and_a_users_mistake_ends_it_with_code_two(recipe):
    worker = ROOT / "launcher" / "train.py"
    command = [sys.executable, worker, recipe, "run.name=alone", "train.steps=2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    refused = subprocess.run([*command, "train.rows_per_micro_batch=3"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("versatune: train.rows_per_batch: 8 rows do not divide")


@pytest.mark.slow
def test_a_mistake_in_the_recipe_is_said_before_any_process_is_started(recipe):
    result = versatune("train", recipe, "--processes", 2, "mixture.sigme=1")
    assert result.returncode == 2
    assert result.stderr == "versatune: mixture.sigme: unknown key; did you mean 'sigma'?\n"
    assert not list(Path(recipe.parent).glob("tiny/*"))
