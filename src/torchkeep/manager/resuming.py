"""A resume: the newest checkpoint that is good, placed while its digests are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torchkeep.errors import CheckpointError, CorruptError, NotFoundError, PlanError, typed
from torchkeep.folder.committed import nonfinite_of, read_record
from torchkeep.folder.record import Record
from torchkeep.folder.runs import Committed, Listed, Listing
from torchkeep.manager.drafting import record_of_rank, rng_of_rank
from torchkeep.manager.notices import warn
from torchkeep.manager.ranks import Ranks
from torchkeep.manager.run_folder import RunFolder
from torchkeep.manager.state import is_beside, refillable
from torchkeep.planning.rules import Rule
from torchkeep.verbs.arguments import whole_step

if TYPE_CHECKING:
    from torchkeep.verbs.loading import Loaded


@dataclass(frozen=True, slots=True)
class Resumed:
    """What was restored, and what a person should know about it."""

    committed: Committed
    notes: Sequence[str]


@dataclass(slots=True)
class Resume:
    """One resume: of a step or the newest, of all of the state or some of it.

    Attributes:
        folder: The run folder, owned by rank 0.
        held: The manager's state, each value as what takes its state back.
        only: Names of it to restore, leaving the others and the random generators as they are; None for all.
        rules: As for `load`.
        threads: Threads that read and check.
        ranks: The ranks that resume together.
        may_set_aside: Whether a damaged checkpoint is renamed: not in a run that is only read.
    """

    folder: RunFolder
    held: Mapping[str, object]
    only: Sequence[str] | None
    rules: Sequence[Rule]
    threads: int
    ranks: Ranks = field(default_factory=Ranks)
    may_set_aside: bool = True
    faults: list[str] = field(default_factory=list)

    def run(self, step: int | None) -> Resumed | None:
        """Restore the newest good checkpoint (of `step`, if that is given); None when the run is new.

        Raises:
            NotFoundError, PlanError, CorruptError: As for `CheckpointManager.resume`.
            CheckpointError: Another rank could not resume; nothing was committed by that.
        """
        step = None if step is None else whole_step(step)
        set_aside_before = self.folder.names_set_aside()
        self.ranks.together(self._set_aside_unreadable, only_first=True)
        run = self.folder.read()
        candidates = [each for each in reversed(run.checkpoints) if step in {None, each.summary.step}]
        if step is not None and not candidates:
            there = ", ".join(str(each.summary.step) for each in run.checkpoints) or "none"
            what = f"no good checkpoint of step {step}"
            raise NotFoundError(what, where=self.folder.path, remedy=f"steps that are here: {there}")
        if not candidates and not self.faults and not set_aside_before:
            return None
        steps = [each.summary.step or 0 for each in run.checkpoints]
        newer = ", ".join(str(each) for each in steps if step is not None and each > step)
        if newer and self.may_set_aside:
            warn(f"step {step} is resumed; a later resume() without a step takes the newest: {newer}")
        if not self.faults:
            self.faults += [f"{name}: set aside before" for name in set_aside_before]
        return self._first_good(run, candidates)

    def _set_aside_unreadable(self) -> None:
        for path, error in self.folder.read().passed_over:
            if not isinstance(error, (CorruptError, NotFoundError)):
                raise error
            self._set_aside(path, error)

    def _set_aside(self, path: Path, error: CheckpointError) -> None:
        self.faults.append(f"{path.name}: {error.what}")
        if not self.may_set_aside:
            warn(f"passed over {path.name}: {error}")
        elif self.ranks.rank == 0:
            self.folder.set_aside(path, error)

    def _first_good(self, run: Listing, candidates: Sequence[Listed]) -> Resumed:
        for listed in candidates:
            try:
                committed, loaded = self._restore_together(listed)
            except CorruptError as error:
                self._set_aside(listed.path, error)
                continue
            notes = [*loaded.notes, *_warnings_of(committed.record, self.ranks)]
            for note in notes:
                warn(f"resumed from {committed.path.name}: {note}")
            return Resumed(committed, notes)
        asked = "this" if len(candidates) == 1 and len(run.checkpoints) > 1 else "no"
        raise CorruptError(
            f"{asked} checkpoint of this run is {'not ' if asked == 'this' else ''}good; "
            "the objects given to the manager may be partly overwritten",
            where=self.folder.path,
            faults=self.faults,
            remedy="what is damaged was kept as .damaged-*: to begin anew, build the objects anew and move those away",
        )

    def _restore_together(self, listed: Listed) -> tuple[Committed, Loaded]:
        """Restore on every rank, or say on every rank that it did not work on one."""
        try:
            restored = self._restore(listed)
        except Exception as error:
            self.ranks.most([isinstance(error, CorruptError), True])
            raise
        damaged, failed = self.ranks.most([False, False])
        if damaged:
            raise CorruptError("another rank found it damaged", where=listed.path)
        if failed:
            raise CheckpointError("another rank could not resume; its own error says why", where=listed.path)
        return restored

    def _restore(self, listed: Listed) -> tuple[Committed, Loaded]:
        """Restore one checkpoint whose record has not been read beyond its summary."""
        try:
            with typed("cannot be read", listed.path):
                record = read_record(listed.path)
        except NotFoundError as error:
            raise CorruptError(error.what, where=error.where) from error
        committed = Committed(listed.path, listed.summary.step or 0, record)
        return committed, self.restore(committed)

    def restore(self, committed: Committed) -> Loaded:
        """Restore one checkpoint on this rank.

        Raises:
            PlanError: It does not fit; nothing was touched.
            CorruptError: It is damaged; objects may be partly overwritten.
        """
        from torchkeep.folder.read import open_folder
        from torchkeep.live.build import Builder
        from torchkeep.live.rng import restore_rng
        from torchkeep.verbs.loading import resume_into

        wanted = self._wanted(committed)
        try:
            with typed("cannot be read", committed.path):
                source = open_folder(committed.path, lambda record: record_of_rank(record, self.ranks.rank))
        except NotFoundError as error:
            raise CorruptError(error.what, where=error.where) from error
        try:
            into = {(name,): refillable(self.held[name]) for name in wanted}
            loaded = resume_into(source, into, self.rules, Builder(source), self.threads)
        finally:
            source.close()
        rng = rng_of_rank(committed.record, self.ranks.rank) if self.only is None else None
        if rng is not None:
            restore_rng(rng)
        return loaded

    def _wanted(self, committed: Committed) -> list[str]:
        """The names to restore; both sides must have each. What is kept beside a module follows it."""
        entries, name = committed.record.entries, committed.path.name
        beside = [each for each in self.held if is_beside(each, self.held)]
        named = [each for each in self.held if each not in beside] if self.only is None else list(self.only)
        following = [each for each in beside if each.rpartition(":")[0] in named and each in entries]
        absent = [each for each in named if each not in entries or each not in self.held]
        if absent:
            raise self._refusal(committed, absent)
        left = [each for each in entries if each not in named and each not in following]
        if left and self.only is None:
            warn(f"not restored, since the state does not have them: {', '.join(left)} of {name}")
        unsaved = [each for each in beside if each not in entries and each.rpartition(":")[0] in named]
        if unsaved:
            warn(f"{name} was saved without {', '.join(unsaved)}: they stay as they are")
        return [*named, *following]

    def _refusal(self, committed: Committed, absent: Sequence[str]) -> PlanError:
        record, name = committed.record, committed.path.name
        state_has_all = all(each in self.held for each in absent)
        side = f"{name} holds" if state_has_all else "the state or the checkpoint holds"
        without = record.provenance.get("without")
        dropped = [each for each in absent if isinstance(without, list) and each in without]
        remedy = "give both the same names, or say what to restore: resume(only=[...])"
        if dropped:
            remedy = f"retention dropped {', '.join(dropped)} of it; say what to restore: resume(only=[...])"
        return PlanError(
            f"{side} nothing for {', '.join(map(repr, absent))}; nothing was touched",
            where=self.folder.path,
            faults=[f"in {name}: {', '.join(record.entries)}", f"in the state: {', '.join(self.held)}"],
            remedy=remedy,
        )


def _warnings_of(record: Record, ranks: Ranks) -> list[str]:
    """What of how a checkpoint came about makes a resume of it inexact or useless."""
    from torchkeep.live.environment import capture_environment, differences

    notes = []
    exception = record.provenance.get("exception")
    if exception:
        notes.append(f"it was saved when a step failed ({exception}), so the resume is not exact")
    bad = nonfinite_of(record)
    if bad:
        notes.append(f"{bad['count']} of its tensors hold NaN or inf, first {bad['first']}, since step {bad['since']}")
    saved = record.provenance.get("environment")
    if isinstance(saved, dict):
        found = differences(saved, capture_environment(ranks.size))
        if found:
            notes.append("the environment differs, so results may differ in the last bits:\n  " + "\n  ".join(found))
    return notes
