from __future__ import annotations

import io
import sys

import pytest

from torchkeep.cli import main
from torchkeep.cli.console import say, tell
from torchkeep.verbs import opening


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "secret.pt"), "torchkeep: secret.pt: Permission denied\n"),
        (OSError(5, "Input/output error"), "torchkeep: Input/output error\n"),
    ],
)
def test_what_the_system_refuses_is_a_line_and_exit_code_3(error, said, monkeypatch, capsys):
    def refuse(_path):
        raise error

    monkeypatch.setattr(opening, "open", refuse)
    assert main(["show", "secret.pt"]) == 3
    assert capsys.readouterr().err == said


def test_what_would_steer_a_terminal_is_escaped_on_both_streams(capsys):
    say("one\x1b[2J\ntwo")
    tell("\x1b]0;title\x07")

    assert capsys.readouterr() == ("one\\x1b[2J\ntwo\n", "\\x1b]0;title\\x07\n")


def test_a_stream_that_cannot_write_a_character_gets_it_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)

    say("└─ naïve")
    stream.flush()
    assert stream.buffer.getvalue() == b"\\u2514\\u2500 na\\xefve\n"
