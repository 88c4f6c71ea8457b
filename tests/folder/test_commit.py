"""When a checkpoint exists, and how one comes, is replaced, and goes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import torchkeep as tk
from torchkeep.errors import CheckpointError, ConflictError, CorruptError, NotFoundError
from torchkeep.folder import commit, removal, renames
from torchkeep.folder.committed import identity_at, read_record
from torchkeep.folder.draft import DraftTensor
from torchkeep.folder.record import RECORD_NAME
from torchkeep.folder.recovery import recover
from torchkeep.folder.removal import remove
from torchkeep.folder.single_file import save_file
from torchkeep.folder.staging import StagingFolder
from torchkeep.folder.write import finish, save_folder, stage
from torchkeep.tensors import TensorSpec
from torchkeep.verbs.saving import draft_of


def save(path: Path, version: int = 1) -> Path:
    return tk.save({"w": torch.full((1000,), float(version)), "version": version}, path, io_threads=1).path


def version_at(path: Path) -> int:
    found = tk.load(path)
    assert torch.equal(found["w"], torch.full((1000,), float(found["version"])))
    return found["version"]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is in the way


def somebodys_file(path: Path) -> None:
    path.write_bytes(b"mine")


def somebodys_folder(path: Path) -> None:
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"mine")


def somebodys_pipe(path: Path) -> None:
    os.mkfifo(path)


def folder_with_an_empty_one(path: Path) -> None:
    (path / "empty").mkdir(parents=True)


def folder_called_as_the_record(path: Path) -> None:
    (path / RECORD_NAME).mkdir(parents=True)


def link_to_a_file(path: Path) -> None:
    path.with_name("thing").write_bytes(b"mine")
    path.symlink_to("thing")


def somebodys_safetensors_file(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(3)}, path, {"format": "pt"})


@pytest.mark.parametrize("name", ["ckpt", "w.safetensors"])
@pytest.mark.parametrize(
    ("kind", "put"),
    [
        ("file", somebodys_file),
        ("folder", somebodys_folder),
        ("file", somebodys_pipe),
        ("folder", folder_with_an_empty_one),
        ("folder", folder_called_as_the_record),
        ("file", link_to_a_file),
        ("file", somebodys_safetensors_file),
    ],
)
def test_what_torchkeep_did_not_write_is_left_as_it_is(name, kind, put, tmp_path):
    put(tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    names = names_in(tmp_path)
    with pytest.raises(
        ConflictError, match=f"a {kind} that torchkeep did not write is in the way; it was left as it is"
    ):
        save(tmp_path / name)
    assert names_in(tmp_path) == names
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["ckpt", "w.safetensors"])
def test_a_save_through_a_symlink_replaces_what_it_points_to(name, tmp_path):
    save(tmp_path / "real" / name)
    (tmp_path / name).symlink_to(tmp_path / "real" / name)
    assert save(tmp_path / name, 2) == tmp_path / "real" / name
    assert (tmp_path / name).is_symlink()
    assert version_at(tmp_path / "real" / name) == 2
    assert names_in(tmp_path / "real") == [name]


@pytest.mark.parametrize("name", ["file/ckpt", "file/deeper/ckpt", "file/w.safetensors"])
def test_a_file_where_a_folder_above_should_be_is_a_typed_error(name, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(ConflictError, match="file: a file is in the way: what is to be saved would be in a folder of"):
        save(tmp_path / name)
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["ckpt", "w.safetensors"])
def test_a_newer_save_that_came_meanwhile_is_not_replaced_by_an_older_one(name, tmp_path):
    target = tmp_path / name
    meanwhile = []

    def read(_source):
        if not meanwhile:
            meanwhile.append(save(target, 2))
        return memoryview(bytes(4))

    slow = DraftTensor(TensorSpec("uint8", (4,)), may_change=True, reader=read)
    older = replace(draft_of({"version": 1}), groups={"w": {"w": slow}})
    with pytest.raises(ConflictError, match="a save that began later is already here; it was left as it is"):
        save_file(target, older, 1) if target.suffix else save_folder(target, older, None, None, 1)
    assert version_at(target) == 2
    assert names_in(tmp_path) == [name]


@pytest.mark.parametrize("name", ["ckpt", "w.safetensors"])
def test_a_clock_that_was_set_back_keeps_nobody_from_saving_again(name, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("time.time_ns", lambda: 2**62)
        save(tmp_path / name, 1)
    assert version_at(save(tmp_path / name, 2)) == 2


def test_a_save_that_began_first_and_ends_last_gives_way(tmp_path):
    early = stage(tmp_path / "ckpt", draft_of({"version": 1}), None, None, 1)
    save(tmp_path / "ckpt", 2)
    with pytest.raises(ConflictError, match="a save that began later is already here"):
        finish(early)
    assert version_at(tmp_path / "ckpt") == 2
    assert names_in(tmp_path) == ["ckpt"]


def test_many_writers_of_one_path_leave_one_whole_checkpoint_and_nothing_else(tmp_path):
    unexpected = []

    def write(writer: int) -> None:
        for turn in range(25):
            try:
                tk.save({"version": writer * 100 + turn, "w": torch.full((50,), writer)}, tmp_path / "ckpt")
            except ConflictError:
                pass
            except CheckpointError as error:
                unexpected.append(str(error))

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert unexpected == []
    state = tk.load(tmp_path / "ckpt")
    assert state["w"][0] == state["version"] // 100
    save(tmp_path / "ckpt", 2)
    assert names_in(tmp_path) == ["ckpt"]


def test_something_that_comes_while_a_save_is_written_is_left_as_it_is(tmp_path):
    staged = stage(tmp_path / "ckpt", draft_of({"version": 1}), None, None, 1)
    somebodys_folder(tmp_path / "ckpt")
    with pytest.raises(ConflictError, match="a folder that torchkeep did not write is in the way"):
        finish(staged)
    assert names_in(tmp_path) == ["ckpt"]
    assert names_in(tmp_path / "ckpt") == ["model.safetensors"]


def test_a_damaged_checkpoint_is_replaced(tmp_path):
    path = save(tmp_path / "ckpt")
    (path / RECORD_NAME).chmod(0o644)
    (path / RECORD_NAME).write_bytes((path / RECORD_NAME).read_bytes()[:-9])
    save(path, 2)
    assert version_at(path) == 2


def test_somebodys_file_of_the_records_name_does_not_make_a_folder_ours(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / RECORD_NAME).write_text('{"epoch": 3}')
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConflictError, match="a folder that torchkeep did not write is in the way"):
        save(tmp_path / "mine")
    assert names_in(tmp_path / "mine") == [RECORD_NAME, "thesis.txt"]


def test_files_that_somebody_put_into_a_checkpoint_are_not_removed_by_saving_over_it(tmp_path):
    path = save(tmp_path / "ckpt")
    (path / "config.json").write_text("{}")
    with pytest.raises(ConflictError, match=r"would remove files that torchkeep did not write(.|\n)*config\.json"):
        save(path, 2)
    assert version_at(path) == 1
    with pytest.raises(ConflictError, match="this would be inside a checkpoint"):
        save(path / "inner")
    (path / "config.json").unlink()
    assert version_at(save(path, 2)) == 2


def test_an_empty_folder_is_nobodys_data(tmp_path):
    (tmp_path / "ckpt").mkdir()
    assert version_at(save(tmp_path / "ckpt")) == 1


# What exists


@pytest.mark.parametrize(
    ("put", "error", "says"),
    [
        (lambda path: None, NotFoundError, "no torchkeep checkpoint here"),
        (lambda path: path.mkdir(), CorruptError, "the record is not a plain file"),
        (os.mkfifo, CorruptError, "the record is not a plain file"),
        (lambda path: path.symlink_to(path.name), CorruptError, "the record is not a plain file"),
        (lambda path: path.symlink_to("/dev/zero"), CorruptError, "the record is not a plain file"),
        (lambda path: path.symlink_to(__file__), CorruptError, "the record is not a plain file"),
        (lambda path: path.write_bytes(b""), CorruptError, "the record is damaged: it does not end in the digest"),
    ],
)
def test_a_record_that_is_no_record_is_a_typed_error(put, error, says, tmp_path):
    put(tmp_path / RECORD_NAME)
    with pytest.raises(error, match=says):
        read_record(tmp_path)
    assert identity_at(tmp_path) is None


def test_a_checkpoint_is_committed_when_its_record_is_whole(tmp_path):
    path = save(tmp_path / "ckpt")
    assert identity_at(path) == read_record(path).id
    assert identity_at(tmp_path / "nothing") is None
    assert identity_at(path / RECORD_NAME) is None


# Leftovers

HOLD_STAGING = """
import sys
from pathlib import Path
from torchkeep.folder.staging import StagingFolder
staging = StagingFolder(Path(sys.argv[1]), as_file=sys.argv[2] == "file")
if sys.argv[2] == "folder":
    (staging.path / "model.safetensors").write_bytes(b"half")
print(staging.path.name, flush=True)
sys.stdin.read()
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", ["ckpt", "w.safetensors"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_dead_writer_staged_is_cleaned_and_what_a_live_one_stages_is_left(kind, name, tmp_path):
    with python(HOLD_STAGING, tmp_path, kind) as writer:
        staged = writer.stdout.readline().strip()
        save(tmp_path / name)
        assert names_in(tmp_path) == [staged, name]
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    save(tmp_path / name, 2)
    assert names_in(tmp_path) == [name]


def test_only_leftovers_are_cleaned(tmp_path):
    kept = [".staging-mine", ".trash", ".aside-0123456789abcdef-", ".hidden", ".damaged-1", "plain"]
    for name in kept:
        (tmp_path / name).mkdir()
    somebodys_folder(tmp_path / "plain" / "deep")
    (tmp_path / ".staging-0123456789abcdef").symlink_to("plain")
    (tmp_path / ".trash-0123456789abcdef").mkdir()
    recover(tmp_path)
    assert names_in(tmp_path) == sorted([*kept, ".staging-0123456789abcdef"])
    assert names_in(tmp_path / "plain" / "deep") == ["model.safetensors"]


def test_of_two_that_were_renamed_aside_the_newer_comes_back(tmp_path):
    for version, name in enumerate(["older", "newer"]):
        save(tmp_path / name, version)
    (tmp_path / "older").rename(tmp_path / ".aside-0123456789abcdef-ckpt")
    (tmp_path / "newer").rename(tmp_path / ".aside-fedcba9876543210-ckpt")
    (tmp_path / ".aside-00000000000000ff-ckpt").mkdir()
    recover(tmp_path)
    assert tk.load(tmp_path / "ckpt")["version"] == 1
    assert os.listdir(tmp_path) == ["ckpt"]


def test_what_cannot_be_cleaned_keeps_nobody_from_saving(tmp_path, monkeypatch):
    (tmp_path / ".trash-0123456789abcdef").mkdir()
    (tmp_path / ".staging-0123456789abcdef").mkdir()
    monkeypatch.setattr(removal, "delete_tree", _refuse)
    save(tmp_path / "ckpt")
    assert version_at(tmp_path / "ckpt") == 1


def _refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, "no")


@pytest.mark.parametrize("exchange", [True, False])
def test_another_writers_cleaning_takes_nothing_from_a_replacement_under_way(exchange, tmp_path, monkeypatch):
    path = save(tmp_path / "ckpt")
    renameat2, fsync_path, cleaned, cleaners = renames._renameat2, commit.fsync_path, [], []

    def clean(when: str) -> None:
        cleaned.append(when)
        cleaners.append(threading.Thread(target=recover, args=(tmp_path,)))
        cleaners[-1].start()
        time.sleep(0.05)  # a cleaner that does not wait for the writer would be through by then

    def rename_then_clean(old: Path, new: Path, flag: int) -> int:
        error = renameat2(old, new, flag) if exchange else errno.ENOSYS
        if flag == 2 and not error:
            clean("after the exchange")
        return error

    def flush_then_clean(folder: Path) -> None:
        fsync_path(folder)
        if path.exists() and folder == tmp_path and "before the removal" not in cleaned:
            clean("before the removal")

    monkeypatch.setattr(renames, "_renameat2", rename_then_clean)
    monkeypatch.setattr(commit, "fsync_path", flush_then_clean)
    save(path, 2)
    for cleaner in cleaners:
        cleaner.join()
    assert version_at(path) == 2
    assert names_in(tmp_path) == ["ckpt"]
    assert cleaned == ["after the exchange"] * exchange + ["before the removal"]


# Without exchange


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Act like a file system that knows `RENAME_NOREPLACE` but not `RENAME_EXCHANGE`."""
    renameat2 = renames._renameat2
    monkeypatch.setattr(
        renames, "_renameat2", lambda old, new, flag: errno.EINVAL if flag == 2 else renameat2(old, new, flag)
    )


@pytest.mark.usefixtures("no_exchange")
def test_without_exchange_a_checkpoint_is_replaced_and_nothing_is_left(tmp_path):
    path = save(tmp_path / "ckpt")
    save(path, 2)
    assert version_at(path) == 2
    assert names_in(tmp_path) == ["ckpt"]


@pytest.mark.usefixtures("no_exchange")
def test_without_exchange_a_replacement_that_fails_half_way_is_put_back(tmp_path, monkeypatch):
    path = save(tmp_path / "ckpt")
    rename = Path.rename

    def fail_second(old: Path, new: Path) -> Path:
        if new == path:
            raise OSError(errno.EIO, "broken")
        return rename(old, new)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(CheckpointError, match="the checkpoint was not saved: Input/output error"):
        save(path, 2)
    assert version_at(path) == 1
    assert names_in(tmp_path) == ["ckpt"]


@pytest.mark.parametrize("step", [None, 2], ids=["a folder of checkpoints", "a run"])
def test_an_aside_whose_final_name_is_absent_is_put_back_by_the_next_writer(step, tmp_path):
    with tk.CheckpointManager(tmp_path, {"all": {"version": 1}}) as manager:
        path = manager.save(7).wait()
    path.rename(tmp_path / f".aside-0123456789abcdef-{path.name}")
    if step is None:
        save(tmp_path / "other")
        (tmp_path / ".lock").unlink()
        assert names_in(tmp_path) == ["other", path.name]
    else:
        held = {"version": 0}
        with tk.CheckpointManager(tmp_path, {"all": held}) as manager:
            assert manager.resume() == 8
        assert held == {"version": 1}


def test_an_aside_whose_final_name_is_absent_is_put_back_by_a_reader(tmp_path):
    path = save(tmp_path / "ckpt")
    path.rename(tmp_path / ".aside-0123456789abcdef-ckpt")
    assert version_at(path) == 1


def test_an_aside_whose_final_name_is_there_is_removed(tmp_path):
    path = save(tmp_path / "ckpt")
    shutil.copytree(path, tmp_path / ".aside-0123456789abcdef-ckpt")
    recover(tmp_path)
    assert names_in(tmp_path) == ["ckpt"]


# Disks that fail


def test_everything_that_a_save_makes_is_flushed(tmp_path, monkeypatch):
    flushed = set()
    fsync = os.fsync

    def note(descriptor: int) -> None:
        fsync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", note)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    tk.freeze(model, "0")
    first = tk.save({"model": model}, tmp_path / "deep" / "er" / "ckpt")
    made = [tmp_path, *tmp_path.rglob("*")]
    assert len(made) == 8
    assert {path.stat().st_ino for path in made} <= flushed
    flushed.clear()
    second = tk.save({"model": model}, first.path)
    assert second.written_bytes == 0
    assert {path.stat().st_ino for path in first.path.iterdir()} <= flushed, "linked shards are flushed too"


@pytest.mark.parametrize("name", ["deep/ckpt", "deep/w.safetensors"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_fsync_fails_the_save_and_is_not_tried_again(name, exists, tmp_path, monkeypatch):
    fsync, failing = os.fsync, [0]

    def fail_at(descriptor: int) -> None:
        failing[0] -= 1
        if failing[0] == 0:
            raise OSError(errno.EIO, "broken")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_at)
    said = []
    for number in range(1, 50):
        path = tmp_path / str(number) / name
        if exists:
            save(path)
        failing[0] = number
        try:
            save(path, 2)
        except CheckpointError as error:
            said.append(error.what)
        else:
            if failing[0] > 0:
                break
            continue  # it failed in the removal of the replaced one, after the commit
        in_place = "is in place" in said[-1]
        assert failing[0] == 0 or in_place
        assert not exists or version_at(path) == (2 if in_place else 1)
        assert exists or path.exists() == in_place
    assert set(said) == {
        "the checkpoint was not saved: Input/output error",
        "the checkpoint is in place, but its folder could not be flushed: Input/output error",
    }


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or mount is None or subprocess.run([mount, *options], check=False).returncode:
        pytest.skip("to mount a small file system takes root")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def big(version: int) -> dict[str, object]:
    return {"w": torch.full((40_000,), float(version)), "version": version}


@pytest.mark.parametrize("name", ["ckpt", "w.safetensors"])
def test_a_full_disk_is_a_typed_error_and_leaves_what_was_there(name, small_disk):
    tk.save(big(1), small_disk / name)
    with pytest.raises(CheckpointError, match="the checkpoint was not saved: No space left on device") as caught:
        tk.save(big(2), small_disk / name)
    assert caught.value.remedy == "what was there before is unchanged; free space or mend access, then save again"
    assert torch.equal(tk.load(small_disk / name)["w"], torch.full((40_000,), 1.0))
    assert names_in(small_disk) == [name]


def test_a_full_disk_fails_one_save_of_a_run_and_the_next_one_with_room_succeeds(small_disk):
    held = big(1)
    with tk.CheckpointManager(small_disk / "run", {"all": held}) as manager:
        manager.save(1).wait()
        held.update(big(2))
        manager.save(2)
        with pytest.raises(CheckpointError, match="the checkpoint was not saved: No space left on device"):
            manager.wait()
        assert [each.step for each in tk.checkpoints(small_disk / "run")] == [1]
        assert names_in(small_disk / "run") == [".lock", "step-00000001"]
        remove(small_disk / "run" / "step-00000001")
        manager.save(2).wait()
    assert tk.load(tk.checkpoints(small_disk / "run").latest())["all"]["version"] == 2


# How one goes


def test_removal_takes_the_name_first_then_the_record_then_the_rest(tmp_path, monkeypatch):
    path, seen = save(tmp_path / "ckpt"), []
    delete: Callable[[Path], None] = removal.delete_tree

    def look(trash: Path) -> None:
        seen.append((trash.name[:7], (trash / RECORD_NAME).exists(), path.exists()))
        delete(trash)

    monkeypatch.setattr(removal, "delete_tree", look)
    remove(path)
    assert seen == [(".trash-", False, False)]
    assert names_in(tmp_path) == []


def _cannot_be_renamed(*_: object) -> Path:
    raise OSError(errno.EXDEV, "a mount point")


def test_a_checkpoint_that_cannot_be_renamed_loses_its_record_first(tmp_path, monkeypatch):
    path = save(tmp_path / "ckpt")
    monkeypatch.setattr(Path, "rename", _cannot_be_renamed)
    remove(path)
    assert names_in(tmp_path) == []


def test_a_folder_that_cannot_be_renamed_and_has_no_record_is_left(tmp_path, monkeypatch):
    somebodys_folder(tmp_path / "mount")
    monkeypatch.setattr(Path, "rename", _cannot_be_renamed)
    with pytest.raises(ConflictError, match="cannot be renamed, so it cannot be removed in one step"):
        remove(tmp_path / "mount")
    assert names_in(tmp_path / "mount") == ["model.safetensors"]


def test_a_staging_that_is_discarded_takes_only_its_own_away(tmp_path):
    staging = StagingFolder(tmp_path)
    staging.path.rmdir()
    somebodys_folder(staging.path)
    staging.discard()
    staging.discard()
    assert names_in(staging.path) == ["model.safetensors"]


def test_a_staging_that_an_interrupt_orphaned_is_cleaned_up_by_the_next_save_of_the_same_process(tmp_path):
    staging = StagingFolder(tmp_path)
    recover(tmp_path)
    assert staging.path.exists()
    path = staging.path
    del staging
    recover(tmp_path)
    assert not path.exists()
