"""Whatever a power cut leaves on the disk, a save is there whole or not at all; and each of its flushes is needed for that.

A save is traced. From the trace every disk is built that a power cut may leave, before each flush and at the end, where
whatever was not flushed may be there or not, in any subset. On each of them the old or the new version is found whole,
after the save has returned the new one, and the next save works and cleans up. Then each flush in turn is left out of the
trace: now some disk must be wrong, or the flush would be for nothing, or the test blind.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.crash.disk import TRACED, Disk, Trace, disk_of
from tests.crash.versions import NEW, NEXT, leftovers, save_step, save_version, version_of
from tests.crash.victim import without_exchange
from tests.crash.watched import Scenario, make_file, make_folder, make_long_run, make_nothing, make_run

import torchkeep as tk
from torchkeep.folder.recovery import recover

LEFTOVER = re.compile(r"\.(staging|trash)-")
SCENARIOS = {
    "a new folder": Scenario(make_nothing, "deep/er/ckpt", ()),
    "a folder over another": Scenario(make_folder, "ckpt", ()),
    "a folder over another, no exchange": Scenario(make_folder, "ckpt", (), watch=without_exchange),
    "a run": Scenario(make_run, "run", (), "step"),
    "a run, thinned": Scenario(make_long_run, "run", (), "step"),
    "a new file": Scenario(make_nothing, "one.safetensors", ()),
    "a file over another": Scenario(make_file, "one.safetensors", ()),
}


class Checker:
    """Tells what is wrong with a disk; each one is looked at once."""

    def __init__(self, scenario: Scenario, scratch: Path, times: dict[int, int], old: int | None) -> None:
        self._scenario, self._scratch, self._times, self._old = scenario, scratch, times, old
        self._known: dict[object, str | None] = {}

    @property
    def count(self) -> int:
        """How many different disks it has seen."""
        return len(self._known)

    def fault_of(self, disk: Disk, *, is_over: bool) -> str | None:
        """What is wrong, or None. What lies in folders that a cleaner removes does not make disks different."""
        seen = (is_over, *_what_differs(disk))
        if seen not in self._known:
            self._known[seen] = self._look(disk, is_over=is_over)
        return self._known[seen]

    def _look(self, disk: Disk, *, is_over: bool) -> str | None:
        folder = self._scratch / "cut"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        disk.write_to(folder, self._times)
        path = folder / self._scenario.name
        try:
            if self._scenario.watch is without_exchange and path.parent.is_dir():
                recover(path.parent)
            found = version_of(path)
            if found not in ({NEW} if is_over else {self._old, NEW}):
                return f"version {found} is there"
            following = NEXT if found == NEW else NEW
            {"version": save_version, "step": save_step}[self._scenario.saver](path, following)
            if version_of(path) != following:
                return "the next save is not there"
            if leftovers(folder):
                return f"left behind: {leftovers(folder)}"
        except (tk.errors.CheckpointError, AssertionError) as error:
            return f"{type(error).__name__}: {error}"
        return None


def _what_differs(disk: Disk) -> Iterator[object]:
    for path, inode in sorted(disk.walk()):
        *above, name = path.split("/")
        if not any(LEFTOVER.match(part) for part in above):
            yield ("leftover", inode in disk.folders) if LEFTOVER.match(name) else (path, disk.files.get(inode))


@pytest.fixture
def scratch():
    """Give a folder in memory: what is checked there is not whether it is flushed."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_power_cut_at_any_time_leaves_the_old_or_the_new_checkpoint_and_every_flush_is_needed(
    name, victim, tmp_path, scratch, campaign
):
    scenario = SCENARIOS[name]
    folder = tmp_path / "folder"
    folder.mkdir()
    scenario.make(folder)
    path = folder / scenario.name
    old = version_of(path)
    before, times = disk_of(folder)
    trace = Trace(folder, before, victim.trace_of(scenario, path, TRACED))
    checker = Checker(scenario, scratch, times, old)
    faults = {fault for disk, is_over in trace.states() if (fault := checker.fault_of(disk, is_over=is_over))}
    print(name, len(trace.operations), len(trace.flushes), checker.count, faults)
    blind = []
    for at in trace.flushes:
        found = None
        for disk, is_over in trace.states(without=at):
            found = checker.fault_of(disk, is_over=is_over)
            if found:
                break
        if not found:
            blind.append((at, trace.flushes[at]))
        print("   without", at, trace.flushes[at], found and found.splitlines()[0][:100])
    assert faults == set()
    assert blind == []
