"""Text tables are aligned as on a terminal, and identical wherever they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.text_table import counted, fit_to, paragraph, text_table


def test_names_are_aligned_to_the_left_and_numbers_to_the_right():
    table = text_table(("name", "x"), [("a", "10"), ("long", "1")], footer=("mean", "5.5"))
    assert table.splitlines() == [
        "name    x",
        "---------",
        "a      10",
        "long    1",
        "---------",
        "mean  5.5",
    ]


def test_a_table_without_titles_has_no_rule_and_one_without_rows_has_titles_only():
    assert text_table((), [("a", "1", "x"), ("bc", "23", "")], num_left=3) == "a   1   x\nbc  23"
    assert text_table(("a", "b"), []) == "a  b\n----"
    assert text_table((), []) == ""


def test_titles_of_two_lines_are_placed_above_their_column():
    assert text_table(("\nname", "loss\nbefore"), [("a", "1")]).splitlines()[:2] == ["        loss", "name  before"]


@pytest.mark.parametrize("name", ["\u6cd5\u5f8b", "law\u0301s", "\uff4c\uff41", "four"])
def test_wide_characters_and_accents_are_aligned_as_on_a_terminal(name):
    assert text_table((), [(name, "1"), ("ten", "1")]) == f"{name}  1\nten   1"


def test_nothing_in_a_cell_is_interpreted_and_nothing_is_wrapped(monkeypatch):
    for variable, value in {"COLUMNS": "20", "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}.items():
        monkeypatch.setenv(variable, value)
    cells = ("[red]a[/]", ":smile: http://x.y 'z' 1.5 None", "x" * 300)
    assert text_table((), [cells], num_left=3) == "  ".join(cells)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 processes"), (1, "1 process"), (2, "2 processes"), (2_000, "2,000 processes")]
)
def test_one_is_counted_in_the_singular(number, text):
    assert counted(number, "process", plural="processes") == text
    assert counted(number, "step") == text.replace("processes", "steps").replace("process", "step")


HEADER = ("domain", "loss", "weight", "tokens")
ROWS = [
    ("european_competition_law", "1.234", "0.25", "60,070"), ("european_competition_laws", "1.200", "0.75", "1"),
]  # fmt: skip


def test_a_table_that_fits_is_the_same_at_every_width():
    with fit_to(80):
        fitted = text_table(HEADER, ROWS)
    assert fitted == text_table(HEADER, ROWS)


def test_names_are_shortened_in_the_middle_where_that_suffices_and_stay_different():
    with fit_to(45):
        lines = text_table(HEADER, ROWS).splitlines()
    assert max(map(len, lines)) <= 45
    assert [line.split()[0] for line in lines[2:]] == ["european_comp…tion_law", "european_comp…ion_laws"]


def test_a_table_that_is_still_too_wide_continues_below_with_its_other_columns():
    with fit_to(36):
        text = text_table(HEADER, ROWS, footer=("mean", "1.217", "", ""))
    assert max(map(len, text.splitlines())) <= 36
    assert [part.splitlines()[0].split() for part in text.split("\n\n")] == [
        ["domain", "loss"], ["domain", "weight"], ["domain", "tokens"]
    ]  # fmt: skip
    assert all(value in text for value in ("1.234", "0.75", "60,070", "1.217"))


@given(
    st.lists(st.text("abcdef_", min_size=1, max_size=60), min_size=1, max_size=6, unique=True),
    st.integers(1, 8), st.integers(40, 200),
)  # fmt: skip
def test_no_line_is_wider_than_asked_and_no_cell_is_lost(names, num_columns, width):
    header = ("domain", *(f"column{i}" for i in range(num_columns)))
    rows = [(name, *(f"<{k}.{i}>" for i in range(num_columns))) for k, name in enumerate(names)]
    with fit_to(width):
        text = text_table(header, rows)
    shown = text.splitlines()
    assert all(cell in text for row in rows for cell in row[1:])
    assert len({line.split()[0] for line in shown if "<" in line}) == len(names)
    assert max(map(len, shown)) <= max(width, 8 + 2 + max(16, *(len(line.split()[0]) for line in shown if "<" in line)))


def test_a_paragraph_is_wrapped_between_words_below_its_indent():
    with fit_to(34):
        assert paragraph("ok    files   three files of 0.3 MiB each", indent=14) == (
            "ok    files   three files of 0.3\n              MiB each"
        )
    assert paragraph("long " * 40) == "long " * 40
