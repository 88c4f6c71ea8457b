"""The same action on many items in a few threads: file calls and hashing let go of the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


def default_threads() -> int:
    """The processors this process may use, at least 1 and at most 8."""
    return max(1, min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def in_parallel(action: Callable[[_T], _R], items: Iterable[_T], threads: int) -> list[_R]:
    """The results of an action on every item, in order; with one thread, in the calling one."""
    if threads == 1:
        return [action(item) for item in items]
    with ThreadPoolExecutor(threads, thread_name_prefix="torchkeep") as pool:
        return list(pool.map(action, items))
