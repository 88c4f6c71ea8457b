"""One writer per run folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import torchkeep as tk
from torchkeep.errors import CheckpointError, ConflictError
from torchkeep.folder import lease, write
from torchkeep.folder.lease import LEASE_NAME
from torchkeep.folder.lock import LOCK_NAME, RunLock

HOLD = """
import sys
import threading
import time
from pathlib import Path
from torchkeep.folder.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
"""

FORK = """
import os, sys
from pathlib import Path
from torchkeep.errors import ConflictError
from torchkeep.folder.lock import RunLock
folder = Path(sys.argv[1])
lock = RunLock(folder)
asks, answers = os.pipe()
if os.fork():
    os.wait()
    print(os.getpid(), os.read(asks, 1000).decode(), flush=True)
    sys.stdin.readline()
else:
    said = [str(lock.is_held)]
    lock.release()
    try:
        RunLock(folder)
    except ConflictError as error:
        said.append(error.what)
    os.write(answers, "|".join(said).encode())
    os._exit(0)
"""

OUTLIVED = """
import os, sys
from pathlib import Path
from torchkeep.folder.lock import RunLock
folder = Path(sys.argv[1])
lock = RunLock(folder)
asks, goes = os.pipe()
if os.fork():
    os._exit(0)
os.close(goes)
os.read(asks, 1)
lock = RunLock(folder)
print(lock.is_held, flush=True)
"""

FORK_IN_A_COMMIT = """
import os, signal, sys, time
import torchkeep as tk
from torchkeep.folder import commit
rename, workers = commit.rename, []

def rename_beside_a_fork(*arguments):
    workers.append(os.fork())
    if not workers[-1]:
        time.sleep(100)
        os._exit(0)
    return rename(*arguments)

commit.rename = rename_beside_a_fork
began = time.monotonic()
for step in range(3):
    tk.save({"step": step}, f"{sys.argv[1]}/{step}")
print(len(workers), time.monotonic() - began < 10, flush=True)
for worker in workers:
    os.kill(worker, signal.SIGKILL)
"""


@contextmanager
def python(code: str, folder: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, str(folder), *map(str, arguments)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def is_free(folder: Path) -> bool:
    with python(HOLD, folder) as process:
        return process.stdout.readline() == "held\n"


def test_a_second_process_is_told_who_writes_and_touches_nothing(tmp_path):
    with tk.CheckpointManager(tmp_path, {"all": {"version": 1}}) as manager:
        manager.save(1).wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != LOCK_NAME}
    held = {"version": 2}
    with python(HOLD, tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        second = tk.CheckpointManager(tmp_path, {"all": held})
        says = rf"process {process.pid} on {re.escape(socket.gethostname())} \(since 20.*\) is writing here"
        for act in (second.resume, lambda: second.save(2)):
            with pytest.raises(ConflictError, match=says) as caught:
                act()
        assert caught.value.where == str(tmp_path)
        assert caught.value.remedy == "wait for it, stop it, or use another run folder"
    assert held == {"version": 2}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != LOCK_NAME} == before


def test_a_second_manager_of_the_same_process_is_refused_also_through_another_path(tmp_path):
    (tmp_path / "other").symlink_to(tmp_path / "run")
    with tk.CheckpointManager(tmp_path / "run", {"all": {}}) as first:
        first.resume()
        with pytest.raises(ConflictError, match="another manager of this process is writing here"):
            tk.CheckpointManager(tmp_path / "other", {"all": {}}).resume()
        assert not is_free(tmp_path / "run"), "looking did not drop the lock"
    assert tk.CheckpointManager(tmp_path / "other", {"all": {}}).resume() == 0


def test_making_a_manager_locks_nothing_and_closing_one_lets_go(tmp_path):
    with tk.CheckpointManager(tmp_path, {"all": {}}) as manager:
        assert list(tmp_path.iterdir()) == []
        manager.resume()
        assert not is_free(tmp_path)
    assert is_free(tmp_path)


def test_a_run_is_free_when_its_writer_was_killed(tmp_path):
    with python(HOLD, tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConflictError):
            RunLock(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    lock = RunLock(tmp_path)
    assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    lock.release()


def test_a_forked_child_does_not_inherit_the_lock_and_cannot_drop_it(tmp_path):
    with python(FORK, tmp_path) as process:
        parent, said = process.stdout.readline().split(" ", 1)
        is_held, conflict = said.split("|")
        assert is_held == "False"
        assert conflict.startswith(f"process {parent} on ")
        assert not is_free(tmp_path), "the child's end did not let go"


def test_a_forked_child_takes_the_lock_when_its_parent_is_gone(tmp_path):
    with python(OUTLIVED, tmp_path) as process:
        assert process.stdout.readline() == "True\n"


def test_a_lock_is_let_go_once(tmp_path):
    lock = RunLock(tmp_path)
    lock.release()
    second = RunLock(tmp_path)
    lock.release()
    assert second.is_held
    assert not is_free(tmp_path)
    second.release()
    assert not second.is_held


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"pid": 1', b"null"])
def test_a_holder_that_wrote_nothing_readable_is_another_process(text, tmp_path):
    with python(HOLD, tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        descriptor = os.open(tmp_path / LOCK_NAME, os.O_WRONLY | os.O_TRUNC)
        os.write(descriptor, text)
        os.close(descriptor)
        with pytest.raises(ConflictError, match="another process is writing here"):
            RunLock(tmp_path)


def test_a_lock_file_that_points_elsewhere_is_not_written_through(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_NAME).symlink_to(tmp_path / "mine")
    with pytest.raises(CheckpointError, match="cannot write in this run folder: Too many levels of symbolic links"):
        tk.CheckpointManager(tmp_path / "run", {"all": {}}).resume()
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize("run", ["file", "file/run"])
def test_a_run_folder_that_cannot_be_is_a_typed_error(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot write in this run folder: Not a directory"):
        tk.CheckpointManager(tmp_path / run, {"all": {}}).save(1)


def test_a_disk_too_full_for_the_holders_name_still_gives_the_lock(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    lock = RunLock(tmp_path)
    assert lock.is_held
    assert not is_free(tmp_path)
    lock.release()


# Where the file system gives no lock


HOLD_LEASE = """
import sys
import threading
import time
from pathlib import Path
from torchkeep.folder.lease import Lease
lease = Lease(Path(sys.argv[1]), float(sys.argv[2]))
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def no_locks(monkeypatch):
    """A file system that knows no record locks, and leases that last for half a second."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(lease.Lease.__init__, "__defaults__", (0.6,))


def test_a_run_is_saved_under_a_lease_that_goes_with_the_manager(no_locks, tmp_path):
    with tk.CheckpointManager(tmp_path, {"all": {"version": 1}}) as manager:
        manager.save(1).wait()
        assert (tmp_path / LEASE_NAME).exists()
        time.sleep(1.2)
        manager.save(2).wait()
    assert sorted(os.listdir(tmp_path)) == [LOCK_NAME, "step-00000001", "step-00000002"]


def test_a_lease_that_is_renewed_keeps_another_process_out_and_is_free_when_that_one_ends(
    no_locks, tmp_path, monkeypatch
):
    monkeypatch.setattr(lease.Lease.__init__, "__defaults__", (6.0,))  # renewed once a second
    with python(HOLD_LEASE, tmp_path, 6) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ConflictError, match=rf"process {process.pid} on .* is writing here"):
            tk.CheckpointManager(tmp_path, {"all": {}}).resume()
    with tk.CheckpointManager(tmp_path, {"all": {}}) as manager:  # the process is dead: no need to wait
        manager.save(1).wait()


def test_a_lease_that_nobody_renews_is_taken_over_and_its_holder_learns_it_before_it_commits(no_locks, tmp_path):
    with python(HOLD_LEASE, tmp_path, 0.6) as process:
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGSTOP)
        with tk.CheckpointManager(tmp_path, {"all": {"version": 1}}) as manager:
            manager.save(1).wait()
            (tmp_path / LEASE_NAME).write_text('{"token": "other", "pid": 7, "host": "far", "since": "now"}')
            with pytest.raises(ConflictError, match=r"process 7 on far .* has taken this run folder over"):
                manager.save(2)
    assert [each.step for each in tk.checkpoints(tmp_path)] == [1]


def test_a_save_whose_lease_was_taken_over_while_it_was_written_is_given_up(no_locks, tmp_path, monkeypatch):
    with tk.CheckpointManager(tmp_path, {"all": {"version": 1}}) as manager:
        manager.save(1).wait()
        write_all = write._write_all

        def write_and_lose(staged):
            (tmp_path / LEASE_NAME).write_text('{"token": "other"}')
            return write_all(staged)

        monkeypatch.setattr(write, "_write_all", write_and_lose)
        with pytest.raises(ConflictError, match="another process has taken this run folder over"):
            manager.save(2).wait()
    assert [each.step for each in tk.checkpoints(tmp_path)] == [1]
    assert not list(tmp_path.glob(".staging-*"))


def test_of_many_that_want_a_dead_lease_one_gets_it(no_locks, tmp_path):
    (tmp_path / LEASE_NAME).write_text("")
    held, refused = [], []

    def want() -> None:
        try:
            held.append(lease.Lease(tmp_path, 0.6))
        except ConflictError as error:
            refused.append(error)

    wanting = [threading.Thread(target=want) for _ in range(6)]
    for thread in wanting:
        thread.start()
    for thread in wanting:
        thread.join()
    assert len(held) + len(refused) == 6
    assert len([each for each in held if _still_holds(each)]) == 1
    for each in held:
        each.release()
    assert os.listdir(tmp_path) == []


def _still_holds(held: lease.Lease) -> bool:
    try:
        held.check()
    except ConflictError:
        return False
    return True


def test_a_worker_that_is_forked_during_a_commit_holds_up_no_later_one(tmp_path):
    with python(FORK_IN_A_COMMIT, tmp_path) as process:
        assert process.stdout.readline() == "3 True\n"


def test_a_lock_whose_release_is_interrupted_is_not_held_and_closes_nobodys_file(tmp_path, monkeypatch):
    def close_and_be_interrupted(descriptor):
        monkeypatch.undo()
        os.close(descriptor)
        raise KeyboardInterrupt

    held = RunLock(tmp_path)
    monkeypatch.setattr(os, "close", close_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        held.release()
    assert not held.is_held
    with (tmp_path / "other").open("w") as other:
        held.release()
        other.write("still open")
    RunLock(tmp_path).release()
