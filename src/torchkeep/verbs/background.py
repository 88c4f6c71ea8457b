"""A save that goes on in the background: its handle, and what waits for it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from torchkeep.errors import CheckpointError
from torchkeep.folder.parallel import Latch
from torchkeep.folder.shard_files import Progress
from torchkeep.folder.write import Saved

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_log = logging.getLogger("torchkeep")
# A thread that wakes keeps the interpreter until others insist, 5 ms later: the caller would be held as long.
_CALLER_FIRST_SECONDS = 0.001


class SavingThread:
    """The thread that saves go on in: kept between them, and an interpreter that exits waits for what it has begun."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def begin(self, work: Callable[[], object]) -> None:
        """Go on with it there; where the system gives no thread, or the interpreter is about to exit, here."""
        from concurrent.futures import ThreadPoolExecutor

        executor, self._executor = self._executor, None  # forgotten when this is interrupted: its locks may be held
        if executor is None or os.getpid() != self._process:  # a forked process has none of the threads
            executor, self._process = ThreadPoolExecutor(1, "torchkeep-save"), os.getpid()
        try:
            executor.submit(work)
        except RuntimeError:
            work()
        except BaseException:
            # Its thread may be under way and in no list of those that an exit of the interpreter ends.
            executor.shutdown(wait=False)
            raise
        else:
            self._executor = executor

    def end(self) -> None:
        """Let the thread end once it has nothing to do."""
        self._executor = None


class SaveHandle:
    """A save under way in the background, once it is begun.

    Args:
        step: The step it is of.
        work: Writes and commits it.
        afterwards: What is done once it is committed; nobody waits for that but the next save.
        progress: Counts what is written.
        staged: Is set once nothing depends on the live objects; None when that is so already.

    Attributes:
        step: The step it is of.
        stall_seconds: How long the call that began it held the caller, with `waited_seconds`.
        waited_seconds: How long of that the caller waited for the save before this one.
        progress: Bytes to write (None until that is decided) and bytes written.
        is_reported: Whether somebody has waited for its result, and so seen its error.
    """

    def __init__(
        self,
        step: int,
        work: Callable[[], Saved],
        afterwards: Callable[[Saved], object] = lambda _: None,
        *,
        progress: Progress | None = None,
        staged: Latch | None = None,
    ) -> None:
        self.step = step
        self.stall_seconds = self.waited_seconds = 0.0
        self.progress = progress or Progress()
        self.is_reported = False
        self._saved: Saved | None = None
        self._error: BaseException | None = None
        self._work, self._afterwards = work, afterwards
        self._process = os.getpid()
        # An interrupted join() takes a running thread for ended (CPython before 3.13); a latch does not.
        self._staged, self._ended, self._rested = staged, Latch(), Latch()
        self._is_taken = threading.Lock()  # by the thread that does the work, or by who gave it up before

    def begin(self, thread: SavingThread) -> None:
        """Go on in a thread."""
        thread.begin(self._run)

    def give_up(self) -> bool:
        """See to it that the work is not begun any more; false where it is."""
        return self._is_taken.acquire(blocking=False)

    def _run(self) -> None:
        if not self.give_up():
            return
        time.sleep(_CALLER_FIRST_SECONDS)
        try:
            self._saved = self._work()
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits
            self._error = error
        finally:
            self._ended.set()
        try:
            if self._saved is not None:
                self._afterwards(self._saved)
        except Exception:  # noqa: BLE001 - nobody waits for it
            _log.exception("the save of step %s is committed; what follows it failed", self.step)
        finally:
            self._rested.set()

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._ended.is_set()

    @property
    def has_failed(self) -> bool:
        """Whether it has ended with an error."""
        return self._error is not None

    def staged(self) -> bool:
        """Whether nothing that is saved depends on the live objects any more."""
        return self._staged is None or self._staged.is_set() or self.done

    def wait(self) -> Path:
        """Wait until it is committed and durable; its path.

        Raises:
            CheckpointError: It failed. What was saved before is as it was.
        """
        return self.result().path

    def result(self) -> Saved:
        """Wait like `wait`; what was written and linked."""
        if os.getpid() != self._process and not self.done:
            raise CheckpointError(
                f"the save of step {self.step} goes on in the process that this one was forked from",
                remedy="wait for it there, before the fork or after; a forked process needs a run folder of its own",
            )
        self._ended.wait()
        self.is_reported = True
        if self._error is not None:
            raise self._error
        if self._saved is None:
            raise CheckpointError(f"the save of step {self.step} did not end")
        return self._saved

    def rest(self) -> None:
        """Wait until what follows the commit is done too; a forked process has no part in that."""
        if os.getpid() == self._process:
            self._rested.wait()

    def __repr__(self) -> str:
        state = "under way" if not self.done else "failed" if self._error is not None else "committed"
        return f"<save of step {self.step}, {state}>"
