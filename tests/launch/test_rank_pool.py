"""The ranks of a launcher as a pool that rank 0 leads, and how a command is started on several machines."""

import gc
import multiprocessing
import os
import sys
import time
import weakref

import pytest
from ranks import run_ranks
from tiny_run import ROOT

from tests.helpers.command_line import command_of
from versatune_ds.distributed import World, barrier, free_port
from versatune_ds.launch.rank_pool import leading, led_world, remove_at_exit, remove_folders, serve
from versatune_ds.launch.sharded_pool import check_sharded, open_pool
from versatune_ds.launch.start_sharded import run_sharded_rank
from versatune_ds.run_folder.checkpoint_files import measure_files, newest_valid_checkpoint, write_manifest


def place_of(world):
    return [world]


def number_of_calls(opened, item):
    """Count the items of this rank; wait for the others."""
    barrier()
    opened.append(item)
    return opened[0].rank, len(opened) - 1, item


def led(world, command):
    """Return what the command returns on rank 0, None of the others."""
    if not world.is_rank_zero:
        return serve(world)
    with leading(world):
        return command()


def test_in_sharded_evaluation_on_several_machines_each_rank_gets_an_item_a_round_and_loads_once(tmp_path):
    def command():
        check_sharded(3)
        with open_pool(place_of, num_processes=3, is_sharded=True) as pool:
            first = list(pool.map(number_of_calls, ["a", "b", "c", "d"]))
            second = list(pool.map(number_of_calls, range(3)))
            assert list(pool.map(number_of_calls, [])) == []
        with open_pool(place_of, num_processes=3, is_sharded=True) as pool:
            return first, second, list(pool.map(number_of_calls, ["e"]))

    first, second, third = run_ranks(lambda world: led(world, command), world_size=3, folder=tmp_path)[0]
    assert first == [("a", (0, 1, "a")), ("b", (1, 1, "b")), ("c", (2, 1, "c")), ("d", (0, 2, "d"))]
    assert second == [(0, (0, 3, 0)), (1, (1, 3, 1)), (2, (2, 3, 2))]
    assert third == [("e", (0, 1, "e"))]
    assert led_world() is None


def test_in_sharded_evaluation_a_command_that_fails_between_rounds_lets_the_other_ranks_go(tmp_path):
    def command():
        raise ValueError("--choices: no such file")

    def work(world):
        try:
            led(world, command)
        except ValueError as error:
            return str(error)

    assert run_ranks(work, world_size=2, folder=tmp_path) == ["--choices: no such file", None]


def test_in_sharded_evaluation_rank_0_looks_for_a_checkpoint_while_the_others_wait_for_work(tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "step_00000001"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"weights")
    write_manifest(folder, measure_files(folder, World()))

    def command():
        return newest_valid_checkpoint(tmp_path / "run", World()).name

    results = tmp_path / "results"
    results.mkdir()
    found = run_ranks(lambda world: led(world, command), world_size=2, folder=results, timeout=30)
    assert found == ["step_00000001", None]


class Model:
    """Stand-in for a model with hooks: it refers to itself."""

    def __init__(self, world):
        self.itself = self


def refers_to_itself(model, item):
    return model.itself is model


def test_in_sharded_evaluation_rank_0_frees_a_model_before_the_next_one_is_loaded():
    with leading(World()), open_pool(Model, num_processes=1, is_sharded=True) as pool:
        assert list(pool.map(refers_to_itself, ["a"])) == [("a", True)]
        model = weakref.ref(next(iter(pool._loaded.values())))
        gc.disable()
        try:
            pool.__exit__(None)
            assert model() is None
        finally:
            gc.enable()


def test_temporary_folders_of_a_command_are_removed_where_its_process_ends_at_once(tmp_path):
    (tmp_path / "trained").mkdir()
    remove_at_exit(tmp_path / "trained")
    remove_at_exit(tmp_path / "absent")
    remove_folders()
    assert list(tmp_path.iterdir()) == []


def fail_on_rank_1(opened, item):
    if opened[0].rank == 1:
        raise ValueError("a model cannot be loaded")
    time.sleep(60)  # as a rank that waits for the other on a GPU, where nothing ends the wait


def test_in_sharded_evaluation_a_rank_that_fails_ends_all_with_one_line_and_no_temporary_folder(tmp_path):
    (tmp_path / "trained").mkdir()
    context, port = multiprocessing.get_context("fork"), free_port()

    def command(world):
        remove_at_exit(tmp_path / "trained")
        with open_pool(place_of, num_processes=2, is_sharded=True) as pool:
            return len(list(pool.map(fail_on_rank_1, [0, 1])))

    def be_rank(rank):
        sys.stderr = (tmp_path / f"{rank}.err").open("w", buffering=1)
        place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
        os._exit(run_sharded_rank(command, is_quiet=True))

    ranks = [context.Process(target=be_rank, args=(rank,)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(40)
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [2, 2]
    lines = [(tmp_path / f"{rank}.err").read_text(encoding="utf-8") for rank in range(2)]
    assert lines == ["", "versatune: rank 1: a model cannot be loaded\n"]
    assert not (tmp_path / "trained").exists()


@pytest.mark.parametrize("command", ["evaluate", "detect"])
def test_sharded_evaluation_is_started_on_the_machines_of_a_hostfile_with_its_own_words(
    tmp_path, monkeypatch, capsys, command
):
    recipe = str(ROOT / "recipes/quickstart.yaml")
    subject = [str(tmp_path), "--recipe", recipe] if command == "evaluate" else [recipe]
    started = []
    monkeypatch.setattr(
        "versatune_ds.launch.start_sharded.run_ranks",
        lambda launcher, layout, **how: started.append((launcher, layout.hosts, how["script"], how["words"])) or 0,
    )
    hostfile = tmp_path / "hosts"
    hostfile.write_text("one slots=4\ntwo slots=4\n", encoding="utf-8")
    words = [command, *subject, "--sharded", "--hostfile", str(hostfile), "data.row_tokens=64"]
    assert command_of(capsys)(*words).code == 0
    [(launcher, hosts, script, found)] = started
    assert (launcher, list(hosts), script, found) == ("deepspeed", ["one", "two"], "sharded.py", words)
    called = command_of(capsys)(command, *subject, "--nodes", "2")
    assert (called.code, called.out) == (2, "")
    assert "--nodes and --hostfile need --sharded" in called.err


@pytest.mark.slow
def test_sharded_evaluation_by_ranks_of_a_launcher_gives_the_result_of_one_process(tmp_path):
    """As tests/evaluation/test_sharded_evaluation.py, through the pool that several machines use."""
    from base_model import detect_config, save_base_model

    from versatune_ds.knowledge.detect import detect

    base = save_base_model(tmp_path)
    labeller = f"detect.hf={{name_or_path: {base}, precision: fp32}}"

    def found(name, **processes):
        config = detect_config(
            tmp_path / name, base, "detect.labeller=hf", labeller, "detect.rounds=1", "detect.num_sequences=8"
        )
        detection = detect(config, **processes)
        return [drawn.text for drawn in detection.sequences], detection.labels_NK.tolist()

    texts, labels = found("one", num_processes=1)
    folder = tmp_path / "ranks"
    folder.mkdir()
    of_ranks = run_ranks(
        lambda world: led(world, lambda: found("two", num_processes=2, is_sharded=True)), world_size=2, folder=folder
    )
    assert of_ranks[0][0] == texts
    for row, expected in zip(of_ranks[0][1], labels, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
