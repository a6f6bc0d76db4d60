"""Live control of a running mixture: pins apply, are recorded, and leave resume and replay exact."""

import json
import os

import pytest
from ranks import run_ranks
from tiny_run import be_trained, inputs_besides_losses, losses_by_step, read_lines, tiny_config

from versatune_ds.run_folder.checkpoint_files import complete_checkpoints
from versatune_ds.training import loop
from versatune_ds.training.run_records import replay_run

PIN = {"pins": {"law": 0.4}}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def train_ranks(config, folder, *, control_after=None, killed_after=None, stop_after=None):
    """Train on two ranks; rank 0 writes the control file after a step, and all exit at once after another one."""
    folder.mkdir(parents=True)
    log_step = loop.log_step

    def log_and_interfere(run, plan):
        log_step(run, plan)
        if run.step == control_after and run.world.is_rank_zero:
            (config.run_dir / "control.json").write_text(json.dumps(PIN))
        if run.step == killed_after:
            os._exit(9)

    def work(world):
        loop.log_step = log_and_interfere  # in this forked process only
        return be_trained(config, world, stop_after=stop_after).schedule.state_dict()

    return run_ranks(work, world_size=2, folder=folder)


def decisions_of(config):
    return read_lines(config.run_dir / "decisions.jsonl")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, cache_dir):
    """Return the uninterrupted run whose control file appears after step 5, and its schedule on each rank."""
    folder = tmp_path_factory.mktemp("whole")
    config = tiny_config(folder, "checkpoint.every=3", cache_dir=cache_dir)
    return config, train_ranks(config, folder / "ranks", control_after=5)


@pytest.mark.slow
def test_a_pin_written_during_training_applies_from_the_next_decision_on_all_ranks(uninterrupted):
    config, (first, second) = uninterrupted
    decisions = decisions_of(config)
    assert [inputs_besides_losses(decision) for decision in decisions] == [{}, {}, PIN, PIN]
    assert [decision["weights_after"]["law"] == 0.4 for decision in decisions] == [False, False, True, True]
    assert "pin: law" in decisions[2]["acted"]
    assert first == second
    steps = {line["step"]: line for line in read_lines(config.run_dir / "metrics.jsonl") if "train/loss" in line}
    assert [steps[step]["domain/law/weight"] == 0.4 for step in (10, 11, 12)] == [False, True, True]


@pytest.mark.slow
def test_a_pinned_run_that_is_stopped_and_resumed_equals_the_uninterrupted_one(tmp_path, cache_dir, uninterrupted):
    config = tiny_config(tmp_path, "checkpoint.every=3", cache_dir=cache_dir)
    train_ranks(config, tmp_path / "first", control_after=5, stop_after=9)
    train_ranks(config, tmp_path / "second")
    assert decisions_of(config) == decisions_of(uninterrupted[0])
    assert losses_by_step(config.run_dir) == losses_by_step(uninterrupted[0].run_dir)


@pytest.mark.slow
def test_a_killed_run_repeats_its_decisions_with_the_inputs_it_recorded(tmp_path, cache_dir, uninterrupted):
    config = tiny_config(tmp_path, "checkpoint.every=3", cache_dir=cache_dir)
    with pytest.raises(AssertionError, match="exited without a result"):
        train_ranks(config, tmp_path / "first", control_after=5, killed_after=5)
    assert [path.name for path in complete_checkpoints(config.run_dir)] == ["step_00000003"]
    train_ranks(config, tmp_path / "second")
    assert decisions_of(config) == decisions_of(uninterrupted[0])
    assert losses_by_step(config.run_dir) == losses_by_step(uninterrupted[0].run_dir)


@pytest.mark.slow
def test_a_replay_of_a_pinned_run_repeats_its_decisions_digest_for_digest(uninterrupted):
    replay = replay_run(uninterrupted[0].run_dir)
    assert [d.digest for d in replay.replayed] == [d["digest"] for d in decisions_of(uninterrupted[0])]
    assert replay.text == "All 4 decisions are the recorded ones, digest for digest."


@pytest.mark.slow
def test_a_replay_with_other_settings_keeps_the_recorded_inputs_and_describes_itself(uninterrupted):
    replay = replay_run(uninterrupted[0].run_dir, ["mixture.sigma=0", "mixture.policy=versatune"])
    assert [decision.weights_after["law"] for decision in replay.replayed[2:]] == [0.4, 0.4]
    assert "First difference: update 1 (step 4) differs in" in replay.text
    assert "The losses are those of the recorded run" in replay.text


@pytest.mark.slow
def test_a_replay_with_another_policy_starts_from_its_starting_weights(uninterrupted):
    replay = replay_run(uninterrupted[0].run_dir, ["mixture.policy=uniform"])
    assert set(replay.replayed[0].weights_after.values()) == {1 / 6}


@pytest.mark.slow
def test_a_domain_whose_data_runs_out_is_capped_by_its_supply_and_the_replay_is_exact(tmp_path, cache_dir):
    rows = "data.synthetic.num_rows={law: 12, medicine: 90, finance: 90, science: 90, code: 90, general: 90}"
    config = tiny_config(tmp_path, rows, "data.max_epochs_per_domain=1", "mixture.prior=uniform", cache_dir=cache_dir)
    train_ranks(config, tmp_path / "ranks")
    decisions = decisions_of(config)
    caps = [decision["inputs"].get("supply_caps", {}).get("law") for decision in decisions]
    assert caps[0] is None
    assert 0 < caps[1] < decisions[1]["weights_before"]["law"]
    assert decisions[1]["weights_after"]["law"] <= caps[1] + 1e-9
    assert "supply cap: law" in decisions[1]["acted"]
    assert "All 4 decisions are the recorded ones" in replay_run(config.run_dir).text
