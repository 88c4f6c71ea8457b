"""A save that goes on in the background: its handle, and what waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from torchkeep.errors import CheckpointError
from torchkeep.folder.write import Saved


class SaveHandle:
    """A save under way in the background.

    Attributes:
        step: The step it is of.
        is_reported: Whether somebody has waited for its result, and so seen its error.
    """

    def __init__(self, step: int, work: Callable[[], Saved]) -> None:
        self.step = step
        self.is_reported = False
        self._saved: Saved | None = None
        self._error: BaseException | None = None
        self._work = work
        # An interrupted join() takes a running thread for ended (CPython before 3.13); an event does not.
        self._ended = threading.Event()
        # Not a daemon: an interpreter that exits waits for the commit.
        threading.Thread(target=self._run, name=f"torchkeep-save-{step}").start()

    def _run(self) -> None:
        try:
            self._saved = self._work()
        except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits
            self._error = error
        finally:
            self._ended.set()

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._ended.is_set()

    @property
    def has_failed(self) -> bool:
        """Whether it has ended with an error."""
        return self._error is not None

    def wait(self) -> Path:
        """Wait until it is committed and durable; its path.

        Raises:
            CheckpointError: It failed. What was saved before is as it was.
        """
        return self.result().path

    def result(self) -> Saved:
        """Wait like `wait`; what was written and linked."""
        self._ended.wait()
        self.is_reported = True
        if self._error is not None:
            raise self._error
        if self._saved is None:
            raise CheckpointError(f"the save of step {self.step} did not end")
        return self._saved

    def __repr__(self) -> str:
        state = "under way" if not self.done else "failed" if self._error is not None else "committed"
        return f"<save of step {self.step}, {state}>"
