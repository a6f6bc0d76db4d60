"""Text tables are aligned as on a terminal, and identical wherever they are written."""

import pytest

from versatune_ds.text_table import counted, text_table


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
