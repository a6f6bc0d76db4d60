"""`versatune inspect` shows the rows that are trained on, for every number of processes and every resume point."""

import json

import pytest
from command_line import command_of, write_recipe
from ranks import run_ranks
from tiny_run import be_trained, read_lines, tiny_config

from versatune_ds.preflight.inspect_recipe import StepRange, escape_control_characters


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    return write_recipe(tiny_config(folder), folder / "tiny.yaml")


@pytest.fixture
def versatune(capsys):
    return command_of(capsys)


@pytest.fixture
def inspect(versatune, recipe):
    """Return a function that runs `versatune inspect` on the tiny recipe and returns its lines."""

    def lines(*arguments):
        called = versatune("inspect", recipe, "--quiet", *arguments)
        assert called.code == 0, called.err
        return called.out.splitlines()

    return lines


def without_rank(lines):
    return [json.dumps({key: value for key, value in json.loads(line).items() if key != "rank"}) for line in lines]


def test_a_range_of_steps_begins_after_its_first_number():
    assert StepRange.parse("0:20") == StepRange(after=0, last=20)


@pytest.mark.parametrize("text", ["20", "3:3", "5:2", "a:b", "-1:4", ":", "1:"])
def test_a_text_that_is_not_a_range_of_steps_is_refused(text):
    with pytest.raises(ValueError, match=f"^--steps {text}: expected AFTER:LAST"):
        StepRange.parse(text)


def test_control_and_format_characters_are_escaped_and_other_text_is_unchanged():
    text = "a\x1b[31m\tb\n\u202ec\x07 \u00e9\u6f22 \x9b"
    assert escape_control_characters(text) == "a\\x1b[31m\tb\n\\u202ec\\x07 \u00e9\u6f22 \\x9b"


def test_each_line_is_one_packed_row(inspect):
    lines = inspect("--steps", "0:2", "--world-size", "2")
    rows = [json.loads(line) for line in lines]
    assert [(row["step"], row["row"]) for row in rows] == [(step, row) for step in (1, 2) for row in range(8)]
    assert [row["rank"] for row in rows[:8]] == [0, 0, 1, 1, 0, 0, 1, 1]
    for row in rows:
        assert list(row) == ["step", "row", "rank", "examples", "fill"]
        assert row["fill"] == pytest.approx(sum(example[3] for example in row["examples"]) / 128, abs=1e-6)


@pytest.mark.slow
def test_apart_from_the_rank_the_output_is_the_same_for_every_world_size_and_resume_point(inspect):
    expected = inspect("--steps", "0:12")
    assert len(expected) == 12 * 8
    for world_size in ("1", "2", "4"):
        for resume_at in ("0", "1", "5", "12"):
            lines = inspect("--steps", "0:12", "--world-size", world_size, "--resume-at", resume_at)
            assert without_rank(lines) == expected
    assert inspect("--steps", "3:7", "--resume-at", "5") == expected[3 * 8 : 7 * 8]


def test_no_step_beyond_the_end_of_the_run_is_shown(inspect):
    assert json.loads(inspect("--steps", "11:99")[-1])["step"] == 12


def test_overrides_of_the_recipe_change_the_rows_shown(inspect):
    rows = [json.loads(line) for line in inspect("mixture.policy=target_only", "--steps", "0:1", "mixture.target=law")]
    assert {example[0] for row in rows for example in row["examples"]} == {"law"}


def test_the_text_of_a_row_marks_what_bears_no_loss_below_a_heading_with_rank_and_fill(inspect):
    legend, *lines = inspect("--steps", "0:1", "--text", "--world-size", "2")
    assert legend == "\u27e6 \u27e7 encloses what bears no loss: the model reads it, and learns to write the rest"
    text = "\n".join(lines)
    assert text.startswith("=== step 1 row 0 rank 0 fill ")
    question, answer = text.split("\u27e7", 1)
    assert "<|user|>" in question.split("\u27e6")[1]
    assert "<|end|>\u27e6" in answer


def test_control_characters_in_the_data_are_escaped_before_they_are_printed(versatune, tmp_path):
    (tmp_path / "train").mkdir()
    messages = [{"role": "user", "content": "red \x1b[31m"}, {"role": "assistant", "content": "bell \x07 \u202eback"}]
    rows = [json.dumps({"messages": [*messages, {"role": "user", "content": str(i)}, messages[1]]}) for i in range(80)]
    (tmp_path / "train" / "law.jsonl").write_text("\n".join(rows))
    config = tiny_config(tmp_path).model_dump(mode="json")
    data = {**config["data"], "synthetic": None, "folder": str(tmp_path)}
    recipe = write_recipe(tiny_config(tmp_path).model_copy(), tmp_path / "r.yaml")
    called = versatune("inspect", recipe, f"data={json.dumps(data)}", "--steps", "0:1", "--text", "--quiet")
    assert called.code == 0, called.err
    assert "red \\x1b[31m" in called.out
    assert "bell \\x07 \\u202eback" in called.out
    assert not any(character in called.out for character in "\x1b\x07\u202e")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--world-size", "3"], "--world-size 3: train.rows_per_batch 8 is no multiple of processes x"),
        (["--world-size", "0"], "--world-size 0: "),
        (["--resume-at", "13"], "--resume-at 13: expected a step from 0 to 12"),
        (["--run", "nowhere"], "nowhere/decisions.jsonl: no such file"),
    ],
)
def test_a_wrong_option_is_refused_with_a_message_of_one_line(versatune, recipe, arguments, message):
    called = versatune("inspect", recipe, "--steps", "0:12", "--quiet", *arguments)
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith(f"versatune: {message}")
    assert len(called.err.splitlines()) == 1


STAGES = """mixture={policy: schedule, update_every: 4, schedule: [
    [0, {code: 0.2, finance: 0.2, general: 0.2, law: 0.2, medicine: 0.1, science: 0.1}],
    [5, {code: 0.1, finance: 0.1, general: 0.1, law: 0.5, medicine: 0.1, science: 0.1}]]}"""


@pytest.mark.slow
def test_the_rows_shown_for_a_run_are_those_it_trained_on(inspect, recipe, tmp_path):
    config = tiny_config(tmp_path, STAGES, cache_dir=recipe.parent / "cache")
    run_ranks(lambda world: be_trained(config, world).step, world_size=2, folder=tmp_path)
    served = dict.fromkeys(("code", "finance", "general", "law", "medicine", "science"), 0)
    shown_after = {}
    lines = inspect(STAGES, "--steps", "0:12", "--run", config.run_dir)
    for line in lines:
        row = json.loads(line)
        for domain, _, _, num_tokens in row["examples"]:
            served[domain] += num_tokens
        shown_after[row["step"]] = dict(served)
    recorded = [line for line in read_lines(config.run_dir / "metrics.jsonl") if "domain/law/num_tokens" in line]
    assert len(recorded) == 12
    for line in recorded:
        assert shown_after[line["step"]] == {name: line[f"domain/{name}/num_tokens"] for name in served}
    start = inspect(STAGES, "--steps", "0:12")
    assert lines[: 6 * 8] == start[: 6 * 8]
    assert lines[6 * 8 :] != start[6 * 8 :]
