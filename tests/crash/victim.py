"""A process that saves and can be killed at any system call: each save runs in a fork that waits until it is watched.

Run as a script it reads commands, one JSON object a line, and answers each with one line: ``save`` forks a child and
gives the number of the thread that stands at its gate; ``go`` opens the gate and gives the child's exit code.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
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
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def save_and_go_on(path: Path, version: int) -> None:
    """Save a version; whatever came of it must be told truly, and the next save in the same process must work.

    It exits with REFUSED when the first save raised what a save may raise.
    """
    before, run = version_of(path), Run(path) if path.name == "run" else None
    save = run.save if run is not None else partial(save_version, path)
    open_before = len(os.listdir("/proc/self/fd"))
    outcome = SAVED
    os.getpgid(0)  # for whoever watches: what follows is that save
    try:
        save(version)
    except tk.errors.CheckpointError as error:
        outcome = REFUSED
        is_there = "in place" in str(error)
    os.getsid(0)  # what follows is no longer
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


def save_step_on_two_ranks(path: Path, version: int) -> None:
    """Resume a run and save its next step on two ranks; this process is rank 0, and rank 1 dies with it."""
    rendezvous = Path(tempfile.mkdtemp(), "rendezvous")
    partner = os.fork()
    if not partner:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        SaveHandle._run = RUN
    dist.init_process_group("gloo", f"file://{rendezvous}", timedelta(seconds=60), 2, 0 if partner else 1)
    save_step(path, version)
    if not partner:
        os._exit(0)
    assert os.waitpid(partner, 0)[1] == 0


SAVERS: dict[str, Callable[[Path, int], None]] = {
    "version": save_version,
    "step": save_step,
    "step, on two ranks": save_step_on_two_ranks,
    "version, and go on": save_and_go_on,
    "step, and go on": save_and_go_on,
}


def at_start_of_save(_gate: Callable[[], None]) -> None:
    """Watch a save from its first call on."""


def at_start_of_background(gate: Callable[[], None]) -> None:
    """Watch the background thread only: the gate stands where it starts."""
    run = SaveHandle._run

    def run_watched(handle: SaveHandle) -> None:
        gate()
        run(handle)

    SaveHandle._run = run_watched


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
        """In the child: say which thread stands here, and wait."""
        if not self._passed:
            self._passed = True
            os.write(self._is_ready, f"{threading.get_native_id()}\n".encode())
            select.select([self._go], [], [])  # not read: whoever watches counts reads

    def wait_outside(self) -> int:
        """In the parent: wait until the child stands here; which of its threads does."""
        return int(os.read(self._ready, 100))

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
    try:
        WATCHES[command["watch"]](gate.wait_inside)
        if command["watch"] != at_start_of_background.__name__:
            gate.wait_inside()
        SAVERS[command["saver"]](Path(command["path"]), int(command["version"]))
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
    child, gate = 0, Gate()
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "save":
            gate.close()
            gate = Gate()
            child = fork_save(command, gate)
            answer = gate.wait_outside()
        else:
            gate.open()
            answer = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
