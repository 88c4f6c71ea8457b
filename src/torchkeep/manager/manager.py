"""`CheckpointManager`: periodic checkpoints of a training run, and the one line that resumes it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from torchkeep.errors import CheckpointError, Preempted
from torchkeep.folder.parallel import default_threads
from torchkeep.manager.drafting import Occasion, draft_of_state
from torchkeep.manager.notices import warn
from torchkeep.manager.ranks import Ranks, ranks_here
from torchkeep.manager.resuming import Resume, Resumed
from torchkeep.manager.run_folder import RunFolder
from torchkeep.manager.saving import Saver
from torchkeep.manager.signals import SignalWatch
from torchkeep.manager.state import held_state
from torchkeep.planning.rules import Rule
from torchkeep.policies import Also, EverySteps, KeepAll, Moment, OnPreemption, RetentionPolicy, SaveWhen
from torchkeep.verbs.background import SaveHandle
from torchkeep.verbs.saving import whole_step

_log = logging.getLogger("torchkeep")


class CheckpointManager:
    """Saves what a training run holds when it is due, keeps what should be kept, and resumes exactly.

    Under `torch.distributed` every rank makes one and calls the same methods at the same steps. Rank 0 writes; random
    states, and whatever of the state differs from rank to rank, are kept for each.

    Args:
        folder: The run folder; one writer at a time. It is locked by `resume` or the first save, not here.
        state: Name to module, optimizer, scheduler (anything with ``state_dict`` and ``load_state_dict``),
            `DataLoader`, random generator, tensor, or dict. A dict is live: saved as it is at each save, refilled in
            place by `resume`. A plain `DataLoader` goes on in the middle of its epoch, with workers too. Python's,
            numpy's and torch's own random generators are captured beside it.
        save_when: When `after_step` saves, for example ``EverySteps(500) | OnPreemption()``. None: only `save` does.
        retain: What is kept after each save, for example ``KeepLast(3) | KeepBest(2, "val_acc", mode="max")``.
        also: What is kept of modules beside their state dicts: ``Also.GRADIENTS | Also.NON_PERSISTENT_BUFFERS``.
        failed_saves_allowed: How many saves in a row may fail before `after_step` raises: until then it warns, and
            the training goes on with the checkpoints that are there.
        io_threads: Threads that hash and write; by default one per processor, at most 8.

    Raises:
        TypeError: A value in `state` that could not be refilled, such as a number; all of them are named.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> run, progress = tempfile.mkdtemp() + "/exp1", {"seen": 0}
        >>> with tk.CheckpointManager(run, {"progress": progress}, save_when=tk.EverySteps(2)) as manager:
        ...     for step in range(manager.resume(), 4):
        ...         progress["seen"] += 8
        ...         handle = manager.after_step(step)
        >>> again = {"seen": 0}
        >>> with tk.CheckpointManager(run, {"progress": again}) as manager:
        ...     manager.resume(), again["seen"]
        (4, 32)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        state: Mapping[str, object],
        *,
        save_when: SaveWhen | None = None,
        retain: RetentionPolicy | None = None,
        also: Also = Also.NOTHING,
        failed_saves_allowed: int = 0,
        io_threads: int | None = None,
    ) -> None:
        self._held = held_state(state, also)
        if save_when is not None and not isinstance(save_when, SaveWhen):
            raise TypeError(f"save_when is {save_when!r}: a policy is wanted, as EverySteps(500)")
        if retain is not None and not isinstance(retain, RetentionPolicy):
            raise TypeError(f"retain is {retain!r}: a policy is wanted, as KeepLast(3)")
        self.state = dict(state)
        self.save_when = save_when
        self.retain = retain or KeepAll()
        self.failed_saves_allowed = failed_saves_allowed
        self._threads = io_threads or default_threads()
        self._run_folder = RunFolder(folder)
        self._saver = Saver(self._run_folder.path, self.retain, self._threads)
        self._provenance: dict[str, object] = {}
        self._ranks: Ranks | None = None
        self._signals: SignalWatch | None = None
        self._last_step: int | None = None
        self._last_saved_step: int | None = None
        self._last_save_seconds = time.monotonic()
        self._failed_in_a_row = 0
        self._has_looked_around = False

    @property
    def folder(self) -> Path:
        """The run folder, resolved."""
        return self._run_folder.path

    @property
    def notes(self) -> Sequence[str]:
        """What a person should know about the resume and the saves so far."""
        return self._saver.notes

    @property
    def last_step(self) -> int | None:
        """The index of the step last finished: resumed from, or given to `after_step` or `save`; None at first."""
        return self._last_step

    def resume(self, step: int | None = None, *, only: Sequence[str] | None = None, rules: Sequence[Rule] = ()) -> int:
        """Restore the newest good checkpoint, if there is one, and return the index of the next step to run.

        Digests are checked while bytes are placed. A checkpoint with absent, short or differing bytes is passed over,
        named in a warning, and set aside as ``.damaged-*``, and the one before it is used. The random generators are
        restored last. What differs from the environment of the save, and what that means for exactness, is a warning.

        Args:
            step: The step to restore instead of the newest.
            only: Names in `state` to restore, leaving the others and the random generators as they are.
            rules: As for `load`.

        Returns:
            0 when the run is new, else the step after the restored one.

        Raises:
            ConflictError: Another process writes in this run folder.
            NotFoundError: `step` is not there.
            PlanError: The checkpoint does not fit; nothing was touched.
            CorruptError: No checkpoint of the run is good; objects may be partly overwritten.
        """
        if isinstance(only, str):
            raise TypeError(f"only is {only!r}: a list of names is wanted, as [{only!r}]")
        self._own()
        resumed = Resume(self._run_folder, self._held, only, rules, self._threads, self._joined()).run(step)
        return 0 if resumed is None else self._begin_after(resumed)

    def _own(self) -> None:
        self._joined().together(self._run_folder.own, only_first=True)
        self._run_folder.mark_resumed()

    def _begin_after(self, resumed: Resumed) -> int:
        committed = resumed.committed
        self._saver.notes += resumed.notes
        self._saver.parent = (committed.path, committed.record)
        origin = committed.record.provenance.get("origin")
        self._provenance = {"origin": origin} if origin is not None else {}
        self._last_step = self._last_saved_step = committed.step
        self._last_save_seconds = time.monotonic()
        return committed.step + 1

    def after_step(
        self, step: int, metrics: Mapping[str, float] | None = None, *, tags: Sequence[str] = ()
    ) -> SaveHandle | None:
        """Say that a step is finished; saves in the background when `save_when` says so.

        Args:
            step: Its index, from 0.
            metrics: Numbers to remember with a checkpoint of it.
            tags: Tags to give to a checkpoint of it.

        Returns:
            The handle of a save that it began, else None.

        Raises:
            CheckpointError: A save failed, this one or the one before, and no more may (`failed_saves_allowed`).
            Preempted: A signal asked the process to end; what was finished is saved.
        """
        self._last_step = step = whole_step(step)
        self._tell()
        moment = Moment(step, self._last_saved_step, time.monotonic() - self._last_save_seconds, self._received())
        is_due, number = self._agree(moment)
        if number:
            self._preempt(Occasion(step, metrics, tuple(tags)), number)
        if self._saver.has_failed:
            self._tolerate(self._saver.wait)
        if not is_due:
            return None
        handle: list[SaveHandle] = []
        self._tolerate(lambda: handle.append(self._save(Occasion(step, metrics, tuple(tags)))))
        return handle[0] if handle else None

    def save(self, step: int, metrics: Mapping[str, float] | None = None, *, tags: Sequence[str] = ()) -> SaveHandle:
        """Save now. The call returns when nothing that is saved depends on the live objects any more.

        Args:
            step: The index of the step last finished.
            metrics: Numbers to remember with it.
            tags: Tags that `KeepTagged` knows it by.

        Returns:
            A handle; its ``wait()`` gives the path or raises.

        Raises:
            FormatError: A value in the state has no encoding; all of them are listed.
            CheckpointError: The save before it failed; nothing was begun.
            ConflictError: Another process writes in this run folder.
        """
        if isinstance(tags, str):
            raise TypeError(f"tags is {tags!r}: a list of names is wanted, as [{tags!r}]")
        return self._save(Occasion(whole_step(step), metrics, tuple(tags)))

    def _save(self, occasion: Occasion) -> SaveHandle:
        from torchkeep.live.finite import watched

        self.wait()
        ranks = self._joined()
        ranks.together(self._run_folder.own, only_first=True)
        ranks.together(self._run_folder.refuse_unresumed, only_first=True)
        self._look_around()
        draft = draft_of_state(self._held, occasion, self._provenance, ranks)
        for name in self.retain.metrics:
            if name not in (occasion.metrics or {}):
                there = f"; it has {', '.join(occasion.metrics)}" if occasion.metrics else ""
                warn(f"step {occasion.step} is saved without the metric {name!r} that retention asks for{there}")
        specs = {(group, name): tensor.spec for group, of in draft.groups.items() for name, tensor in of.items()}
        self._last_save_seconds = time.monotonic()
        handle = self._saver.begin(draft, occasion.step, watched(self.state, draft.entries, specs))
        self._last_step = self._last_saved_step = occasion.step
        return handle

    def _look_around(self) -> None:
        """At the first save, say what an exact resume would need and the state does not hold."""
        if self._has_looked_around:
            return
        from torchkeep.live.unregistered import unregistered

        self._has_looked_around = True
        found = unregistered(self.state)
        if found:
            warn("a resume will not be exact; give the manager's state:\n  " + "\n  ".join(found))

    def _joined(self) -> Ranks:
        """The ranks of this training, asked for by all of them at the first call that needs them."""
        if self._ranks is None:
            self._ranks = self._saver.ranks = ranks_here()
            self._saver.outcomes = ranks_here()
        return self._ranks

    def _received(self) -> int | None:
        return None if self._signals is None or self._signals.received is None else int(self._signals.received)

    def _agree(self, moment: Moment) -> tuple[bool, int]:
        """Whether a save is due, and the signal that came to any rank: the same on all of them."""
        if self.save_when is None:
            return False, 0
        is_due, number = self.save_when.is_due(moment), moment.signal or 0
        if all(isinstance(part, EverySteps) for part in self.save_when.parts):
            return is_due, number
        greatest = self._joined().most([int(is_due), number])
        return bool(greatest[0]), greatest[1]

    def _preempt(self, occasion: Occasion, number: int) -> None:
        """Save, wait, say so, and end.

        Raises:
            Preempted: Always.
        """
        began = time.monotonic()
        path, error = None, None
        try:
            if self._last_saved_step == occasion.step:
                self.wait()
            else:
                self._saver.settle()
                self._save(occasion).wait()
            path = self._run_folder.path_of(occasion.step)
        except CheckpointError as raised:
            error = raised
        raised_by = Preempted(number, occasion.step, path, error)
        left = (
            ""
            if self._signals is None or self._received() is None
            else f"; {self._signals.seconds_left:.1f} s were left"
        )
        _log.warning("%s (%.1f s%s)", raised_by.what, time.monotonic() - began, left)
        raise raised_by from error

    def _tolerate(self, act: Callable[[], object]) -> None:
        """Act; as often in a row as is allowed, a save that the operating system refused is a warning."""
        try:
            act()
        except CheckpointError as error:
            self._failed_in_a_row += 1
            # Of the tree of errors only its root says that the system refused; the others need a change of the program.
            if type(error) is not CheckpointError or self._failed_in_a_row > self.failed_saves_allowed:
                raise
            self._saver.notes.append(str(error))
            warn(f"save {self._failed_in_a_row} of {self.failed_saves_allowed} that may fail in a row failed: {error}")

    def _tell(self) -> None:
        while self._saver.warnings:
            warn(self._saver.warnings.pop(0))

    def wait(self) -> None:
        """Wait for the save in flight.

        Raises:
            CheckpointError: It failed; it is reported once.
        """
        was_idle = self._saver.is_idle
        self._saver.wait()
        if not was_idle:
            self._failed_in_a_row = 0
        self._tell()

    def close(self) -> None:
        """Wait for the save in flight and let another process write in the run folder."""
        try:
            self.wait()
        finally:
            if self._saver.is_idle:
                self._run_folder.release()

    def __enter__(self) -> Self:
        for part in self.save_when.parts if self.save_when is not None else ():
            if isinstance(part, OnPreemption):
                self._signals = SignalWatch(part)
                self._signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._save_on(error)
            self.close()
        finally:
            if self._signals is not None:
                self._signals.__exit__(kind, error, trace)

    def _save_on(self, error: BaseException) -> None:
        """Save what is there when an exception ends the program, if a policy wants it and the step is not saved."""
        step = self._last_step
        if self.save_when is None or step is None or step == self._last_saved_step or self._joined().size > 1:
            return
        if not isinstance(error, (Exception, KeyboardInterrupt)):
            return
        if self.save_when.is_due(Moment(step, self._last_saved_step, exception=True)):
            what = f"{type(error).__name__}: {error}".partition("\n")[0]
            try:
                self._saver.settle()
                path = self._save(Occasion(step, exception=what)).wait()
            except CheckpointError as failure:
                _log.warning("nothing was saved after %s: %s", type(error).__name__, failure)
            else:
                _log.warning("saved step %s after %s: %s", step, type(error).__name__, path)

    def __repr__(self) -> str:
        return f"<CheckpointManager {str(self.folder)!r} of {', '.join(self.state)}; last step {self._last_step}>"
