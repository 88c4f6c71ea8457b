"""`CheckpointManager`: periodic checkpoints of a training run, and the one line that resumes it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from torchkeep.errors import CheckpointError, Preempted
from torchkeep.folder.tags import tags_from
from torchkeep.manager.arguments import held_of, run_folder_of
from torchkeep.manager.drafting import Occasion
from torchkeep.manager.notices import warn
from torchkeep.manager.preflight import Preflight, preflight
from torchkeep.manager.proof import Proof, prove
from torchkeep.manager.run_folder import RunFolder
from torchkeep.manager.saving import Call, Saver
from torchkeep.manager.session import Session
from torchkeep.manager.signals import SignalWatch
from torchkeep.planning.loadplan import LoadPlan
from torchkeep.planning.rules import Rule
from torchkeep.policies import Also, EverySteps, KeepAll, Moment, OnPreemption, RetentionPolicy, SaveWhen, Staging
from torchkeep.verbs.arguments import path_of, whole_number, whole_step
from torchkeep.verbs.background import SaveHandle

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
        io_threads: Threads that write; by default four per processor, at most 8.
        staging: When changed tensors are copied; `Staging.OVERLAPPED` of `torchkeep.policies` does it beside the next
            forward and backward, and holds only ``optimizer.step``.
        staging_bytes: The most memory that copies of changed tensors may take between the return of `save` and their
            writing; what is over it is written before `save` returns. By default a quarter of the memory that is free.

    Raises:
        TypeError: A value in `state` that could not be refilled, such as a number, or an argument of another kind.
        ValueError: Nothing to keep, an empty path, or a number that is too small. All that is wrong is said at once.

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

    def __init__(  # noqa: PLR0913 - all by name, each a policy or a figure
        self,
        folder: str | os.PathLike[str],
        state: Mapping[str, object],
        *,
        save_when: SaveWhen | None = None,
        retain: RetentionPolicy | None = None,
        also: Also = Also.NOTHING,
        failed_saves_allowed: int = 0,
        io_threads: int | None = None,
        staging: Staging = Staging.AT_ONCE,
        staging_bytes: int | None = None,
    ) -> None:
        held = held_of(
            folder,
            state,
            save_when=save_when,
            retain=retain,
            also=also,
            failed_saves_allowed=failed_saves_allowed,
            io_threads=io_threads,
            staging=staging,
            staging_bytes=staging_bytes,
        )
        self.save_when = save_when
        self.retain = retain or KeepAll()
        self.failed_saves_allowed = failed_saves_allowed
        self._folder = RunFolder(run_folder_of(folder))
        self._saver = Saver(self._folder, self.retain, io_threads, staging_bytes, staging)
        self._session = Session(state, held, self.retain, self._folder, self._saver, io_threads)
        self._signals: SignalWatch | None = None
        self._failed_in_a_row = 0
        self._is_proving = False
        self._has_warned = False

    @property
    def folder(self) -> Path:
        """The run folder, resolved."""
        return self._folder.path

    @property
    def state(self) -> Mapping[str, object]:
        """What it keeps, as it was given."""
        return self._session.state

    @property
    def notes(self) -> Sequence[str]:
        """What a person should know about the resume and the saves so far."""
        return self._saver.notes

    @property
    def last_step(self) -> int | None:
        """The index of the step last finished: resumed from, or given to `after_step` or `save`; None at first."""
        return self._session.last_step

    def resume(self, step: int | None = None, *, only: Sequence[str] | None = None, rules: Sequence[Rule] = ()) -> int:
        """Restore the newest good checkpoint, if there is one, and return the index of the next step to run.

        Digests are checked while bytes are placed. A checkpoint with absent, short or differing bytes is passed over,
        named in a warning, and set aside as ``.damaged-*``, and the one before it is used. The random generators are
        restored last. What differs from the environment of the save, and what that means for exactness, is a warning.
        A save in flight is waited for: in the middle of a training it goes back to the last save.

        Args:
            step: The step to restore instead of the newest.
            only: Names in `state` to restore, leaving the others and the random generators as they are.
            rules: As for `load`.

        Returns:
            0 when the run is new, else the step after the restored one.

        Raises:
            CheckpointError: The save in flight failed; nothing was touched.
            ConflictError: Another process writes in this run folder.
            NotFoundError: `step` is not there.
            PlanError: The checkpoint does not fit; nothing was touched.
            CorruptError: No checkpoint of the run is good; objects may be partly overwritten.
        """
        if isinstance(only, str):
            raise TypeError(f"only is {only!r}: a list of names is wanted, as [{only!r}]")
        return self._resume(step, only, rules) or 0

    def _resume(
        self, step: int | None = None, only: Sequence[str] | None = None, rules: Sequence[Rule] = ()
    ) -> int | None:
        self._tolerate(self.wait)  # what is being saved is the newest
        return self._session.resume(step, only, rules)

    def branch(
        self,
        source: str | os.PathLike[str],
        step: int | None = None,
        *,
        only: Sequence[str] | None = None,
        rules: Sequence[Rule] = (),
    ) -> int:
        """Begin this run where another one was; once it has checkpoints of its own, `resume` those.

        Every checkpoint of this run records where it came from. What does not change from there is linked, not written.
        The other run is only read.

        Args:
            source: The other run folder, or one of its checkpoints.
            step: Its step; the newest good one by default.
            only: As for `resume`.
            rules: As for `load`.

        Returns:
            The next step to run, which goes on counting from the other run.

        Raises:
            NotFoundError: There is no such checkpoint.
            ConflictError, PlanError, CorruptError: As for `resume`.
        """
        from_there = path_of(source, "the other run", f"branch(source) takes the path of a run; not {source!r}")
        following = self._resume()
        if following is None:
            following = self._session.branch(from_there, step, only, rules)
        return following

    def warm_start(self, plan: LoadPlan, *, strict: bool = True) -> int:
        """Begin a new run with what a plan loads, at step 0; once it has checkpoints of its own, `resume` those.

        Every checkpoint of this run records where it came from.

        Args:
            plan: What ``torchkeep.plan(path, into=..., rules=...)`` gave.
            strict: As for `load`.

        Returns:
            0 when the run is new, else the step after the restored one.

        Raises:
            PlanError: The plan does not fit, or loads into what the state does not hold; nothing was touched.
            ConflictError, CorruptError: As for `resume`.

        Example:
            >>> import tempfile, torch, torchkeep as tk
            >>> pretrained = tk.save(torch.nn.Linear(2, 1), tempfile.mkdtemp() + "/pretrained").path
            >>> model = torch.nn.Linear(2, 1)
            >>> with tk.CheckpointManager(tempfile.mkdtemp() + "/run", {"model": model}) as manager:
            ...     manager.warm_start(tk.plan(pretrained, into=model))
            0
        """
        if not isinstance(plan, LoadPlan):
            raise TypeError(f"warm_start(plan) takes what torchkeep.plan(path, into=...) gives; not {plan!r}")
        self._session.refuse_strangers(plan)
        following = self._resume()
        if following is None:
            loaded = plan.apply(strict=strict)
            self._saver.notes += getattr(loaded, "notes", ())
            self._session.remember_origin("warm start", plan.source, getattr(loaded, "step", None))
        return following or 0

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
        step = whole_step(step)
        if self._is_proving:
            return None
        session, occasion = self._session, Occasion(step, metrics, tags_from(tags))
        session.notice_going_back(step)
        session.last_step = step
        self._require_block()
        self._tell()
        waited_seconds = time.monotonic() - session.last_save_seconds
        moment = Moment(step, session.last_tried_step, waited_seconds, self._received())
        is_due, number = self._agree(moment)
        if number:
            self._preempt(occasion, number)
        if self._saver.has_failed:
            self._tolerate(self._saver.wait)
        if not is_due:
            return None
        handle: list[SaveHandle] = []
        self._tolerate(lambda: handle.append(self._save(occasion)))
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
        if self._is_proving:
            raise RuntimeError("nothing can be saved while prove runs steps: save outside of the step it is given")
        return self._save(Occasion(whole_step(step), metrics, tags_from(tags)))

    def _save(self, occasion: Occasion) -> SaveHandle:
        call = Call()
        self.wait()
        call.has_waited()
        return self._session.save(occasion, call)

    def preflight(self) -> Preflight:
        """Find out before the first save whether this run can save and resume.

        It estimates the bytes of a checkpoint (the state that optimizers will have included) and the most that
        retention keeps at once, and reserves them for a moment, which asks the quota too; it writes and links in the
        run folder; and it saves everything, loads it back into the same objects, and looks whether each is as it was.

        Returns:
            The figures, and notes on what is not wrong and worth knowing.

        Raises:
            CheckpointError: Everything that is wrong, in one list. Nothing is left in the run folder.
            ConflictError: Another process writes in this run folder.

        Example:
            >>> import tempfile, torch, torchkeep as tk
            >>> model = torch.nn.Linear(1000, 100)
            >>> with tk.CheckpointManager(tempfile.mkdtemp(), {"model": model}, retain=tk.KeepLast(3)) as manager:
            ...     print(manager.preflight())
            400.4 kB per checkpoint, at most 1.6 MB at once, ... free
        """
        self.wait()
        self._folder.own()
        return preflight(self._session)

    def prove(self, train_step: Callable[[int], object], *, steps: int = 3) -> Proof:
        """Show that a resume is exact: run some steps, restore, run them again, and compare every bit.

        The state goes through a checkpoint in the run folder, which is removed. After each step every tensor and value
        of the state, the random generators, and what the step returned are compared. At the end everything is as it
        was before, and nothing was saved: `after_step` does nothing meanwhile.

        Args:
            train_step: Called with a step's index; does what the training does in one step. What it returns, such as
                its loss or metrics, is compared too.
            steps: How many steps.

        Returns:
            The proof; false when something differed: then it names the first state that did, and what exists beside
            the state and is not registered.

        Raises:
            CheckpointError: The state could not be saved or put back.
            ConflictError: Another process writes in this run folder.

        Example:
            >>> import tempfile, torch, torchkeep as tk
            >>> model = torch.nn.Linear(4, 1)
            >>> optimizer = torch.optim.AdamW(model.parameters())
            >>> def train_step(step):
            ...     loss = model(torch.randn(8, 4)).pow(2).mean()
            ...     optimizer.zero_grad()
            ...     loss.backward()
            ...     optimizer.step()
            ...     return loss
            >>> with tk.CheckpointManager(tempfile.mkdtemp(), {"model": model, "optimizer": optimizer}) as manager:
            ...     print(manager.prove(train_step))
            3 steps replayed bit for bit: ... tensors, values and random states equal after each
        """
        from torchkeep.live.unregistered import unregistered

        if not callable(train_step):
            raise TypeError(f"prove takes a function of a step's index; not {train_step!r}")
        steps = whole_number("steps", steps, 1)
        if self._session.join_ranks().size > 1:
            raise RuntimeError("prove replays the steps of one process: call it in a run of one rank")
        self.wait()
        self._folder.own()
        self._is_proving = True
        try:
            proof = prove(self._session, train_step, steps)
        finally:
            self._is_proving = False
        return proof or replace(proof, hints=tuple(unregistered(self.state)))

    def _received(self) -> int | None:
        return None if self._signals is None or self._signals.received is None else int(self._signals.received)

    def _require_block(self) -> None:
        """Say, once, that signals do nothing where nobody handles them."""
        parts = self.save_when.parts if self.save_when is not None else ()
        if self._signals is None and not self._has_warned and any(isinstance(part, OnPreemption) for part in parts):
            self._has_warned = True
            warn("OnPreemption does nothing outside of the manager's `with` block: signals are handled inside")

    def _agree(self, moment: Moment) -> tuple[bool, int]:
        """Whether a save is due, and the signal that came to any rank: the same on all of them."""
        if self.save_when is None:
            return False, 0
        is_due, number = self.save_when.is_due(moment), moment.signal or 0
        if all(isinstance(part, EverySteps) for part in self.save_when.parts):
            return is_due, number
        greatest = self._session.join_ranks().most([int(is_due), number])
        return bool(greatest[0]), greatest[1]

    def _preempt(self, occasion: Occasion, number: int) -> None:
        """Save, wait, say so, and end.

        Raises:
            Preempted: Always.
        """
        began = time.monotonic()
        path, error = None, None
        try:
            if not self._session.is_saved(occasion.step):
                self._save(occasion).wait()
            path = self._folder.path_of(occasion.step)
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
                self._saver.rest()
                self._folder.release()

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
            try:
                self.close()
            except CheckpointError as failure:
                if error is None:
                    raise
                error.add_note(f"the save in flight failed as well: {failure}")  # what ended the block goes on
        finally:
            signals, self._signals = self._signals, None
            if signals is not None:
                signals.__exit__(kind, error, trace)

    def _save_on(self, error: BaseException) -> None:
        """Save what is there when an exception ends the program, if a policy wants it and the step is not saved."""
        session, step = self._session, self._session.last_step
        is_failure = isinstance(error, (Exception, KeyboardInterrupt))
        if self.save_when is None or step is None or not is_failure:
            return
        if not self.save_when.is_due(Moment(step, session.last_tried_step, exception=True)):
            return
        if session.join_ranks().size > 1:  # the others may be anywhere
            return
        if not session.is_saved(step):
            what = f"{type(error).__name__}: {error}".partition("\n")[0]
            try:
                path = self._save(Occasion(step, exception=what)).wait()
            except CheckpointError as failure:
                _log.warning("nothing was saved after %s: %s", type(error).__name__, failure)
            else:
                _log.warning("saved step %s after %s: %s", step, type(error).__name__, path)

    def __repr__(self) -> str:
        return f"<CheckpointManager {str(self.folder)!r} of {', '.join(self.state)}; last step {self.last_step}>"
