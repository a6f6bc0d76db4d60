"""Train in this process: what it leaves behind, how it is interrupted, and what is refused."""

import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml

from tests.helpers.ranks import run_ranks
from tests.helpers.tiny_run import ROOT, read_lines, tiny_config
from versatune_ds import Policy, StopTraining, evaluate, export, load_config, read_run, train
from versatune_ds.interface.processes import raise_for
from versatune_ds.log import shown_log
from versatune_ds.run_folder.checkpoint_files import complete_checkpoints
from versatune_ds.training.in_process import process_as_it_was, stopped_by_interrupt, train_in_process
from versatune_ds.training.signals import StopSignals

NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def by_loss(weights_K, signals, step, settings):
    loss_K = np.nan_to_num(signals.loss_K, nan=1.0)
    return loss_K / loss_K.sum()


BY_LOSS = Policy(name="by_loss", update=by_loss)


def state_of_process():
    """What a program may have set and expects to keep."""
    package = logging.getLogger("versatune_ds")
    return {
        "environment": dict(os.environ),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "wakeup": signal.set_wakeup_fd(-1),
        "logging": (list(package.handlers), package.propagate, package.level, list(logging.getLogger().handlers)),
        "deepspeed filters": list(logging.getLogger("DeepSpeed").filters),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "warnings": list(warnings.filters),
        "excepthook": sys.excepthook,
        "group": dist.is_initialized(),
    }


def differences(before, after):
    return [name for name, value in before.items() if after[name] != value]


def test_what_a_run_changes_in_its_process_is_restored_also_after_an_error():
    def change_everything():
        os.environ.update(RANK="0", MASTER_PORT="1")
        os.environ.pop("PATH")
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.rand(2), random.random(), np.random.rand(2)  # noqa: NPY002
        warnings.simplefilter("error")
        sys.excepthook = print
        raise RuntimeError("stop")

    torch.manual_seed(1)
    before = state_of_process()
    with pytest.raises(RuntimeError, match="stop"), process_as_it_was(), shown_log():
        change_everything()
    assert differences(before, state_of_process()) == []


def test_log_lines_are_shown_where_nobody_has_set_up_logging_and_left_alone_otherwise(capsys, monkeypatch):
    package, root = logging.getLogger("versatune_ds"), logging.getLogger()
    monkeypatch.setattr(package, "handlers", [])  # an earlier test may have set it up, as the command line does
    with shown_log():
        package.info("the root logger has pytest's handlers")
    monkeypatch.setattr(root, "handlers", [])
    before = state_of_process()
    with shown_log(level=logging.WARNING):
        package.info("quiet")
    with shown_log():
        package.info("shown")
    assert differences(before, state_of_process()) == []
    shown = capsys.readouterr().err
    assert shown.endswith("INFO shown\n")
    assert shown.count("\n") == 1


def test_the_first_interrupt_waits_for_the_step_and_the_second_one_or_one_before_the_first_step_does_not():
    stop_signals, before = StopSignals(), signal.getsignal(signal.SIGINT)
    with stopped_by_interrupt(stop_signals):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        stop_signals.begin_steps()
        signal.raise_signal(signal.SIGINT)
        assert stop_signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        stop_signals.ignore()  # at the end of a run: it did not install these handlers
    assert signal.getsignal(signal.SIGINT) is before


def test_in_a_thread_signals_are_left_alone():
    seen = []

    def enter():
        with stopped_by_interrupt(StopSignals()):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]


def test_a_program_that_a_launcher_started_twice_is_refused(tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"^deepspeed/torchrun started 2 processes of this program: expected one"):
        train(tiny_config(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_a_value_error_and_leaves_the_process_as_it_was(tmp_path):
    before = state_of_process()
    with pytest.raises(ValueError, match=r"^mixture\.reference: .*needs"):
        train(tiny_config(tmp_path), overrides=["mixture.policy=doremi", "mixture.reference=null"])
    assert differences(before, state_of_process()) == []


def test_several_processes_refuse_what_only_this_one_has(tmp_path):
    config = tiny_config(tmp_path)
    with pytest.raises(ValueError, match="on_decision: with processes=2 training is in other processes"):
        train(config, processes=2, on_decision=print)
    with pytest.raises(ValueError, match="policy: 'local' is no variable of a module, so 2 processes cannot import it"):
        train(config, processes=2, policy=Policy(name="local", update=by_loss))
    with pytest.raises(ValueError, match="--processes=0: expected 1 or more"):
        train(config, processes=0)


def test_several_processes_are_started_as_the_command_line_starts_them(tmp_path, monkeypatch):
    """The recipe reaches them as a file with the keys that were given, the policy by the name of its variable."""
    started = []

    def run_ranks_instead(launcher, layout, *, hostfile, script, words):
        started.append(
            (layout.processes, script, words[1:], yaml.safe_load(Path(words[0]).read_text(encoding="utf-8")))
        )
        config = load_config(words[0])
        config.run_dir.mkdir(parents=True)
        (config.run_dir / "config.yaml").write_text("run: {name: tiny}\n", encoding="utf-8")
        return 0

    monkeypatch.setattr("versatune_ds.launch.start.run_ranks", run_ranks_instead)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    run = train(tiny_config(tmp_path), overrides=["train.steps=3"], policy=BY_LOSS, processes=2, fresh=True)
    ((processes, script, words, values),) = started
    assert (processes, script, words) == (2, "train.py", ["--fresh"])
    assert values["mixture"]["policy"] == f"{__name__}:BY_LOSS"
    assert values["train"]["steps"] == 3
    assert "epsilon" not in values["mixture"], "a default is no key of the recipe"
    assert run.folder == tmp_path / "tiny"


EXCEPTIONS = [(2, ValueError), (1, RuntimeError), (75, KeyboardInterrupt), (130, KeyboardInterrupt)]


@pytest.mark.parametrize(("exit_code", "error"), EXCEPTIONS)
def test_the_exit_codes_of_started_processes_become_exceptions(exit_code, error):
    raise_for(0)
    with pytest.raises(error, match=r"log|state saved"):
        raise_for(exit_code)


def trained_thrice(folder):
    """Train uninterrupted; interrupted and resumed; with a callback that fails; return what to compare."""
    torch.set_num_threads(1)
    logging.getLogger().handlers.clear()
    found = {}
    # Uninterrupted: the process stays as it was, and every decision was passed on.
    before, seen, steps, metrics = state_of_process(), [], [], {}
    run = train(
        tiny_config(folder / "a"), policy=BY_LOSS, on_decision=seen.append, on_step=steps.append,
        on_metrics=lambda step, values: metrics.setdefault(step, {}).update(values), quiet=True,
    )  # fmt: skip
    found["steps"] = steps
    found["metrics"] = metrics == {
        step: {name: value for name, value in row.items() if value == value}
        for step, row in run.metrics.to_dict("index").items()
    }
    found["exported"] = sorted(path.name for path in export(run, quiet=True).glob("*.safetensors"))
    found["changed"] = differences(before, state_of_process())
    found["seen"] = [decision.digest for decision in seen]
    found["recorded"] = run.decisions["digest"].tolist()
    found["first move"] = seen[0].weights_after, seen[1].weights_after, seen[1].losses
    evaluated = evaluate(run, exact=0, base=False, quiet=True)
    found["evaluated"] = list(evaluated["domains"]), read_run(run.folder).evaluation == evaluated
    # Interrupted after step 8, by Ctrl-C in the callback; the same call resumes.

    def interrupt(decision):
        if decision.decided_at_step == 8:
            signal.raise_signal(signal.SIGINT)

    config = tiny_config(folder / "b", cache_dir=folder / "a" / "cache")
    try:
        train(config, policy=BY_LOSS, on_decision=interrupt, quiet=True)
    except KeyboardInterrupt as stopped:
        found["stopped"] = str(stopped)
    found["after stop"] = (dist.is_initialized(), signal.getsignal(signal.SIGINT) is before["signals"][0])
    found["resumed"] = train(config, policy=BY_LOSS, quiet=True).decisions["digest"].tolist()
    found["losses"] = [read_lines(path / "tiny" / "metrics.jsonl")[-1] for path in (folder / "a", folder / "b")]
    # A callback may ask for a stop, which is no error and is resumed; one that fails ends the run with its error.

    def stop(step):
        if step == 3:
            raise StopTraining("enough")

    stopped = train(config, on_step=stop, policy=BY_LOSS, fresh=True, quiet=True)
    found["asked to stop"] = stopped.step, [path.name for path in complete_checkpoints(stopped.folder)]

    def fail(decision):
        raise ZeroDivisionError("mine")

    try:
        train(config, on_decision=fail, policy=BY_LOSS, quiet=True)
    except ZeroDivisionError as error:
        found["failed"] = str(error)
    found["locks"] = list((folder / "b" / ".locks").glob("*"))
    return found


@pytest.mark.slow
def test_a_run_in_this_process_leaves_it_as_it_was_and_resumes_bit_for_bit_after_an_interrupt(tmp_path):
    queue = multiprocessing.get_context("fork").Queue()
    process = multiprocessing.get_context("fork").Process(target=lambda: queue.put(trained_thrice(tmp_path)))
    process.start()
    found = queue.get(timeout=300)
    process.join()
    assert found["changed"] == []
    assert len(found["seen"]) == 4
    assert found["steps"] == list(range(1, 13))
    assert found["metrics"]
    assert found["exported"] == ["model.safetensors"]
    assert found["asked to stop"] == (3, ["step_00000003"])
    assert found["seen"] == found["recorded"] == found["resumed"]
    before, after, losses = found["first move"]
    assert found["evaluated"] == (list(after), True)
    total = sum(values["mean"] for values in losses.values())
    assert after == pytest.approx({name: values["mean"] / total for name, values in losses.items()}, rel=1e-9)
    assert before != after
    assert found["stopped"] == "stopped after step 8, state saved; train again to resume"
    assert found["after stop"] == (False, True)
    whole, resumed = found["losses"]
    timed = ("perf/",)
    assert {k: v for k, v in whole.items() if not k.startswith(timed)} == {
        k: v for k, v in resumed.items() if not k.startswith(timed)
    }
    assert found["failed"] == "mine"
    assert found["locks"] == []


def test_a_process_group_that_is_there_already_is_refused(tmp_path):
    def start(world):
        os.environ.pop("RANK", None)
        with pytest.raises(RuntimeError, match="process group already; destroy it before training"):
            train_in_process(tiny_config(tmp_path))

    run_ranks(start, world_size=1, folder=tmp_path)


def test_the_notebook_is_committed_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    assert [(cell["outputs"], cell["execution_count"]) for cell in cells] == [([], None)] * len(cells)


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path):
    """In a process of its own, whose `__main__` has the policy; a cell that fails is printed."""
    environ = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "notebook.py"), str(NOTEBOOK)]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "after step 24: Policy __main__:LOSS_SHARE" in done.stdout
    assert "Run('runs/notebook', step 24 of 24)" in done.stdout
    assert (tmp_path / "runs" / "notebook" / "report" / "index.html").is_file()
