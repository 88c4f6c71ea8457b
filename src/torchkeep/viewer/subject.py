"""What one page may look at: the checkpoints of a run, or one file, and the files that were named beside it."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

from torchkeep.errors import NotFoundError
from torchkeep.folder.record import RECORD_NAME
from torchkeep.folder.runs import is_step_name
from torchkeep.tensors import Source, TensorSpec, tensors_of
from torchkeep.verbs.listing import RunCheckpoints, checkpoints
from torchkeep.verbs.opening import Checkpoint
from torchkeep.verbs.opening import open as open_checkpoint

MOST_HELD = 4
FILE, BESIDE = "file", "beside-"


@dataclass(slots=True, eq=False, weakref_slot=True)
class Held:
    """An opened checkpoint with its tensors by name; closed when nobody uses it and newer ones need its place."""

    checkpoint: Checkpoint
    tensors: Mapping[str, TensorSpec]
    users: int = 0
    partners: WeakKeyDictionary[Held, Mapping[str, str]] = field(default_factory=WeakKeyDictionary, repr=False)

    @property
    def source(self) -> Source:
        """The source under it."""
        return self.checkpoint.source


class Subject:
    """A run or a checkpoint, and files beside it. An id stands for each; nothing without one is ever opened.

    Attributes:
        path: The run folder or the checkpoint, as it was named.
        is_run: Whether it is a run folder.
        beside: Files and folders that the page may compare with, by id.

    Raises:
        NotFoundError: There is nothing at a path.
        FormatError, CorruptError, UnsafeError, LimitError: A path is no checkpoint and no run, or a damaged one.
    """

    def __init__(self, path: str | os.PathLike[str], beside: Sequence[str | os.PathLike[str]] = ()) -> None:
        self.path = Path(path).expanduser()
        self.is_run = self.path.is_dir() and not os.path.lexists(self.path / RECORD_NAME) and _has_steps(self.path)
        self.beside = {f"{BESIDE}{number}": Path(each).expanduser() for number, each in enumerate(beside, 1)}
        self._held: OrderedDict[tuple[object, ...], Held] = OrderedDict()
        self._lock = threading.Lock()
        for named in (self.path, *self.beside.values()):
            if not named.exists():
                raise NotFoundError("nothing is there", where=named, remedy="check the path for a typing error")
        for checkpoint_id in (*(() if self.is_run else (FILE,)), *self.beside):
            with self.opened(checkpoint_id):  # what cannot be opened is said before anything is served
                pass

    def listing(self) -> RunCheckpoints | None:
        """The run's checkpoints as they are now; None for a single checkpoint."""
        return checkpoints(self.path) if self.is_run else None

    @contextmanager
    def opened(self, checkpoint_id: str) -> Iterator[Held]:
        """Hold a checkpoint open, read or from the last few that were; it stays readable until the block ends.

        Raises:
            NotFoundError: The id stands for nothing, or it is gone.
            CheckpointError: As for `open`.
        """
        held = self._take(checkpoint_id)
        try:
            yield held
        finally:
            with self._lock:
                held.users -= 1
                self._let_go()

    def close(self) -> None:
        """Close what is open and in nobody's use."""
        with self._lock:
            self._let_go(keep=0)

    def _take(self, checkpoint_id: str) -> Held:
        path = self.path_of(checkpoint_id)
        try:
            status = path.stat()
        except OSError as error:
            raise NotFoundError("it is not there any more", where=path, remedy="reload the page") from error
        # A step that is saved again is another folder, a file that is written again has another time.
        key = (checkpoint_id, status.st_dev, status.st_ino, status.st_mtime_ns)
        with self._lock:
            held = self._held.get(key)
            if held is None:
                checkpoint = open_checkpoint(path)
                held = self._held[key] = Held(checkpoint, tensors_of(checkpoint.tree))
            self._held.move_to_end(key)
            held.users += 1
            self._let_go()
        return held

    def _let_go(self, keep: int = MOST_HELD) -> None:
        """Close the longest unused until few are left. The lock is held."""
        for key in [key for key, held in self._held.items() if not held.users]:
            if len(self._held) <= keep:
                return
            self._held.pop(key).checkpoint.close()

    def path_of(self, checkpoint_id: str) -> Path:
        """The path that an id stands for.

        Raises:
            NotFoundError: It stands for nothing.
        """
        if checkpoint_id in self.beside:
            return self.beside[checkpoint_id]
        if not self.is_run and checkpoint_id == FILE:
            return self.path
        if self.is_run and is_step_name(checkpoint_id):
            return self.path / checkpoint_id
        raise NotFoundError(f"nothing here is called {checkpoint_id!r}", where=self.path)


def _has_steps(folder: Path) -> bool:
    return any(is_step_name(name) for name in os.listdir(folder))
