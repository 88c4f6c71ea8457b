"""Saves of a manager: staged while the caller waits, finished in the background, thinned once committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torchkeep.errors import CheckpointError
from torchkeep.folder.committed import nonfinite_of
from torchkeep.folder.draft import Draft
from torchkeep.folder.parallel import in_parallel
from torchkeep.folder.record import Record, decode_record, encode_record
from torchkeep.folder.recovery import recover
from torchkeep.folder.runs import step_name
from torchkeep.folder.thinning import thin
from torchkeep.folder.write import Saved, Staged, finish, not_saved, stage
from torchkeep.manager.ranks import Ranks
from torchkeep.policies import KeepAll, RetentionPolicy
from torchkeep.tensors import TensorSpec
from torchkeep.verbs.background import SaveHandle

Name = tuple[str, str]  # group, tensor
_MOST_NAMED = 100


class Saver:
    """One save at a time into a run folder.

    Attributes:
        parent: The checkpoint whose shards the next save may link, and its record.
        notes: What a person should know about the saves so far.
        warnings: What a person should know now; whoever tells it takes it away.
        ranks: The ranks that save together.
        outcomes: The same ranks again, for what the saving threads tell each other.
    """

    def __init__(self, folder: Path, retain: RetentionPolicy, threads: int) -> None:
        self.ranks = self.outcomes = Ranks()
        self.parent: tuple[Path, Record] | None = None
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self._folder = folder
        self._retain = retain
        self._threads = threads
        self._in_flight: SaveHandle | None = None
        self._has_leftovers = False

    @property
    def is_idle(self) -> bool:
        """Whether no save is in flight."""
        return self._in_flight is None

    @property
    def has_failed(self) -> bool:
        """Whether the save in flight has ended with an error that nobody has seen."""
        handle = self._in_flight
        return handle is not None and handle.done and not handle.is_reported and handle.has_failed

    def begin(self, draft: Draft, step: int, watched: Mapping[Name, bool]) -> SaveHandle:
        """Stage a draft and finish it in the background; when this returns the live objects may change again.

        Args:
            draft: What to save.
            step: The step it is of.
            watched: Tensors that make the checkpoint useless when they hold NaN; true where inf does too.

        Raises:
            CheckpointError: The operating system refused; nothing is left behind.
        """
        staged = self.ranks.together(lambda: self._stage(draft, step), only_first=True)
        work = self._hear if staged is None else lambda: self._announce(staged, watched)
        self._in_flight = SaveHandle(step, work)
        return self._in_flight

    def _stage(self, draft: Draft, step: int) -> Staged:
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
        return staged

    def _announce(self, staged: Staged, watched: Mapping[Name, bool]) -> Saved:
        """Finish a save, and tell the other ranks how it went."""
        try:
            saved = self._finish(staged, watched)
        except BaseException as error:
            self.outcomes.share(b"\0" + str(error).encode())
            raise
        self.outcomes.share(encode_record(saved.record))
        return saved

    def _hear(self) -> Saved:
        """Wait until rank 0 has saved."""
        told = self.outcomes.share(b"")
        if told[:1] == b"\0":
            raise CheckpointError(f"rank 0 did not save: {told[1:].decode()}", where=self._folder)
        record = decode_record(told, str(self._folder))
        return Saved(self._folder / step_name(record.step or 0), record, 0, 0)

    def _copy(self, staged: Staged) -> None:
        """Let the rest of a save read copies, so that training may go on changing what it saves."""
        names = staged.names_to_write()
        copies = in_parallel(lambda name: bytearray(staged.draft.groups[name[0]][name[1]].read()), names, self._threads)
        held = {name: memoryview(copy) for name, copy in zip(names, copies, strict=True)}
        staged.read_from({name: partial(held.__getitem__, name) for name in names})

    def _finish(self, staged: Staged, watched: Mapping[Name, bool]) -> Saved:
        try:
            self._look_for_nonfinite(staged, watched)
        except BaseException:
            staged.staging.discard()
            raise
        saved = finish(staged)
        self.parent = (saved.path, saved.record)
        self.notes += saved.notes
        not_removed = self._thin(staged.draft.step)
        self.notes += not_removed
        self._has_leftovers = bool(not_removed)
        return saved

    def _thin(self, saved_step: int | None) -> Sequence[str]:
        """Remove what retention does not keep: what was not removed, and why.

        The new checkpoint is committed by now, so an old one that cannot be removed is a note, not a failed save.
        """
        if isinstance(self._retain, KeepAll):
            return ()  # without reading every record of a long run
        try:
            return thin(self._folder, self._retain, keep=saved_step).notes
        except (OSError, CheckpointError) as error:
            return (f"older checkpoints were not removed: {error}",)

    def _look_for_nonfinite(self, staged: Staged, watched: Mapping[Name, bool]) -> None:
        """Record which watched tensors hold NaN or inf: those written are read, those linked are as they were."""
        from torchkeep.live.finite import nonfinite

        def read(name: Name) -> tuple[TensorSpec, memoryview]:
            tensor = staged.draft.groups[name[0]][name[1]]
            return tensor.spec, tensor.read()

        written = set(staged.names_to_write())
        found = {
            ".".join(name): what
            for name, what in nonfinite([e for e in watched.items() if e[0] in written], read).items()
        }
        before = nonfinite_of(staged.parent)
        linked = {".".join(name) for name in staged.linked_tensors}
        found |= {name: what for name, what in before.get("tensors", {}).items() if name in linked}
        if not found:
            return
        first = before.get("first") or next(f"{name} ({what})" for name, what in found.items())
        step = staged.draft.step
        since = before.get("since", step)
        told = dict(list(found.items())[:_MOST_NAMED])
        member = {"first": first, "since": since, "count": len(found), "tensors": told}
        staged.draft = replace(staged.draft, provenance={**staged.draft.provenance, "nonfinite": member})
        if not before:
            self.warnings.append(
                f"step {step}: {len(found)} of the tensors that train hold NaN or inf, first {first}; "
                "it is never the best and never the only one that is kept"
            )

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

    def settle(self) -> None:
        """Wait for the save in flight, and pass over its error: what follows is more urgent."""
        try:
            self.wait()
        except CheckpointError as error:
            self.notes.append(str(error))
