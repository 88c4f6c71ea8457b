"""The completion scripts are run by the shells that they are for, where those are installed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import struct
import subprocess
import termios
import time

import pytest

from torchkeep.cli import VERBS, main, make_parser
from torchkeep.cli.completion import verbs_of


def script_for(shell, capsys):
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["torchkeep", "di"], ["diff"]),
        (["torchkeep", ""], [*VERBS, "--help", "-h", "--version"]),
        (["torchkeep", "show", "--st"], ["--stats"]),
        (["torchkeep", "convert", "--to", "s"], ["safetensors"]),
        (["torchkeep", "average", "--mode", ""], ["min", "max"]),
        (["torchkeep", "completion", "z"], ["zsh"]),
        (["torchkeep", "show", "a"], ["a file.pt"]),
    ],
)
def test_bash_completes_verbs_options_values_and_paths(words, expected, tmp_path, capsys):
    script = script_for("bash", capsys)
    (tmp_path / "a file.pt").touch()
    quoted = " ".join(f"'{word}'" for word in words)
    program = f"""{script}
COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}
_torchkeep
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == expected
    assert not done.stderr


WHAT_IS_TYPED = [
    ("torchkeep di", "torchkeep diff "),
    ("torchkeep --v", "torchkeep --version "),
    ("torchkeep show --st", "torchkeep show --stats "),
    ("torchkeep convert --to s", "torchkeep convert --to safetensors "),
    ("torchkeep convert --to=s", "torchkeep convert --to=safetensors "),
    ("torchkeep completion z", "torchkeep completion zsh "),
    ("torchkeep show a", "torchkeep show a\\ file.pt "),
    ('torchkeep show "a f', 'torchkeep show "a file.pt" '),
    ("torchkeep show sub/w", "torchkeep show sub/we\\$ird.pt "),
    ("torchkeep show ~/o", "torchkeep show ~/one/"),
]


@pytest.fixture
def places(tmp_path):
    """A folder with names that a shell has to quote, and a home."""
    (tmp_path / "a file.pt").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "we$ird.pt").touch()
    (tmp_path / "home" / "one").mkdir(parents=True)
    return tmp_path


class Terminal:
    """A shell that believes a person is typing."""

    def __init__(self, command, folder):
        self._shown = ""
        environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(folder / "home"), "ZDOTDIR": str(folder)}
        self._pid, self._descriptor = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            os.execvpe(command[0], command, environment)
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 250, 0, 0))

    def type(self, text):
        os.write(self._descriptor, text.encode())

    def wait_for(self, text):
        """Wait until a text is shown; what was shown till then."""
        end = time.monotonic() + 120
        while text not in self._shown:
            if time.monotonic() > end:
                raise AssertionError(f"{text!r} is not shown: {self._shown!r}")
            if select.select([self._descriptor], [], [], 0.1)[0]:
                self._shown += os.read(self._descriptor, 65536).decode()
        before, _, self._shown = self._shown.partition(text)
        return before

    def close(self):
        os.close(self._descriptor)  # the shell gets a hangup
        os.waitpid(self._pid, 0)


def completes(shell, folder, typed, wanted):
    """Type something and a tab in a new shell; whatever is shown then has to have what is wanted."""
    flags = ["--noprofile", "--rcfile", ".zshrc", "-i"] if shell == "bash" else ["-i"]
    terminal = Terminal([shell, *flags], folder)
    try:
        complaints = terminal.wait_for("TYPE> ")
        assert not any(word in complaints for word in ("not found", "error", "insecure"))
        terminal.type(f"{typed}\t")
        terminal.wait_for(wanted)
    finally:
        terminal.close()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_word_that_is_typed_is_completed(shell, places, capsys):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    plain = {"bash": "bind 'set enable-bracketed-paste off'", "zsh": "setopt no_beep"}[shell]
    (places / ".zshrc").write_text(f"{script_for(shell, capsys)}\nHISTFILE=\nPS1='TYPE> '\n{plain}\n")
    for typed, completed in WHAT_IS_TYPED:
        completes(shell, places, typed, completed)
    if shell == "zsh":
        completes(shell, places, "torchkeep ", "compare two checkpoints of any formats: names, shapes, dtypes, values")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("torchkeep ", list(VERBS)),
        ("torchkeep di", ["diff"]),
        ("torchkeep --v", ["--version"]),
        ("torchkeep show --st", ["--stats"]),
        ("torchkeep convert --to s", ["safetensors"]),
        ("torchkeep convert --to=s", ["--to=safetensors"]),
        ("torchkeep completion ", ["bash", "fish", "zsh"]),
        ("torchkeep show a", ["a file.pt"]),
        ("torchkeep show sub/", ["sub/we$ird.pt"]),
        ("torchkeep average a b -o s", ["sub/"]),
    ],
)
def test_fish_offers_verbs_options_values_and_paths(typed, offered, places, capsys):
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    (places / "home" / "script").write_text(script_for("fish", capsys))
    program = f"source home/script; complete -C '{typed}'"
    environment = {"PATH": os.environ["PATH"], "HOME": str(places / "home")}
    command = ["fish", "--no-config", "-c", program]
    done = subprocess.run(command, cwd=places, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    told = dict(line.partition("\t")[::2] for line in done.stdout.splitlines())
    if typed == "torchkeep ":
        assert all(told[verb] for verb in VERBS)  # what each is about
        told = {word: about for word, about in told.items() if word in VERBS}
    assert list(told) == sorted(offered)


def test_every_verb_is_known_with_what_it_is_about():
    found = verbs_of(make_parser())
    assert tuple(found) == VERBS
    assert all(verb.about and "--help" in verb.options for verb in found.values())
