"""What a caller gave, checked before anything is done with it."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from pathlib import Path

from torchkeep.folder.runs import STEP_LIMIT


def whole_number(name: str, value: object, least: int) -> int:
    """An argument that counts something, as an int; numpy's integers are fine.

    Raises:
        TypeError: It is no integer; True is none.
        ValueError: It is less than `least`.
    """
    wrong = f"{name} must be an integer of {least} or more, not {value!r}"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(wrong)
    number = operator.index(value)
    if number < least:
        raise ValueError(wrong)
    return number


def require_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False, such as "no", which counts as true.

    Raises:
        TypeError: So it is.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False, not {value!r}")


def whole_step(step: object) -> int:
    """A step as an int.

    Raises:
        TypeError: It is no integer.
        ValueError: It is negative, or a million million million.
    """
    number = whole_number("step", step, 0)
    if number >= STEP_LIMIT:
        raise ValueError(f"step is {number}: steps are counted from 0, and are below {STEP_LIMIT:,}")
    return number


def threads_of(io_threads: object, default: Callable[[], int]) -> int:
    """How many threads were asked for; the default where None was.

    Raises:
        TypeError, ValueError: It is no integer of 1 or more.
    """
    return default() if io_threads is None else whole_number("io_threads", io_threads, 1)


def path_of(path: str | os.PathLike[str], what: str, if_other: str) -> Path:
    """The absolute path that was asked for, links followed.

    Args:
        path: What was given.
        what: What it should be the path of.
        if_other: Said of what is no path.

    Raises:
        TypeError: It is no path.
        ValueError: It is empty, which would be the current folder.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(if_other)
    if not os.fspath(path):
        raise ValueError(f'the path of {what} is empty: name one, or "." for the current folder')
    return Path(os.path.realpath(Path(path).expanduser()))


def refuse_together(*checks: Callable[[], object]) -> None:
    """Make every check, and raise what all of them refuse as one error.

    Raises:
        TypeError: One of them did.
        ValueError: Some did, and none of them a TypeError.

    Example:
        >>> refuse_together(lambda: whole_number("a", "1", 0), lambda: whole_number("b", -1, 0))
        Traceback (most recent call last):
        TypeError: 2 arguments cannot be meant:
          a must be an integer of 0 or more, not '1'
          b must be an integer of 0 or more, not -1
    """
    faults: list[TypeError | ValueError] = []
    for check in checks:
        try:
            check()
        except (TypeError, ValueError) as fault:
            faults.append(fault)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        kind = TypeError if any(isinstance(fault, TypeError) for fault in faults) else ValueError
        raise kind("\n  ".join([f"{len(faults)} arguments cannot be meant:", *map(str, faults)]))
