"""Every example in README.md and docs/guide runs, in order, one document in one namespace and one empty folder.

- A ``python`` block is executed; one that begins with ``>>>`` is run as a doctest.
- In a ``console`` block each ``$ torchkeep ...`` line is executed and what it prints is compared with the lines below
  it; ``...`` stands for anything. A command must exit with 0, unless ``$ echo $?`` and the code it shows come next.
- ``<!-- setup`` ... ``-->`` holds Python that readers need not see.
"""

from __future__ import annotations

import ast
import doctest
import os
import re
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))) if path.is_file()]
_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<kind>python|console)\n(?P<code>.*?)^(?P=indent)```$"
    r"|^<!-- setup\n(?P<setup>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    kind: Literal["python", "console"]
    code: str
    line: int  # of the document, where the code begins


@dataclass(frozen=True)
class Command:
    line: int
    text: str
    shown: str
    exit_code: int


def blocks_of(document: str) -> list[Block]:
    """Give the blocks of a Markdown text that are to be run, in order."""
    blocks = []
    for found in _BLOCK.finditer(document):
        kind = found["kind"] or "python"
        indent = found["indent"] or ""
        code = found["code"] if found["setup"] is None else found["setup"]
        code = "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
        blocks.append(Block(kind, code, document.count("\n", 0, found.start()) + 2))
    return blocks


def commands_of(block: Block) -> list[Command]:
    """Give the torchkeep commands of a console block, each with the output and the exit code that it shows."""
    entries: list[tuple[int, str, list[str]]] = []
    for number, line in enumerate(block.code.splitlines(), block.line):
        if line.startswith("$ "):
            entries.append((number, line[2:], []))
        elif entries and entries[-1][1].endswith("\\"):
            first, text, shown = entries.pop()
            entries.append((first, f"{text}\n{line}", shown))
        elif entries:
            entries[-1][2].append(line)
    commands = []
    for (number, text, shown), following in zip(entries, [*entries[1:], None], strict=True):
        if text.startswith("torchkeep "):
            says_code = following is not None and following[1] == "echo $?"
            commands.append(Command(number, text, "\n".join(shown), int(following[2][0]) if says_code else 0))
    return commands


def matches(shown: str, printed: str) -> bool:
    """Whether a printed text is what is shown: spaces at line ends do not count, and ``...`` is anything."""
    shown, printed = ("\n".join(line.rstrip() for line in text.strip().splitlines()) for text in (shown, printed))
    return re.fullmatch(".*".join(re.escape(part) for part in shown.split("...")), printed, re.DOTALL) is not None


def run_python(block: Block, name: str, namespace: dict[str, object]) -> None:
    if block.code.lstrip().startswith(">>>"):
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        test = doctest.DocTestParser().get_doctest(block.code, namespace, name, name, block.line - 1)
        report: list[str] = []
        failed, _ = doctest.DocTestRunner(optionflags=flags).run(test, out=report.append, clear_globs=False)
        if failed:
            raise AssertionError("".join(report))
        namespace.update(test.globs)
        return
    # Line numbers of the document, so that a traceback points into it.
    tree = ast.increment_lineno(ast.parse(block.code, name), block.line - 1)
    exec(compile(tree, name, "exec"), namespace)


def run_console(block: Block, name: str, environment: dict[str, str]) -> None:
    for command in commands_of(block):
        done = subprocess.run(
            ["bash", "-c", command.text],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            timeout=400,
            check=False,
        )
        where = f"{name}:{command.line}: $ {command.text}"
        if not matches(command.shown, done.stdout):
            raise AssertionError(f"{where}\n--- shown\n{command.shown}\n--- printed\n{done.stdout}")
        if done.returncode != command.exit_code:
            raise AssertionError(f"{where}\nexit code {done.returncode}, not {command.exit_code}")


def run_document(text: str, name: str, environment: dict[str, str]) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks_of(text):
        if block.kind == "python":
            run_python(block, name, namespace)
        else:
            run_console(block, name, environment)


@pytest.fixture
def console(tmp_path, monkeypatch) -> dict[str, str]:
    """Give the environment of a console in an empty folder, in which `torchkeep` is the one under test."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    command = tmp_path / "bin" / "torchkeep"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m torchkeep.cli "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return {
        **os.environ,
        "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "examples")]),
        "NO_COLOR": "1",
        "COLUMNS": "100",
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_example_of_a_document_runs_and_prints_what_it_shows(document, console):
    run_document(document.read_text(encoding="utf-8"), document.name, console)


GOOD = """
<!-- setup
from pathlib import Path
hidden = 3
-->
Text, then

```python
visible = hidden + 1
Path("made").touch()
```

1. in a list:
   ```python
   if visible:
       deeper = visible + 1
   ```

```python
>>> deeper
5
>>> print("a   b ... z")
a b ...
```

```text
not(run
```

```console
$ pip install torchkeep
$ ls made
this is not compared
```
"""


def test_a_good_document_runs(console):
    run_document(GOOD, "good.md", console)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```python\n1 / 0\n```\n", "division by zero"),
        ("<!-- setup\nassert 1 == 2, 'in setup'\n-->\n", "in setup"),
        ("```python\n>>> 1 + 1\n3\n```\n", "Expected:\n    3\nGot:\n    2"),
        ("```python\n>>> 1 / 0\n```\n", "ZeroDivisionError"),
        (
            "```console\n$ torchkeep --help\nnothing of the kind\n```\n",
            "bad.md:2: $ torchkeep --help\n--- shown\nnothing",
        ),
        ("```console\n$ torchkeep no-such-verb\n...\n```\n", "exit code 2, not 0"),
        ("```console\n$ torchkeep --help\n...\n$ echo $?\n4\n```\n", "exit code 0, not 4"),
    ],
)
def test_a_document_that_is_wrong_is_caught(text, fault, console):
    with pytest.raises((AssertionError, ZeroDivisionError)) as caught:
        run_document(text, "bad.md", console)
    assert fault in str(caught.value)


def test_a_traceback_points_to_the_line_of_the_document():
    with pytest.raises(ZeroDivisionError) as caught:
        run_document("one\n\n```python\nx = 0\n\n1 / x\n```\n", "bad.md", {})
    assert caught.traceback[-1].lineno + 1 == 6


def test_commands_are_read_with_their_continuation_output_and_exit_code():
    block = Block("console", "$ torchkeep show \\\n    a\nout\n\nmore\n$ torchkeep ls\n$ echo $?\n4\n$ ls\nx\n", 10)

    assert commands_of(block) == [
        Command(10, "torchkeep show \\\n    a", "out\n\nmore", 0),
        Command(15, "torchkeep ls", "", 4),
    ]


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a  \nb", "a\nb\n", True),
        ("a ... c", "a b c", True),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("...", "anything\nat all", True),
        ("", "", True),
        ("", "surprise", False),
        ("a", "a\nb", False),
        ("a.c", "abc", False),
    ],
)
def test_three_dots_stand_for_anything_and_nothing_else_does(shown, printed, same):
    assert matches(shown, printed) is same
