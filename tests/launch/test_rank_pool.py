"""The ranks of a launcher as a pool that rank 0 leads, and how a command is started on several machines."""

import pytest
from ranks import run_ranks

from tests.helpers.command_line import command_of
from versatune_ds.distributed import barrier
from versatune_ds.launch.rank_pool import leading, led_world, serve
from versatune_ds.launch.sharded_pool import check_sharded, open_pool


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


@pytest.mark.parametrize("command", ["evaluate", "detect"])
def test_sharded_evaluation_is_started_on_the_machines_of_a_hostfile_with_its_own_words(
    tmp_path, monkeypatch, capsys, command
):
    started = []
    monkeypatch.setattr(
        "versatune_ds.launch.start_sharded.run_ranks",
        lambda launcher, layout, **how: started.append((launcher, layout.hosts, how["script"], how["words"])) or 0,
    )
    hostfile = tmp_path / "hosts"
    hostfile.write_text("one slots=4\ntwo slots=4\n", encoding="utf-8")
    words = [command, str(tmp_path), "--sharded", "--hostfile", str(hostfile), "data.row_tokens=64"]
    assert command_of(capsys)(*words).code == 0
    [(launcher, hosts, script, found)] = started
    assert (launcher, list(hosts), script, found) == ("deepspeed", ["one", "two"], "sharded.py", words)
    called = command_of(capsys)(command, tmp_path, "--nodes", "2")
    assert (called.code, called.out) == (2, "")
    assert "--nodes and --hostfile need --sharded" in called.err


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
