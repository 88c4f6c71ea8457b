"""A process that saves and can be killed at any system call: each save runs in a fork that waits until it is watched.

Run as a script it reads commands, one JSON object a line, and answers each with one line: ``save`` forks a child and
gives the number of the thread that stands at its gate; ``go`` opens the gate and gives that of the thread that stands
there again behind the save, or 0 when the child ended; ``end`` lets it end and gives its exit code.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from tests.crash.versions import NEXT, Run, assert_same, leftovers, save_step, save_version, state, version_of

import torchkeep as tk
from torchkeep.folder import renames
from torchkeep.verbs.background import SaveHandle

SAVED, REFUSED = 0, 10
PR_SET_PDEATHSIG = 1
RUN = SaveHandle._run


class Gate:
    """Where a child waits for whoever watches it: where its save begins, and some once more where it ends."""

    def __init__(self) -> None:
        self._ready, self._is_ready = socket.socketpair()  # neither reads nor writes, which are watched
        self._go, self._may_go = os.pipe()
        self._end, self._may_end = os.pipe()
        self._passed = False

    def _wait(self, descriptor: int) -> None:
        self._is_ready.send(str(threading.get_native_id()).encode())
        select.select([descriptor], [], [])

    def enter(self) -> None:
        """In the child: what follows is the save; wait, unless this gate was passed before."""
        if not self._passed:
            self._passed = True
            self._wait(self._go)

    def leave(self) -> None:
        """In the child: what follows is no longer that save; wait until nobody watches."""
        self._wait(self._end)

    def close_ends_of_child(self) -> None:
        """In the parent: keep what the parent uses, so that the end of the child is seen."""
        self._is_ready.close()
        os.close(self._go)
        os.close(self._end)

    def wait_outside(self) -> int:
        """In the parent: wait until the child stands here; which of its threads does, or 0 when it ended."""
        return int(self._ready.recv(100) or 0)

    def open(self) -> None:
        """In the parent: let the child begin its save."""
        os.write(self._may_go, b".")

    def close(self) -> None:
        """In the parent: let the child that saved go on to its end."""
        with contextlib.suppress(BrokenPipeError):  # it ended
            os.write(self._may_end, b".")
        self._ready.close()
        os.close(self._may_go)
        os.close(self._may_end)


def at_once(save: Callable[[Path, int], None]) -> Callable[[Path, int, Gate], None]:
    """Watch a save that has nothing around it."""

    def save_watched(path: Path, version: int, gate: Gate) -> None:
        gate.enter()
        save(path, version)

    return save_watched


def save_and_go_on(path: Path, version: int, gate: Gate) -> None:
    """Save a version; whatever came of it must be told truly, and the next save in the same process must work.

    Only the first save is watched. It exits with REFUSED when that one raised what a save may raise.
    """
    before, run = version_of(path), Run(path) if path.name == "run" else None
    save = run.save if run is not None else partial(save_version, path)
    open_before = len(os.listdir("/proc/self/fd"))
    outcome = SAVED
    gate.enter()
    try:
        save(version)
    except tk.errors.CheckpointError as error:
        outcome = REFUSED
        is_there = "in place" in str(error)
    if run is not None and run.handle is not None:
        run.handle.rest()  # what is done behind the commit is watched too
    gate.leave()
    if outcome == REFUSED:
        assert version_of(path) == (version if is_there else before)
    else:
        assert version_of(path) == version
    save(NEXT)
    if run is not None:
        assert_same(run.held, state(NEXT))
        run.manager.close()
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert version_of(path) == NEXT
    assert leftovers(path.parent) == []
    os._exit(outcome)


def save_step_on_two_ranks(path: Path, version: int, gate: Gate) -> None:
    """Resume a run and save its next step on two ranks; this process is rank 0, and rank 1 dies with it."""
    gate.enter()
    rendezvous = Path(tempfile.mkdtemp(), "rendezvous")
    partner = os.fork()
    if not partner:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        SaveHandle._run = RUN
    dist.init_process_group("gloo", f"file://{rendezvous}", timedelta(seconds=300), 2, 0 if partner else 1)
    save_step(path, version)
    if not partner:
        os._exit(0)
    assert os.waitpid(partner, 0)[1] == 0


SAVERS: dict[str, Callable[[Path, int, Gate], None]] = {
    "version": at_once(save_version),
    "step": at_once(save_step),
    "step, on two ranks": save_step_on_two_ranks,
    "version, and go on": save_and_go_on,
    "step, and go on": save_and_go_on,
}


def at_start_of_save(_gate: Gate) -> None:
    """Watch a save from its first call on."""


def at_start_of_background(gate: Gate) -> None:
    """Watch the background thread only: the gate stands where it starts."""
    run, enter = SaveHandle._run, gate.enter
    gate.enter = lambda: None

    def run_watched(handle: SaveHandle) -> None:
        enter()
        run(handle)

    SaveHandle._run = run_watched


def until_background(_gate: Gate) -> None:
    """Watch the calling thread only: the process ends where the thread that saves would start."""
    threading.Thread.start = lambda _thread: os._exit(0)


def without_exchange(_gate: Gate) -> None:
    """Watch a save on a file system that does not know `renameat2`."""
    renames._renameat2 = lambda *_: errno.ENOSYS


WATCHES = {
    watch.__name__: watch for watch in (at_start_of_save, at_start_of_background, until_background, without_exchange)
}


def fork_save(command: dict[str, str], gate: Gate) -> int:
    """Fork a child that saves; its process number."""
    child = os.fork()
    if child:
        return child
    try:
        WATCHES[command["watch"]](gate)
        SAVERS[command["saver"]](Path(command["path"]), int(command["version"]), gate)
        os._exit(SAVED)
    except BaseException:  # noqa: BLE001 - a child must not go on as its parent
        traceback.print_exc()
        os._exit(1)


def rehearse() -> None:
    """Import everything that a save imports, so that a child opens no files but those of its save."""
    with tempfile.TemporaryDirectory() as folder:
        for name, saver in (("folder", save_version), ("one.safetensors", save_version), ("run", save_step)):
            for version in (0, 1):
                saver(Path(folder, name), version)


def main() -> None:
    torch.set_num_threads(1)
    rehearse()
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "save":
            gate = Gate()
            child = fork_save(command, gate)
            gate.close_ends_of_child()
            answer = gate.wait_outside()
        elif command["do"] == "go":
            gate.open()
            answer = gate.wait_outside()
        else:
            gate.close()
            answer = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
