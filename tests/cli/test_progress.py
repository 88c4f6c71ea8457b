"""Progress is for people at a terminal: a line on stderr that goes away, and nothing anywhere else."""

from __future__ import annotations

import io
import sys

import pytest

from torchkeep.cli import progress
from torchkeep.cli.progress import ProgressBar
from torchkeep.cli.tables import Column, say_table


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def now(monkeypatch):
    """Give a clock that is moved by hand."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    return clock


def test_a_terminal_gets_one_line_that_is_written_over_and_cleared(now, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with ProgressBar("reading") as bar:
        now[0] = 0.4
        bar(1, 100)  # too soon to say anything
        now[0] = 1.0
        bar(25_000_000, 100_000_000)
        now[0] = 1.05
        bar(26_000_000, 100_000_000)  # too soon after the last
    said = sys.stderr.getvalue()
    assert said.count("\r") == 2
    assert "25% of 100.0 MB, 25.0 MB/s, 3 s left" in said
    assert said.endswith("\r\x1b[K")
    assert max(map(len, said.replace("\x1b[K", "").split("\r"))) <= 80


def test_a_pipe_gets_nothing(now, capsys):
    with ProgressBar("reading") as bar:
        now[0] = 9.0
        bar(1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("no_color", "is_bold"), [("", True), ("1", False)])
def test_titles_are_bold_on_a_terminal_unless_no_color_is_set(no_color, is_bold, monkeypatch):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    say_table([Column("step")], [["1"]])
    assert ("\x1b[1m" in sys.stdout.getvalue()) is is_bold
