"""A fault on one rank ends all of them at once, with that rank's message, in every phase of a run."""

import multiprocessing
import os
import re
import sys
import time

import pytest
from command_line import write_recipe
from tiny_run import tiny_config

from versatune_ds.distributed import World, free_port
from versatune_ds.distributed.failures import FailureBoard
from versatune_ds.engine import checkpoint
from versatune_ds.engine.engine import Engine
from versatune_ds.training import assemble, model_engine, worker
from versatune_ds.training.held_out import HeldOutExamples
from versatune_ds.training.start_checks import files
from versatune_ds.training.worker import run_worker

SECONDS = 60.0
"""Far below what a collective waits for, far above what these runs take."""


def plant(owner, name, fault, *, ranks, calls=1):
    """Let a function raise on some ranks, at one of its calls."""
    function, count = getattr(owner, name), [0]

    def faulty(*arguments, **settings):
        count[0] += 1
        if os.environ["RANK"] in ranks and count[0] == calls:
            raise fault
        return function(*arguments, **settings)

    setattr(owner, name, faulty)


PHASES = {
    "reading the recipe": (worker, "load_recipe", 1),
    "choosing the device": (worker, "choose_device", 1),
    "loading data": (assemble, "prepare_once_per_node", 1),
    "building the model": (model_engine, "build_causal_lm", 1),
    "building the engine": (model_engine, "Engine", 1),
    "measuring before training": (HeldOutExamples, "measure", 1),
    "a step": (Engine, "train_step", 3),
    "a validation": (HeldOutExamples, "measure", 2),
    "a save": (checkpoint, "measure_files", 1),
}
STARTING = list(PHASES)[:6]


def train(tmp_path, *, world_size, faults):
    """Train in forked ranks with planted faults; return the exit codes and what each rank wrote to stderr."""
    tmp_path.mkdir(exist_ok=True)
    recipe = write_recipe(tiny_config(tmp_path, "train.steps=6", "checkpoint.every=2"), tmp_path / "tiny.yaml")
    context, port = multiprocessing.get_context("fork"), free_port()

    def be_rank(rank):
        stream = (tmp_path / f"{rank}.err").open("wb", buffering=0)
        os.dup2(stream.fileno(), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        place = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
        for owner, name, fault, ranks, calls in faults:
            plant(owner, name, fault, ranks=ranks, calls=calls)
        os._exit(run_worker(recipe, [], is_fresh=False, is_quiet=True, when_complete=lambda run_dir: None))

    ranks = [context.Process(target=be_rank, args=(rank,)) for rank in range(world_size)]
    end = time.monotonic() + SECONDS
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(max(end - time.monotonic(), 0.0))
    late = [process.is_alive() for process in ranks]
    for process in ranks:
        process.kill()
    assert not any(late), f"still alive: {late}"
    texts = [own_lines((tmp_path / f"{rank}.err").read_text()) for rank in range(world_size)]
    return [process.exitcode for process in ranks], texts


def own_lines(text):
    """Leave out what torch's C++ logs when the process that hosts the store is gone, with its stack."""
    noise = re.compile(r"(\[rank\d+\]:)?\[[WE]\d|Exception raised from|frame #|<omitting python frames>|\s*$")
    return "".join(line for line in text.splitlines(keepends=True) if not noise.match(line))


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_value_error_on_one_rank_ends_all_with_code_two_and_that_ranks_line(tmp_path, phase):
    owner, name, calls = PHASES[phase]
    codes, errors = train(tmp_path, world_size=2, faults=[(owner, name, ValueError("data.x: wrong"), "1", calls)])
    assert codes == [2, 2], errors
    assert errors[1].splitlines()[-1:] == ["versatune: rank 1: data.x: wrong"], errors
    assert "Traceback" not in errors[0]
    assert "rank 0 failed" not in errors[0]
    if phase in STARTING:
        assert errors[1].count("\n") == 1
    else:
        assert "Traceback" in errors[1]


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["loading data", "a step", "a validation"])
@pytest.mark.parametrize("fault", [RuntimeError("out of luck"), OSError("disk"), MemoryError("full")])
def test_another_failure_on_one_rank_ends_all_with_code_one_and_that_ranks_traceback(tmp_path, phase, fault):
    owner, name, calls = PHASES[phase]
    codes, errors = train(tmp_path, world_size=2, faults=[(owner, name, fault, "1", calls)])
    assert codes == [1, 1], errors
    assert "rank 1 failed; the last complete checkpoint is unchanged" in errors[1]
    assert f"{type(fault).__name__}: {fault}" in errors[1]
    assert "Traceback" not in errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["building the model", "a step"])
def test_among_four_ranks_only_the_one_that_failed_reports(tmp_path, phase):
    owner, name, calls = PHASES[phase]
    codes, errors = train(tmp_path, world_size=4, faults=[(owner, name, ValueError("odd"), "2", calls)])
    assert codes == [2, 2, 2, 2], errors
    assert errors[2].endswith("versatune: rank 2: odd\n")
    assert not any("odd" in errors[rank] or "Traceback" in errors[rank] for rank in (0, 1, 3))


@pytest.mark.slow
def test_a_mistake_that_every_rank_finds_is_reported_by_rank_zero_only(tmp_path):
    codes, errors = train(tmp_path, world_size=3, faults=[])
    assert codes == [2, 2, 2]
    assert errors[0].startswith("versatune: train.rows_per_batch: 8 rows do not divide into micro-batches")
    assert errors[1:] == ["", ""]


@pytest.mark.slow
def test_a_mistake_that_rank_zero_finds_while_the_others_wait_is_reported_once(tmp_path):
    for fault, code, line in ((ValueError("a: b"), 2, "versatune: a: b\n"), (OSError("disk"), 1, "OSError: disk\n")):
        folder = tmp_path / type(fault).__name__
        codes, errors = train(folder, world_size=2, faults=[(files, "check_run_folder", fault, "0", 1)])
        assert codes == [code, code]
        assert errors[0].endswith(line)
        assert errors[1] == ""


@pytest.mark.slow
def test_ranks_without_a_fault_exit_with_zero_and_report_no_failure(tmp_path):
    codes, errors = train(tmp_path, world_size=2, faults=[])
    assert codes == [0, 0], errors
    assert not any("fail" in text for text in errors)


def test_an_interrupt_that_an_import_wrapped_ends_a_rank_with_130_and_one_line(capsys, caplog):
    try:
        raise RuntimeError("Error calling __set_name__ on 'cached_property' instance") from KeyboardInterrupt()
    except RuntimeError as error:
        code = worker._report(error, World(), FailureBoard(World(), has_state=lambda: False))
    assert (code, capsys.readouterr().err, caplog.text) == (130, "versatune: interrupted\n", "")
