"""Progress in log lines: every item comes through, and what is done is said now and then."""

import logging

from versatune_ds.training.monitor import progress_lines
from versatune_ds.training.monitor.progress_lines import with_progress


def test_items_come_through_and_the_lines_count_what_is_done(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="versatune_ds")
    monkeypatch.setattr(logging.getLogger("versatune_ds"), "propagate", True)
    monkeypatch.setattr(progress_lines, "_LOG_SECONDS", 0.0)
    assert list(with_progress("abc", num_items=3, what="read: %s letters")) == ["a", "b", "c"]
    said = [record.getMessage().split("  ") for record in caplog.records]
    assert [line[0] for line in said] == ["read: 1 of 3 letters", "read: 2 of 3 letters"]
    assert all(line[1].endswith(" left") for line in said)


def test_short_work_says_nothing(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="versatune_ds")
    monkeypatch.setattr(logging.getLogger("versatune_ds"), "propagate", True)
    assert list(with_progress(range(100), num_items=100, what="%s")) == list(range(100))
    assert caplog.records == []
