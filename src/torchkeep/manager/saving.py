"""Saves of a manager: staged while the caller waits, finished in the background, thinned once committed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from torchkeep.errors import CheckpointError
from torchkeep.folder.committed import nonfinite_of
from torchkeep.folder.draft import Draft, Name
from torchkeep.folder.linking import read_one_again
from torchkeep.folder.parallel import default_threads, writing_threads
from torchkeep.folder.record import Record, decode_record, encode_record
from torchkeep.folder.recovery import recover
from torchkeep.folder.runs import step_name
from torchkeep.folder.thinning import thin
from torchkeep.folder.write import Saved, Staged, finish, not_saved, stage
from torchkeep.manager.preparing import Copied, Prepared, look_late, prepare, stage_anew, stage_prepared
from torchkeep.manager.ranks import Ranks
from torchkeep.manager.run_folder import RunFolder
from torchkeep.policies import KeepAll, RetentionPolicy, Staging
from torchkeep.tensors import TensorSpec
from torchkeep.verbs.arguments import threads_of
from torchkeep.verbs.background import SaveHandle, SavingThread

if TYPE_CHECKING:
    from torchkeep.live.overlap import Overlap
    from torchkeep.live.staging import Glimpse, LateCopies, StagingMemory

Watched: TypeAlias = Mapping[str, Mapping[str, bool]]
_MOST_NAMED = 100
_WORTH_A_NOTE_SECONDS = 0.1


@dataclass(slots=True)
class Call:
    """A call of `save`: how long it has held the caller."""

    began_seconds: float = field(default_factory=time.perf_counter)
    waited_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.perf_counter() - self.began_seconds

    def has_waited(self) -> None:
        """Remember that until now it waited for the save before."""
        self.waited_seconds = self.seconds


class Saver:
    """One save at a time into a run folder.

    Args:
        folder: The run folder.
        retain: What is kept after each save.
        io_threads: Threads that write; None for four per processor, at most 8.
        staging_bytes: The most memory that copies may take; None for a quarter of what is free at the first save.
        staging: When copies are made.

    Attributes:
        notes: What a person should know about the saves so far.
        warnings: What a person should know now; whoever tells it takes it away.
        failed_step: The step of the save last waited for, if it failed.
        ranks: The ranks that save together.
        outcomes: The same ranks again, for what the saving threads tell each other.
    """

    def __init__(
        self,
        folder: RunFolder,
        retain: RetentionPolicy,
        io_threads: int | None,
        staging_bytes: int | None,
        staging: Staging,
    ) -> None:
        self.ranks = self.outcomes = Ranks()
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.failed_step: int | None = None
        self._run = folder
        self._folder = folder.path
        self._retain = retain
        self._threads = threads_of(io_threads, writing_threads)
        self._staging_bytes = staging_bytes
        self._staging = staging
        self._overlap: Overlap | None = None
        self._memory: StagingMemory | None = None
        self._parent: tuple[Path, Record] | None = None
        self._prepared: Prepared | None = None
        self._doubtful: Mapping[str, str] = {}
        self._in_flight: SaveHandle | None = None
        self._thread = SavingThread()
        self._has_leftovers = False
        self._late_copies: LateCopies | None = None
        self._frozen: Glimpse | None = None  # of what is frozen, at the last save
        self._trusts_frozen = True
        self._nonfinite: dict[str, str] = {}  # in what was written while the caller waited

    @property
    def is_idle(self) -> bool:
        """Whether no save is in flight."""
        return self._in_flight is None

    @property
    def has_failed(self) -> bool:
        """Whether the save in flight has ended with an error that nobody has seen."""
        handle = self._in_flight
        return handle is not None and handle.done and not handle.is_reported and handle.has_failed

    def hold_steps(self, state: Mapping[str, object]) -> None:
        """Where copies overlap with the training, hold the steps of the optimizers in it while they are made."""
        from torchkeep.live.overlap import Overlap

        if self._staging is Staging.OVERLAPPED and self._overlap is None:
            self._overlap = Overlap(state)

    def rest(self) -> None:
        """Hold no steps and keep no thread, until the next save."""
        self._thread.end()
        if self._overlap is not None:
            self._overlap.close()
            self._overlap = None

    def follow(self, parent: Path, record: Record) -> None:
        """Let the next save link to a checkpoint that was resumed from."""
        self._parent, self._prepared, self._doubtful = (parent, record), None, {}

    def begin(self, draft: Draft, step: int, watched: Watched, call: Call) -> SaveHandle:
        """Stage a draft and finish it in the background; when this returns the live objects may change again.

        Args:
            draft: What to save.
            step: The step it is of.
            watched: By group, tensors that make the checkpoint useless when they hold NaN; true where inf does too.
            call: The call that asks for it.

        Raises:
            CheckpointError: The operating system refused; nothing is left behind.
        """
        target = self._folder / step_name(step)
        if call.waited_seconds > _WORTH_A_NOTE_SECONDS:
            what = f"step {step} waited {call.waited_seconds:.1f} s for the save before it"
            self.notes.append(f"{what}: saves are due more often than the disk takes them")
        copied = self.ranks.together(lambda: self._stage(draft, target, watched), only_first=True)
        handle = None
        try:
            if self._overlap is not None and copied is not None and (self._late_copies or copied.late_looks):
                self._overlap.begin()
            self._in_flight = handle = self._handle_of(step, draft, copied, watched)
            handle.waited_seconds, handle.stall_seconds = call.waited_seconds, call.seconds
            handle.begin(self._thread)
        except BaseException:  # an interrupt, after which the thread may have begun all the same
            if handle is None or handle.give_up():
                self._let_go(copied)
            raise
        return handle

    def _handle_of(self, step: int, draft: Draft, copied: Copied | None, watched: Watched) -> SaveHandle:
        if copied is None:
            return SaveHandle(step, self._hear)
        return SaveHandle(
            step,
            lambda: self._announce(copied, watched),
            lambda saved: self._prepare(saved, copied, draft),
            progress=copied.staged.progress,
            staged=None if self._overlap is None else self._overlap.is_copied,
        )

    def _let_go(self, copied: Copied | None) -> None:
        """Leave nothing of a save that is staged and will not be finished."""
        self._in_flight = None
        if self._overlap is not None:
            self._overlap.end()
        if copied is not None:
            copied.staged.discard()

    def _stage(self, draft: Draft, target: Path, watched: Watched) -> Copied:
        """Link what did not change, and copy what the rest of the save will read."""
        if self._has_leftovers:
            with not_saved(target):
                recover(self._folder)
        self._has_leftovers = True  # until it is known that this save leaves none
        copied = self._copied(draft, target)
        with copied.staged.undone_on_error():
            if self._overlap is not None:
                self._overlap.forget_copies()
            copied.copies.run(default_threads())
            self._copy_late(copied, draft)
            written = [(g, n) for each in copied.staged.written for g in [each.shard.group] for n in each.layout.order]
            self._nonfinite = self._faults_in(copied.staged, watched, written)
        return copied

    def _copy_late(self, copied: Copied, draft: Draft) -> None:
        """Leave for later what steps may be held for, or copy it now where that is not known to be safe."""
        self._late_copies = None
        if self._overlap is None:
            return
        if copied.late_copies.sources and self._overlap.are_known_to_stay(copied.late_names):
            self._late_copies = copied.late_copies.begin_late()
            return
        copied.late_copies.run(default_threads())
        places = {name: place.bytes_of(draft.groups[name[0]][name[1]]) for name, place in copied.places.items()}
        self._overlap.compare_later(draft.groups, places)

    def _end_late(self, copied: Copied) -> Copied:
        """Do what steps wait for: copy and look.

        Raises:
            CheckpointError: Something else than a step changed what was being copied, or what is frozen.
        """
        late, memory = self._late_copies, self._memory
        if self._overlap is None or memory is None or not (late or copied.late_looks):
            return copied
        try:
            is_copied = late is None or (late.run(default_threads()) and self._overlap.is_still_held())
            looked = look_late(copied, memory) if copied.late_looks else copied
        finally:
            self._overlap.end()
        if is_copied and looked is not None:
            return looked
        if not is_copied:
            self._overlap.distrust(set(copied.late_names))
        self._trusts_frozen = self._trusts_frozen and looked is not None
        what = "frozen parameters" if is_copied else "parameters or optimizer state"
        raise CheckpointError(
            f"{what} changed while they were {'looked at' if is_copied else 'copied'} beside the training, and not by "
            "a step; this save is dropped",
            where=copied.staged.target,
            remedy=f"from now on they are {'looked at' if is_copied else 'copied'} at once; or change them only before "
            "save() or in optimizer.step()",
        )

    def _copied(self, draft: Draft, target: Path) -> Copied:
        from torchkeep.live.staging import StagingMemory, default_budget_bytes

        if self._memory is None:
            budget = default_budget_bytes() if self._staging_bytes is None else self._staging_bytes
            self._memory = StagingMemory(budget)
        prepared, self._prepared = self._prepared, None
        before, self._frozen = self._frozen, None
        if prepared is not None and prepared.fits(draft):
            frozen = None if self._overlap is None else prepared.glimpse_of_frozen(draft)
            copied = stage_prepared(
                prepared,
                target,
                draft,
                self._memory,
                self._doubtful,
                self._threads,
                frozen_late=frozen is not None and frozen == before and self._may_look_late(prepared),
            )
            if copied is not None:
                self._frozen = frozen
                return copied
        parent, record = self._parent or (None, None)
        staged = stage(target, draft, parent, record, self._threads, self._doubtful)
        return stage_anew(staged, parent, self._memory)

    def _may_look_late(self, prepared: Prepared) -> bool:
        """Whether steps can be held while what is frozen is looked at: not where one of them is to compare copies."""
        if self._overlap is None or not self._overlap.is_holding or self._doubtful or not self._trusts_frozen:
            return False
        return not prepared.late_names or self._overlap.are_known_to_stay(prepared.late_names)

    def _announce(self, copied: Copied, watched: Watched) -> Saved:
        """Finish a save, and tell the other ranks how it went."""
        try:
            saved = self._finish(copied, watched)
        except BaseException as error:
            with suppress(CheckpointError):
                self.outcomes.share(b"\0" + str(error).encode())
            raise
        try:
            self.outcomes.share(encode_record(saved.record))
        except CheckpointError as error:
            what = f"the checkpoint is in place, but {error.what}"
            raise CheckpointError(what, where=saved.path, remedy=error.remedy) from error
        return saved

    def _hear(self) -> Saved:
        """Wait until rank 0 has saved."""
        told = self.outcomes.share(b"")
        if told[:1] == b"\0":
            raise CheckpointError(f"rank 0 did not save: {told[1:].decode()}", where=self._folder)
        record = decode_record(told, str(self._folder))
        return Saved(self._folder / step_name(record.step or 0), record, 0, 0)

    def _finish(self, copied: Copied, watched: Watched) -> Saved:
        with copied.staged.undone_on_error():
            copied = self._end_late(copied)
            copied.settle(self._doubtful)
            self._look_for_nonfinite(copied.staged, watched)
        saved = finish(copied.staged, self._run.require_still_ours)
        self._parent = (saved.path, saved.record)
        self.notes += saved.notes
        not_removed = self._thin(copied.staged.draft.step)
        self.notes += not_removed
        self._has_leftovers = bool(not_removed)
        return saved

    def _prepare(self, saved: Saved, copied: Copied, draft: Draft) -> None:
        """Once a save is committed: read one of its shards again, and decide what the next one copies."""
        self._doubtful = read_one_again(saved.path, saved.record, copied.staged.changed)
        said = [
            f"{saved.path.name}/{file}: {why}; the next save writes it anew" for file, why in self._doubtful.items()
        ]
        self.notes += said
        if self._memory is not None:
            late = set() if self._overlap is None else self._overlap.late_names(draft.groups)
            self._prepared = prepare(saved, draft.groups, copied.staged.changed, self._memory, late)
            if self._overlap is not None and self._prepared is not None:
                self._overlap.are_known_to_stay(self._prepared.late_names)  # so that the next save need not find out

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

    def _look_for_nonfinite(self, staged: Staged, watched: Watched) -> None:
        """Record which watched tensors hold NaN or inf: those written are read, those linked are as they were."""
        found = self._nonfinite | self._faults_in(staged, watched, staged.names_to_write())
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

    def _faults_in(self, staged: Staged, watched: Watched, names: Sequence[Name]) -> dict[str, str]:
        from torchkeep.live.finite import nonfinite

        def read(name: Name) -> tuple[TensorSpec, memoryview]:
            tensor = staged.draft.groups[name[0]][name[1]]
            return tensor.spec, tensor.read()

        wanted = set(names)
        pairs = [((group, name), inf) for group, of in watched.items() for name, inf in of.items()] if wanted else []
        found = nonfinite([each for each in pairs if each[0] in wanted], read)
        return {".".join(name): what for name, what in found.items()}

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
                handle.rest()
                self.failed_step = handle.step if handle.has_failed else None
                self._in_flight = None
                if self._overlap is not None:
                    self.notes += self._overlap.notes
                    self._overlap.notes.clear()

    def settle(self) -> None:
        """Wait for the save in flight, and pass over its error: what follows is more urgent."""
        try:
            self.wait()
        except CheckpointError as error:
            self.notes.append(str(error))
