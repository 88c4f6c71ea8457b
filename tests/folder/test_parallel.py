"""Nothing is under way any more when a parallel action has ended, however it ended."""

from __future__ import annotations

import sys
import threading

import pytest

from torchkeep.folder.parallel import Latch, in_parallel, threads_for


def test_an_interrupt_waits_for_what_is_under_way_and_begins_nothing_more(monkeypatch):
    is_under_way, begun, ended = threading.Event(), [], []
    start = threading.Thread.start

    def interrupted_start(thread):
        start(thread)
        is_under_way.wait(10)
        raise KeyboardInterrupt

    def act(item):
        begun.append(item)
        is_under_way.set()
        threading.Event().wait(0.2)
        ended.append(item)

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    with pytest.raises(KeyboardInterrupt):
        in_parallel(act, range(100), 4)
    assert begun == ended == [0]


def test_where_the_system_gives_no_thread_the_caller_does_it_all(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert in_parallel(lambda item: item * 2, range(5), 4) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("interrupted_at", range(12))
def test_a_wait_that_is_interrupted_anywhere_leaves_nothing_locked(interrupted_at):
    latch, events = Latch(), iter(range(1000))

    def interrupt(*_):
        if next(events) == interrupted_at:
            raise KeyboardInterrupt
        return interrupt

    setter = threading.Timer(0.05, latch.set)
    setter.daemon = True
    setter.start()
    tracing = sys.gettrace()
    sys.settrace(interrupt)
    try:
        latch.wait()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(tracing)
    setter.join(5)
    assert not setter.is_alive()
    waiter = threading.Thread(target=latch.wait, daemon=True)
    waiter.start()
    waiter.join(5)
    assert not waiter.is_alive()


@pytest.mark.parametrize(
    ("nbytes", "most", "threads"), [(0, 8, 1), (63 * 2**20, 8, 1), (64 * 2**20, 8, 2), (2**40, 8, 8), (2**40, 1, 1)]
)
def test_threads_are_started_where_there_is_memory_enough_for_each(nbytes, most, threads):
    assert threads_for(nbytes, most) == threads
