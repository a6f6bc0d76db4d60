"""The terminal shows the recorded numbers: a live view of 80 columns, or plain lines without control codes."""

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from monitor_data import decision, recipe, step_metrics
from rich.console import Console

from versatune_ds.monitor import open_monitor
from versatune_ds.monitor.live import LiveState, LiveTerminal, bar, frame
from versatune_ds.monitor.progress_lines import PlainTerminal, direction, duration

EMPTY = ["no", "step", "is", "logged", "yet"]


@pytest.fixture
def package_logger():
    """Return the package's logger without the handlers that earlier tests' command lines left on it."""
    logger = logging.getLogger("versatune_ds")
    handlers, level = list(logger.handlers), logger.level
    logger.handlers[:] = []
    logger.setLevel(logging.INFO)
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def shown(state, *, width=80, max_domains=20):
    """Return the lines of a frame as text."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    console.print(frame(state, max_domains=max_domains))
    return console.file.getvalue().rstrip("\n").split("\n")


def state(**changed):
    values = {"name": "mine", "num_steps": 40, "step": 10, "train": step_metrics(), "decision": decision()}
    return LiveState(**{**values, **changed})


def test_a_frame_shows_step_time_left_numbers_and_one_line_a_domain():
    first, second, header, law, code = shown(state())
    assert first.startswith("mine step 10/40")
    assert first.endswith("1:00 left")  # 30 steps of 2 s
    assert second.split() == ["loss", "1.500", "grad", "0.25", "lr", "1.0e-03", "12,345", "tokens/s", "3.0", "GiB"]
    assert header.split() == ["domain", "weight", "from", "step", "13", "loss", "reference", "forgot"]
    assert law.split() == ["law", "█" * 16, "0.750", "▲", "2.000", "1.000"]
    assert code.split() == ["code", "█" * 5 + "▍", "0.250", "▼", "0.500", "-", "!", "25.0%"]


def test_before_the_first_step_a_frame_shows_that_none_is_logged():
    assert [line.split() for line in shown(state(step=0, train={}, decision=None))][1] == EMPTY


@pytest.mark.parametrize("width", [80, 60, 200])
def test_no_line_of_a_frame_is_wider_than_the_terminal_even_with_long_names(width):
    long = decision()
    for part in ("weights_before", "weights_after", "losses", "signals"):
        long[part] = {name * 30: value for name, value in long[part].items()}
    lines = shown(state(name="n" * 200, decision=long), width=width)
    assert len(lines) == 5
    assert max(map(len, lines)) <= width


def test_only_the_largest_weights_are_shown_in_a_low_terminal_and_the_other_domains_are_counted():
    many = decision()
    many["weights_after"] = {f"d{i}": (i + 1) / 55 for i in range(10)}
    many["weights_before"] = dict(many["weights_after"])
    for part in ("losses", "signals"):
        many[part] = {name: decision()[part]["law"] for name in many["weights_after"]}
    lines = shown(state(decision=many), max_domains=3)
    assert [line.split()[0] for line in lines[3:6]] == ["d7", "d8", "d9"]
    assert lines[6].strip() == "and 7 more"


@given(st.floats(0, 1))
def test_a_bar_is_always_equally_wide_and_empty_only_at_zero(share):
    assert len(bar(share)) == 16
    assert (bar(share).strip() != "") == (share > 0)


def test_a_bar_is_drawn_in_eighths_of_a_cell():
    assert bar(0.5).rstrip() == "█" * 8
    assert bar(1 / 128) == "▏" + " " * 15
    assert bar(1.0) == "█" * 16


def test_the_live_view_draws_what_was_recorded_and_log_lines_scroll_above_it(package_logger):
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, color_system=None)
    handler = logging.StreamHandler(io.StringIO())
    before = handler.stream
    package_logger.addHandler(handler)
    view = LiveTerminal(name="mine", num_steps=40, step=0, console=console)
    assert handler.stream is not before
    view.metrics(10, step_metrics())
    view.metrics(10, {"validation/loss": 9.0})
    view.decision(decision())
    view.finish(exit_code=0)
    assert handler.stream is before
    drawn = console.file.getvalue()
    assert "update 1 after step 10: law has most left to learn" in drawn
    last = drawn[drawn.rindex("mine") :]
    assert "step 10/40" in last
    assert "loss 1.500" in last


def test_plain_lines_show_the_same_numbers_without_control_codes(caplog):
    terminal = PlainTerminal(num_steps=40)
    with caplog.at_level("INFO"):
        terminal.metrics(10, step_metrics())
        terminal.metrics(10, {"validation/loss": 9.0})
        terminal.decision(decision())
    assert [record.getMessage() for record in caplog.records] == [
        "step 10/40  loss 1.500  grad 0.25  12,345 tokens/s  1:00 left",
        "update 1 after step 10: law has most left to learn",
        "  law   loss 2.000  weight 0.5000 -> 0.7500  up",
        "  code  loss 0.500  weight 0.5000 -> 0.2500  down",
    ]
    assert "\x1b" not in caplog.text


def test_the_router_loss_of_a_mixture_of_experts_is_beside_the_loss_in_both_views(caplog):
    metrics = step_metrics(**{"train/router_loss": 0.00204})
    with caplog.at_level("INFO"):
        PlainTerminal(num_steps=40).metrics(10, metrics)
    assert "loss 1.500  router 0.00204  grad 0.25" in caplog.text
    assert "loss 1.500   router 0.00204   grad 0.25" in shown(state(train=metrics))[1]


def test_updates_that_come_fast_get_one_line_each_and_the_domains_every_few_seconds(caplog):
    seconds = iter([0.0, 1.0, 9.9, 10.0, 11.0])
    terminal = PlainTerminal(num_steps=40, clock=lambda: next(seconds))
    with caplog.at_level("INFO"):
        for _ in range(5):
            terminal.decision(decision())
    why, law, code = (
        "update 1 after step 10: law has most left to learn",
        "  law   loss 2.000  weight 0.5000 -> 0.7500  up",
        "  code  loss 0.500  weight 0.5000 -> 0.2500  down",
    )
    notice = "  updates come fast: domains are listed every 10 s"
    shown = [record.getMessage() for record in caplog.records]
    assert shown == [why, law, code, why, notice, why, why, law, code, why]


def test_a_file_gets_plain_lines_and_a_terminal_the_live_view_unless_the_recipe_asks_for_plain_lines(
    tmp_path, monkeypatch, package_logger
):
    chosen = []
    for is_terminal, how in ((False, "auto"), (True, "auto"), (True, "plain")):
        monkeypatch.setattr("sys.stderr", io.StringIO())
        monkeypatch.setattr("sys.stderr.isatty", lambda answer=is_terminal: answer)
        config = recipe(tmp_path, terminal=how)
        config.run_dir.mkdir(exist_ok=True)
        monitor = open_monitor(config, resumed_step=-1)
        chosen.append(type(monitor._sinks[-1]).__name__)
        monitor.finish(exit_code=0)
    assert chosen == ["PlainTerminal", "LiveTerminal", "PlainTerminal"]


def test_a_weight_that_moves_by_less_than_the_last_digit_shown_counts_as_unmoved():
    assert [direction(0.25, after) for after in (0.25004, 0.2502, 0.2498)] == ["=", "up", "down"]


def test_durations_below_an_hour_are_minutes_and_seconds():
    assert [duration(seconds) for seconds in (0, 61, 3_725)] == ["0:00", "1:01", "1:02:05"]


def test_safeguards_that_acted_are_logged_with_their_update(caplog):
    with caplog.at_level("INFO"):
        PlainTerminal(num_steps=40).decision({**decision(), "acted": ["cap: law", "KL limit: 0.3 nats cut to 0.1"]})
    assert caplog.records[1].getMessage() == "  safeguards: cap: law; KL limit: 0.3 nats cut to 0.1"
