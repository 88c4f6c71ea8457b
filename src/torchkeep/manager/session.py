"""One process's part in a run: its state, its folder, the ranks it is one of, and where it stands."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torchkeep.errors import NotFoundError, PlanError
from torchkeep.folder.committed import read_record
from torchkeep.folder.draft import Draft, DraftTensor
from torchkeep.folder.parallel import default_threads
from torchkeep.folder.policy_code import RETAIN_MEMBER, code_of
from torchkeep.folder.record import RECORD_NAME
from torchkeep.manager.drafting import Occasion, draft_of_state
from torchkeep.manager.notices import warn
from torchkeep.manager.ranks import Ranks, ranks_here
from torchkeep.manager.resuming import Resume, Resumed
from torchkeep.manager.run_folder import RunFolder
from torchkeep.manager.saving import Call, Saver
from torchkeep.planning.loadplan import LoadPlan
from torchkeep.planning.rules import Rule
from torchkeep.policies import RetentionPolicy
from torchkeep.verbs.arguments import threads_of
from torchkeep.verbs.background import SaveHandle

if TYPE_CHECKING:
    from torchkeep.live.recapture import Recapture


class Session:
    """Resumes and saves for a manager, which decides when.

    Attributes:
        state: What the manager was given.
        held: The same, each value as what is saved and takes its state back.
        retain: What is kept after each save.
        folder: The run folder.
        saver: What saves into it.
        threads: Threads that hash and read.
        last_step: The step last finished.
        last_saved_step: The step last resumed from, or of the last save that was staged.
        last_tried_step: The step last resumed from, or of the last save that was asked for.
        last_save_seconds: When that was, as `time.monotonic` counts.
    """

    def __init__(
        self,
        state: Mapping[str, object],
        held: Mapping[str, object],
        retain: RetentionPolicy,
        folder: RunFolder,
        saver: Saver,
        io_threads: int | None,
    ) -> None:
        self.state = dict(state)
        self.held = held
        self.retain = retain
        self.folder = folder
        self.saver = saver
        self.threads = threads_of(io_threads, default_threads)
        self.last_step: int | None = None
        self.last_saved_step: int | None = None
        self.last_tried_step: int | None = None
        self.last_save_seconds = time.monotonic()
        self._ranks: Ranks | None = None
        self._origin: object = None
        self._has_looked_around = self._has_gone_back = False
        self._capture: Recapture | None = None
        self._watched: dict[str, tuple[Mapping[str, DraftTensor], Mapping[str, bool]]] = {}

    def join_ranks(self) -> Ranks:
        """The ranks of this training; the first call makes their groups, so all of them have to make it."""
        if self._ranks is None:
            self._ranks = self.saver.ranks = ranks_here()
            self.saver.outcomes = ranks_here()
        return self._ranks

    def resume(self, step: int | None, only: Sequence[str] | None, rules: Sequence[Rule]) -> int | None:
        """Resume this run: the next step; None when it is new."""
        ranks = self.join_ranks()
        ranks.together(self.folder.own, only_first=True)
        self.folder.mark_resumed()
        resumed = Resume(self.folder, self.held, only, rules, self.threads, ranks).run(step)
        return None if resumed is None else self._stand_at(resumed)

    def branch(self, source: Path, step: int | None, only: Sequence[str] | None, rules: Sequence[Rule]) -> int:
        """Go on from a checkpoint of another run, or from its newest: the next step."""
        if (source / RECORD_NAME).exists():
            step = read_record(source).step if step is None else step
            source = source.parent
        other = Resume(RunFolder(source), self.held, only, rules, self.threads, self.join_ranks(), may_set_aside=False)
        resumed = other.run(step)
        if resumed is None:
            raise NotFoundError("there is no checkpoint to branch from", where=source, remedy="check the path")
        following, record = self._stand_at(resumed), resumed.committed.record
        self.remember_origin("branch", resumed.committed.path, record.step, record.id)
        return following

    def refuse_strangers(self, plan: LoadPlan) -> None:
        """Refuse a plan that loads into what the state does not hold: a resume of this run would not have it.

        Raises:
            PlanError: It does; every such object is named.
        """
        from torchkeep.live.holding import not_held
        from torchkeep.verbs.loading import Execution

        targets = plan.executor.targets if isinstance(plan.executor, Execution) else ()
        strangers = not_held([target.live for target in targets], self.state)
        faults = [
            f"{target.entry or 'into'}: {type(target.live).__name__}"
            for target in targets
            if any(target.live is each for each in strangers)
        ]
        if faults:
            raise PlanError(
                f"the plan for {plan.source} loads into what this manager does not hold; nothing was touched",
                where=self.folder.path,
                faults=[*faults, f"in the state: {', '.join(self.state)}"],
                remedy="make the plan into the very objects that the manager was given: plan(path, into=...)",
            )

    def remember_origin(
        self, how: str, path: str | os.PathLike[str], step: int | None, identity: str | None = None
    ) -> None:
        """Let every checkpoint say where this run came from; the path is seen from the run folder, so both may move."""
        relative = os.path.relpath(path, self.folder.path)
        self._origin = {"how": how, "path": relative, "step": step, "id": identity}

    def _stand_at(self, resumed: Resumed) -> int:
        committed = resumed.committed
        self.saver.notes += resumed.notes
        self.saver.follow(committed.path, committed.record)
        self._origin = committed.record.provenance.get("origin")
        self.last_step = self.last_saved_step = self.last_tried_step = committed.step
        self.last_save_seconds = time.monotonic()
        return committed.step + 1

    def save(self, occasion: Occasion, call: Call) -> SaveHandle:
        """Save now, once the save before has ended; see `CheckpointManager.save`."""
        from torchkeep.live.recapture import Recapture

        self.notice_going_back(occasion.step)
        self.last_tried_step, self.last_save_seconds = occasion.step, time.monotonic()
        ranks = self.join_ranks()
        ranks.together(self.folder.own, only_first=True)
        ranks.together(self.folder.refuse_unresumed, only_first=True)
        self._look_around()
        self.saver.hold_steps(self.state)
        provenance: dict[str, object] = {RETAIN_MEMBER: code_of(self.retain)}
        provenance |= {} if self._origin is None else {"origin": self._origin}
        self._capture = self._capture or Recapture(self.held)
        draft = draft_of_state(self.held, occasion, provenance, ranks, self._capture)
        self._miss_metrics(occasion)
        handle = self.saver.begin(draft, occasion.step, self._watch(draft), call)
        self.last_step = self.last_saved_step = occasion.step
        return handle

    def notice_going_back(self, step: int) -> None:
        """Say, once, that steps do not rise: what is saved then is not what a resume takes."""
        if self.last_step is not None and step < self.last_step and not self._has_gone_back:
            self._has_gone_back = True
            warn(
                f"step {step} comes after step {self.last_step}: steps count over the whole run, not over an epoch, "
                "and a later resume() takes the highest that is saved; to go back on purpose, resume(step=...) first"
            )

    def is_saved(self, step: int) -> bool:
        """Whether the checkpoint of a step is committed; what is in flight is waited for."""
        self.saver.settle()
        return step == self.last_saved_step and step != self.saver.failed_step

    def _watch(self, draft: Draft) -> dict[str, Mapping[str, bool]]:
        """By group, the tensors to look for NaN and inf in; what was found of a mapping is used again."""
        from torchkeep.live.finite import watched

        before = self._watched
        self._watched = {
            group: before[group]
            if group in before and before[group][0] is tensors
            else (tensors, watched(draft.entries.get(group), self.state.get(group), tensors))
            for group, tensors in draft.groups.items()
        }
        return {group: found for group, (_, found) in self._watched.items()}

    def _miss_metrics(self, occasion: Occasion) -> None:
        for name in self.retain.metrics:
            if name not in (occasion.metrics or {}):
                there = f"; it has {', '.join(occasion.metrics)}" if occasion.metrics else ""
                warn(f"step {occasion.step} is saved without the metric {name!r} that retention asks for{there}")

    def _look_around(self) -> None:
        """At the first save, say what an exact resume would need and the state does not hold."""
        if self._has_looked_around:
            return
        from torchkeep.live.unregistered import unregistered

        self._has_looked_around = True
        found = unregistered(self.state)
        if found:
            warn("a resume will not be exact; give the manager's state:\n  " + "\n  ".join(found))
