"""`flock`: who writes a staging folder, and who may rename in a folder just now. It dies with the process."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LONGEST_WAIT_SECONDS = 60.0


def try_lock(descriptor: int) -> bool | None:
    """Try to lock a file without waiting: True, False when somebody holds it, None when locks do not work there."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let one writer at a time look at a folder and rename in it; cleaners take the same lock (`flock` on the folder).

    It is held for a few calls and dies with the process. Where locks do not work, or somebody keeps it for a minute,
    things go on without: a rename is still atomic, and only the order of several writers is open.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
        while try_lock(descriptor) is False and time.monotonic() < deadline:
            time.sleep(0.005)
        yield
    finally:
        with suppress(OSError):
            # Closing is not enough: a child forked meanwhile, such as a loader's worker, has the descriptor too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
