"""Nothing is under way any more when a parallel action has ended, however it ended."""

from __future__ import annotations

import threading

import pytest

from torchkeep.folder.parallel import in_parallel


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
