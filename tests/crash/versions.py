"""What is saved over and over in tests of crashes and failing calls, and how to tell which of it a path holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

import torchkeep as tk

OLD, NEW, NEXT = 1, 2, 3
FROZEN = {"weight": torch.arange(600.0).reshape(20, 30), "bias": torch.arange(20.0)}
LEFTOVERS = re.compile(r"\.(staging|trash|aside|damaged)-.*")


def state(version: int) -> dict[str, dict[str, object]]:
    """What is saved as a version: `backbone` is the same in all of them; `wide` is written past the page cache."""
    return {
        "backbone": dict(FROZEN),
        "head": {"weight": torch.full((10, 20), float(version)), "bias": torch.full((10,), 0.5 + version)},
        "wide": {"weight": torch.full((300_000,), float(version))},
        "progress": {"epoch": version, "scale": torch.tensor(version)},
    }


def save_version(path: Path, version: int) -> None:
    """Save a version as a folder, or as one file where the path ends so."""
    tk.save(state(version), path, io_threads=1)


class Run:
    """A manager that keeps nothing but the newest step, and what it holds."""

    def __init__(self, folder: Path) -> None:
        self.held = state(0)
        self.manager = tk.CheckpointManager(folder, self.held, retain=tk.KeepLast(1), io_threads=1)
        self.handle = None

    def save(self, version: int) -> None:
        """Resume if that did not happen yet, and save a version as the step of its number."""
        if self.manager.last_step is None:
            self.manager.resume()
        for name, values in state(version).items():
            self.held[name].update(values)
        self.handle = None
        self.handle = self.manager.save(version)
        self.handle.wait()


def save_step(folder: Path, version: int) -> None:
    """Resume a run and save a version as its step, with nothing kept but the newest."""
    run = Run(folder)
    with run.manager:
        run.save(version)


def version_at(path: Path) -> int | None:
    """Which version lies at a path, after its every tensor was compared; None when nothing is there."""
    try:
        found = tk.load(path, io_threads=1)
    except tk.errors.NotFoundError:
        return None
    assert tk.verify(path, io_threads=1).ok
    version = found["progress"]["epoch"]
    assert_same(found, state(version))
    return version


def assert_same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key, value in wanted.items():
            assert_same(found[key], value)
    elif isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
    else:
        assert found == wanted


def newest_version(run: Path) -> int | None:
    """Which version the newest checkpoint of a run holds; the others must be whole too."""
    found = tk.checkpoints(run)
    assert not found.passed_over
    for each in found:
        assert tk.verify(each, io_threads=1).ok
        assert_same(tk.load(each, io_threads=1), state(each.step))
    return found.latest().step


def version_of(path: Path) -> int | None:
    """Which version a checkpoint, or the newest of a run, holds."""
    return newest_version(path) if path.name == "run" else version_at(path)


def leftovers(folder: Path) -> list[str]:
    """What writers leave beside checkpoints when they die."""
    return [path.name for path in folder.rglob(".*") if LEFTOVERS.fullmatch(path.name)]
