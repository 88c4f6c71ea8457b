"""A lease: how one writer keeps others out of a run folder where the file system gives no lock.

It is a file that its holder renews. Whoever finds one that nobody renews takes it over by renaming its own onto it, and
the holder that it was taken from learns that before its next rename. Clocks of different machines are never compared.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from torchkeep.errors import ConflictError
from torchkeep.folder.durable import fsync_path

LEASE_NAME = ".lease"
LEASE_SECONDS = 60.0
_RENEWALS = 6  # in that time


class Lease:
    """The right to write in a folder, renewed by a thread until `release` or the end of the process.

    One that was not renewed for `seconds`, by the clock of whoever wants it, or whose process is dead on this machine,
    is taken over. To find that out takes up to `seconds`.

    Raises:
        ConflictError: Somebody holds it and renews it; the message says who.
        OSError: The file system refused.
    """

    def __init__(self, folder: Path, seconds: float = LEASE_SECONDS) -> None:
        self._folder = folder
        self._path = folder / LEASE_NAME
        self._seconds = seconds
        self._facts = {"token": secrets.token_hex(16), **describe_holder(), "machine": _machine()}
        self._renewals = 0
        try:
            self._descriptor = self._make(self._path)
        except FileExistsError:
            self._take_over()
        fsync_path(folder)
        self._stop = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="torchkeep-lease", daemon=True)
        self._renewing.start()

    def check(self) -> None:
        """Make sure that nobody has taken it over.

        Raises:
            ConflictError: Somebody did; the message says who.
        """
        found = _read(self._path)
        if found.get("token") != self._facts["token"]:
            raise ConflictError(
                f"{describe(found)} has taken this run folder over, since it was not renewed for {self._seconds:g} s",
                where=self._folder,
                remedy="stop one of the two; what this one would save is not kept",
            )

    def release(self) -> None:
        """Let others write; harmless when somebody has taken it over."""
        self._stop.set()
        self._renewing.join()
        with suppress(OSError, ConflictError):
            self.check()
            self._path.unlink()
        os.close(self._descriptor)

    def _make(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            self._write(descriptor)
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return descriptor

    def _write(self, descriptor: int) -> None:
        text = json.dumps({**self._facts, "renewals": f"{self._renewals:012}"})  # always as long
        os.pwrite(descriptor, text.encode("ascii"), 0)
        os.fsync(descriptor)

    def _renew(self) -> None:
        while not self._stop.wait(self._seconds / _RENEWALS):
            self._renewals += 1
            with suppress(OSError):  # the next check says what came of it
                self._write(self._descriptor)

    def _take_over(self) -> None:
        """Wait until it is clear that nobody renews what is there, and put our own in its place.

        Of several that do so at once the last one holds it, and the others see that after a moment.
        """
        seen = _read(self._path)
        deadline = time.monotonic() + self._seconds
        while not _is_dead_here(seen) and time.monotonic() < deadline:
            time.sleep(self._seconds / (4 * _RENEWALS))
            found = _read(self._path)
            if found != seen and found:
                raise ConflictError(
                    f"{describe(found)} is writing here",
                    where=self._folder,
                    remedy="wait for it, stop it, or use another run folder",
                )
            if not self._path.exists():
                break  # released
        mine = self._path.with_name(f"{LEASE_NAME}-{self._facts['token']}")
        self._descriptor = self._make(mine)
        try:
            mine.rename(self._path)
            fsync_path(self._folder)
            time.sleep(self._seconds / (4 * _RENEWALS))
            self.check()
        except BaseException:
            os.close(self._descriptor)
            mine.unlink(missing_ok=True)
            raise


def describe_holder() -> dict[str, object]:
    """Who this is, for people: host, process, time."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}


def describe(facts: Mapping[str, object]) -> str:
    """Who that is, in words."""
    try:
        return f"process {facts['pid']} on {facts['host']} (since {facts['since']})"
    except KeyError:
        return "another process"


def _read(path: Path) -> Mapping[str, object]:
    """What a lease says; nothing when it is absent, or was read half-written."""
    try:
        facts = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _machine() -> str:
    """What tells whether a process number means the same process here: this boot, and this space of numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_dead_here(facts: Mapping[str, object]) -> bool:
    pid = facts.get("pid")
    if not isinstance(pid, int) or not facts.get("machine") or facts["machine"] != _machine():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
