"""A run that has begun may get more steps: it continues exactly where the schedule allows it, or with leave."""

import shutil

import pytest
from opened_run import config, open_folder

from versatune_ds.config import TrainConfig
from versatune_ds.config.load import parse_config
from versatune_ds.distributed import World
from versatune_ds.training.length.extension import (
    continuation,
    extension_notice,
    kept_interval,
    last_equal_step,
    set_later_checkpoints_aside,
    settle_length,
    steps_at,
    with_warmup_of,
)
from versatune_ds.training.start_checks import StartCheckInput, check_start


def begun(tmp_path, *, saved=(), **train):
    """Make the folder of a run of 100 steps with checkpoints of these steps."""
    folder = open_folder(config(tmp_path, **{"steps": 100, **train}))
    save(folder, *saved)
    return folder


def save(folder, *steps):
    for step in steps:
        place = folder / "checkpoints" / f"step_{step:08d}"
        place.mkdir(parents=True)
        (place / "MANIFEST").write_text("{}")


def continued(tmp_path, *, allow=None, **train):
    settings = config(tmp_path, **train)
    if allow is not None:
        settings = settings.model_copy(update={"resume": settings.resume.model_copy(update={"allow": allow})})
    return continuation(settings, is_fresh=False)


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", 100), ("wsd", 90), ("cosine", 3), ("linear", 3)]
)  # fmt: skip
def test_schedules_of_two_lengths_are_equal_to_the_decay_of_the_shorter_one(schedule, expected):
    was, now = (
        TrainConfig(steps=steps, warmup_steps=3, learning_rate_schedule=schedule, decay_fraction=0.1)
        for steps in (100, 200)
    )
    assert last_equal_step(was, now) == expected


def test_a_run_that_begins_says_once_that_its_schedule_ends_with_it(tmp_path):
    notice = "train.learning_rate_schedule: cosine ends at step 100; if the run may get more steps later, choose wsd or"
    assert extension_notice(TrainConfig(steps=100)).startswith(notice)
    assert "linear ends at the last step; " in extension_notice(TrainConfig(epochs=2, learning_rate_schedule="linear"))
    for settings in ({"learning_rate_schedule": "wsd"}, {"learning_rate_schedule": "constant"},
                     {"min_learning_rate_fraction": 1.0}):  # fmt: skip
        assert extension_notice(TrainConfig(steps=100, **settings)) is None


def test_a_run_keeps_the_interval_between_updates_that_it_began_with_unless_the_recipe_gives_one(tmp_path, caplog):
    caplog.set_level("INFO")
    begun(tmp_path, steps=40, saved=(40,))
    assert kept_interval(config(tmp_path, steps=40)) is None
    assert kept_interval(config(tmp_path, steps=400)) == 10
    assert caplog.messages == ["mixture.update_every: 10, as the run began; one of 400 steps from the beginning has 50"]
    given = parse_config({**config(tmp_path, steps=400).model_dump(mode="json"), "mixture": {"update_every": 7}})
    assert kept_interval(given) is None
    longer = config(tmp_path, steps=400, learning_rate_schedule="constant", learning_rate=2e-6)
    settled, _ = settle_length(longer, None, world=World(), is_fresh=False)
    assert (settled.train.steps, settled.mixture.update_every) == (400, 10)
    fresh, _ = settle_length(longer, None, world=World(), is_fresh=True)
    assert fresh.mixture.update_every == 50


def test_a_longer_wsd_run_restarts_from_the_newest_checkpoint_before_its_decay(tmp_path):
    begun(tmp_path, saved=(60, 80, 100), learning_rate_schedule="wsd")
    found = continued(tmp_path, steps=200, learning_rate_schedule="wsd")
    assert (found.last_step, found.train.steps) == (80, 200)
    assert found.line.startswith("train.steps: 200, was 100: wsd continues exactly after step 80, the same as a run of")
    assert "its decay, which began after step 90; later checkpoints are kept as step_*.before_extension" in found.line


@pytest.mark.parametrize("schedule", ["wsd", "constant"])
def test_a_run_stopped_before_its_decay_continues_from_its_newest_checkpoint(tmp_path, schedule):
    begun(tmp_path, saved=(60, 80), learning_rate_schedule=schedule)
    found = continued(tmp_path, steps=200, learning_rate_schedule=schedule)
    assert found.last_step is None
    assert f"{schedule} continues exactly after step 80" in found.line


@pytest.mark.parametrize(
    ("schedule", "saved", "message"),
    [
        (
            "cosine",
            (90, 100),
            r"cosine would raise the learning rate from 2e-06 at step 100 to 1\.1\de-05 at step 101; ",
        ),
        ("linear", (100,), r"linear would raise the learning rate from 2e-06 at step 100 to "),
        (
            "wsd",
            (95, 100),
            r"wsd would raise .* from 2e-06 at step 100 to 2e-05 .* \(no checkpoint of step 90 or before",
        ),
    ],
)
def test_a_jump_of_the_learning_rate_is_refused_in_one_line_and_may_be_allowed(tmp_path, schedule, saved, message):
    begun(tmp_path, saved=saved, learning_rate_schedule=schedule)
    keys = {"steps": 200, "learning_rate_schedule": schedule}
    with pytest.raises(ValueError, match=r"^train\.steps: 200, was 100 in .*: " + message) as raised:
        continued(tmp_path, **keys)
    assert "\n" not in str(raised.value)
    assert "'resume.allow=[learning_rate]', or start another run from its model" in str(raised.value)
    found = continued(tmp_path, allow=("learning_rate",), **keys)
    assert found.last_step is None
    assert f"{schedule} is stretched over the new length, so the learning rate goes from 2e-06" in found.line


def test_a_few_steps_more_are_no_jump_and_neither_is_a_lower_rate_from_now_on(tmp_path):
    begun(tmp_path, saved=(100,))
    assert "goes from 2e-06 at step 100 to 2.2" in continued(tmp_path, steps=108).line
    constant = continued(tmp_path, steps=200, learning_rate=2e-6, learning_rate_schedule="constant")
    assert "goes from 2e-06 at step 100 to 2e-06 at step 101" in constant.line


def test_a_run_whose_rate_jumped_before_is_not_called_the_same_as_the_longer_one(tmp_path):
    begun(tmp_path, saved=(100,), learning_rate_schedule="wsd")
    open_folder(config(tmp_path, steps=200, warmup_steps=3, learning_rate_schedule="wsd"), step=100)
    save(tmp_path / "r", 150)
    found = continued(tmp_path, steps=300, learning_rate_schedule="wsd")
    assert "continues exactly after step 150, though some of its earlier steps had another learning rate" in found.line


def test_fewer_steps_than_a_run_began_with_are_refused(tmp_path):
    begun(tmp_path, saved=(50,))
    with pytest.raises(
        ValueError, match=r"^train\.steps: 60, but the run in .* began with 100: .* use train\.steps=100"
    ):
        continued(tmp_path, steps=60)
    assert continued(tmp_path, steps=100).line is None
    assert continuation(config(tmp_path, steps=60), is_fresh=True).line is None
    assert continued(tmp_path, steps=None, epochs=1).line is None  # counted when the data are known


def test_a_run_without_a_checkpoint_starts_over_with_the_new_length(tmp_path):
    begun(tmp_path)
    found = continued(tmp_path, steps=200)
    assert found.line == "train.steps: 200, was 100: no checkpoint is kept, training starts over"
    assert found.train.num_warmup_steps == 6


def test_the_warm_up_keeps_its_steps_when_a_run_gets_longer_and_ever_after():
    was, now = TrainConfig(steps=100), TrainConfig(steps=1000)
    assert (was.num_warmup_steps, now.num_warmup_steps) == (3, 30)
    kept = with_warmup_of(was, now)
    assert (kept.num_warmup_steps, kept.steps) == (3, 1000)
    assert with_warmup_of(kept, now) == kept  # the same command again, from the record of the extended run
    assert with_warmup_of(was, TrainConfig(steps=1000, warmup_fraction=0.2)).num_warmup_steps == 3
    assert with_warmup_of(was, TrainConfig(steps=1000, warmup_steps=7)).warmup_steps == 7
    assert with_warmup_of(was, TrainConfig(steps=100, warmup_fraction=0.2)).num_warmup_steps == 20


def test_later_checkpoints_are_set_aside_and_not_deleted(tmp_path):
    folder = begun(tmp_path, saved=(60, 80, 100))
    set_later_checkpoints_aside(folder, step=80)
    shutil.copytree(folder / "checkpoints" / "step_00000080", folder / "checkpoints" / "step_00000100")
    set_later_checkpoints_aside(folder, step=80)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "latest", "step_00000060", "step_00000080", "step_00000100.before_extension",
        "step_00000100.before_extension_2",
    ]  # fmt: skip
    assert (folder / "checkpoints" / "latest").read_text() == "step_00000080\n"


def test_the_length_at_a_checkpoint_is_the_one_it_was_saved_under(tmp_path):
    folder = begun(tmp_path, saved=(100,))
    assert steps_at(folder, step=100) == 100
    open_folder(config(tmp_path, steps=200), step=100)
    assert (steps_at(folder, step=100), steps_at(folder, step=150)) == (100, 200)


@pytest.mark.parametrize("stage", ["train", "submit", "rank 0"])
def test_a_jump_is_refused_before_any_process_starts(tmp_path, stage):
    begun(tmp_path, saved=(100,))
    with pytest.raises(ValueError, match=r"train\.steps: 200, was 100 in .*cosine would raise the learning rate"):
        check_start(StartCheckInput(config=config(tmp_path, steps=200), stage=stage))
