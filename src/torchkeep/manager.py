"""`CheckpointManager`: periodic checkpoints of a training run, and the one line that resumes it."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from torchkeep.errors import CheckpointError, ConflictError, CorruptError, NotFoundError, PlanError
from torchkeep.folder.commit import DAMAGED, fsync_path, make_parents, recover, refuse_inside_checkpoint, remove
from torchkeep.folder.lock import RunLock
from torchkeep.folder.parallel import default_threads, in_parallel
from torchkeep.folder.record import Record
from torchkeep.folder.runs import Committed, Run, metrics_of, read_run, step_name
from torchkeep.folder.write import Saved, Staged, finish, stage
from torchkeep.planning.rules import Rule
from torchkeep.policies import Candidate, KeepAll, RetentionPolicy, SaveWhen, decide
from torchkeep.verbs.background import SaveHandle
from torchkeep.verbs.saving import draft_of_entries, whole_step

if TYPE_CHECKING:
    from torchkeep.verbs.loading import Loaded

_TAKES = "a module, an optimizer, anything with state_dict and load_state_dict, a tensor, or a dict"


class CheckpointManager:
    """Saves what a training run holds when it is due, keeps what should be kept, and resumes exactly.

    Args:
        folder: The run folder; one writer at a time. It is locked by `resume` or the first save, not here.
        state: Name to module, optimizer, scheduler (anything with ``state_dict`` and ``load_state_dict``), tensor, or
            dict. A dict is live: saved as it is at each save, refilled in place by `resume`. Python's, numpy's and
            torch's random generators are captured beside it.
        save_when: When `after_step` saves, for example ``EverySteps(500)``. None: only `save` does.
        retain: What is kept after each save, for example ``KeepLast(3) | KeepBest(2, "val_acc", mode="max")``.
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
        io_threads: int | None = None,
    ) -> None:
        _require_state(state)
        if save_when is not None and not hasattr(save_when, "is_due"):
            raise TypeError(f"save_when is {save_when!r}: a policy is wanted, as EverySteps(500)")
        if retain is not None and not isinstance(retain, RetentionPolicy):
            raise TypeError(f"retain is {retain!r}: a policy is wanted, as KeepLast(3)")
        self.folder = Path(os.path.realpath(Path(folder).expanduser()))
        self.state = dict(state)
        self.save_when = save_when
        self.retain = retain or KeepAll()
        self.notes: list[str] = []
        self._threads = io_threads or default_threads()
        self._last_step: int | None = None
        self._last_saved_step: int | None = None
        self._parent: tuple[Path, Record] | None = None
        self._in_flight: SaveHandle | None = None
        self._lock: RunLock | None = None
        self._has_resumed = False

    @property
    def last_step(self) -> int | None:
        """The index of the step last finished: resumed from, or given to `after_step` or `save`; None at first."""
        return self._last_step

    def resume(self, step: int | None = None, *, only: Sequence[str] | None = None, rules: Sequence[Rule] = ()) -> int:
        """Restore the newest good checkpoint, if there is one, and return the index of the next step to run.

        Digests are checked while bytes are placed. A checkpoint with absent, short or differing bytes is passed over,
        named in a warning, and set aside as ``.damaged-*``, and the one before it is used. The random generators are
        restored last.

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
        self._own_folder()
        self._has_resumed = True
        run = read_run(self.folder)
        for path, error in run.passed_over:
            if isinstance(error, (CorruptError, NotFoundError)):
                self._set_aside(path, error)
            else:
                raise error
        candidates = [each for each in reversed(run.checkpoints) if step in {None, each.step}]
        damaged = [path.name for path, _ in run.passed_over] + sorted(p.name for p in self.folder.glob(f"{DAMAGED}*"))
        if step is not None and not candidates:
            there = ", ".join(str(each.step) for each in run.checkpoints) or "none"
            what = f"no good checkpoint of step {step}"
            raise NotFoundError(what, where=self.folder, remedy=f"steps that are here: {there}")
        if not candidates and not damaged:
            return 0
        newer = ", ".join(str(each.step) for each in run.checkpoints if step is not None and each.step > step)
        if newer:
            warnings.warn(
                f"step {step} is resumed; a later resume() without a step takes the newest: {newer}", stacklevel=2
            )
        return self._restore_first_good(run, candidates, only, rules)

    def _restore_first_good(
        self, run: Run, candidates: Sequence[Committed], only: Sequence[str] | None, rules: Sequence[Rule]
    ) -> int:
        faults = [f"{path.name}: {error.what}" for path, error in run.passed_over]
        faults += [f"{path.name}: set aside before" for path in sorted(self.folder.glob(f"{DAMAGED}*")) if not faults]
        for committed in candidates:
            try:
                loaded = self._restore(committed, only, rules)
            except CorruptError as error:
                faults.append(f"{committed.path.name}: {error.what}")
                self._set_aside(committed.path, error)
                continue
            self.notes += loaded.notes
            for note in loaded.notes:
                warnings.warn(f"resumed from {committed.path.name}: {note}", stacklevel=3)
            self._last_step = self._last_saved_step = committed.step
            self._parent = (committed.path, committed.record)
            return committed.step + 1
        asked = "this" if len(candidates) == 1 and len(run.checkpoints) > 1 else "no"
        raise CorruptError(
            f"{asked} checkpoint of this run is {'not ' if asked == 'this' else ''}good; "
            "the objects given to the manager may be partly overwritten",
            where=self.folder,
            faults=faults,
            remedy="what is damaged was kept as .damaged-*: to begin anew, build the objects anew and move those away",
        )

    def _restore(self, committed: Committed, only: Sequence[str] | None, rules: Sequence[Rule]) -> Loaded:
        from torchkeep.folder.read import open_folder
        from torchkeep.folder.values import decode_plain
        from torchkeep.live.build import Builder
        from torchkeep.live.rng import restore_rng
        from torchkeep.verbs.loading import resume_into

        wanted = self._wanted(committed, only)
        try:
            source = open_folder(committed.path)
        except NotFoundError as error:
            raise CorruptError(error.what, where=error.where) from error
        try:
            into = {(name,): _target(self.state[name]) for name in wanted}
            loaded = resume_into(source, into, rules, Builder(source), self._threads)
        finally:
            source.close()
        if only is None and committed.record.rng is not None:
            rng = decode_plain(committed.record.rng)
            if isinstance(rng, dict):
                restore_rng(rng)
        return loaded

    def _wanted(self, committed: Committed, only: Sequence[str] | None) -> list[str]:
        """The names to restore; both sides must have each."""
        wanted = list(self.state) if only is None else list(only)
        entries, name = committed.record.entries, committed.path.name
        absent = [each for each in wanted if each not in entries or each not in self.state]
        if absent:
            side = (
                f"{name} holds" if all(each in self.state for each in absent) else "the state or the checkpoint holds"
            )
            raise PlanError(
                f"{side} nothing for {', '.join(map(repr, absent))}; nothing was touched",
                where=self.folder,
                faults=[f"in {name}: {', '.join(entries)}", f"in the state: {', '.join(self.state)}"],
                remedy="give both the same names, or say what to restore: resume(only=[...])",
            )
        left = [each for each in entries if each not in self.state]
        if left and only is None:
            warnings.warn(
                f"not restored, since the state does not have them: {', '.join(left)} of {name}", stacklevel=5
            )
        return wanted

    def _set_aside(self, path: Path, error: CheckpointError) -> None:
        aside = path.with_name(f"{DAMAGED}{path.name.removeprefix('step-')}-{secrets.token_hex(4)}")
        path.rename(aside)
        fsync_path(self.folder)
        warnings.warn(f"passed over {path.name}, kept as {aside.name}: {error}", stacklevel=4)

    def after_step(self, step: int, metrics: Mapping[str, float] | None = None) -> SaveHandle | None:
        """Say that a step is finished; saves in the background when `save_when` says so.

        Args:
            step: Its index, from 0.
            metrics: Numbers to remember with a checkpoint of it.

        Returns:
            The handle of a save that it began, else None.

        Raises:
            CheckpointError: The save before it failed, or this one cannot begin.
        """
        self._last_step = step = whole_step(step)
        if self.save_when is not None and self.save_when.is_due(step, self._last_saved_step):
            return self.save(step, metrics)
        return None

    def save(self, step: int, metrics: Mapping[str, float] | None = None) -> SaveHandle:
        """Save now. The call returns when nothing that is saved depends on the live objects any more.

        Args:
            step: The index of the step last finished.
            metrics: Numbers to remember with it.

        Returns:
            A handle; its ``wait()`` gives the path or raises.

        Raises:
            FormatError: A value in the state has no encoding; all of them are listed.
            CheckpointError: The save before it failed; nothing was begun.
            ConflictError: Another process writes in this run folder.
        """
        from torchkeep.live.rng import capture_rng

        step = whole_step(step)
        self.wait()
        self._own_folder()
        self._refuse_unresumed()
        draft = draft_of_entries(self.state, step=step, metrics=metrics, rng=capture_rng())
        for name in self.retain.metrics:
            if name not in (metrics or {}):
                there = f"; it has {', '.join(metrics)}" if metrics else ""
                warnings.warn(
                    f"step {step} is saved without the metric {name!r} that retention asks for{there}", stacklevel=2
                )
        target = self.folder / step_name(step)
        parent, record = self._parent or (None, None)
        staged = stage(target, draft, parent, record, self._threads)
        try:
            self._copy(staged)
        except BaseException:
            staged.staging.discard()
            raise
        self._last_step = self._last_saved_step = step
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
        self._parent = (saved.path, saved.record)
        self.notes += saved.notes
        if isinstance(self.retain, KeepAll):
            return saved  # without reading every record of a long run
        checkpoints = read_run(self.folder).checkpoints
        for decision in decide(self.retain, [Candidate(each.step, metrics_of(each.record)) for each in checkpoints]):
            if not decision.keep and decision.step != staged.draft.step:
                self._remove(self.folder / step_name(decision.step))
        return saved

    def _remove(self, path: Path) -> None:
        """The new checkpoint is committed by now, so an old one that cannot be removed is a note, not a failed save."""
        try:
            remove(path)
        except (OSError, ConflictError) as error:
            self.notes.append(f"{path.name} was not removed: {error}")

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

    def close(self) -> None:
        """Wait for the save in flight and let another process write in the run folder."""
        try:
            self.wait()
        finally:
            if self._lock is not None and self._in_flight is None:
                self._lock.release()
                self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<CheckpointManager {str(self.folder)!r} of {', '.join(self.state)}; last step {self._last_step}>"

    def _refuse_unresumed(self) -> None:
        """A run that is there and was not resumed would be mixed with this one, and thinned by its retention."""
        there = [] if self._has_resumed else [str(each.step) for each in read_run(self.folder).checkpoints]
        if there:
            raise ConflictError(
                f"this run folder holds checkpoints that were not resumed (steps {', '.join(there[-5:])})",
                where=self.folder,
                remedy="call resume() before the first step, or use another run folder",
            )
        self._has_resumed = True

    def _own_folder(self) -> None:
        if self._lock is not None and self._lock.is_held:
            self._lock.require_folder(self.folder)
            return
        refuse_inside_checkpoint(self.folder / "step")
        try:
            make_parents(self.folder)
            self._lock = RunLock(self.folder)
            recover(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"cannot write in this run folder: {os.strerror(error.errno or 0)}",
                where=self.folder,
                remedy="mend access, free space, or use another run folder",
            ) from error


def _target(value: object) -> object:
    from torchkeep.live.refill import LiveDict

    return LiveDict(value) if isinstance(value, MutableMapping) else value


def _require_state(state: object) -> None:
    """Every value must be able to take its state back."""
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise TypeError(f'state is {type(state).__name__}: a mapping by name is wanted, as {{"model": model}}')
    inside = [
        f"{name}.{path}" for name, value in state.items() if isinstance(value, Mapping) for path in _stateful(value)
    ]
    if inside:
        raise TypeError(
            f"a resume would not reach {', '.join(inside)} inside a dict: give each its own name in the state"
        )
    immutable = {
        name: type(value).__name__
        for name, value in state.items()
        if not isinstance(value, MutableMapping) and not hasattr(value, "load_state_dict") and not _is_tensor(value)
    }
    if immutable:
        shown = ", ".join(f"{name!r} ({kind})" for name, kind in immutable.items())
        raise TypeError(
            f"a resume could not put these back: {shown}. {_TAKES} is wanted; put plain values in a dict: "
            '{"progress": {"epoch": 0}}'
        )


def _stateful(value: object, path: str = "") -> Iterator[str]:
    """Paths of objects inside a dict that keep a state of their own."""
    if hasattr(value, "load_state_dict") and not isinstance(value, type):
        yield path
    elif isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, each in items:
            yield from _stateful(each, f"{path}.{key}" if path else str(key))


def _is_tensor(value: object) -> bool:
    return hasattr(value, "copy_") and hasattr(value, "data_ptr")
