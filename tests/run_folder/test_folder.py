"""A run's folder is made once and resumed in; a change that would make it another run is refused."""

import json

import pytest
import yaml
from opened_run import config, open_folder

from versatune_ds.config import SlurmConfig
from versatune_ds.config.load import flatten, parse_config
from versatune_ds.run_folder.folder import check_run_folder, version_at, weights_made_on
from versatune_ds.training.start_checks import StartCheckInput, check_start


def test_the_folder_contains_the_resolved_config_and_the_environment(tmp_path):
    folder = open_folder(config(tmp_path))
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["steps"] == 10
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["world_size"] == 1
    assert environment["versions"]["torch"]
    assert json.loads((folder / "prior.json").read_text())["weights"] == {"law": 0.25, "code": 0.75}
    assert json.loads((folder / "reference.json").read_text())["losses"] == {"law": 1.5, "code": 2.0}


def test_where_random_weights_were_made_is_recorded_by_the_start_that_made_them(tmp_path):
    """A part that resumes elsewhere takes its weights from a checkpoint."""
    folder = open_folder(config(tmp_path), made_on="cuda")
    assert weights_made_on(folder) == "cuda"
    open_folder(config(tmp_path), step=5, made_on="cpu")
    assert weights_made_on(folder) == "cuda"
    open_folder(config(tmp_path), is_fresh=True, made_on="cpu")
    assert weights_made_on(folder) == "cpu"


def test_a_key_that_may_change_is_logged_once_by_the_run_that_resumes(tmp_path, caplog):
    open_folder(config(tmp_path))
    with caplog.at_level("INFO", logger="versatune_ds"):
        check_run_folder(config(tmp_path, learning_rate=1.0), is_fresh=False)
        assert caplog.messages == []
        open_folder(config(tmp_path, learning_rate=1.0))
    assert caplog.messages == [f"train.learning_rate: now 1.0, was 2e-05 (run in {tmp_path}/r)"]


def test_of_keys_newer_than_the_run_only_those_with_another_value_are_logged(tmp_path, caplog):
    folder = open_folder(config(tmp_path))
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    del saved["slurm"], saved["monitor"]["log_every"]
    (folder / "config.yaml").write_text(yaml.safe_dump(saved))
    now = config(tmp_path)
    with caplog.at_level("INFO", logger="versatune_ds"):
        open_folder(now.model_copy(update={"slurm": SlurmConfig(partition="gpu")}))
    assert [record.getMessage() for record in caplog.records] == [
        f"slurm.partition: now gpu, was not set (run in {folder})"
    ]


def test_a_start_that_failed_before_its_first_line_does_not_bind_the_next_to_its_settings(tmp_path, caplog):
    folder = open_folder(config(tmp_path), has_begun=False)
    with caplog.at_level("INFO", logger="versatune_ds"):
        open_folder(config(tmp_path, rows_per_batch=16, steps=4), losses=(1.0, 1.0))
    assert caplog.messages == []
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["rows_per_batch"] == 16
    assert json.loads((folder / "reference.json").read_text())["losses"] == {"law": 1.0, "code": 1.0}
    assert not list(folder.glob("*_until_step_*"))


def test_a_change_of_a_fixed_key_is_refused_and_fresh_starts_over(tmp_path):
    folder = open_folder(config(tmp_path))
    (folder / "metrics.jsonl").write_text("old")
    with pytest.raises(ValueError, match=r"^train\.rows_per_batch: 16, but the run in .* began with 8; use the"):
        open_folder(config(tmp_path, rows_per_batch=16))
    open_folder(config(tmp_path, rows_per_batch=16), is_fresh=True, has_begun=False)
    assert not (folder / "metrics.jsonl").exists()


def test_several_changed_keys_of_a_section_are_one_line_and_one_alone_is_named(tmp_path):
    def with_model(**model):
        values = config(tmp_path).model_dump(mode="json", exclude_unset=True)
        return parse_config({**values, "model": {**values["model"], **model}})

    open_folder(config(tmp_path))
    with pytest.raises(
        ValueError, match=r"^model\.lora: \{alpha: .*, rank: 8, .*\}, but the run in .* with null;"
    ) as no:
        open_folder(with_model(lora={"rank": 8}))
    assert "\n" not in str(no.value)
    with pytest.raises(
        ValueError, match=r"^model\.from_config: \{hidden_size: 8, model_type: 'gpt2'\}, but .* with \{mod"
    ):
        open_folder(with_model(from_config={"model_type": "gpt2", "hidden_size": 8}))
    with pytest.raises(ValueError, match=r"^model\.from_config\.model_type: 'gpt2', but the run .* with 'llama'; use"):
        open_folder(with_model(from_config={"model_type": "gpt2"}))


@pytest.mark.parametrize("is_fresh", [False, True])
def test_the_next_start_succeeds_after_a_kill_while_the_engine_is_built(tmp_path, is_fresh):
    if is_fresh:
        (open_folder(config(tmp_path)) / "checkpoints").mkdir()
    folder = open_folder(config(tmp_path, rows_per_batch=16), is_fresh=is_fresh, is_killed=True)
    assert not (folder / "checkpoints").exists()
    open_folder(config(tmp_path, rows_per_batch=16))
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["rows_per_batch"] == 16


def test_a_partly_deleted_run_is_still_recognised_as_a_run(tmp_path, monkeypatch):
    folder = open_folder(config(tmp_path))
    (folder / "metrics.jsonl").write_text("old")
    monkeypatch.setattr("versatune_ds.run_folder.folder.write_record", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        open_folder(config(tmp_path, rows_per_batch=16), is_fresh=True)
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "environment.json"]
    check_run_folder(config(tmp_path, rows_per_batch=16), is_fresh=True)


@pytest.mark.parametrize("is_fresh", [False, True])
def test_a_folder_that_is_not_a_runs_is_never_changed(tmp_path, is_fresh):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.tex").write_text("years of work")
    (tmp_path / "r" / "config.yaml").write_text("title: thesis")
    with pytest.raises(ValueError, match="is no run's folder"):
        open_folder(config(tmp_path), is_fresh=is_fresh)
    assert (tmp_path / "r" / "thesis.tex").read_text() == "years of work"


def test_another_policy_is_refused_unless_resume_allow_lists_the_mixture(tmp_path):
    def with_policy(policy, **sections):
        return parse_config({**config(tmp_path).model_dump(mode="json"), "mixture": {"policy": policy}, **sections})

    open_folder(config(tmp_path))
    with pytest.raises(ValueError, match=r"^mixture\.policy: 'uniform', but the run in .* began with 'versatune'"):
        open_folder(with_policy("uniform"), step=4)
    folder = open_folder(with_policy("uniform", resume={"allow": ["mixture"]}), step=4)
    assert yaml.safe_load((folder / "config_until_step_00000004.yaml").read_text())["mixture"]["policy"] == "versatune"
    assert yaml.safe_load((folder / "config.yaml").read_text())["mixture"]["policy"] == "uniform"


def test_earlier_settings_are_kept_and_dropped_together_with_the_decisions_they_made(tmp_path):
    def rate_at(step):
        text = version_at(tmp_path / "r" / "config.yaml", step=step).read_text()
        return yaml.safe_load(text)["train"]["learning_rate"]

    open_folder(config(tmp_path, learning_rate=1.0))
    open_folder(config(tmp_path, learning_rate=1.0), step=3)
    open_folder(config(tmp_path, learning_rate=2.0), step=5, losses=(1.0, 1.0))
    open_folder(config(tmp_path, learning_rate=3.0), step=9, losses=(1.0, 1.0))
    assert [rate_at(step) for step in (0, 5, 6, 9, 10)] == [1.0, 1.0, 2.0, 2.0, 3.0]
    assert json.loads((tmp_path / "r" / "reference_until_step_00000005.json").read_text())["losses"]["law"] == 1.5
    open_folder(config(tmp_path, learning_rate=4.0), step=7, losses=(1.0, 1.0))  # steps 8 and 9 were lost
    assert [rate_at(step) for step in (5, 6, 7, 8, 10)] == [1.0, 2.0, 2.0, 4.0, 4.0]
    open_folder(config(tmp_path, learning_rate=1.0), step=5)
    assert [rate_at(step) for step in (5, 6)] == [1.0, 1.0]
    open_folder(config(tmp_path, learning_rate=5.0))  # no checkpoint: the run begins
    assert [path.name for path in (tmp_path / "r").glob("*until*")] == []


def test_nested_keys_are_compared_by_their_dotted_names():
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": [2]}) == {"a.b.c": 1, "a.d": {}, "e": [2]}


def test_every_missing_file_is_reported_with_the_command_that_writes_it(tmp_path):
    settings = config(tmp_path)
    named = {"prior": tmp_path / "p.json", "reference": tmp_path / "r.json"}
    settings = settings.model_copy(update={"mixture": settings.mixture.model_copy(update=named)})
    with pytest.raises(ValueError, match="no such file") as caught:
        check_start(StartCheckInput(config=settings, stage="every rank"))
    prior, reference = str(caught.value).splitlines()
    assert "p.json: no such file; run versatune detect" in prior
    assert "r.json: no such file; run versatune reference" in reference


def test_the_plan_that_a_run_starts_from_is_kept_until_another_run_starts_in_the_folder(tmp_path):
    first, second = {"planner": "transfer"}, {"planner": "merge"}
    folder = open_folder(config(tmp_path), plan=first)
    assert json.loads((folder / "plan.json").read_text()) == first
    # A file that was written again meanwhile changes nothing in a run that resumes.
    open_folder(config(tmp_path), plan=second)
    assert json.loads((folder / "plan.json").read_text()) == first
    open_folder(config(tmp_path), plan=second, is_fresh=True)
    assert json.loads((folder / "plan.json").read_text()) == second
    open_folder(config(tmp_path), is_fresh=True)
    assert not (folder / "plan.json").exists()


def test_a_start_that_never_trained_leaves_no_plan_to_one_without(tmp_path):
    folder = open_folder(config(tmp_path), plan={"planner": "transfer"}, has_begun=False)
    open_folder(config(tmp_path), has_begun=False)
    assert not (folder / "plan.json").exists()
