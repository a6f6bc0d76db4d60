"""Progress in log lines: every item comes through, and what is done is said now and then."""

from __future__ import annotations

import pytest

from versatune_ds.monitor import progress_lines
from versatune_ds.monitor.progress_lines import with_progress


@pytest.fixture
def said(monkeypatch):
    """What is logged, whatever earlier tests did to the package's handlers."""
    lines = []
    monkeypatch.setattr(progress_lines.logger, "info", lambda text, *values: lines.append(text % values))
    return lines


def test_items_come_through_and_the_lines_count_what_is_done(said, monkeypatch):
    monkeypatch.setattr(progress_lines, "_LOG_SECONDS", 0.0)
    assert list(with_progress("abc", num_items=3, what="read: %s letters")) == ["a", "b", "c"]
    done, left = zip(*(line.split("  ") for line in said), strict=True)
    assert done == ("read: 1 of 3 letters", "read: 2 of 3 letters")
    assert all(text.endswith(" left") for text in left)


def test_short_work_says_nothing(said):
    assert list(with_progress(range(100), num_items=100, what="%s")) == list(range(100))
    assert said == []
