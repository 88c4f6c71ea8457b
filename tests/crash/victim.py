"""A process that saves and can be killed at any system call: each save runs in a fork that waits until it is watched.

Run as a script it reads commands, one JSON object a line, and answers each with one line: ``save`` forks a child and
gives its process number when it stands at its gate; ``go`` opens the gate and gives the child's exit code.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch

import torchkeep as tk
from torchkeep.folder import renames

FROZEN = {"weight": torch.arange(600.0).reshape(20, 30), "bias": torch.arange(20.0)}


def state(version: int) -> dict[str, dict[str, object]]:
    """What is saved as a version: `backbone` is the same in all of them, nothing else is."""
    return {
        "backbone": dict(FROZEN),
        "head": {"weight": torch.full((10, 20), float(version)), "bias": torch.full((10,), 0.5 + version)},
        "progress": {"epoch": version, "scale": torch.tensor(version)},
    }


def save_version(path: Path, version: int) -> None:
    """Save a version as a folder, or as one file where the path ends so."""
    tk.save(state(version), path, io_threads=1)


def save_step(run: Path, version: int) -> None:
    """Resume a run and save a version as its next step, with nothing kept but the newest."""
    held = state(0)
    with tk.CheckpointManager(run, held, retain=tk.KeepLast(1), io_threads=1) as manager:
        step = manager.resume()
        for name, values in state(version).items():
            held[name].update(values)
        manager.save(step).wait()


SAVERS: dict[str, Callable[[Path, int], None]] = {"version": save_version, "step": save_step}


def at_start_of_save(_gate: Callable[[], None]) -> None:
    """Watch a save from its first call on."""


def at_start_of_background(gate: Callable[[], None]) -> None:
    """Watch the background thread only: the gate stands where the thread that saves would start."""
    start = threading.Thread.start

    def start_watched(thread: threading.Thread) -> None:
        gate()
        start(thread)

    threading.Thread.start = start_watched


def until_background(_gate: Callable[[], None]) -> None:
    """Watch the calling thread only: the process ends where the thread that saves would start."""
    threading.Thread.start = lambda _thread: os._exit(0)


def without_exchange(_gate: Callable[[], None]) -> None:
    """Watch a save on a file system that does not know `renameat2`."""
    renames._renameat2 = lambda *_: errno.ENOSYS


WATCHES = {
    watch.__name__: watch for watch in (at_start_of_save, at_start_of_background, until_background, without_exchange)
}


class Gate:
    """Where a child waits for whoever watches it."""

    def __init__(self) -> None:
        self._ready, self._is_ready = os.pipe()
        self._go, self._may_go = os.pipe()
        self._passed = False

    def wait_inside(self) -> None:
        """In the child: say that it stands here, and wait."""
        if not self._passed:
            self._passed = True
            os.write(self._is_ready, b".")
            os.read(self._go, 1)

    def wait_outside(self) -> None:
        """In the parent: wait until the child stands here."""
        os.read(self._ready, 1)

    def open(self) -> None:
        """In the parent: let the child go on."""
        os.write(self._may_go, b".")

    def close(self) -> None:
        for descriptor in (self._ready, self._is_ready, self._go, self._may_go):
            os.close(descriptor)


def fork_save(command: dict[str, str], gate: Gate) -> int:
    """Fork a child that saves; its process number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        WATCHES[command["watch"]](gate.wait_inside)
        if command["watch"] != at_start_of_background.__name__:
            gate.wait_inside()
        SAVERS[command["saver"]](Path(command["path"]), int(command["version"]))
        code = 0
    finally:
        os._exit(code)


def rehearse() -> None:
    """Import everything that a save imports, so that a child opens no files but those of its save."""
    with tempfile.TemporaryDirectory() as folder:
        for name, saver in (("folder", save_version), ("one.safetensors", save_version), ("run", save_step)):
            for version in (0, 1):
                saver(Path(folder, name), version)


def main() -> None:
    torch.set_num_threads(1)
    rehearse()
    child, gate = 0, Gate()
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "save":
            gate.close()
            gate = Gate()
            child = fork_save(command, gate)
            gate.wait_outside()
            answer = child
        else:
            gate.open()
            answer = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
