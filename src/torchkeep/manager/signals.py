"""Signals that ask the process to end: noticed at once, obeyed at the end of a step."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Self

from torchkeep.manager.notices import warn
from torchkeep.policies import OnPreemption

_REPEAT_SECONDS = 3.0  # a launcher passes on the very signal that its whole group got
_LOADERS = ("torch.utils.data.", "torchdata.")
_watching: list[SignalWatch] = []  # for the one hook that a process can have after a fork


class SignalWatch:
    """Handles a policy's signals while its ``with`` block runs, and gives what handled them before their place back.

    The first sets `received` and `deadline`, and nothing else. A second one ends the process at once, also while the
    main thread is inside a call that does not return: a thread reads the signals from a pipe.

    Attributes:
        received: The first signal that came, or None.
        deadline: When its grace is over, as `time.monotonic` counts.
    """

    def __init__(self, policy: OnPreemption) -> None:
        self.policy = policy
        self.received: signal.Signals | None = None
        self.deadline = 0.0
        self._since = 0.0
        self._before: dict[signal.Signals, object] = {}
        self._pipe: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            warn("OnPreemption does nothing here: Python handles signals in the main thread only")
            return self
        self._open_pipe()
        self._before = {each: signal.signal(each, self._handle) for each in self.policy.signals}
        _watch(self)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        if not self._before:
            return
        self.let_go()
        if self.received is not None and not isinstance(error, SystemExit):
            os.kill(os.getpid(), self.received)  # nobody has obeyed it: whoever handles it now may

    def let_go(self) -> None:
        """Let those handle the signals that did before."""
        for each, handler in self._before.items():
            signal.signal(each, handler if callable(handler) or isinstance(handler, int) else signal.SIG_DFL)
        self._before = {}
        if self in _watching:
            _watching.remove(self)
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._pipe[1])  # the thread sees the end, and closes its side
            self._pipe = None

    @property
    def seconds_left(self) -> float:
        """What is left of the grace."""
        return self.deadline - time.monotonic()

    def _open_pipe(self) -> None:
        if signal.set_wakeup_fd(-1) != -1:  # somebody (asyncio) reads signals so: the handler alone has to do
            return
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._pipe = (reader, writer)
        threading.Thread(target=self._listen, args=(reader,), name="torchkeep-signals", daemon=True).start()

    def _listen(self, reader: int) -> None:
        while number := os.read(reader, 1):
            if number[0] in self.policy.signals:
                self._notice(number[0])
        os.close(reader)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._pipe is None or self.received is None:  # else the thread has noticed it
            self._notice(number)

    def _notice(self, number: int) -> None:
        now = time.monotonic()
        if self.received is None:
            self._since, self.deadline = now, now + self.policy.grace_seconds
            self.received = signal.Signals(number)
        elif now - self._since >= _REPEAT_SECONDS:
            name = signal.Signals(number).name
            os.write(2, f"torchkeep: {name}, the second signal: ending at once; the last commit stays\n".encode())
            os._exit(128 + number)


def _watch(watch: SignalWatch) -> None:
    _register_after_fork()
    _watching.append(watch)


@functools.cache
def _register_after_fork() -> None:
    """Once in a process and those forked from it: a hook cannot be taken back."""
    os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    """In a child: a `DataLoader` worker ignores what its parent will obey; any other child is as if nobody watched."""
    watching, _watching[:] = list(_watching), []
    for watch in watching:
        if watch._pipe is not None:  # noqa: SLF001 - one module
            signal.set_wakeup_fd(-1)
            for descriptor in watch._pipe:  # noqa: SLF001 - as above
                os.close(descriptor)
            watch._pipe = None  # noqa: SLF001 - as above
        if _is_loader_worker():
            ignore_signals(watch.policy.signals)
        else:
            watch.let_go()


def _is_loader_worker() -> bool:
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 - who forked is known from the stack alone
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(_LOADERS):
            return True
        frame = frame.f_back
    return False


def ignore_signals(signals: tuple[signal.Signals, ...]) -> None:
    """Let a worker process ignore signals, except from its parent, whom it obeys.

    They are blocked and waited for in a thread: a handler could be replaced, and torch replaces SIGTERM's in workers.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=_obey_parent, args=(signals, os.getppid()), daemon=True).start()


def worker_init_fn(_worker_id: int) -> None:
    """Let a `DataLoader` worker that was not forked ignore the signals of `OnPreemption`: its ``worker_init_fn``."""
    ignore_signals(OnPreemption().signals)


def _obey_parent(signals: tuple[signal.Signals, ...], parent: int) -> None:
    while True:
        if signal.sigwaitinfo(signals).si_pid == parent:
            os._exit(0)
