"""A writer killed before any of its system calls leaves the previous checkpoint or the new one, whole; never a mix.

strace kills at the entry of a call, which then does not happen. A save that is only traced gives the calls in their
order; after it one save is killed at each of them, so that every state that the file system goes through is met.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.crash.victim import (
    at_start_of_background,
    at_start_of_save,
    save_step,
    save_version,
    state,
    until_background,
    without_exchange,
)

import torchkeep as tk
from torchkeep.folder.recovery import recover

# A name that an architecture does not have is passed over for its question mark.
CHANGES = ",".join(
    f"?{call}"
    for call in (
        *("openat", "mkdir", "mkdirat", "write", "pwrite64", "pwritev", "pwritev2", "fsync", "fdatasync"),
        *("link", "linkat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "ftruncate", "fallocate"),
        *("fchmod", "chmod", "fchmodat", "flock", "copy_file_range", "sendfile", "symlink", "symlinkat", "utimensat"),
    )
)
KILLED = -9
CALL = re.compile(r"(?P<thread>\d+) +(?P<name>\w+)\(")
OLD, NEW, NEXT = 1, 2, 3
LEFTOVERS = re.compile(r"\.(staging|trash|aside)-.*")


class Victim:
    """The process that forks savers, and strace on them."""

    def __init__(self, strace: str, scratch: Path) -> None:
        self._strace = strace
        self._trace = scratch / "trace"
        script = Path(__file__).with_name("victim.py")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, script], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _ask(self, **command: object) -> int:
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the victim ended"
        return int(answer)

    def save(self, saver: str, path: Path, version: int) -> int:
        """Save in a new process that nobody disturbs; its exit code."""
        self._ask(do="save", saver=saver, watch="at_start_of_save", path=str(path), version=version)
        return self._ask(do="go")

    def calls_of(self, scenario: Scenario, path: Path) -> list[str]:
        """The names of all calls of a save that nobody kills, in order."""
        code, calls = self._watched_save(scenario, path)
        assert code == 0
        return calls

    def save_killed_at(self, scenario: Scenario, path: Path, calls: list[str]) -> None:
        """Save in a new process that dies at the entry of the last of these calls."""
        # strace counts for each call by its name.
        inject = f"inject={calls[-1]}:signal=SIGKILL:when={calls.count(calls[-1])}"
        assert self._watched_save(scenario, path, "-e", inject) == (KILLED, calls)

    def _watched_save(self, scenario: Scenario, path: Path, *options: str) -> tuple[int, list[str]]:
        watch = scenario.watch.__name__
        child = self._ask(do="save", saver=scenario.saver, watch=watch, path=str(path), version=NEW)
        with subprocess.Popen(
            [self._strace, "-f", "-p", str(child), "-o", self._trace, "-e", f"trace={CHANGES}", *options],
            stderr=subprocess.PIPE,
            text=True,
        ) as strace:
            said = strace.stderr.readline()
            assert "attached" in said, said
            code = self._ask(do="go")
            strace.communicate(timeout=60)
        lines = [match for line in self._trace.read_text().splitlines() if (match := CALL.match(line))]
        # The counts above are of one thread.
        assert len({match["thread"] for match in lines}) == 1
        return code, [match["name"] for match in lines]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def victim(strace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    process = Victim(strace, tmp_path_factory.mktemp("strace"))
    yield process
    process.close()


def make_nothing(_folder: Path) -> None:
    """There is nothing at the path before."""


def make_folder(folder: Path) -> None:
    save_version(folder / "ckpt", OLD)


def make_file(folder: Path) -> None:
    save_version(folder / "one.safetensors", OLD)


def make_run(folder: Path) -> None:
    save_step(folder / "run", 0)
    save_step(folder / "run", OLD)


@dataclass(frozen=True)
class Scenario:
    """What is there before, what saves over it, how it is watched, and calls without which it would prove little."""

    make: Callable[[Path], None]
    name: str
    calls: tuple[str, ...]
    saver: str = "version"
    watch: Callable[..., None] = at_start_of_save
    commits: bool = True


SCENARIOS = {
    "a new folder": Scenario(make_nothing, "deep/er/ckpt", ("fsync", "renameat2")),
    "a folder over another": Scenario(make_folder, "ckpt", ("linkat", "fsync", "renameat2", "unlink")),
    "a folder over another, no exchange": Scenario(make_folder, "ckpt", ("linkat", "rename"), watch=without_exchange),
    "a run, in the foreground": Scenario(make_run, "run", ("linkat",), "step", until_background, commits=False),
    "a run, in the background": Scenario(make_run, "run", ("renameat2", "unlink"), "step", at_start_of_background),
    "a new file": Scenario(make_nothing, "one.safetensors", ("fsync", "renameat2")),
    "a file over another": Scenario(make_file, "one.safetensors", ("fsync", "rename")),
}


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
        assert_same(tk.load(each), state(each.step))
    return found.latest().step


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*") if LEFTOVERS.fullmatch(path.name)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_save_killed_at_any_call_leaves_the_old_or_the_new_checkpoint(name, victim, tmp_path):
    scenario = SCENARIOS[name]
    look = newest_version if scenario.saver == "step" else version_at
    before = tmp_path / "before"
    before.mkdir()
    scenario.make(before)
    old = look(before / scenario.name)
    calls = victim.calls_of(scenario, shutil.copytree(before, tmp_path / "traced") / scenario.name)
    assert all(any(name.startswith(call) for name in calls) for call in scenario.calls)
    seen = []
    for count in range(1, len(calls) + 1):
        folder = shutil.copytree(before, tmp_path / f"killed-{count}")
        path = folder / scenario.name
        victim.save_killed_at(scenario, path, calls[:count])
        if scenario.watch is without_exchange:
            recover(folder)  # between the two renames the final name is absent, until somebody comes by
        seen.append(look(path))
        following = NEXT if seen[-1] == NEW else NEW
        assert victim.save(scenario.saver, path, following) == 0
        assert look(path) == following
        assert leftovers(folder) == []
    # The new one comes by one call, the rename; it is there before the next call and it stays.
    renames = [at for at, call in enumerate(calls) if call.startswith("rename")]
    became_new = seen.index(NEW) if scenario.commits else len(seen)
    assert became_new - 1 in renames or not scenario.commits
    assert seen == [old] * became_new + [NEW] * (len(seen) - became_new)
