"""Whatever a power cut leaves on the disk, a save is there whole or not at all; and each flush is needed for that.

A save is traced. From the trace every disk is built that a power cut may leave, before each flush and at the end, where
whatever was not flushed may be there or not, in any subset. On each of them the old or the new version is whole, after
the save has returned the new one, and the next save works and cleans up. The same once more where what was there before
had never been flushed, as after `cp`: then the old version may be lost, and the new one never. Then each flush in turn
is left out of the trace: now some disk must be wrong, or the flush would be for nothing, or the test blind. At last a
save is killed at each rename, flush and removal, another one follows, and the power is cut during that one.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.crash.disk import TRACED, Disk, Trace, disk_of
from tests.crash.versions import NEW, NEXT, OLD, leftovers, save_step, save_version, version_of
from tests.crash.victim import at_start_of_save, without_exchange
from tests.crash.watched import SCENARIOS, Scenario

import torchkeep as tk
from torchkeep.folder.committed import identity_at
from torchkeep.folder.recovery import recover

HIDDEN = re.compile(r"\.(staging|trash)-")
# What the whole process does, in all of its threads.
WHOLE = {
    name: replace(scenario, watch=scenario.watch if scenario.watch is without_exchange else at_start_of_save)
    for name, scenario in SCENARIOS.items()
    if scenario.commits
}
KILLS = {name: WHOLE[name] for name in ("a folder over another", "a folder over another, no exchange")}
# Calls after which something else is true; each stands in one thread of the process alone.
TURNS = ("fsync", "rename", "renameat2", "unlink", "unlinkat", "rmdir")
# Flushes that only other scenarios need: that of a linked shard, which was flushed when it was written, and that of a
# commit where a removal, flushed too, comes before the one that counts.
SPARE = {"a run, in the background": 1, "a run, thinned": 2}


class Checker:
    """Tells what is wrong with a disk; those that differ only in what a cleaner deletes are looked at once."""

    def __init__(
        self, scenario: Scenario, scratch: Path, times: dict[int, int], allowed: tuple[int | None, ...], samples: int
    ) -> None:
        self._scenario, self._scratch, self._times = scenario, scratch, times
        self._allowed, self._samples = allowed, samples
        self._known: dict[object, str | None] = {}

    @property
    def count(self) -> int:
        """How many disks it has looked at."""
        return len(self._known)

    def first_fault(self, trace: Trace, *, without: int | None = None, old: str | None = None) -> str | None:
        """What is wrong with the first disk of a trace that is wrong; with `old`, a damaged one of that id is not."""
        for disk, is_over in trace.states(self._samples, without):
            seen = (is_over, old, *_what_differs(disk))
            if seen not in self._known:
                self._known[seen] = self._look(disk, is_over=is_over, old=old)
            if self._known[seen] is not None:
                return self._known[seen]
        return None

    def _look(self, disk: Disk, *, is_over: bool, old: str | None) -> str | None:
        folder = self._scratch / "cut"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        disk.write_to(folder, self._times)
        path = folder / self._scenario.name
        try:
            if self._scenario.watch is without_exchange and path.parent.is_dir():
                recover(path.parent)
            found = version_of(path)
            if found not in self._allowed[-1:] if is_over else found not in self._allowed:
                return f"version {found} is there"
            following = next(version for version in (NEW, NEXT, NEXT + 1) if version > (found or 0))
            {"version": save_version, "step": save_step}[self._scenario.saver](path, following)
            if version_of(path) != following:
                return "the next save is not there"
            if leftovers(folder):
                return f"left behind: {leftovers(folder)}"
        except (tk.errors.CheckpointError, AssertionError) as error:
            is_old = old is not None and identity_at(path) in {old, None} and not is_over
            return None if is_old else f"{type(error).__name__}: {error}"
        return None


def _what_differs(disk: Disk) -> Iterator[object]:
    for path, inode in sorted(disk.walk()):
        *above, name = path.split("/")
        if not any(HIDDEN.match(part) for part in above):
            yield ("hidden", inode in disk.folders) if HIDDEN.match(name) else (path, disk.files.get(inode))


@pytest.fixture
def scratch():
    """Give a folder in memory: what is checked there is not whether it is flushed."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def made(scenario: Scenario, folder: Path) -> tuple[Path, int | None, Disk, dict[int, int]]:
    """What is there before: the path, its version, and the disk."""
    folder.mkdir()
    scenario.make(folder)
    path = folder / scenario.name
    return path, version_of(path), *disk_of(folder)


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("name", WHOLE)
def test_a_power_cut_leaves_the_old_or_the_new_checkpoint_and_every_flush_is_needed(
    name, victim, tmp_path, scratch, campaign
):
    scenario = WHOLE[name]
    path, old, before, times = made(scenario, tmp_path / "folder")
    old_id = identity_at(path)
    lines = victim.trace_of(scenario, path, TRACED)
    checker = Checker(scenario, scratch, times, (old, NEW), campaign.size(256, 4096))
    trace = Trace(tmp_path / "folder", before, lines)
    copied = Trace(tmp_path / "folder", before, lines, flushed=False) if scenario.name == "ckpt" and old_id else None
    assert checker.first_fault(trace) is None
    assert copied is None or checker.first_fault(copied, old=old_id) is None
    found = {at: checker.first_fault(trace, without=at) for at in trace.flushes}
    if copied is not None:
        found |= {at: checker.first_fault(copied, without=at, old=old_id) for at in found if found[at] is None}
    spare = [at for at, fault in found.items() if fault is None]
    assert len(spare) == SPARE.get(name, 0)
    campaign.report(
        f"{name}: any subset of what was not flushed is lost",
        operations=len(trace.operations),
        disks=checker.count,
        violations=0,
        flushes=len(found),
        needed=len(found) - len(spare),
    )


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("name", KILLS)
def test_a_power_cut_after_a_kill_loses_nothing_either(name, victim, tmp_path, scratch, campaign):
    scenario = KILLS[name]
    made(scenario, tmp_path / "before")
    calls = victim.calls_of(scenario, shutil.copytree(tmp_path / "before", tmp_path / "traced") / scenario.name, TURNS)
    kills = [(call, calls[: at + 1].count(call)) for at, call in enumerate(calls)]
    disks = 0
    for number, kill in enumerate(kills if campaign.is_full else kills[-3:]):
        folder = shutil.copytree(tmp_path / "before", tmp_path / f"killed-{number}")
        before, times = disk_of(folder)
        path = folder / scenario.name
        lines = victim.trace_killed_at(scenario, path, TRACED, kill)
        checker = Checker(scenario, scratch, times, (OLD, NEW, NEXT), campaign.size(128, 512))
        fault = checker.first_fault(Trace(folder, before, lines + victim.trace_of(scenario, path, TRACED, NEXT)))
        assert fault is None, kill
        disks += checker.count
    campaign.report(f"{name}: killed, saved again, and the power cut", kills=len(kills), disks=disks, violations=0)
