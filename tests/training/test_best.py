"""The best checkpoint outlives newer ones, and a run whose losses no longer fall ends early: the same on every rank."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks
from tiny_run import be_trained, read_lines, tiny_config

from versatune_ds.config.held_out_metric import EarlyStoppingConfig
from versatune_ds.distributed import World
from versatune_ds.domains import DomainSet
from versatune_ds.export.run_export import choose_checkpoint
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.report.series import read_series
from versatune_ds.report.summary import state_of
from versatune_ds.run_folder.checkpoint_files import complete_checkpoints
from versatune_ds.training import run as run_module
from versatune_ds.training.best import (
    BestCheckpoint,
    EarlyStopping,
    check_judged,
    early_stop_text,
    is_complete_at,
    metric_value,
)
from versatune_ds.training.run_records import replay_run
from versatune_ds.training.start_checks import StartCheckInput, check_start
from versatune_ds.training.update_clock import UpdateClock

NAMES = DomainSet(("law", "code", "art"))


def losses(*means, tokens=(2, 2, 0)):
    """Losses of one example a domain; art has no held-out rows unless it is given tokens."""
    return ExampleLosses(
        loss_sum_E=[mean * count for mean, count in zip(means, tokens, strict=True)], num_loss_tokens_E=tokens,
        domain_ids_E=[0, 1, 2], num_domains=3,
    )  # fmt: skip


def value(metric, *means, start=(2.0, 1.0, math.nan), **options):
    return metric_value(metric, losses(*means, **options), start_K=np.array(start), domain_set=NAMES)


def test_a_measurement_is_judged_by_its_mean_its_worst_domain_or_one_domain():
    assert value("validation/loss", 1.8, 1.1, 0) == pytest.approx(1.45)
    assert value("worst_domain", 1.8, 1.1, 0) == pytest.approx(0.1)
    assert value("worst_domain", 1.8, 0.8, 0) == pytest.approx(-0.1)  # law gained least
    assert value("domain/code/loss", 1.8, 1.1, 0) == 1.1


def test_a_loss_that_is_no_number_makes_every_value_it_enters_none():
    assert math.isnan(value("validation/loss", math.nan, 1.1, 0))
    assert math.isnan(value("worst_domain", math.nan, 1.1, 0))
    assert math.isnan(value("worst_domain", 1.8, 1.1, 1.0, tokens=(2, 2, 2)))  # art was not measured at step 0
    assert math.isnan(value("domain/art/loss", 1.8, 1.1, 0))
    assert math.isnan(value("validation/loss", 0, 0, 0, tokens=(0, 0, 0)))


def judged(values):
    best = BestCheckpoint("validation/loss")
    for step, number in values.items():
        best.record(step, number)
    return best


def test_the_best_is_the_lowest_the_earlier_one_of_a_tie_and_never_one_that_is_no_number():
    assert judged({4: 2.0, 8: 1.0, 12: 1.0, 16: 3.0, 20: math.nan}).step == 8
    assert judged({4: math.nan}).step is None


def test_a_best_checkpoint_that_could_not_be_saved_leaves_the_former_one():
    best = judged({4: 2.0})
    best.before_save()
    best.after_save(is_saved=True)
    best.record(8, 1.0)
    assert best.is_unsaved
    best.before_save()
    best.after_save(is_saved=False)
    assert (best.step, best.value, best.is_unsaved) == (4, 2.0, False)
    best.before_save()
    best.after_save(is_saved=False)  # a later save of another step fails too
    assert (best.step, best.value) == (4, 2.0)


def test_the_best_is_restored_unless_it_was_judged_by_another_metric_or_its_checkpoint_is_gone(tmp_path, caplog):
    state = json.loads(json.dumps(judged({4: 2.0}).state_dict()))
    for metric, expected in (("validation/loss", 4), ("worst_domain", None)):
        restored = BestCheckpoint(metric)
        restored.load_state_dict(state)
        assert restored.step == expected
    assert "checkpoint.best: now worst_domain, was validation/loss" in caplog.text
    restored = judged({4: 2.0})
    folder = tmp_path / "checkpoints" / "step_00000004"
    folder.mkdir(parents=True)
    (folder / "MANIFEST").touch()
    restored.forget_if_lost(tmp_path, World())
    assert restored.step == 4
    (folder / "MANIFEST").unlink()
    restored.forget_if_lost(tmp_path, World())
    assert (restored.step, restored.value) == (None, math.inf)


def counted(values, **settings):
    stopping = EarlyStopping(EarlyStoppingConfig(**settings))
    for step, number in enumerate(values, start=1):
        stopping.record(step, number)
    return stopping


def test_training_is_over_after_patience_measurements_without_a_new_lowest_value():
    assert not counted([3.0, 2.0, 2.5], patience=2).is_over
    assert counted([3.0, 2.0, 2.5, 2.0], patience=2).is_over
    assert counted([2.0, math.nan, math.nan], patience=2).is_over
    assert not counted([math.nan, 2.0, 3.0], patience=2).is_over
    # By 0.1 at least: 1.95 is not lower than 2.0, 1.85 is.
    assert not counted([2.0, 1.95, 1.85], patience=2, min_delta=0.1).is_over
    assert counted([2.0, 1.95, 1.91], patience=2, min_delta=0.1).is_over
    assert counted([2.0, 2.5, 2.1], patience=2, min_delta=0.1).reason() == (
        "validation/loss has not fallen by more than 0.1 in 2 measurements in a row; its lowest was 2.0000 after step 1"
    )


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 11))
def test_patience_counts_what_came_after_the_first_lowest_value_and_a_resume_changes_nothing(values, patience, cut):
    whole = counted(values, patience=patience)
    assert whole.is_over == (len(values) - 1 - values.index(min(values)) >= patience)
    resumed = EarlyStopping(EarlyStoppingConfig(patience=patience))
    resumed.load_state_dict(json.loads(json.dumps(counted(values[:cut], patience=patience).state_dict())))
    for step, number in enumerate(values[cut:], start=1 + len(values[:cut])):
        resumed.record(step, number)
    assert resumed.state_dict() == whole.state_dict()


def test_other_settings_of_early_stopping_count_from_the_start(caplog):
    resumed = EarlyStopping(EarlyStoppingConfig(min_delta=0.5))
    resumed.load_state_dict(counted([2.0, 3.0], patience=2).state_dict())
    assert resumed.state_dict()["step"] is None
    assert "train.early_stopping: its settings changed" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("checkpoint.best=validation/los", r"best: expected validation/loss, worst_domain, domain/NAME/loss; did you "),
        ("checkpoint.best=validation/los", r"did you mean 'validation/loss'\? \(got 'validation/los'\)"),
        ("train.early_stopping={metric: loss}", r"train\.early_stopping\.metric: expected validation/loss, "),
        ("train.early_stopping={patience: 0}", r"train\.early_stopping\.patience: expected 1 or more \(got 0\)"),
    ],
)  # fmt: skip
def test_a_metric_that_is_none_is_refused_in_one_line(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(tmp_path, override)


@pytest.mark.parametrize("stage", ["train", "every rank"])
def test_a_domain_that_does_not_exist_is_refused_with_the_nearest_name(tmp_path, stage):
    config = tiny_config(tmp_path, "checkpoint.best=domain/lw/loss", "train.early_stopping={metric: domain/cde/loss}")
    with pytest.raises(ValueError, match=r"^checkpoint\.best: domain/lw/loss: there is no domain 'lw'; did you mean"):
        check_start(StartCheckInput(config=config, stage=stage, device_type="cpu"))
    config = tiny_config(tmp_path, "train.early_stopping={metric: domain/cde/loss}")
    with pytest.raises(ValueError, match=r"^train\.early_stopping\.metric: .*did you mean 'code'\?"):
        check_start(StartCheckInput(config=config, stage=stage, device_type="cpu"))


def test_a_run_that_measures_no_held_out_losses_cannot_be_judged_by_them(tmp_path):
    config = tiny_config(tmp_path, "checkpoint.best=worst_domain", "mixture.signal=train")
    with pytest.raises(ValueError, match=r"^checkpoint\.best: worst_domain needs held-out losses, which mixture\.sig"):
        check_start(StartCheckInput(config=config, stage="train", device_type="cpu"))


def test_a_run_that_ended_early_stays_complete_until_its_settings_no_longer_end_it_there():
    stopped = counted([2.0, 3.0, 3.0], patience=2)
    stopped.stopped_after = 3
    state = {"is_complete": True, "early_stopping": json.loads(json.dumps(stopped.state_dict()))}
    for patience, is_complete in ((1, True), (2, True), (3, False)):
        resumed = EarlyStopping(EarlyStoppingConfig(patience=patience))
        resumed.load_state_dict(state["early_stopping"])
        assert is_complete_at(state, early_stopping=resumed) == is_complete
    assert not is_complete_at(state, early_stopping=None)
    assert early_stop_text(state).startswith(": stopped early after step 3; a larger train.early_stopping.patience, or")
    # A run that reached its last step is complete whatever the settings; states of earlier versions have no such part.
    for part in (None, {**state["early_stopping"], "stopped_after": None}):
        assert is_complete_at({"is_complete": True, "early_stopping": part}, early_stopping=None)
    assert is_complete_at({"is_complete": True}, early_stopping=None)
    assert not is_complete_at({"is_complete": False}, early_stopping=stopped)
    assert early_stop_text({"is_complete": True}) == ""


SCRIPTED = {2: 1.0, 4: 3.0, 6: 2.0, 8: 0.5}
"""Step -> the value of its measurement on rank 0."""
JUDGED = ("train.steps=8", "mixture.update_every=2", "checkpoint.best=validation/loss", "checkpoint.keep=1",
          "monitor.log_every=100")  # fmt: skip


@pytest.mark.slow
def test_the_best_checkpoint_survives_kills_and_a_run_ends_early_on_all_ranks(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    runs = iter(range(9))

    def train(patience, **options):
        """Train on two ranks; rank 1 would judge otherwise, but rank 0's values are broadcast."""
        config = tiny_config(tmp_path, *JUDGED, f"train.early_stopping={{patience: {patience}}}")
        folder = tmp_path / f"results_{next(runs)}"
        folder.mkdir()

        def work(world):
            usual, at = run_module.Run.judge, []
            monkeypatch.setattr(run_module.Run, "judge", lambda run, losses: (at.append(run.step), usual(run, losses)))
            scripted = lambda *_, **__: SCRIPTED[at[-1]] if world.is_rank_zero else -1.0  # noqa: E731
            monkeypatch.setattr(run_module, "metric_value", scripted)
            run = be_trained(config, world, **options)
            return run.step, run.is_complete, run.best.state_dict(), run.early_stopping.stopped_after

        return config, run_ranks(work, world_size=2, folder=folder)

    def steps(config):
        return [int(path.name[-2:]) for path in complete_checkpoints(config.run_dir)]

    best = {"metric": "validation/loss", "step": 2, "value": 1.0}
    # Stopped by a signal after a worse measurement: the best one is still there, besides the newest.
    config, results = train(2, stop_after=5)
    assert results == [(5, False, best, None)] * 2
    assert steps(config) == [5, 2]
    # With less patience than it has used up, it ends at once.
    config, results = train(1)
    assert results == [(5, True, best, 5)] * 2
    # Resumed: the second measurement in a row without a new lowest value ends the run.
    config, results = train(2)
    assert results == [(6, True, best, 6)] * 2
    assert steps(config) == [6, 2]
    # The last step before a stop is logged, although `monitor.log_every` is far away.
    metrics = read_lines(config.run_dir / "metrics.jsonl")
    assert [line["step"] for line in metrics if "train/loss" in line] == [5, 6]
    record = json.loads((config.run_dir / "early_stop.json").read_text())
    assert record["reason"] == (
        "stopped early after step 6 of 8: validation/loss has not fallen in 2 measurements in a row; its lowest was "
        "1.0000 after step 2"
    )
    assert state_of(read_series(config.run_dir), now=0) == f"Complete: {record['reason']}."
    replay = replay_run(config.run_dir)
    assert [decision.digest for decision in replay.replayed] == [decision.digest for decision in replay.recorded]
    # Its export is the best checkpoint.
    assert choose_checkpoint(config.run_dir, step=None).name == "step_00000002"
    assert "using step 2, the best by validation/loss (1.0000); the newest is of step 6 (--step)" in caplog.text
    assert choose_checkpoint(config.run_dir, step=6).name == "step_00000006"
    # More patience lifts the stop; the last measurement is a new best one, so the former may go.
    config, results = train(3)
    assert results == [(8, True, {**best, "step": 8, "value": 0.5}, None)] * 2
    assert steps(config) == [8]
    assert not (config.run_dir / "early_stop.json").exists()
    assert [line["step"] for line in read_lines(config.run_dir / "resumes.jsonl")] == [5, 5, 6]


@pytest.mark.parametrize(("step", "counted_steps"), [(4, 4), (6, None)])
def test_patience_counts_no_measurement_that_only_the_end_of_the_run_made(step, counted_steps):
    run = SimpleNamespace(
        best=BestCheckpoint("validation/loss"), early_stopping=EarlyStopping(EarlyStoppingConfig()), step=step,
        updates=UpdateClock(update_every=4, max_share=None), world=World(), domain_set=NAMES,
        controller=SimpleNamespace(start_loss_K=np.ones(3)),
    )  # fmt: skip
    run_module.Run.judge(run, losses(1.8, 1.1, 0))
    assert (run.best.step, run.early_stopping.state_dict()["step"]) == (step, counted_steps)


def test_the_worst_domain_cannot_be_judged_beside_a_signal_of_ones_own():
    with pytest.raises(
        ValueError, match=r"^checkpoint\.best: worst_domain compares held-out losses .*mixture\.signal=m:f"
    ):
        check_judged("checkpoint.best", "worst_domain", domains=None, signal="m:f")
    check_judged("checkpoint.best", "validation/loss", domains=None, signal="m:f")
