"""A run's decisions can be explained and replayed from its folder; a changed record is refused."""

import json

import pytest
from command_line import command_of, write_recipe
from tiny_run import tiny_config

from versatune_ds.run_folder.recorded_config import recorded_config
from versatune_ds.training.run_records import replay_run


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Return the text of a config and of the decisions it leads to: a record without training."""
    folder = tmp_path_factory.mktemp("recorded")
    config = tiny_config(folder, "mixture.prior=uniform", "train.steps=20")
    return folder, config


@pytest.fixture
def versatune(capsys):
    return command_of(capsys)


@pytest.fixture
def run_dir(versatune, simulated, tmp_path):
    """Return a folder with the config and the decisions of a run, made by the simulator."""
    _, config = simulated
    recipe = write_recipe(config, tmp_path / "config.yaml")
    called = versatune("simulate", recipe, "--quiet", "--noise", "0.01", "--output", tmp_path / "decisions.jsonl")
    assert called.code == 0, called.err
    return tmp_path


def test_a_replay_with_the_runs_own_settings_repeats_its_decisions(versatune, run_dir, tmp_path):
    called = versatune("replay", run_dir, "--output", tmp_path / "again.jsonl")
    assert (called.code, called.out) == (0, "All 6 decisions are the recorded ones, digest for digest.\n")
    assert (tmp_path / "again.jsonl").read_bytes() == (run_dir / "decisions.jsonl").read_bytes()


def test_a_replay_with_another_sigma_reports_where_it_differs_and_that_losses_are_as_recorded(versatune, run_dir):
    called = versatune("replay", run_dir, "mixture.sigma=0.1")
    assert called.code == 0
    assert "First difference: update 1 (step 4) differs in weights_after" in called.out
    assert "The losses are those of the recorded run" in called.out


def test_a_replay_starts_from_an_overridden_prior(run_dir):
    prior = "mixture.prior={code: 0.5, finance: 0.1, general: 0.1, law: 0.1, medicine: 0.1, science: 0.1}"
    assert replay_run(run_dir, [prior]).replayed[0].weights_before["code"] == 0.5


def test_a_deleted_reference_file_is_read_from_the_runs_folder(run_dir, versatune, tmp_path):
    losses = dict.fromkeys(("code", "finance", "general", "law", "medicine", "science"), 1.1)
    (tmp_path / "elsewhere.json").write_text(json.dumps({"losses": losses}))
    override = f"mixture.reference={tmp_path / 'elsewhere.json'}"
    again = versatune("simulate", run_dir / "config.yaml", "--quiet", override, "--output", run_dir / "decisions.jsonl")
    assert again.code == 0, again.err
    write_recipe(recorded_config(run_dir, [override]), run_dir / "config.yaml")
    (tmp_path / "elsewhere.json").rename(run_dir / "reference.json")
    assert "All 6 decisions are the recorded ones" in replay_run(run_dir).text
    with pytest.raises(ValueError, match=r"nowhere\.json: no such file"):
        replay_run(run_dir, ["mixture.reference=nowhere.json"])


def test_a_decision_is_reported_in_words_and_numbers(versatune, run_dir):
    newest, fifth = versatune("explain", run_dir), versatune("explain", run_dir, "--step", "5")
    assert newest.code == fifth.code == 0
    assert newest.out.startswith("Update 5, decided after step 20, in effect from step 23.")
    assert fifth.out.startswith("Update 1, decided after step 4, in effect from step 7.")
    assert "Effective number of domains:" in fifth.out
    late = "The update after step 20 would take effect at step 23, and the run has 20: it changes no batch, unless the"
    assert newest.out.splitlines()[-1].startswith(late)
    assert "would take effect" not in fifth.out


def changed_record(run_dir):
    lines = (run_dir / "decisions.jsonl").read_text().splitlines()
    decision = json.loads(lines[2])
    decision["weights_after"]["law"] += 1e-9
    lines[2] = json.dumps(decision)
    (run_dir / "decisions.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("command", ["replay", "explain"])
def test_a_changed_line_is_refused_with_file_and_line(versatune, run_dir, command):
    changed_record(run_dir)
    called = versatune(command, run_dir)
    assert (called.code, called.out) == (2, "")
    assert "decisions.jsonl:3: decision of update 2 (step 8): digest" in called.err
    assert len(called.err.splitlines()) == 1


@pytest.mark.parametrize("command", ["replay", "explain"])
def test_a_folder_that_is_no_runs_is_refused(versatune, tmp_path, command):
    called = versatune(command, tmp_path)
    assert called.code == 2
    assert called.err == f"versatune: {tmp_path}: no config.yaml; expected the folder of a run (runs/NAME)\n"


def test_a_run_without_decisions_is_refused(versatune, run_dir):
    (run_dir / "decisions.jsonl").unlink()
    called = versatune("explain", run_dir)
    assert called.code == 2
    assert "decisions.jsonl: no such file; give the folder of a run that has decided" in called.err


@pytest.mark.parametrize(("step", "message"), [("21", "has 20 steps"), ("-1", "no decision at or before step -1")])
def test_an_unknown_step_is_refused(versatune, run_dir, step, message):
    called = versatune("explain", run_dir, "--step", step)
    assert called.code == 2
    assert message in called.err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=3", "train.steps: a replay has only the losses that the run measured"),
        ("mixture.update_every=2", "mixture.update_every: a replay has only"),
        ("mixture.signal=train", "mixture.signal: a replay has only"),
        ("mixture.sigme=2", "mixture.sigme: unknown key; did you mean 'sigma'?"),
        ("mixture.policy=expansion", "mixture.target: policy 'expansion' needs it"),
    ],
)
def test_an_override_that_a_replay_cannot_apply_is_refused_in_one_line(versatune, run_dir, override, message):
    called = versatune("replay", run_dir, override)
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith(f"versatune: {message}")
    assert len(called.err.splitlines()) == 1
