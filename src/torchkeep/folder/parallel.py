"""The same action on many items in a few threads: file calls and hashing let go of the interpreter's lock."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

_WORTH_A_THREAD_BYTES = 32 * 2**20

_T = TypeVar("_T")
_R = TypeVar("_R")


class Latch:
    """Something that happens once. Unlike with ``threading.Event``, an interrupted wait leaves nothing locked."""

    def __init__(self) -> None:
        self._is_set = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Let all go on who wait."""
        if not self._is_set:
            self._is_set = True
            self._lock.release()

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._is_set

    def wait(self) -> None:
        """Wait until it has happened."""
        if not self._is_set:
            with self._lock:
                pass


def default_threads() -> int:
    """The processors this process may use, at least 1 and at most 8."""
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def writing_threads() -> int:
    """Four for each processor this process may use, at most 8: while some wait for the disk, others copy and hash."""
    return min(8, 4 * default_threads())


def threads_for(nbytes: int, most: int) -> int:
    """The threads that are worth their start for one pass over so much memory, at least 1 and at most `most`.

    One processor takes 32 MiB in the time of a few starts; where several share one way to memory they gain little.
    """
    return max(1, min(most, nbytes // _WORTH_A_THREAD_BYTES))


def in_parallel(action: Callable[[_T], _R], items: Iterable[_T], threads: int) -> list[_R]:
    """The results of an action on every item, in order; with one thread, in the calling one.

    An exception of the action is raised here, and so is an interrupt, once the actions under way have ended; no further
    ones are begun. Where the system gives no more threads, it does with those that it has.
    """
    waiting = list(items)
    if threads == 1 or len(waiting) < 2:  # noqa: PLR2004 - one item needs no second thread
        return [action(item) for item in waiting]
    results: dict[int, _R] = {}
    errors: list[BaseException] = []
    positions = iter(range(len(waiting)))  # shared: each position goes to one worker

    def work(turn: threading.Lock) -> None:
        with turn:
            act()

    def act() -> None:
        try:
            for position in positions:
                results[position] = action(waiting[position])
        except BaseException as error:  # noqa: BLE001 - it is raised in the calling thread
            errors.append(error)
            deque(positions, maxlen=0)  # the others stop after what they have in hand

    # Plain threads: an executor refuses work once the interpreter has begun to exit, and a save must still commit then.
    # An interrupted start() or join() does not tell who is at work (CPython before 3.13); who holds a turn is.
    turns = [threading.Lock() for _ in range(min(threads, len(waiting)) - 1)]
    try:
        with suppress(RuntimeError):
            for turn in turns:
                threading.Thread(target=work, args=(turn,), name="torchkeep-io").start()
        act()
    finally:
        deque(positions, maxlen=0)
        for turn in turns:
            with turn:
                pass
    if errors:
        raise errors[0]
    return [results[position] for position in range(len(waiting))]
