"""A progress bar on stderr, there only while somebody looks at a terminal and the work takes long enough."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from torchkeep.cli.tables import terminal_width
from torchkeep.tensors import format_bytes

_FIRST_SECONDS = 0.5
_EVERY_SECONDS = 0.1


class ProgressBar:
    """Shows bytes done of bytes in all, and how long the rest takes; on anything but a terminal it shows nothing.

    Example:
        >>> with ProgressBar("reading") as bar:
        ...     bar(50, 100)
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._began = self._told = time.monotonic()
        self._is_shown = False
        self._wanted = sys.stderr.isatty()

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Show where the work is."""
        now = time.monotonic()
        since = now - self._began
        if not self._wanted or since < _FIRST_SECONDS or now - self._told < _EVERY_SECONDS:
            return
        self._told = now
        share = done_bytes / total_bytes if total_bytes else 1.0
        left = f", {since / share - since:.0f} s left" if share else ""
        said = f" {share:4.0%} of {format_bytes(total_bytes)}, {format_bytes(int(done_bytes / since))}/s{left}"
        room = max(0, min(40, terminal_width() - len(self._doing) - len(said) - 4))
        bar = "#" * int(room * share)
        sys.stderr.write(f"\r\x1b[K{self._doing} [{bar:<{room}}]{said}")
        sys.stderr.flush()
        self._is_shown = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
