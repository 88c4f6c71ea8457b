"""The completion scripts are run by the shells that they are for, where those are installed."""

from __future__ import annotations

import shutil
import subprocess

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
        (["torchkeep", ""], [*VERBS, "--help", "--version"]),
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


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_script_without_complaint(shell, tmp_path, capsys):
    script = script_for(shell, capsys)
    assert all(verb in script for verb in VERBS)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "script").write_text(script)
    flags = ["--no-execute"] if shell == "fish" else ["-n"]
    done = subprocess.run([shell, *flags, tmp_path / "script"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_verb_is_known_with_what_it_is_about():
    found = verbs_of(make_parser())
    assert tuple(found) == VERBS
    assert all(verb.about and "--help" in verb.options for verb in found.values())
