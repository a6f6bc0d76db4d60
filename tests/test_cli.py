"""The command line: every subcommand has help, and a mistake is reported in one line with exit code 2."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_line import command_of

from versatune_ds import cli, progress
from versatune_ds.cli import build_parser, parse
from versatune_ds.config import load_config

COMMANDS = {
    "train": [
        "recipe",
        "key=value",
        "--fresh",
        "--processes",
        "--launcher",
        "--nodes",
        "--hostfile",
        "--quiet",
    ],
    "worker": ["recipe", "key=value", "--fresh", "--quiet"],
    "check": ["recipe", "key=value", "--nodes", "--gpus-per-node", "--gpu-memory", "--json", "--quiet"],
    "submit": ["recipe", "key=value", "--nodes", "--array", "--after", "--fresh", "--dry-run", "--quiet"],
    "job": ["recipe", "key=value", "--fresh", "--quiet"],
    "convert": ["FILE", "--output", "--precision"],
    "prepare": ["recipe", "key=value", "--quiet"],
    "inspect": ["recipe", "key=value", "--steps", "--world-size", "--resume-at", "--run", "--text"],
    "detect": ["recipe", "key=value", "--processes", "--output", "--quiet"],
    "reference": ["recipe", "key=value", "--score", "--domains", "--output", "--fresh", "--processes", "--quiet"],
    "simulate": ["recipe", "key=value", "--losses", "--sweep", "--steps", "--noise", "--seed", "--output", "--plot"],
    "replay": ["RUN", "key=value", "--output"],
    "explain": ["RUN", "--step"],
    "report": ["RUN", "--output", "--png", "--svg", "--open"],
    "export": ["RUN", "--output", "--step", "--precision", "--lora", "--max-shard-size"],
    "evaluate": [
        "RUN|FOLDER",
        "key=value",
        "--recipe",
        "--split",
        "--choices",
        "--harness",
        "--harness-include",
        "--harness-limit",
        "--exact",
        "--against",
        "--no-base",
        "--step",
        "--processes",
        "--output",
        "--json",
        "--quiet",
    ],
    "compare": ["comparison", "key=value", "--jobs"],
    "keys": ["pattern", "--markdown"],
    "env": ["--json"],
    "completion": ["{bash,zsh,fish}"],
    "plan": ["recipe", "key=value", "--for", "--bound", "--bound-all", "--planner", "--budget-steps", "--transfer"],
}

RECIPE = {
    "run": {"name": "mine"},
    "model": {"from_config": {"model_type": "llama"}, "tokenizer_vocab_size": 512},
    "data": {"synthetic": {}},
    "train": {"steps": 10},
    "mixture": {"policy": "uniform"},
}


@pytest.fixture
def versatune(capsys):
    return command_of(capsys)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    values = {**RECIPE, "run": {"name": "mine", "output_dir": str(tmp_path / "runs")}}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_subcommand_lists_its_arguments(versatune, command):
    called = versatune(command, "--help")
    assert (called.code, called.err) == (0, "")
    assert called.out.startswith(f"usage: versatune {command}")
    for argument in COMMANDS[command]:
        assert argument in called.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_in_every_help_parses(versatune, command):
    example = shlex.split(versatune(command, "--help").out.split("example:\n")[1])
    if command in {"worker", "job"}:  # started by others
        starts = {"worker": ["deepspeed", "--num_gpus", "8", "launcher/train.py"], "job": ["sbatch"]}
        assert example[: len(starts[command])] == starts[command]
        return
    parsed = parse(example[1:])
    assert example[:2] == ["versatune", command]
    if hasattr(parsed, "recipe"):
        assert load_config(Path(__file__).parents[1] / parsed.recipe, parsed.overrides)


INTERNAL = ("worker", "job")


def test_these_tests_know_every_subcommand():
    (commands,) = [action for action in build_parser()._actions if isinstance(action.choices, dict)]
    assert set(commands.choices) == set(COMMANDS)


def test_help_lists_every_subcommand_that_a_user_types_once_with_a_sentence(versatune):
    called = versatune("--help")
    for command in set(COMMANDS) - set(INTERNAL):
        lines = re.findall(rf"^  {command}\s+[A-Z]\w+(?: \S+){{3}}", called.out, flags=re.MULTILINE)
        assert len(lines) == 1, command


def test_help_has_groups_with_what_is_done_first_at_the_top(versatune):
    out = versatune("--help").out
    titles = ["first steps:", "before a run:", "after a run:", "on a Slurm cluster:", "the installation:"]
    assert [line for line in out.splitlines() if line in titles] == titles
    assert out.index("  train ") < out.index("before a run:") < out.index("  detect ") < out.index("after a run:")


def test_help_hides_the_subcommands_that_launchers_start_and_they_still_parse(versatune):
    out = versatune("--help").out
    for command in INTERNAL:
        assert not re.search(rf"\b{command}\b", out), command
        assert parse([command, "r.yaml", "a=1"]).overrides == ["a=1"]


@pytest.mark.parametrize("columns", ["20", "80", "200"])
def test_help_fits_the_terminal(versatune, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    width = max(len(line) for line in versatune("--help").out.partition("first steps:")[2].splitlines()[:-1])
    assert width <= max(int(columns), 40)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("trian", "did you mean 'train'?"),
        ("eval", "did you mean 'evaluate'?"),
        ("sft", "here it is 'train'"),
        ("my.yaml", "did you mean 'train my.yaml'?"),
        ("worke", "known: check, train, report, export, keys, convert"),  # internal ones are not suggested
    ],
)
def test_a_misspelt_subcommand_gets_the_nearest_one_in_one_line_with_exit_code_2(versatune, name, hint):
    called = versatune(name, "recipes/quickstart.yaml")
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith(f"versatune: {name!r}: no such command; {hint}")
    assert len(called.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--lr", "1e-4"], "; recipe keys are given without dashes, as section.key=VALUE; here it is train.learning_"),
        (["--max-steps=3"], "section.key=VALUE; here it is train.steps, with the same value"),
        (["--train.steps", "3"], "; recipe keys are given without dashes: train.steps=VALUE"),
        (["--nonsense"], "unrecognized arguments: --nonsense; `versatune train --help` lists what it takes\n"),
    ],
)  # fmt: skip
def test_a_recipe_key_given_as_an_option_is_answered_with_how_keys_are_given(versatune, arguments, hint):
    called = versatune("train", "recipes/quickstart.yaml", *arguments)
    assert called.code == 2
    assert hint in called.err


@pytest.mark.parametrize("command", [name for name in COMMANDS if "key=value" in COMMANDS[name]])
def test_overrides_are_never_reported_as_required(versatune, command):
    called = versatune(command)
    assert called.code == 2
    required = called.err.partition("missing: ")[2].partition(";")[0].split(", ")
    assert required[0] in {"recipe", "RUN", "RUN|FOLDER", "comparison"}
    assert all(name.startswith("--") for name in required[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing: COMMAND; `versatune --help` lists what it takes"),
        (["plan"], "plan: missing: recipe; `versatune plan --help` lists what it takes"),
        (["plan", "r.yaml", "--for", "balence"],
         "plan: --for: expected mean, balanced or target, got 'balence'; did you mean 'balanced'?"),
        (["plan", "r.yaml", "--for=x"],
         "plan: --for: expected mean, balanced or target, got 'x'; `versatune plan --help` lists what it takes"),
        (["plan", "r.yaml", "--predictions", "x"],
         "plan: --predictions: expected a whole number, got 'x'; `versatune plan --help` lists what it takes"),
        (["check", "r.yaml", "--gpu-memory=many"],
         "check: --gpu-memory: expected a number, got 'many'; `versatune check --help` lists what it takes"),
        (["plan", "r.yaml", "--bound-all"],
         "plan: --bound-all: expected a value; `versatune plan --help` lists what it takes"),
        (["export", "runs/x", "--precision", "fp8"], "export: --precision: expected fp32, bf16 or fp16, got 'fp8'"),
        (["check", "r.yaml", "--nods=2"], "check: unrecognized arguments: --nods=2; did you mean '--nodes'?"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_line_with_exit_code_2(versatune, arguments, message):
    called = versatune(*arguments)
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith(f"versatune: {message}")
    assert len(called.err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["a=1", "--steps", "0:2", "b.c=2"],
        ["--steps", "0:2", "a=1", "b.c=2"],
        ["a=1", "b.c=2", "--steps", "0:2"],
        ["--quiet", "a=1", "--text", "b.c=2", "--steps=0:2"],
    ],
)
def test_overrides_may_come_before_and_after_options(arguments):
    parsed = parse(["inspect", "r.yaml", *arguments])
    assert (parsed.overrides, parsed.steps) == (["a=1", "b.c=2"], "0:2")


@pytest.mark.parametrize(
    "arguments", [["prepare", "r.yaml", "--nonsense"], ["export", "runs/x", "a=1"], ["prepare", "r.yaml", "a=1", "b"]]
)
def test_an_argument_that_is_neither_an_option_nor_an_override_is_refused(versatune, arguments):
    called = versatune(*arguments)
    assert called.code == 2
    assert "unrecognized arguments" in called.err or "expected key=value" in called.err or "no such" in called.err


@pytest.mark.parametrize("command", [["train"], ["prepare"], ["inspect", "--steps", "0:1"], ["simulate"]])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mixture.sigme=0.3", "mixture.sigme: unknown key; did you mean 'sigma'?"),
        ("train.steps=0", "train.steps: expected 1 or more (got 0)"),
        ("data.folder=/nowhere", "give exactly one of data.folder, data.domains and data.synthetic"),
    ],
)
def test_a_mistake_in_a_recipe_is_reported_in_one_line_with_exit_code_2(versatune, recipe, command, override, message):
    called = versatune(command[0], recipe, *command[1:], override)
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith("versatune: ")
    assert message in called.err
    assert len(called.err.splitlines()) == 1


@pytest.mark.parametrize("command", [["train"], ["prepare"], ["inspect", "--steps", "0:1"], ["simulate"]])
def test_an_unknown_recipe_is_reported_in_one_line_with_exit_code_2(versatune, command):
    called = versatune(command[0], "nowhere.yaml", *command[1:])
    assert (called.code, called.out) == (2, "")
    assert called.err == "versatune: nowhere.yaml: no such recipe; give the path of a YAML file (see recipes/)\n"


def test_a_misspelt_recipe_is_answered_with_the_nearest_file(versatune):
    called = versatune("check", "recipes/quikstart.yaml")
    assert called.code == 2
    assert called.err == "versatune: recipes/quikstart.yaml: no such recipe; did you mean 'recipes/quickstart.yaml'?\n"


@pytest.mark.parametrize("command", ["replay", "explain", "report", "export", "evaluate"])
def test_a_missing_run_is_reported_in_one_line_with_exit_code_2(versatune, tmp_path, command):
    called = versatune(command, tmp_path / "nowhere")
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith(f"versatune: {tmp_path}/nowhere: no ")
    assert len(called.err.splitlines()) == 1


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_a_data_folder_without_records_is_reported_in_one_line_with_exit_code_2(versatune, recipe, tmp_path, content):
    (tmp_path / "data" / "train").mkdir(parents=True)
    if content is not None:
        (tmp_path / "data" / "train" / "law.jsonl").write_text(content)
    called = versatune("prepare", recipe, "data.synthetic=null", f"data.folder={tmp_path / 'data'}", "--quiet")
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith("versatune: ")
    assert str(tmp_path / "data") in called.err
    assert len(called.err.splitlines()) == 1


@pytest.fixture
def corrupt_run(recipe, tmp_path):
    """Return a run's folder whose only checkpoint is corrupt."""
    folder = tmp_path / "runs" / "mine" / "checkpoints" / "step_00000010"
    folder.mkdir(parents=True)
    (folder / "MANIFEST").write_text("{")
    (folder.parents[1] / "config.yaml").write_text("{}")
    return folder.parents[1]


def test_a_corrupt_checkpoint_is_reported_in_one_line_with_exit_code_1(versatune, corrupt_run, monkeypatch):
    monkeypatch.delenv("VERSATUNE_DEBUG", raising=False)
    called = versatune("export", corrupt_run)
    assert (called.code, called.out) == (1, "")
    *_, last_line = called.err.splitlines()
    assert last_line.startswith(f"versatune: {corrupt_run}: every checkpoint is corrupt; ")
    assert last_line.endswith(" (VERSATUNE_DEBUG=1 shows the traceback)")
    assert "Traceback" not in called.err


def test_an_unwritable_page_is_reported_in_one_line_with_its_path(versatune, corrupt_run, recipe, monkeypatch):
    monkeypatch.delenv("VERSATUNE_DEBUG", raising=False)
    (corrupt_run / "config.yaml").write_text("run: {name: mine}")
    called = versatune("report", corrupt_run, "--output", recipe / "page.html")  # a file, not a folder
    assert (called.code, called.out) == (1, "")
    assert str(recipe) in called.err
    assert len(called.err.splitlines()) == 1


def test_a_failure_shows_its_traceback_in_debug_mode(versatune, corrupt_run, monkeypatch):
    monkeypatch.setenv("VERSATUNE_DEBUG", "1")
    with pytest.raises(RuntimeError, match="every checkpoint is corrupt"):
        versatune("export", corrupt_run)


def test_a_bug_always_shows_its_traceback(versatune, recipe, monkeypatch):
    monkeypatch.setattr(
        "versatune_ds.training.prepared_data.prepare_recipe", lambda config: (_ for _ in ()).throw(RecursionError)
    )
    with pytest.raises(RecursionError):
        versatune("prepare", recipe)


def wrapped_interrupt(*arguments, **options):
    """Raise what Python 3.11 makes of an interrupt within an import."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as interrupt:
        raise RuntimeError("Error calling __set_name__ on 'cached_property' instance") from interrupt


def plain_interrupt(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize("interrupt", [plain_interrupt, wrapped_interrupt])
@pytest.mark.parametrize(
    ("arguments", "what_works", "kept"),
    [
        (["detect", "r.yaml"], "knowledge.detect_recipe.detect_recipe", "what was drawn and measured is kept"),
        (["reference", "r.yaml"], "reference.command.launch_reference", "domains measured so far are kept"),
        (["reference", "r.yaml", "--fresh"], "reference.command.launch_reference", ""),
        (["reference", "r.yaml", "--score=m"], "reference.command.launch_reference", ""),
        (["plan", "r.yaml"], "planning.plan_command.plan_recipe", ""),
        (["compare", "r.yaml"], "comparison.compare.compare", "finished stages and runs are kept"),
        (["evaluate", "runs/r"], "evaluation.command.evaluate", ""),
        (["prepare", "r.yaml"], "training.saved_model.load_recipe", "domains prepared so far are kept"),
        (["train", "r.yaml"], "config.load_config", "checkpoints of the run are kept"),
        (["train", "r.yaml", "--fresh"], "config.load_config", ""),
    ],
)
def test_ctrl_c_is_one_line_with_what_is_kept_and_exit_code_130(
    versatune, monkeypatch, interrupt, arguments, what_works, kept
):
    module, _, function = what_works.rpartition(".")
    monkeypatch.setattr("versatune_ds.config.load_config", lambda *_: None)  # there is no r.yaml
    monkeypatch.setattr("versatune_ds.run_folder.recorded_config.check_model_folder", lambda *_, **__: None)
    monkeypatch.setattr(importlib.import_module(f"versatune_ds.{module}"), function, interrupt)
    called = versatune(*arguments)
    rest = f"; {kept}: the same command continues" if kept else ""
    assert (called.code, called.out, called.err) == (130, "", f"versatune: interrupted{rest}\n")


def test_of_the_processes_of_a_run_only_the_first_reports_ctrl_c(versatune, monkeypatch):
    monkeypatch.setattr("versatune_ds.config.load_config", wrapped_interrupt)
    monkeypatch.setenv("RANK", "1")
    called = versatune("prepare", "r.yaml")
    assert (called.code, called.err) == (130, "")


@pytest.mark.slow
def test_the_installed_command_writes_data_to_stdout_and_everything_else_to_stderr(recipe):
    command = [sys.executable, "-m", "versatune_ds.cli", "inspect", str(recipe), "--steps", "0:1", "run.seed=3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith('{"step": 1, "row": ') for line in done.stdout.splitlines())
    assert "domain" in done.stderr


@pytest.mark.slow
def test_a_closed_pipe_is_not_an_error(recipe):
    command = (
        f"{sys.executable} -m versatune_ds.cli inspect {recipe} --steps 0:10 --quiet | head -1; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")


@pytest.mark.parametrize(("command", "is_shown_after"), [("detect", True), ("train", False)])
def test_a_command_that_starts_processes_leaves_the_terminal_to_them_after_its_first_line(
    monkeypatch, command, is_shown_after
):
    monkeypatch.setattr(progress._logger, "isEnabledFor", lambda level: True)
    for name in cli._RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with cli._shown_as_running(command):
        assert [work.text for work in progress._display.works] == [f"versatune {command}"]
        progress.before_output()
        assert bool(progress._display.works) == is_shown_after
    monkeypatch.setenv("RANK", "1")
    with cli._shown_as_running("worker"):
        assert progress._display.works == []
