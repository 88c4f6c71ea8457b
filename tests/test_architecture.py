"""The arrow between the rooms, and the promise that looking at a file imports no torch.

    errors <- tensors <- { planning | folder | formats } <- arithmetic <- live <- distributed
           <- verbs <- manager <- { viewer | integrations } <- cli

A room imports only rooms to its left. `rules` and `policies`, at the top, are public faces of `planning` and `folder`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parent.parent / "src"
PACKAGE = "torchkeep"
ORDER = [
    {"errors"},
    {"tensors"},
    {"planning", "folder", "formats"},
    {"arithmetic"},
    {"rules", "policies"},
    {"live"},
    {"distributed"},
    {"verbs"},
    {"manager"},
    {"__init__"},
    {"viewer", "integrations"},
    {"cli"},
]
PLACE = {room: place for place, rooms in enumerate(ORDER) for room in rooms}
IMPORT_TORCH_FREELY = {"live", "distributed", "integrations"}
IMPORT_TORCH_IN_FUNCTIONS = {"verbs", "manager"}
GRAB_BAGS = {"utils", "util", "helpers", "helper", "core", "common", "misc"}
MOST_LINES = 500


@dataclass(frozen=True)
class Import:
    line: int
    module: str
    when: str  # "at import", "in a function", or "for types"


def imports_of(tree: ast.Module, package: str) -> Iterator[Import]:
    """Yield what a module imports by absolute dotted names; each name of ``from a import b`` is ``a.b``."""

    def visit(node: ast.AST, when: str) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, when) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            yield from (Import(node.lineno, f"{source}.{alias.name}", when) for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            when = "in a function" if when == "at import" else when
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from visit(child, "for types")
            for child in node.orelse:
                yield from visit(child, when)
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child, when)

    yield from visit(tree, "at import")


def faults_of(src: Path) -> list[str]:
    """Name every place where a source tree breaks the rules above, one line each."""
    faults: list[str] = []
    for file in sorted((src / PACKAGE).rglob("*.py")):
        inside = file.relative_to(src / PACKAGE)
        where = inside.as_posix()
        room = inside.parts[0].removesuffix(".py")
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        if names := GRAB_BAGS & {part.removesuffix(".py") for part in inside.parts}:
            faults.append(f"{where}: {min(names)!r} is no room")
        if len(text.splitlines()) > MOST_LINES and "lines because" not in (ast.get_docstring(tree) or ""):
            faults.append(f"{where}: over {MOST_LINES} lines, and its docstring does not say '... lines because ...'")
        if room not in PLACE:
            faults.append(f"{where}: {room!r} has no place in the order of rooms")
            continue
        package = ".".join((PACKAGE, *inside.parts[:-1]))
        for each in imports_of(tree, package):
            faults.extend(f"{where}:{each.line}: {fault}" for fault in _faults_of_import(room, each))
    return faults


def _faults_of_import(room: str, each: Import) -> Iterator[str]:
    top, *rest = each.module.split(".")
    if top == "torch":
        if room in IMPORT_TORCH_FREELY or (room in IMPORT_TORCH_IN_FUNCTIONS and each.when != "at import"):
            return
        yield f"{room} imports torch {each.when}"
    elif top == PACKAGE and rest != ["__version__"]:
        # `from torchkeep import name`: a room, or a name of the public face.
        target = rest[0] if rest and rest[0] in PLACE else "__init__"
        if target != room and PLACE[target] >= PLACE[room] and (room, each.when) != ("__init__", "for types"):
            yield f"{room} imports {target}, which is not to its left"


def test_every_room_imports_only_rooms_to_its_left():
    assert faults_of(SRC) == []


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("tensors.py", "from torchkeep.planning import match", "1: tensors imports planning, which is not to its left"),
        ("planning/match.py", "import torchkeep.folder.read", "1: planning imports folder, which is not to its left"),
        ("planning/match.py", "from torchkeep import folder", "1: planning imports folder, which is not to its left"),
        ("planning/deep/x.py", "from ...live import tree", "1: planning imports live, which is not to its left"),
        (
            "live/tree.py",
            "def f():\n    from torchkeep.verbs import load",
            "2: live imports verbs, which is not to its",
        ),
        ("live/tree.py", "from torchkeep import load", "1: live imports __init__, which is not to its left"),
        ("verbs.py", "from typing import *\nif TYPE_CHECKING:\n    from torchkeep import cli", "3: verbs imports cli"),
        ("folder/read.py", "def f():\n    import torch.nn", "2: folder imports torch in a function"),
        ("formats/zip.py", "from typing import *\nif TYPE_CHECKING:\n    import torch", "3: formats imports torch for"),
        ("verbs/load.py", "try:\n    import torch\nexcept ImportError:\n    pass", "2: verbs imports torch at import"),
        ("cli/show.py", "def f():\n    from torch import nn", "2: cli imports torch in a function"),
        ("attic.py", "", " 'attic' has no place in the order of rooms"),
        ("live/utils.py", "", " 'utils' is no room"),
        ("live/tree.py", "x = 1\n" * 501, " over 500 lines, and its docstring does not say"),
    ],
)
def test_a_made_up_tree_that_breaks_a_rule_is_caught(file, text, fault, tmp_path):
    path = tmp_path / PACKAGE / file
    path.parent.mkdir(parents=True)
    path.write_text(text)

    (found,) = faults_of(tmp_path)
    assert found.startswith(f"{file}:{fault}")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "planning/match.py",
            "import itertools\nfrom torchkeep.tensors import TensorSpec\nfrom torchkeep.planning import rows",
        ),
        ("planning/deep/x.py", "from ..rows import Row\nfrom . import y"),
        ("live/tree.py", "import torch\nfrom torchkeep.folder import values"),
        ("verbs/load.py", "def f():\n    import torch"),
        ("manager.py", "from torchkeep.verbs import save"),
        ("verbs/save.py", "def f():\n    from torchkeep import __version__"),
        ("cli/show.py", "import torchkeep as tk\nfrom torchkeep import load"),
        ("live/tree.py", '"""A table: 502 lines because each dtype is one."""\n' + "x = 1\n" * 501),
    ],
)
def test_a_made_up_tree_that_keeps_the_rules_is_not_blamed(file, text, tmp_path):
    path = tmp_path / PACKAGE / file
    path.parent.mkdir(parents=True)
    path.write_text(text)

    assert faults_of(tmp_path) == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Give a folder with one model's state as a .pt, a .safetensors, a checkpoint, and a run of one checkpoint."""
    import safetensors.torch
    import torch

    import torchkeep as tk

    folder = tmp_path_factory.mktemp("saved")
    model = torch.nn.Linear(3, 2)
    state = model.state_dict()
    torch.save({"model": state, "epoch": 3}, folder / "a.pt")
    safetensors.torch.save_file(state, folder / "a.safetensors")
    tk.save({"model": state, "epoch": 3}, folder / "ckpt")
    with tk.CheckpointManager(folder / "run", {"model": model}) as manager:
        manager.save(1)
    return folder


def modules_after(program: str, folder: Path) -> set[str]:
    """Run a program in a fresh interpreter, in a folder, and give the top-level modules it has imported at its end."""
    program += "\nimport sys; print('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    path = f"import sys; sys.path.insert(0, {str(SRC)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", path + program], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "program",
    [
        "import torchkeep",
        "from torchkeep import CheckpointManager, KeepLast, Rename, load, open, plan, save",
        "import torchkeep as tk; assert len(tk.open('a.pt').tensors) == 2",
        "import torchkeep as tk; assert tk.open('a.pt')['epoch'] == 3",
        "import torchkeep as tk; assert len(tk.open('a.safetensors').weights()) == 2",
        "import torchkeep as tk; assert len(tk.open('ckpt').tensors) == 2",
        "import torchkeep as tk; tk.verify('ckpt')",
        "import torchkeep as tk; tk.convert('ckpt', 'b.pt')",
        "import torchkeep as tk; tk.convert('a.pt', 'dcp', to='dcp')",
        "import torchkeep as tk; assert tk.checkpoints('run').latest()",
    ],
)
def test_looking_imports_no_torch(program, saved):
    assert "torch" not in modules_after(program, saved)


def test_a_program_that_does_import_torch_is_noticed(tmp_path):
    assert "torch" in modules_after("import torch", tmp_path)


@pytest.mark.parametrize("verb", ["show", "verify"])
@pytest.mark.parametrize("file", ["a.pt", "a.safetensors", "ckpt"])
def test_a_command_that_looks_imports_no_torch(verb, file, saved):
    # As `python -m torchkeep.cli` does, and then asks what was imported.
    program = f"""
import contextlib, io, runpy, sys
sys.argv = ["torchkeep", {verb!r}, {file!r}]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as shown:
    runpy.run_module("torchkeep.cli", run_name="__main__")
assert shown.getvalue().strip(), "nothing was shown"
"""
    assert "torch" not in modules_after(program, saved)
