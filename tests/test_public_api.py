"""The export list is true."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import torchkeep

SRC = Path(__file__).resolve().parent.parent / "src"
MODULES_FOR_THE_RARER_NAMES = {"errors", "policies", "rules"}


def last_line_of(program: str) -> str:
    """Run a program in a fresh interpreter and give the last line it prints."""
    path = f"import sys; sys.path.insert(0, {str(SRC)!r})\n"
    done = subprocess.run([sys.executable, "-c", path + program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_there_are_at_most_thirty_names_in_order_and_none_twice():
    assert len(torchkeep.__all__) <= 30
    assert list(torchkeep.__all__) == sorted(set(torchkeep.__all__))


@pytest.mark.parametrize("name", torchkeep.__all__)
def test_each_name_exists_and_says_what_it_is(name):
    value = getattr(torchkeep, name)

    assert callable(value)
    first_line = (value.__doc__ or "").strip().partition("\n")[0]
    assert first_line.endswith((".", ":")), f"torchkeep.{name} needs a docstring that begins with one sentence"


def test_dir_lists_the_public_names_and_no_others():
    listed = last_line_of("import torchkeep; print(*(name for name in dir(torchkeep) if name[0] != '_'))").split()

    assert set(torchkeep.__all__) <= set(listed)
    assert set(listed) - set(torchkeep.__all__) <= MODULES_FOR_THE_RARER_NAMES


def test_importing_the_package_imports_no_room():
    imported = last_line_of("import torchkeep, sys; print(*(n for n in sys.modules if n.startswith('torchkeep.')))")

    assert set(imported.split()) <= {f"torchkeep.{name}" for name in MODULES_FOR_THE_RARER_NAMES}


def test_a_name_that_does_not_exist_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="module 'torchkeep' has no attribute 'safe'"):
        torchkeep.safe  # noqa: B018


def test_each_name_is_still_a_verb_or_a_class_when_every_module_has_been_imported():
    """A room and a verb can share a name; importing the room must not put it in the verb's place."""
    program = """
import importlib, pkgutil, torchkeep
for module in pkgutil.walk_packages(torchkeep.__path__, "torchkeep."):
    if "__main__" not in module.name and not module.name.startswith("torchkeep.integrations."):
        importlib.import_module(module.name)
print("shadowed:", *(name for name in torchkeep.__all__ if not callable(getattr(torchkeep, name))))
"""
    assert last_line_of(program) == "shadowed:"


@pytest.mark.parametrize("name", sorted(MODULES_FOR_THE_RARER_NAMES))
def test_each_public_module_lists_only_names_that_exist(name):
    module = importlib.import_module(f"torchkeep.{name}")

    assert [each for each in module.__all__ if not hasattr(module, each)] == []
    assert list(module.__all__) == sorted(module.__all__)
