"""Saves of a manager: staged while the caller waits, finished in the background, thinned once committed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torchkeep.errors import CheckpointError, ConflictError
from torchkeep.folder.draft import Draft
from torchkeep.folder.parallel import in_parallel
from torchkeep.folder.record import Record
from torchkeep.folder.recovery import recover
from torchkeep.folder.removal import remove
from torchkeep.folder.runs import metrics_of, read_run, step_name
from torchkeep.folder.write import Saved, Staged, finish, not_saved, stage
from torchkeep.policies import Candidate, KeepAll, RetentionPolicy, decide
from torchkeep.verbs.background import SaveHandle


class Saver:
    """One save at a time into a run folder.

    Attributes:
        parent: The checkpoint whose shards the next save may link, and its record.
        notes: What a person should know about the saves so far.
    """

    def __init__(self, folder: Path, retain: RetentionPolicy, threads: int) -> None:
        self.parent: tuple[Path, Record] | None = None
        self.notes: list[str] = []
        self._folder = folder
        self._retain = retain
        self._threads = threads
        self._in_flight: SaveHandle | None = None
        self._has_leftovers = False

    @property
    def is_idle(self) -> bool:
        """Whether no save is in flight."""
        return self._in_flight is None

    def begin(self, draft: Draft, step: int) -> SaveHandle:
        """Stage a draft and finish it in the background; when this returns the live objects may change again.

        Raises:
            CheckpointError: The operating system refused; nothing is left behind.
        """
        target = self._folder / step_name(step)
        parent, record = self.parent or (None, None)
        if self._has_leftovers:
            with not_saved(target):
                recover(self._folder)
        self._has_leftovers = True  # until it is known that this save leaves none
        staged = stage(target, draft, parent, record, self._threads)
        try:
            self._copy(staged)
        except BaseException:
            staged.staging.discard()
            raise
        self._in_flight = SaveHandle(step, lambda: self._finish(staged))
        return self._in_flight

    def _copy(self, staged: Staged) -> None:
        """Let the rest of a save read copies, so that training may go on changing what it saves."""
        names = staged.names_to_write()
        copies = in_parallel(lambda name: bytearray(staged.draft.groups[name[0]][name[1]].read()), names, self._threads)
        held = {name: memoryview(copy) for name, copy in zip(names, copies, strict=True)}
        staged.read_from({name: partial(held.__getitem__, name) for name in names})

    def _finish(self, staged: Staged) -> Saved:
        saved = finish(staged)
        self.parent = (saved.path, saved.record)
        self.notes += saved.notes
        not_removed = self._thin(staged.draft.step)
        self.notes += not_removed
        self._has_leftovers = bool(not_removed)
        return saved

    def _thin(self, saved_step: int | None) -> list[str]:
        """Remove what retention does not keep: what was not removed, and why.

        The new checkpoint is committed by now, so an old one that cannot be removed is a note, not a failed save.
        """
        if isinstance(self._retain, KeepAll):
            return []  # without reading every record of a long run
        try:
            found = read_run(self._folder).checkpoints
        except CheckpointError as error:
            return [f"older checkpoints were not removed: {error}"]
        notes = []
        for decision in decide(self._retain, [Candidate(each.step, metrics_of(each.record)) for each in found]):
            path = self._folder / step_name(decision.step)
            if not decision.keep and decision.step != saved_step:
                try:
                    remove(path)
                except (OSError, ConflictError) as error:
                    notes.append(f"{path.name} was not removed: {error}")
        return notes

    def wait(self) -> None:
        """Wait for the save in flight.

        Raises:
            CheckpointError: It failed; it is reported once.
        """
        handle = self._in_flight
        if handle is None:
            return
        try:
            # An interrupt here leaves it in flight, and so the lock held.
            if not handle.is_reported or not handle.done:
                handle.result()
        finally:
            if handle.done:
                self._in_flight = None
