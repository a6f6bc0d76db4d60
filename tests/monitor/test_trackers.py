"""Trackio and SwanLab receive a run by section, and cannot stop it; a missing package or key is refused by its key."""

from __future__ import annotations

import inspect

import pytest
import tracker_stand_ins
from monitor_data import decision, recipe, step_metrics

from versatune_ds.config.load import load_config
from versatune_ds.monitor import open_monitor
from versatune_ds.monitor.trackers import check_tracker_keys, check_tracker_packages

TRACKERS = {"trackio": {"mode": "local"}, "swanlab": {"mode": "offline"}}


@pytest.fixture(params=TRACKERS)
def tracker(request, monkeypatch):
    return tracker_stand_ins.install(request.param, monkeypatch)


def record_run(tmp_path, *, resumed_step=-1, exit_code=0, **monitor):
    config = recipe(tmp_path, **monitor)
    config.run_dir.mkdir(exist_ok=True)
    opened = open_monitor(config, resumed_step=resumed_step)
    opened.metrics(10, step_metrics(**{"domain/law/loss": 2.0}))
    opened.decision(decision(1, acted=("cap: law",)))
    opened.alert(10, title="law has no data left", text="its share goes to the others")
    opened.finish(exit_code=exit_code)
    return config


def test_metrics_arrive_by_section_with_a_decisions_numbers_and_its_reason(tmp_path, tracker):
    name = tracker.__name__
    record_run(tmp_path, **{name: TRACKERS[name]})
    logged = tracker.named(f"{name}.Run.log")
    first, second = (values.get("metrics") or values.get("data") for values in logged[:2])
    assert [values["step"] for values in logged] == [10] * len(logged)
    assert (first["train/loss"], first["loss/law"]) == (1.5, 2.0)
    assert (second["weight_decided/law"], second["forgetting/code"]) == (0.75, 0.25)
    assert "law has most left to learn" in str(tracker.calls)
    assert "cap: law" in str(tracker.calls)
    assert "law has no data left" in str(tracker.calls)
    assert tracker.calls[-1][0] == f"{name}.Run.finish"


def test_standard_errors_are_left_out_of_trackio_and_hidden_in_swanlab(tmp_path, monkeypatch):
    trackio, swanlab = (tracker_stand_ins.install(name, monkeypatch) for name in ("trackio", "swanlab"))
    record_run(tmp_path, **TRACKERS)
    assert not [values for values in trackio.named("trackio.Run.log") if "loss_stderr/law" in values["metrics"]]
    assert [values for values in swanlab.named("swanlab.Run.log") if "loss_stderr/law" in values["data"]]
    assert {"key": "loss_stderr/*", "hidden": True} in swanlab.named("swanlab.Run.define_metric")


def test_a_resumed_run_continues_under_its_name_or_id(tmp_path, monkeypatch):
    trackio = tracker_stand_ins.install("trackio", monkeypatch)
    swanlab = tracker_stand_ins.install("swanlab", monkeypatch)
    for step in (-1, 5):
        record_run(tmp_path, resumed_step=step, trackio={"mode": "local"}, swanlab={"mode": "online"})
    assert [(call["name"], call["resume"]) for call in trackio.named("trackio.init")] == [
        ("r", "never"),
        ("r", "allow"),
    ]
    first, second = swanlab.named("swanlab.init")
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"


@pytest.mark.parametrize(("exit_code", "state"), [(0, "success"), (75, "aborted"), (1, "crashed")])
def test_swanlab_learns_how_the_run_ended(tmp_path, monkeypatch, exit_code, state):
    swanlab = tracker_stand_ins.install("swanlab", monkeypatch)
    record_run(tmp_path, exit_code=exit_code, swanlab=TRACKERS["swanlab"])
    assert swanlab.calls[-1][1]["state"] == state


def test_swanlab_never_runs_in_the_main_thread_where_it_would_handle_signals(tmp_path, monkeypatch):
    swanlab = tracker_stand_ins.install("swanlab", monkeypatch)
    record_run(tmp_path, swanlab=TRACKERS["swanlab"])
    assert swanlab.threads == {"versatune-SwanLab"}


@pytest.mark.parametrize("call", ["init", "Run.log", "Run.finish"])
def test_a_tracker_that_fails_is_one_warning_and_the_record_is_complete(tmp_path, tracker, caplog, call):
    tracker.fails_at = f"{tracker.__name__}.{call}"
    with caplog.at_level("WARNING"):
        config = record_run(tmp_path, **{tracker.__name__: TRACKERS[tracker.__name__]})
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "(unreachable)" in warning
    assert "training continues, metrics.jsonl is complete" in warning
    assert (config.run_dir / "metrics.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ({"trackio": {"mode": "local"}}, "monitor.trackio.mode: the package trackio is missing; pip install 'versa"),
        ({"swanlab": {"mode": "online"}}, "monitor.swanlab.mode: the package swanlab is missing; pip install 'versa"),
        ({"tensorboard": True}, "monitor.tensorboard: the package tensorboard is missing; pip install 'versatune_ds[t"),
    ],
)
def test_a_missing_package_is_refused_with_the_extra_to_install(tmp_path, monkeypatch, monitor, message):
    monkeypatch.setattr("versatune_ds.monitor.trackers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="is missing") as caught:
        check_tracker_packages(recipe(tmp_path, **monitor))
    assert str(caught.value).startswith(message)


def test_going_online_without_a_key_is_refused_and_the_message_names_the_variable(tmp_path, monkeypatch):
    swanlab = tracker_stand_ins.install("swanlab", monkeypatch)
    swanlab.Settings = lambda: type("Settings", (), {"api_key": None})
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"^monitor.swanlab.mode=online: no key found; set SWANLAB_API_KEY"):
        check_tracker_keys(recipe(tmp_path, swanlab={"mode": "online"}))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ValueError, match=r"^monitor.trackio.mode=space: no token of Hugging Face found; set HF_TOKEN"):
        check_tracker_keys(recipe(tmp_path, trackio={"mode": "space", "space": "me/runs"}))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("monitor.trackio.mode=space", "monitor.trackio.space: mode=space needs its name"),
        ("monitor.trackio={mode: local, space: me/runs}", "monitor.trackio.space: mode=local sends nothing"),
        ("monitor.swanlab.project=me/runs", "'me/runs': SwanLab allows 1 to 100 letters, digits and _ - + ."),
    ],
)
def test_settings_that_a_tracker_cannot_follow_are_refused_before_anything_loads(override, message):
    with pytest.raises(ValueError, match="monitor") as caught:
        load_config("recipes/quickstart.yaml", [override])
    assert message in str(caught.value)


@pytest.mark.parametrize("name", tracker_stand_ins.PARAMETERS)
def test_the_stand_ins_have_the_parameters_of_the_real_packages(name):
    package, *attributes = name.split(".")
    called = pytest.importorskip(package)
    for attribute in attributes:
        called = getattr(called, attribute)
    assert [name for name in inspect.signature(called).parameters if name != "self"] == (
        tracker_stand_ins.PARAMETERS[name].split()
    )
