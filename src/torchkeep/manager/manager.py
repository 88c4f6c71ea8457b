"""`CheckpointManager`: periodic checkpoints of a training run, and the one line that resumes it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from torchkeep.folder.parallel import default_threads
from torchkeep.manager.notices import warn
from torchkeep.manager.resuming import Resume
from torchkeep.manager.run_folder import RunFolder
from torchkeep.manager.saving import Saver
from torchkeep.manager.state import require_state
from torchkeep.planning.rules import Rule
from torchkeep.policies import KeepAll, RetentionPolicy, SaveWhen
from torchkeep.verbs.background import SaveHandle
from torchkeep.verbs.saving import draft_of_entries, whole_step


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
        require_state(state)
        if save_when is not None and not hasattr(save_when, "is_due"):
            raise TypeError(f"save_when is {save_when!r}: a policy is wanted, as EverySteps(500)")
        if retain is not None and not isinstance(retain, RetentionPolicy):
            raise TypeError(f"retain is {retain!r}: a policy is wanted, as KeepLast(3)")
        self.state = dict(state)
        self.save_when = save_when
        self.retain = retain or KeepAll()
        self._threads = io_threads or default_threads()
        self._run_folder = RunFolder(folder)
        self._saver = Saver(self._run_folder.path, self.retain, self._threads)
        self._last_step: int | None = None
        self._last_saved_step: int | None = None

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
        self._run_folder.own()
        self._run_folder.mark_resumed()
        resumed = Resume(self._run_folder, self.state, only, rules, self._threads).run(step)
        if resumed is None:
            return 0
        committed = resumed.committed
        self._saver.notes += resumed.notes
        self._saver.parent = (committed.path, committed.record)
        self._last_step = self._last_saved_step = committed.step
        return committed.step + 1

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
        self._run_folder.own()
        self._run_folder.refuse_unresumed()
        draft = draft_of_entries(self.state, step=step, metrics=metrics, rng=capture_rng())
        for name in self.retain.metrics:
            if name not in (metrics or {}):
                there = f"; it has {', '.join(metrics)}" if metrics else ""
                warn(f"step {step} is saved without the metric {name!r} that retention asks for{there}")
        handle = self._saver.begin(draft, step)
        self._last_step = self._last_saved_step = step
        return handle

    def wait(self) -> None:
        """Wait for the save in flight.

        Raises:
            CheckpointError: It failed; it is reported once.
        """
        self._saver.wait()

    def close(self) -> None:
        """Wait for the save in flight and let another process write in the run folder."""
        try:
            self.wait()
        finally:
            if self._saver.is_idle:
                self._run_folder.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<CheckpointManager {str(self.folder)!r} of {', '.join(self.state)}; last step {self._last_step}>"
