"""`.staging-*`: where a save is written until it is complete."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from torchkeep.folder.removal import delete_tree
from torchkeep.folder.turns import try_lock

STAGING = ".staging-"


class Staging:
    """A `.staging-*` folder or file that only its living writer holds.

    The lock (`flock` on it) dies with the process, so what a dead writer left is known from what a living one is
    writing. Where `flock` does not work, leftovers stay for a person to remove.
    """

    def __init__(self, parent: Path, *, as_file: bool = False) -> None:
        self.id = secrets.token_hex(16)
        while True:
            self.path = parent / f"{STAGING}{secrets.token_hex(8)}"
            if as_file:
                self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            else:
                self.path.mkdir(mode=0o755)
                try:
                    self.descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue  # a cleaner was faster
                except OSError:
                    with suppress(OSError):
                        self.path.rmdir()
                    raise
            # A cleaner that came between the two calls holds the lock or has taken the name away: make another.
            if try_lock(self.descriptor) is not False and os.path.lexists(self.path):
                return
            os.close(self.descriptor)

    def discard(self) -> None:
        """Let go of the lock, and remove what was staged and is still under the staging name.

        What cannot be removed now is a leftover for `recover`.
        """
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor < 0:
            return
        with suppress(OSError):
            # After an exchange the replaced checkpoint may still be there under this name.
            if os.path.samestat(self.path.lstat(), os.fstat(descriptor)):
                delete_tree(self.path)
        with suppress(OSError):
            os.close(descriptor)
