"""Saves in processes of their own, watched and disturbed by strace at any of their system calls."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.crash.versions import NEW, OLD, save_step, save_version, state
from tests.crash.victim import SAVED, at_start_of_background, at_start_of_save, until_background, without_exchange

import torchkeep as tk

# A name that an architecture does not have is passed over for its question mark.
CHANGES = (
    *("openat", "mkdir", "mkdirat", "write", "pwrite64", "pwritev", "pwritev2", "fsync", "fdatasync"),
    *("link", "linkat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "ftruncate", "fallocate"),
    *("fchmod", "chmod", "fchmodat", "flock", "copy_file_range", "sendfile", "symlink", "symlinkat", "utimensat"),
)
LOOKS = (
    *("open", "stat", "fstat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2"),
    *("getdents64", "read", "pread64", "preadv", "preadv2", "lseek", "fcntl", "readlink", "readlinkat", "fadvise64"),
)
CALL = re.compile(r"(?P<thread>\d+ +)?(?P<name>\w+)\(")
KILLED = -9
ALL_BYTES = ("-f", "-xx", "-s", "100000000")


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
        self._ask(do="go")
        return self._ask(do="end")

    def calls_of(self, scenario: Scenario, path: Path, calls: tuple[str, ...] = CHANGES) -> list[str]:
        """The names of all calls of these kinds of a save that nobody disturbs, in order."""
        code, seen = self.watched_save(scenario, path, calls)
        assert code == SAVED
        return seen

    def trace_of(self, scenario: Scenario, path: Path, calls: tuple[str, ...], version: int = NEW) -> list[str]:
        """The lines of strace of a save that nobody disturbs, of all its threads, with every byte in hexadecimal."""
        code, _ = self.watched_save(scenario, path, calls, *ALL_BYTES, version=version)
        assert code == SAVED
        return self._trace.read_text().splitlines()

    def trace_killed_at(
        self, scenario: Scenario, path: Path, calls: tuple[str, ...], kill: tuple[str, int]
    ) -> list[str]:
        """The lines of strace of a save that dies at the entry of the call of a name and a number."""
        code, _ = self.watched_save(
            scenario, path, calls, *ALL_BYTES, "-e", f"inject={kill[0]}:signal=SIGKILL:when={kill[1]}"
        )
        assert code == KILLED
        return self._trace.read_text().splitlines()

    def save_killed_at(self, scenario: Scenario, path: Path, calls: list[str]) -> None:
        """Save in a new process that dies at the entry of the last of these calls."""
        # strace counts for each call by its name.
        inject = f"inject={calls[-1]}:signal=SIGKILL:when={calls.count(calls[-1])}"
        assert self.watched_save(scenario, path, CHANGES, "-f", "-e", inject) == (KILLED, calls)
        # Calls are counted in one thread.
        lines = self._trace.read_text().splitlines()
        assert len({match["thread"] for line in lines if (match := CALL.match(line))}) == 1

    def save_failing_at(
        self, scenario: Scenario, path: Path, kinds: tuple[str, ...], calls: list[str], error: str
    ) -> int:
        """Save in a new process of which the last of these calls fails with an error; its exit code."""
        inject = f"inject={calls[-1]}:error={error}:when={calls.count(calls[-1])}"
        code, seen = self.watched_save(scenario, path, kinds, "-e", inject)
        assert seen[: len(calls)] == calls
        assert self._trace.read_text().count("(INJECTED)") == 1
        return code

    def watched_save(
        self, scenario: Scenario, path: Path, calls: tuple[str, ...], *options: str, version: int = NEW
    ) -> tuple[int, list[str]]:
        """Save in a new process under strace: its exit code, and its calls."""
        watch = scenario.watch.__name__
        thread = self._ask(do="save", saver=scenario.saver, watch=watch, path=str(path), version=version)
        trace = f"trace={','.join(f'?{call}' for call in calls)}"
        with subprocess.Popen(
            [self._strace, "-p", str(thread), "-o", self._trace, "-e", trace, *options],
            stderr=subprocess.PIPE,
            text=True,
        ) as strace:
            said = strace.stderr.readline()
            assert "attached" in said, said
            if self._ask(do="go"):
                strace.terminate()  # the process goes on alone
            strace.communicate(timeout=300)
        code = self._ask(do="end")
        lines = [match for line in self._trace.read_text().splitlines() if (match := CALL.match(line))]
        return code, [match["name"] for match in lines]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(300)
        self._process.stdout.close()


def make_nothing(_folder: Path) -> None:
    """There is nothing at the path before."""


def make_folder(folder: Path) -> None:
    save_version(folder / "ckpt", OLD)


def make_file(folder: Path) -> None:
    save_version(folder / "one.safetensors", OLD)


def make_run(folder: Path) -> None:
    save_step(folder / "run", 0)
    save_step(folder / "run", OLD)


def make_long_run(folder: Path) -> None:
    """A run whose next save removes two steps."""
    with tk.CheckpointManager(folder / "run", state(0), io_threads=1) as manager:
        for step in (0, OLD):
            for name, values in state(step).items():
                manager.state[name].update(values)
            manager.save(step)


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
    "a run, thinned": Scenario(make_long_run, "run", ("renameat2", "rename"), "step", at_start_of_background),
    "a new file": Scenario(make_nothing, "one.safetensors", ("fsync", "renameat2")),
    "a file over another": Scenario(make_file, "one.safetensors", ("fsync", "rename")),
}
