"""Every error that torchkeep raises on purpose, as one tree.

    CheckpointError                exit code
    ├── CorruptError               4   bytes are not what was written
    ├── UnsafeError                4   the file asks for something to be run or reached
    ├── LimitError                 4   reading on would need more than a checkpoint may ask for
    ├── FormatError                3   not a format, version or value that torchkeep can hold
    ├── NotFoundError              3   nothing there (also a FileNotFoundError)
    ├── ConflictError              1   somebody else's file or process is in the way
    └── PlanError                  1   the checkpoint does not fit

`Preempted` stands apart: a SystemExit, raised after a signal once everything is saved.

Each message says what, where, and what to do next. Any other exception on bad input is a bug.
"""

from __future__ import annotations

import os
import signal as signals
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = [
    "CheckpointError",
    "ConflictError",
    "CorruptError",
    "FormatError",
    "LimitError",
    "NotFoundError",
    "PlanError",
    "Preempted",
    "UnsafeError",
]


class CheckpointError(Exception):
    """The base of the tree: what happened, where, every fault found, and what to do next.

    Attributes:
        what: One line without the path, for example ``"2 of 3 shards are damaged"``.
        where: The file or folder, or None.
        faults: All faults at once, one line each, most specific first.
        remedy: What the reader can do next, or None.
        exit_code: What the command line exits with.

    Example:
        >>> print(
        ...     CorruptError("1 shard is damaged", where="ckpt", faults=["model.safetensors: short"], remedy="use ...")
        ... )
        ckpt: 1 shard is damaged
          model.safetensors: short
          hint: use ...
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | os.PathLike[str] | None = None,
        faults: Iterable[str] = (),
        remedy: str | None = None,
    ) -> None:
        self.what = what
        self.where = None if where is None else os.fspath(where)
        self.faults = tuple(faults)
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        head = self.what if self.where is None else f"{self.where}: {self.what}"
        lines = [head, *(f"  {fault}" for fault in self.faults)]
        if self.remedy is not None:
            lines.append(f"  hint: {self.remedy}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.faults, self.remedy)


def _rebuild(
    kind: type[CheckpointError], what: str, where: str | None, faults: tuple[str, ...], remedy: str | None
) -> CheckpointError:
    return kind(what, where=where, faults=faults, remedy=remedy)


@contextmanager
def typed(what: str, where: str | os.PathLike[str], remedy: str | None = None) -> Iterator[None]:
    """Turn what the operating system refuses into an error of this tree; those of the tree pass as they are.

    Example:
        >>> with typed("cannot be read", "ckpt"):
        ...     raise PermissionError(13, "Permission denied")
        Traceback (most recent call last):
        torchkeep.errors.CheckpointError: ckpt: cannot be read: Permission denied
          hint: check its permissions and its owner, and those of the folders above it
    """
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        inside = error.filename is not None and os.fsdecode(error.filename) != os.fspath(where)
        faults = [f"at {error.filename}"] if inside else ()
        if remedy is None and isinstance(error, PermissionError):
            remedy = "check its permissions and its owner, and those of the folders above it"
        raise CheckpointError(f"{what}: {reason}", where=where, faults=faults, remedy=remedy) from error


class CorruptError(CheckpointError):
    """Bytes are absent, short, or not what was written."""

    exit_code = 4


class UnsafeError(CheckpointError):
    """The file wants something run, imported or reached; nothing was."""

    exit_code = 4


class LimitError(CheckpointError):
    """Reading on would take more memory, depth or time than a checkpoint of this size may ask for."""

    exit_code = 4


class FormatError(CheckpointError):
    """Not a format, a version or a value that torchkeep can hold."""

    exit_code = 3


class NotFoundError(CheckpointError, FileNotFoundError):
    """There is nothing at the path, or nothing of that name in the checkpoint."""

    exit_code = 3


class ConflictError(CheckpointError):
    """Another process, or a file that torchkeep did not write, is in the way; it was left as it is."""

    exit_code = 1


class PlanError(CheckpointError):
    """The checkpoint does not fit what it should be loaded into; nothing was touched."""

    exit_code = 1


class Preempted(SystemExit):
    """A signal asked the process to end, and it does, with 128 + the signal's number as its exit code.

    Attributes:
        signal: The signal's number.
        step: The step last finished.
        path: The checkpoint of that step; None if it could not be saved, and then the one before it is the newest.
        what: One line for people.
    """

    def __init__(
        self, number: int, step: int, path: os.PathLike[str] | None, failure: CheckpointError | None = None
    ) -> None:
        super().__init__(128 + number)
        self.signal = number
        self.step = step
        self.path = path
        saved = f"saved step {step}: {os.fspath(path)}" if path is not None else f"step {step} was not saved: {failure}"
        self.what = f"{signals.Signals(number).name}: {saved}"

    def __str__(self) -> str:
        return self.what
