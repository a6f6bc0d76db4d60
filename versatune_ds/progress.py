"""Show that long work continues: on a terminal a line that is overwritten, elsewhere a log line every half minute.

Work that ends soon shows nothing, and nothing is added to work that logs by itself: a line is due only after a silence.
A thread draws it, so that it also appears while compiled code runs. It exists while there is work, and only in a
process whose info lines are shown, which is rank 0 alone.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

_logger = logging.getLogger(__name__)
_PACKAGE = "versatune_ds"

Item = TypeVar("Item")

TERMINAL_SECONDS = 2.0
"""Silence on a terminal after which the line appears; then it is drawn at every tick."""
LOG_SECONDS = 30.0
"""Silence elsewhere, after which it is logged."""
_TICK_SECONDS = 0.5
_ERASE_LINE = "\r\x1b[2K"


class Work:
    """Something that takes long.

    Args:
        text: What is done; with `num_items`, `%s` in it stands for the numbers.
        num_items: How many parts it has; None if that is not known.
        has_own_bar: Whether a library shows its progress on a terminal, so that nothing else should.
        ends_at_output: Whether the first line that is written ends it.
        num_before: How many parts were done before; they count neither for the rate nor for the time left.
    """

    def __init__(
        self,
        text: str,
        *,
        num_items: int | None = None,
        has_own_bar: bool = False,
        ends_at_output: bool = False,
        num_before: int = 0,
    ) -> None:
        self.text = text
        self.num_items = num_items
        self.has_own_bar = has_own_bar
        self.ends_at_output = ends_at_output
        self.num_done = self.num_before = num_before
        self.started = time.monotonic()

    def line(self, now: float) -> str:
        """Return its line: `labelled 120 of 600 sequences  4.0/s  2:00 left`, or `building kernels  0:34`."""
        elapsed = now - self.started
        if self.num_items is None:
            return f"{self.text}  {duration(elapsed)}"
        text = self.text % f"{self.num_done:,} of {self.num_items:,}"
        num_now = self.num_done - self.num_before
        if num_now == 0:
            return f"{text}  {duration(elapsed)}"
        left = elapsed / num_now * (self.num_items - self.num_done)
        return f"{text}  {_rate(num_now / elapsed)}  {duration(left)} left"


class ByteWork(Work):
    """Something that moves bytes: `fetching s3://b/law.jsonl  120 of 600 MiB  24.0 MiB/s  0:20 left`.

    Args:
        text: What is done.
        num_bytes: How many bytes there are; None if that is not known.
    """

    def __init__(self, text: str, *, num_bytes: int | None) -> None:
        super().__init__(text)
        self.num_bytes = num_bytes
        self.is_cancelled = False  # whoever moves bytes stops once this is set
        self._lock = threading.Lock()

    def add(self, num_bytes: int) -> None:
        """Count bytes as done, from any thread; a negative number where they have to be moved again."""
        with self._lock:
            self.num_done += num_bytes

    def line(self, now: float) -> str:
        """Return its line."""
        elapsed = max(now - self.started, 1e-9)
        of = "" if self.num_bytes is None else f" of {self.num_bytes / 2**20:,.0f}"
        line = f"{self.text}  {self.num_done / 2**20:,.0f}{of} MiB  {self.num_done / 2**20 / elapsed:,.1f} MiB/s"
        if self.num_bytes is None or self.num_done <= 0:
            return f"{line}  {duration(elapsed)}"
        return f"{line}  {duration(elapsed / self.num_done * max(self.num_bytes - self.num_done, 0))} left"


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _rate(per_second: float) -> str:
    """Return parts per second, or seconds per part where that is the larger number."""
    return f"{per_second:,.1f}/s" if per_second >= 1 else f"{1 / per_second:,.1f} s each"


class _Display:
    """Draw the line of the work that began last, after a silence."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.live_view: Callable[[str | None], None] | None = None
        """Shows the line in a view of its own; None where there is no such view."""
        self._thread: threading.Thread | None = None
        self._last_output = 0.0
        self._is_drawn = False

    def begin(self, work: Work) -> None:
        """Watch work, if info lines are shown."""
        if not _logger.isEnabledFor(logging.INFO):
            return
        if not self.works:
            self._last_output = time.monotonic()
        self.works.append(work)
        for handler in logging.getLogger(_PACKAGE).handlers:
            handler.addFilter(self._before_log_line)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._watch, name="versatune-progress", daemon=True)
            self._thread.start()

    def end(self, work: Work) -> None:
        """Stop watching work, and remove its line."""
        if work in self.works:
            self.works.remove(work)
            self._erase()
        if not self.works:
            for handler in logging.getLogger(_PACKAGE).handlers:
                handler.removeFilter(self._before_log_line)

    def _watch(self) -> None:
        """Draw until there is no work left."""
        while self.works:
            works = self.works[-1:]
            try:
                self.tick(time.monotonic())
            except Exception as error:  # of one line; without this, no other work would be shown either
                for work in works:
                    _logger.warning("the progress of %r cannot be shown: %r", work.text, error)
                    self.end(work)
            time.sleep(_TICK_SECONDS)

    def tick(self, now: float) -> None:
        """Draw the line if it is due."""
        works = self.works[-1:]
        if not works:
            return
        silence, is_terminal = now - self._last_output, _stream().isatty()
        if not is_terminal and self.live_view is None:
            if silence >= LOG_SECONDS:
                self._last_output = now
                _logger.info("%s", works[0].line(now))
            return
        if silence < TERMINAL_SECONDS or (works[0].has_own_bar and self.live_view is None):
            return
        self._is_drawn = True
        if self.live_view is not None:
            self.live_view(works[0].line(now))
        else:
            columns = shutil.get_terminal_size().columns - 1
            _write(_ERASE_LINE + works[0].line(now)[:columns])

    def before_output(self) -> None:
        """Remove the line before something else is written in its place, and wait for the next silence."""
        self._last_output = time.monotonic()
        if self.live_view is None:
            self._erase()
        self.works = [work for work in self.works if not work.ends_at_output]

    def _before_log_line(self, record: logging.LogRecord) -> bool:
        """Do so before a log line. Used as a filter that lets every record pass."""
        if threading.current_thread() is not self._thread:
            self.before_output()
        return True

    def _erase(self) -> None:
        if not self._is_drawn:
            return
        self._is_drawn = False
        if self.live_view is not None:
            self.live_view(None)
        else:
            _write(_ERASE_LINE)


_display = _Display()


def _stream() -> TextIO:
    """Return where lines are drawn: stderr as it is now, which a live view may have replaced."""
    return sys.stderr


def _write(text: str) -> None:
    stream = _stream()
    stream.write(text)
    stream.flush()


def show_in(live_view: Callable[[str | None], None] | None) -> None:
    """Show the lines in a live view instead of a line of the terminal; None ends that.

    Args:
        live_view: Called from another thread with the line, and with None once it no longer holds.
    """
    _display.live_view = live_view


def before_output() -> None:
    """Remove the line from the terminal; call it before writing there other than by logging."""
    _display.before_output()


@contextlib.contextmanager
def shown_while(work: Work) -> Iterator[None]:
    """Show, after a silence, the line of work within a block."""
    _display.begin(work)
    try:
        yield
    finally:
        _display.end(work)


@contextlib.contextmanager
def working_on(text: str, *, has_own_bar: bool = False, ends_at_output: bool = False) -> Iterator[None]:
    """Show, after a silence, that a block is still running: `text  0:34`.

    Args:
        text: What the block does.
        has_own_bar: Whether a library shows its progress on a terminal.
        ends_at_output: Whether the first line that is written ends it, because what follows shows itself.
    """
    with shown_while(Work(text, has_own_bar=has_own_bar, ends_at_output=ends_at_output)):
        yield


def with_progress(items: Iterable[Item], *, num_items: int, what: str) -> Iterator[Item]:
    """Yield items and show, after a silence, how many are done; one counts as done when the next is requested.

    Example: `labelled 120 of 600 sequences  4.0/s  2:00 left`.

    Args:
        items: The work.
        num_items: How many there are.
        what: Text of the line, with `%s` for the numbers: `labelled %s sequences`.
    """
    work = Work(what, num_items=num_items)
    with shown_while(work):
        for num_done, item in enumerate(items):
            work.num_done = num_done
            yield item


@contextlib.contextmanager
def counting(what: str, *, num_items: int, num_before: int = 0) -> Iterator[Work]:
    """Show, after a silence, how many of a block's items are done; the block adds to `num_done` of what is yielded.

    Args:
        what: Text of the line, with `%s` for the numbers: `law: tokenising %s rows`.
        num_items: How many there are.
        num_before: How many of them were done before; the block may add to it too.
    """
    work = Work(what, num_items=num_items, num_before=num_before)
    with shown_while(work):
        yield work


@contextlib.contextmanager
def start_phase(name: str, *, has_own_bar: bool = False) -> Iterator[None]:
    """Log how long a phase of a run's start took, in one line, so that a slow start shows where its time went.

    Work that a GPU was only given counts in the phase that waits for it.

    Args:
        name: Of the phase.
        has_own_bar: Whether a library shows its progress on a terminal.
    """
    started = time.perf_counter()
    with working_on(f"start: {name}", has_own_bar=has_own_bar):
        yield
    _logger.info("start: %s, %.1f s", name, time.perf_counter() - started)
