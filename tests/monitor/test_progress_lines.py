"""Progress in log lines: every item is yielded, and the number of finished ones is logged every few seconds."""

from __future__ import annotations

import pytest

from versatune_ds.monitor import progress_lines
from versatune_ds.monitor.progress_lines import with_progress


@pytest.fixture
def logged(monkeypatch):
    """Return the list of logged lines, independent of the handlers that earlier tests left on the package's logger."""
    lines = []
    monkeypatch.setattr(progress_lines.logger, "info", lambda text, *values: lines.append(text % values))
    return lines


def test_all_items_are_yielded_and_the_lines_count_the_finished_ones(logged, monkeypatch):
    monkeypatch.setattr(progress_lines, "_LOG_SECONDS", 0.0)
    assert list(with_progress("abc", num_items=3, what="read: %s letters")) == ["a", "b", "c"]
    done, left = zip(*(line.split("  ") for line in logged), strict=True)
    assert done == ("read: 1 of 3 letters", "read: 2 of 3 letters")
    assert all(text.endswith(" left") for text in left)


def test_short_work_logs_nothing(logged):
    assert list(with_progress(range(100), num_items=100, what="%s")) == list(range(100))
    assert logged == []
