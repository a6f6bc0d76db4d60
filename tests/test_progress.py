"""Long work shows after a silence that it continues: one line that is overwritten, or a log line now and then."""

from __future__ import annotations

import contextlib
import io
import logging
import time

import pytest

from versatune_ds import progress
from versatune_ds.progress import Work, counting, start_phase, with_progress, working_on


class Terminal(io.StringIO):
    """A stream that counts as a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets, and no thread: the test calls `tick`."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress._Display, "_watch", lambda self: None)
    return now


@pytest.fixture
def terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(progress, "_stream", lambda: stream)
    monkeypatch.setenv("COLUMNS", "80")
    return stream


@pytest.fixture
def log(caplog):
    """The package's lines, with the handler that the display clears the line for."""
    package = logging.getLogger("versatune_ds")
    with caplog.at_level(logging.INFO, logger="versatune_ds"), handler_of(package, caplog.handler):
        yield caplog


@contextlib.contextmanager
def handler_of(package, handler):
    before = list(package.handlers), package.propagate
    package.handlers, package.propagate = [handler], False
    yield
    package.handlers, package.propagate = before


def test_a_line_that_cannot_be_drawn_is_reported_and_others_are_still_shown(monkeypatch, terminal, log):
    monkeypatch.setattr(progress, "TERMINAL_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_TICK_SECONDS", 0.001)
    with working_on("good"):
        with counting("50% law: %s rows", num_items=2):
            while len(progress._display.works) > 1:
                assert progress._display._thread.is_alive()
                time.sleep(0.001)
        while "good" not in terminal.getvalue():
            assert progress._display._thread.is_alive()
            time.sleep(0.001)
    assert log.text.count("the progress of '50% law: %s rows' cannot be shown") == 1


def tick(clock, seconds):
    clock[0] += seconds
    progress._display.tick(clock[0])


@pytest.mark.parametrize(
    ("num_items", "num_done", "seconds", "line"),
    [
        (None, 0, 34, "read  0:34"),
        (600, 0, 5, "read 0 of 600 letters  0:05"),
        (600, 120, 30, "read 120 of 600 letters  4.0/s  2:00 left"),
        (1_000, 10, 40, "read 10 of 1,000 letters  4.0 s each  1:06:00 left"),
    ],
)
def test_the_line_has_the_rate_and_the_time_left(clock, num_items, num_done, seconds, line):
    work = Work("read" if num_items is None else "read %s letters", num_items=num_items)
    work.num_done = num_done
    assert work.line(clock[0] + seconds) == line


def test_items_done_before_count_neither_for_the_rate_nor_for_the_time_left(clock, log, terminal):
    with counting("law: tokenising %s rows", num_items=1000, num_before=400) as work:
        tick(clock, 5)
        work.num_done += 100
        tick(clock, 5)
    assert "law: tokenising 400 of 1,000 rows  0:05" in terminal.getvalue()
    assert "law: tokenising 500 of 1,000 rows  10.0/s  0:50 left" in terminal.getvalue()


def test_all_items_are_yielded_and_the_line_counts_the_finished_ones(clock, log, terminal):
    items = with_progress("abc", num_items=3, what="read %s letters")
    assert next(items) == "a"
    assert next(items) == "b"
    tick(clock, 5)
    assert terminal.getvalue() == "\r\x1b[2Kread 1 of 3 letters  5.0 s each  0:10 left"
    assert list(items) == ["c"]
    assert terminal.getvalue().endswith("\r\x1b[2K")
    assert log.messages == []


def test_short_work_shows_nothing(clock, log, terminal):
    with working_on("reading"):
        tick(clock, 1.9)
    assert terminal.getvalue() == ""
    assert log.messages == []


def test_a_log_line_takes_the_place_of_the_line_which_returns_after_another_silence(clock, log, terminal):
    with working_on("reading"):
        tick(clock, 3)
        logging.getLogger("versatune_ds.any").info("something else")
        assert terminal.getvalue() == "\r\x1b[2Kreading  0:03\r\x1b[2K"
        tick(clock, 1)
        assert terminal.getvalue().count("reading") == 1
        tick(clock, 1)
        assert terminal.getvalue().endswith("reading  0:05")


def test_without_a_terminal_half_a_minute_of_silence_is_one_log_line(clock, log, monkeypatch):
    monkeypatch.setattr(progress, "_stream", io.StringIO)
    with working_on("reading"):
        for _ in range(130):
            tick(clock, 0.5)
    assert log.messages == ["reading  0:30", "reading  1:00"]


def test_the_work_that_began_last_is_shown_and_then_the_one_around_it(clock, log, monkeypatch):
    monkeypatch.setattr(progress, "_stream", io.StringIO)
    with working_on("start: data"):
        with working_on("tokenising"):
            tick(clock, 31)
        tick(clock, 31)
    assert log.messages == ["tokenising  0:31", "start: data  1:02"]


def test_a_library_that_draws_a_bar_has_the_terminal_for_itself_and_elsewhere_a_line_is_logged(
    clock, log, terminal, monkeypatch
):
    with working_on("tokenising", has_own_bar=True):
        tick(clock, 40)
    assert terminal.getvalue() == ""
    monkeypatch.setattr(progress, "_stream", io.StringIO)
    with working_on("tokenising", has_own_bar=True):
        tick(clock, 40)
    assert log.messages == ["tokenising  0:40"]


def test_a_command_is_shown_until_it_writes_its_first_line(clock, log, terminal):
    with working_on("versatune check", ends_at_output=True):
        tick(clock, 3)
        progress.before_output()
        assert terminal.getvalue() == "\r\x1b[2Kversatune check  0:03\r\x1b[2K"
        tick(clock, 60)
    assert terminal.getvalue().count("check") == 1


def test_ranks_that_show_no_info_lines_show_no_work(clock, log, terminal):
    log.set_level(logging.WARNING, logger="versatune_ds")
    with working_on("reading"):
        tick(clock, 60)
    assert terminal.getvalue() == ""


def test_a_live_view_shows_the_line_itself(clock, log, terminal):
    shown = []
    progress.show_in(shown.append)
    try:
        with working_on("held-out rows"):
            tick(clock, 3)
    finally:
        progress.show_in(None)
    assert shown == ["held-out rows  0:03", None]
    assert terminal.getvalue() == ""


def test_the_line_is_drawn_while_the_work_is_running_and_cut_at_the_width(log, terminal, monkeypatch):
    """The real thread."""
    monkeypatch.setattr(progress, "TERMINAL_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_TICK_SECONDS", 0.01)
    monkeypatch.setenv("COLUMNS", "12")
    with working_on("reading letters"):
        while "reading" not in terminal.getvalue():
            pass
    assert "\r\x1b[2Kreading let\r" in terminal.getvalue() + "\r"


def test_a_phase_of_the_start_is_one_line_with_its_seconds(log, monkeypatch):
    times = iter((10.0, 12.34))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(times))
    with start_phase("model"):
        pass
    assert log.messages == ["start: model, 2.3 s"]
