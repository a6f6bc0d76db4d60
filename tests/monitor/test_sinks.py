"""A slow, failing or unreachable sink never delays training, and an alert is sent only once."""

import threading
import time

import pytest
from monitor_data import decision

from versatune_ds.monitor.decision_views import decision_metrics
from versatune_ds.monitor.sinks import Background, Monitor


class Recorder:
    """Record every call; fail at a step, or wait for an event, if requested."""

    def __init__(self, *, fails_at=None, waits_for=None):
        self.calls, self.fails_at, self.waits_for = [], fails_at, waits_for

    def _record(self, *call):
        if self.waits_for is not None:
            self.waits_for.wait()
        if call[:2] == ("metrics", self.fails_at):
            raise ConnectionError("unreachable")
        self.calls.append(call)

    def metrics(self, step, values):
        self._record("metrics", step, values)

    def decision(self, values):
        self._record("decision", values["update"])

    def alert(self, step, *, title, text):
        self._record("alert", step, title)

    def finish(self, *, exit_code):
        self._record("finish", exit_code)


def background(sink, *, patience_seconds=10.0):
    return Background(sink, name="Service", patience_seconds=patience_seconds, way_out="send it later")


def test_all_calls_reach_the_sink_in_order_before_finish_returns():
    sink = Recorder()
    monitor = Monitor([background(sink)])
    monitor.metrics(1, {"a": 1.0})
    monitor.decision(decision(1))
    monitor.metrics(2, {"a": 2.0})
    monitor.finish(exit_code=75)
    assert sink.calls == [
        ("metrics", 1, {"a": 1.0}), ("decision", 1), ("metrics", 2, {"a": 2.0}), ("finish", 75)
    ]  # fmt: skip


def test_a_failing_sink_is_reported_once_with_the_way_out_and_not_called_again(caplog):
    sink = Recorder(fails_at=2)
    service = background(sink)
    monitor = Monitor([service])
    with caplog.at_level("WARNING"):
        for step in (1, 2):
            monitor.metrics(step, {})
        service._thread.join()
        for step in range(3, 1_000):
            monitor.metrics(step, {})
        assert service._calls.empty()
        monitor.finish(exit_code=0)
    assert sink.calls == [("metrics", 1, {})]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "Service failed and gets no more data (unreachable)" in warning
    assert "send it later" in warning


def test_a_sink_that_never_answers_delays_neither_metrics_nor_the_end_of_the_run(caplog):
    never = threading.Event()
    monitor = Monitor([background(Recorder(waits_for=never), patience_seconds=0.2)])
    for step in range(1_000):
        monitor.metrics(step, {})
    started = time.monotonic()
    with caplog.at_level("WARNING"):
        monitor.finish(exit_code=0)
    assert time.monotonic() - started < 60  # the sink itself would never have returned
    assert "did not receive everything" in caplog.text
    never.set()


def test_an_alarm_of_a_decision_is_an_alert_sent_only_once():
    sink = Recorder()
    monitor = Monitor([sink])
    alarm = "alarm: effective number of domains 1.20 is below 1.50"
    for update in (1, 2):
        monitor.decision(decision(update, acted=("cap: law", alarm)))
    assert [call for call in sink.calls if call[0] == "alert"] == [("alert", 10, "the mixture collapses")]


def test_different_alerts_are_all_sent():
    sink = Recorder()
    monitor = Monitor([sink])
    for name in ("law", "code", "law"):
        monitor.alert(5, title=f"{name} has no data left", text="")
    assert [call[2] for call in sink.calls] == ["law has no data left", "code has no data left"]


def test_a_decision_becomes_flat_metrics_without_unknown_numbers():
    values = decision_metrics(decision(law=0.75))
    assert values["domain/law/excess_loss"] == pytest.approx(1.0)
    assert values["domain/law/weight_decided"] == 0.75
    assert values["domain/code/forgetting_from_best"] == 0.25
    assert values["domain/code/loss_stderr"] == 0.125
    assert not {"domain/code/learnable_potential", "domain/code/excess_loss"} & set(values)
