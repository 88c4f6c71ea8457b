"""Tables fit the width that there is: columns fold or go before a line becomes too long."""

from __future__ import annotations

import pytest

from torchkeep.cli.tables import Column, table, terminal_width

COLUMNS = (
    Column("name", "left", folds=True, least=10),
    Column("count"),
    Column("spare", spare=1),
    Column("sparer", "left", spare=2),
)
ROWS = [
    ["encoder.layers.0.weight", "1,000", "0.5", "first"],
    ["b", "7", "1e-05", "second"],
]


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (
            80,
            """\
name                     count  spare  sparer
encoder.layers.0.weight  1,000    0.5  first
b                            7  1e-05  second""",
        ),
        (
            40,
            """\
name                count  spare  sparer
encoder.layers.0.   1,000    0.5  first
weight
b                       7  1e-05  second""",
        ),
        (
            30,
            """\
name              count  spare
encoder.layers.   1,000    0.5
0.weight
b                     7  1e-05""",
        ),
        (
            20,
            """\
name           count
encoder.       1,000
layers.0.
weight
b                  7""",
        ),
    ],
)
def test_what_does_not_fit_folds_at_dots_and_then_spare_columns_go(width, shown):
    made = table(COLUMNS, ROWS, width)
    assert made == shown
    assert max(map(len, made.splitlines())) <= width


def test_a_column_that_can_go_and_says_nothing_is_left_out_and_one_that_stays_is_not():
    assert table(COLUMNS, [["a", "", "", ""]], 80) == "name  count\na"


def test_a_word_without_a_place_to_break_is_cut_and_nothing_of_it_is_lost():
    made = table([Column("n", "left", folds=True, least=4)], [["abcdefghij"]], 4)
    assert made == "n\nabcd\nefgh\nij"


def test_what_would_steer_a_terminal_is_escaped_before_it_is_measured():
    assert table([Column("n"), Column("m")], [["\x1b[2J", "x"]], 80) == "      n  m\n\\x1b[2J  x"


@pytest.mark.parametrize(("columns", "width"), [("132", 132), ("10", 40), ("junk", 80), ("", 80)])
def test_the_width_is_what_columns_says_and_80_where_nothing_does(columns, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sys.__stdout__", None)
    assert terminal_width() == width
