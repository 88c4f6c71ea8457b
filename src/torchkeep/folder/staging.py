"""`.staging-*`: where a save is written until it is complete."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from torchkeep.folder.removal import delete_tree
from torchkeep.folder.turns import try_lock

STAGING = ".staging-"


class StagingFolder:
    """A `.staging-*` folder or file that only its living writer holds.

    The lock (`flock` on it) dies with the process, so what a dead writer left is known from what a living one is
    writing. Where `flock` does not work, leftovers stay for a person to remove.
    """

    def __init__(self, parent: Path, *, as_file: bool = False) -> None:
        self.path, self.descriptor = parent, -1
        self.id = secrets.token_hex(16)
        while not self._make(parent, as_file=as_file):
            pass

    def _make(self, parent: Path, *, as_file: bool) -> bool:
        """Make and lock one under a new name; False when a cleaner that came between the calls was faster."""
        self.path = parent / f"{STAGING}{secrets.token_hex(8)}"
        if as_file:
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        else:
            self.path.mkdir(mode=0o755)
        try:
            if not as_file:
                self.descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            if try_lock(self.descriptor) is not False:
                self.path.lstat()
                return True
        except FileNotFoundError:
            pass
        except OSError:
            with suppress(OSError):
                delete_tree(self.path)
            self._close()
            raise
        self._close()
        return False

    def discard(self) -> None:
        """Let go of the lock, and remove what was staged and is still under the staging name.

        What cannot be removed now is a leftover for `recover`.
        """
        if self.descriptor < 0:
            return
        with suppress(OSError):
            # After an exchange the replaced checkpoint may still be there under this name.
            if os.path.samestat(self.path.lstat(), os.fstat(self.descriptor)):
                delete_tree(self.path)
        self._close()

    def __del__(self) -> None:
        """Let go of the lock where an interrupt came before anybody could discard: it is a leftover for `recover`."""
        self._close()

    def _close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)
