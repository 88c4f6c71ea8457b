"""The run folder of one manager: who may write in it, and what of it is put aside."""

from __future__ import annotations

import secrets
from pathlib import Path

from torchkeep.errors import CheckpointError, ConflictError, typed
from torchkeep.folder.durable import fsync_path, make_parents
from torchkeep.folder.lock import RunLock
from torchkeep.folder.recovery import recover
from torchkeep.folder.refusals import refuse_inside_checkpoint
from torchkeep.folder.runs import DAMAGED, Listing, list_run, step_name
from torchkeep.manager.notices import warn


class RunFolder:
    """A run folder that is locked when it is first used, and not mixed with a run that was not resumed.

    Attributes:
        path: The folder, resolved.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: RunLock | None = None
        self._has_resumed = False

    def own(self) -> None:
        """Take the lock, making the folder and cleaning what dead writers left; harmless when it is held.

        Raises:
            ConflictError: Another process writes here, or the folder is not the one that was locked.
            CheckpointError: The operating system refused.
        """
        if self._lock is not None and self._lock.is_held:
            self.require_still_ours()
            return
        remedy = "mend access, free space, or use another run folder"
        with typed("cannot write in this run folder", self.path, remedy):
            refuse_inside_checkpoint(self.path / "step")
            make_parents(self.path)
            lock = RunLock(self.path)
            try:
                recover(self.path)
            except BaseException:
                lock.release()
                raise
            self._lock = lock

    def require_still_ours(self) -> None:
        """Make sure that the folder is the one that was locked, and that nobody has taken it over.

        Raises:
            ConflictError: It is not.
        """
        if self._lock is not None:
            self._lock.require_folder(self.path)

    def release(self) -> None:
        """Let another process write here."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def read(self) -> Listing:
        """What is there."""
        return list_run(self.path)

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.path / step_name(step)

    def mark_resumed(self) -> None:
        """Remember that what is there is this run's own."""
        self._has_resumed = True

    def refuse_unresumed(self) -> None:
        """A run that is there and was not resumed would be mixed with this one, and thinned by its retention.

        Raises:
            ConflictError: It names the last steps of that run.
        """
        there = [] if self._has_resumed else [str(each.summary.step) for each in self.read().checkpoints]
        if there:
            raise ConflictError(
                f"this run folder holds checkpoints that were not resumed (steps {', '.join(there[-5:])})",
                where=self.path,
                remedy="call resume() before the first step, or use another run folder",
            )
        self._has_resumed = True

    def set_aside(self, checkpoint: Path, error: CheckpointError) -> None:
        """Rename a damaged checkpoint, durably and with a warning, so that its step can be saved again."""
        aside = checkpoint.with_name(f"{DAMAGED}{checkpoint.name.removeprefix('step-')}-{secrets.token_hex(4)}")
        with typed("a damaged checkpoint cannot be set aside", checkpoint):
            checkpoint.rename(aside)
            fsync_path(self.path)
        warn(f"passed over {checkpoint.name}, kept as {aside.name}: {error}")

    def names_set_aside(self) -> list[str]:
        """What was set aside before, by name."""
        with typed("cannot be read", self.path):
            return sorted(path.name for path in self.path.glob(f"{DAMAGED}*"))
