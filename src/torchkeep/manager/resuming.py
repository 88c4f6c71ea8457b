"""A resume: the newest checkpoint that is good, placed while its digests are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torchkeep.errors import CorruptError, NotFoundError, PlanError, typed
from torchkeep.folder.runs import Committed, Run
from torchkeep.manager.notices import warn
from torchkeep.manager.run_folder import RunFolder
from torchkeep.manager.state import refillable
from torchkeep.planning.rules import Rule

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
        folder: The run folder, owned.
        state: The manager's state.
        only: Names of it to restore, leaving the others and the random generators as they are; None for all.
        rules: As for `load`.
        threads: Threads that read and check.
    """

    folder: RunFolder
    state: Mapping[str, object]
    only: Sequence[str] | None
    rules: Sequence[Rule]
    threads: int
    faults: list[str] = field(default_factory=list)

    def run(self, step: int | None) -> Resumed | None:
        """Restore the newest good checkpoint (of `step`, if that is given); None when the run is new.

        Raises:
            NotFoundError, PlanError, CorruptError: As for `CheckpointManager.resume`.
        """
        run = self.folder.read()
        set_aside_before = self.folder.names_set_aside()
        self._set_aside_unreadable(run)
        candidates = [each for each in reversed(run.checkpoints) if step in {None, each.step}]
        if step is not None and not candidates:
            there = ", ".join(str(each.step) for each in run.checkpoints) or "none"
            what = f"no good checkpoint of step {step}"
            raise NotFoundError(what, where=self.folder.path, remedy=f"steps that are here: {there}")
        if not candidates and not self.faults and not set_aside_before:
            return None
        newer = ", ".join(str(each.step) for each in run.checkpoints if step is not None and each.step > step)
        if newer:
            warn(f"step {step} is resumed; a later resume() without a step takes the newest: {newer}")
        if not self.faults:
            self.faults += [f"{name}: set aside before" for name in set_aside_before]
        return self._first_good(run, candidates)

    def _set_aside_unreadable(self, run: Run) -> None:
        for path, error in run.passed_over:
            if not isinstance(error, (CorruptError, NotFoundError)):
                raise error
            self.folder.set_aside(path, error)
            self.faults.append(f"{path.name}: {error.what}")

    def _first_good(self, run: Run, candidates: Sequence[Committed]) -> Resumed:
        for committed in candidates:
            try:
                loaded = self._restore(committed)
            except CorruptError as error:
                self.faults.append(f"{committed.path.name}: {error.what}")
                self.folder.set_aside(committed.path, error)
                continue
            for note in loaded.notes:
                warn(f"resumed from {committed.path.name}: {note}")
            return Resumed(committed, loaded.notes)
        asked = "this" if len(candidates) == 1 and len(run.checkpoints) > 1 else "no"
        raise CorruptError(
            f"{asked} checkpoint of this run is {'not ' if asked == 'this' else ''}good; "
            "the objects given to the manager may be partly overwritten",
            where=self.folder.path,
            faults=self.faults,
            remedy="what is damaged was kept as .damaged-*: to begin anew, build the objects anew and move those away",
        )

    def _restore(self, committed: Committed) -> Loaded:
        from torchkeep.folder.read import open_folder
        from torchkeep.folder.values import decode_plain
        from torchkeep.live.build import Builder
        from torchkeep.live.rng import restore_rng
        from torchkeep.verbs.loading import resume_into

        wanted = self._wanted(committed)
        try:
            with typed("cannot be read", committed.path):
                source = open_folder(committed.path)
        except NotFoundError as error:
            raise CorruptError(error.what, where=error.where) from error
        try:
            into = {(name,): refillable(self.state[name]) for name in wanted}
            loaded = resume_into(source, into, self.rules, Builder(source), self.threads)
        finally:
            source.close()
        if self.only is None and committed.record.rng is not None:
            rng = decode_plain(committed.record.rng)
            if isinstance(rng, dict):
                restore_rng(rng)
        return loaded

    def _wanted(self, committed: Committed) -> list[str]:
        """The names to restore; both sides must have each."""
        wanted = list(self.state) if self.only is None else list(self.only)
        entries, name = committed.record.entries, committed.path.name
        absent = [each for each in wanted if each not in entries or each not in self.state]
        if absent:
            side = (
                f"{name} holds" if all(each in self.state for each in absent) else "the state or the checkpoint holds"
            )
            raise PlanError(
                f"{side} nothing for {', '.join(map(repr, absent))}; nothing was touched",
                where=self.folder.path,
                faults=[f"in {name}: {', '.join(entries)}", f"in the state: {', '.join(self.state)}"],
                remedy="give both the same names, or say what to restore: resume(only=[...])",
            )
        left = [each for each in entries if each not in self.state]
        if left and self.only is None:
            warn(f"not restored, since the state does not have them: {', '.join(left)} of {name}")
        return wanted
