"""Faults of real disks and people: a disk that turns read-only, rights that go, clocks that jump, folders that move.

The save fails with a typed error, training may go on, the previous checkpoint stays, and nothing is left that a later
run trips over.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.crash.versions import NEW, NEXT, OLD, Run, leftovers, newest_version, save_step, save_version, version_at

import torchkeep as tk
from torchkeep.errors import CheckpointError, ConflictError

NOBODY = 65_534


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system in memory that can be mounted anew."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("to mount a file system takes root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


@pytest.mark.parametrize("name", ["ckpt", "one.safetensors"])
def test_a_disk_that_turned_read_only_is_said_and_read_on(name, disk):
    save_version(disk / name, OLD)
    remount(disk, "ro")
    with pytest.raises(CheckpointError, match="not saved: Read-only file system"):
        save_version(disk / name, NEW)
    assert version_at(disk / name) == OLD
    remount(disk, "rw")
    save_version(disk / name, NEW)
    assert version_at(disk / name) == NEW
    assert [each.name for each in disk.iterdir()] == [name]


def as_nobody(act: Callable[[], None], *paths: Path) -> None:
    """Act as a user who is not root and owns these paths, in a fork; an exception there fails the test."""
    if os.geteuid():
        act()
        return
    for path in paths:
        os.chown(path, NOBODY, NOBODY)
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            act()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def everybodys():
    """Give a folder that any user can reach."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_rights_that_were_lost_are_said_and_the_run_goes_on_when_they_are_back(everybodys):
    def act() -> None:
        folder = everybodys / "run"
        run = Run(folder)
        with run.manager:
            run.save(OLD)
            folder.chmod(0o555)
            with pytest.raises(CheckpointError, match="not saved: Permission denied"):
                run.save(NEW)
            folder.chmod(0o000)
            with pytest.raises(CheckpointError):
                run.save(NEW)
            folder.chmod(0o755)
            assert newest_version(folder) == OLD
            run.save(NEW)
        assert newest_version(folder) == NEW
        assert leftovers(everybodys) == []

    as_nobody(act)


def test_a_checkpoint_that_may_not_be_read_raises_and_is_not_taken_for_damage(everybodys):
    def act() -> None:
        folder = everybodys / "run"
        save_step(folder, OLD)
        record = folder / f"step-{OLD:08d}" / "checkpoint.json"
        record.chmod(0o000)
        run = Run(folder)
        for look in (tk.load, tk.verify, lambda _: run.manager.resume()):
            with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
                look(record.parent)
        record.chmod(0o444)
        assert newest_version(folder) == OLD

    as_nobody(act)


@pytest.mark.parametrize("most", [1, 7, 4096])
def test_writes_that_are_short_are_written_to_the_end(most, tmp_path, monkeypatch):
    def shortly(descriptor: int, data: memoryview, at: int) -> int:
        # A write past the page cache is short by whole blocks.
        return pwrite(descriptor, memoryview(data)[: max(most, 4096) if len(data) > 4096 else most], at)

    pwrite, write = os.pwrite, os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, memoryview(data)[:most]))
    monkeypatch.setattr(os, "pwrite", shortly)
    save_version(tmp_path / "ckpt", OLD)
    save_version(tmp_path / "one.safetensors", OLD)
    monkeypatch.undo()
    assert version_at(tmp_path / "ckpt") == version_at(tmp_path / "one.safetensors") == OLD


@pytest.mark.parametrize("name", ["ckpt", "one.safetensors"])
def test_a_file_whose_close_fails_was_not_saved_or_was_flushed_before(name, tmp_path, monkeypatch):
    """What a close reports is told, unless everything had been flushed: then it is no news."""
    close, failing = os.close, [0]

    def close_and_fail(descriptor: int) -> None:
        close(descriptor)
        failing[0] -= 1
        if failing[0] == 0:
            raise OSError(5, "Input/output error")

    save_version(tmp_path / name, OLD)
    gc.collect()  # what other tests left open
    monkeypatch.setattr(os, "close", close_and_fail)
    for number in range(1, 60):
        failing[0] = number
        try:
            save_version(tmp_path / name, NEW)
        except CheckpointError:
            assert failing[0] <= 0
        if failing[0] > 0:
            break
        failing[0] = 0
        assert version_at(tmp_path / name) in {OLD, NEW}
        save_version(tmp_path / name, OLD)
        assert version_at(tmp_path / name) == OLD
    assert 2 < number < 59
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("jump_seconds", [-400 * 86_400, 400 * 86_400, -50 * 366 * 86_400])
def test_a_clock_that_jumps_changes_nothing_about_which_step_is_the_newest(jump_seconds, tmp_path, monkeypatch):
    now, now_ns = time.time, time.time_ns
    run = Run(tmp_path / "run")
    with run.manager:
        run.save(OLD)
        monkeypatch.setattr(time, "time", lambda: now() + jump_seconds)
        monkeypatch.setattr(time, "time_ns", lambda: now_ns() + int(jump_seconds * 1e9))
        run.save(NEW)
    assert newest_version(tmp_path / "run") == NEW
    monkeypatch.undo()
    save_step(tmp_path / "run", NEXT)
    assert newest_version(tmp_path / "run") == NEXT
    assert leftovers(tmp_path) == []


def test_a_run_folder_that_was_moved_is_said_and_goes_on_when_it_is_back(tmp_path):
    run = Run(tmp_path / "run")
    with run.manager:
        run.save(OLD)
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(ConflictError, match="the run folder was removed or replaced while it was in use"):
            run.save(NEW)
        assert not (tmp_path / "run").exists()
        (tmp_path / "moved").rename(tmp_path / "run")
        run.save(NEW)
    assert newest_version(tmp_path / "run") == NEW


def test_a_run_folder_that_was_moved_while_nobody_wrote_is_resumed_where_it_is(tmp_path):
    save_step(tmp_path / "run", OLD)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").rename(tmp_path / "elsewhere" / "run")
    save_step(tmp_path / "elsewhere" / "run", NEW)
    assert newest_version(tmp_path / "elsewhere" / "run") == NEW


@pytest.mark.parametrize("how", ["-r", "-a"])
def test_a_copy_of_a_run_that_somebody_writes_is_a_run_of_its_own(how, tmp_path):
    run = Run(tmp_path / "run")
    with run.manager:
        run.save(OLD)
        (tmp_path / "run" / ".staging-0123456789abcdef").mkdir()
        (tmp_path / "run" / ".trash-0123456789abcdef").mkdir()
        (tmp_path / "copied").mkdir()
        subprocess.run(["cp", how, tmp_path / "run", tmp_path / "copied"], check=True)
        save_step(tmp_path / "copied" / "run", NEW)
        assert newest_version(tmp_path / "copied" / "run") == NEW
        assert leftovers(tmp_path / "copied") == []
        run.save(NEXT)
    assert newest_version(tmp_path / "run") == NEXT
    assert newest_version(tmp_path / "copied" / "run") == NEW


def test_files_larger_than_the_process_may_write_are_a_typed_error(tmp_path):
    program = (
        "import resource, sys; from pathlib import Path\n"
        "import torchkeep as tk; from tests.crash.versions import save_version, version_at\n"
        "save_version(Path(sys.argv[1]), 1)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        "try: save_version(Path(sys.argv[1]), 2)\n"
        "except tk.errors.CheckpointError as error: print(error.what)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "print(version_at(Path(sys.argv[1])))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program, tmp_path / "ckpt"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "the checkpoint was not saved: File too large\n1\n"
    assert os.listdir(tmp_path) == ["ckpt"]
