"""W&B receives one history of a run that was stopped and resumed, and cannot stop a run; read with W&B's own reader."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from monitor_data import decision, recipe, step_metrics

from versatune_ds.config import DataConfig
from versatune_ds.monitor import open_monitor
from versatune_ds.monitor import wandb_sink as module


def records_of(path):
    """Return a run file's records, as `wandb leet inspect` prints them."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def history_as_synced(run_dir):
    """Return {step: row} of all parts in the order of their start: the server keeps the first row of a step."""
    rows = {}
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        for record in records_of(path):
            if record["type"] == "history" and record["history"]["step"]["num"] > max(rows, default=-1):
                rows[record["history"]["step"]["num"]] = record["history"]["item"]
    return rows


def tables(run_dir, name):
    """Return the rows of every table of a name, in the order of its writing."""
    paths = run_dir.glob(f"wandb/*/files/media/table/{name}*.json")
    return [json.loads(path.read_text())["data"] for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns)]


def hidden_metrics(run_dir):
    """Return the metrics, or patterns of them, that W&B makes no charts of by itself, in every part of a run."""
    parts = []
    for path in run_dir.glob("wandb/offline-run-*/*.wandb"):
        metrics = [record["metric"] for record in records_of(path) if record["type"] == "metric"]
        hidden = [metric for metric in metrics if metric.get("options", {}).get("hidden")]
        parts.append({metric.get("name") or metric["glob_name"] for metric in hidden})
    assert all(part == parts[0] for part in parts)
    return parts[0]


def record_part(config, *, resumed_step, first, last):
    monitor = open_monitor(config, resumed_step=resumed_step)
    for step in range(first, last + 1):
        monitor.metrics(step, step_metrics(**{"train/loss": 1.0 / step}))
        if step % 10 == 0:
            monitor.metrics(step, {"domain/law/loss": 2.0})
            monitor.decision(decision(step // 10))
    monitor.finish(exit_code=75)


@pytest.mark.slow
def test_a_run_stopped_and_resumed_offline_is_one_history_without_missing_or_repeated_steps(tmp_path):
    config = recipe(tmp_path, wandb={"mode": "offline", "group": "g", "tags": ["t"]})
    config.run_dir.mkdir()
    record_part(config, resumed_step=-1, first=1, last=14)  # killed after 14, its checkpoint was of step 10
    record_part(config, resumed_step=10, first=11, last=20)
    paths = list(config.run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert len(paths) == 2
    (run_id,) = {path.stem for path in paths}
    assert run_id == f"run-{(config.run_dir / 'wandb_id').read_text()}"
    history = history_as_synced(config.run_dir)
    assert list(history) == list(range(1, 21))
    assert [row["step"] for row in history.values()] == list(history)
    assert history[15]["train/loss"] == pytest.approx(1 / 15)
    for step in (10, 20):
        for quantity, value in {"weight_decided": 0.75, "loss": 2.0, "excess_loss": 1.0}.items():
            assert history[step][f"{quantity}/law"] == history[step][f"domain/law/{quantity}"] == value
        assert history[step]["forgetting/code"] == 0.25
    assert history[20]["pictures/weights._type"] == "image-file"
    assert tables(config.run_dir, "decisions")[-1][0][:3] == [1, 10, 13]
    lines = tables(config.run_dir, "Custom Chart Tables/charts/weights")[-1]
    assert lines == [
        [10, "law", 0.5], [13, "law", 0.75], [23, "law", 0.75],
        [10, "code", 0.5], [13, "code", 0.25], [23, "code", 0.25],
    ]  # fmt: skip
    assert hidden_metrics(config.run_dir) == {
        "step", "domain/*", "loss_stderr/*", "change_stderr/*", "change_from_best_stderr/*",
        "change_from_start_stderr/*", "track_stderr/*",
    }  # fmt: skip


def test_going_online_without_a_key_is_refused_and_the_message_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    config = recipe(tmp_path, wandb={"mode": "online"})
    config.run_dir.mkdir()
    with pytest.raises(ValueError, match=r"^monitor.wandb.mode=online: no key found; set WANDB_API_KEY"):
        open_monitor(config, resumed_step=-1)


@pytest.mark.slow
def test_an_unreachable_server_is_reported_once_and_the_run_is_recorded_offline(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = recipe(tmp_path, wandb={"mode": "online", "start_timeout_seconds": 2})
    config.run_dir.mkdir()
    with caplog.at_level("WARNING"):
        record_part(config, resumed_step=-1, first=1, last=3)
    assert sum("recorded offline" in record.getMessage() for record in caplog.records) == 1
    assert list(history_as_synced(config.run_dir)) == [1, 2, 3]


def test_a_key_in_netrc_counts_only_for_the_configured_server(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine other.example.org login user password secret\n")
    assert not module.has_key()
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password secret\n")
    assert module.has_key()


def test_no_file_of_the_run_contains_the_key_or_the_query_of_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "5ecre7" * 7)
    config = recipe(tmp_path, wandb={"mode": "offline"})
    signed = DataConfig(domains={"law": "https://host/law.jsonl?sig=5ecre7", "code": "https://host/code.jsonl"})
    config = config.model_copy(update={"data": signed})
    config.run_dir.mkdir()
    assert "sig=5ecre7" in config.model_dump_json()
    record_part(config, resumed_step=-1, first=1, last=2)
    files = [path for path in config.run_dir.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if b"5ecre7" in path.read_bytes()]
    assert os.environ["WANDB_API_KEY"] == "5ecre7" * 7
