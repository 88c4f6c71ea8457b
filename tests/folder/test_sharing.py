"""Unchanged shards are hard links, and yet every checkpoint is whole by itself."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import torchkeep as tk
from torchkeep.errors import CorruptError
from torchkeep.folder.write import Saved

PARTS = ["a", "b", "c"]


def state(version: int) -> dict[str, object]:
    """Three entries that stay and one that changes."""
    kept = {part: {"w": torch.full((700,), float(ord(part)))} for part in PARTS}
    return {**kept, "head": {"w": torch.full((50,), float(version))}, "progress": {"version": version}}


def save_steps(run: Path, versions: Sequence[int]) -> list[Saved]:
    """Go on with a run, one save for each version."""
    held, saved = state(0), []
    with tk.CheckpointManager(run, held) as manager:
        manager.resume()
        for version in versions:
            for name, values in state(version).items():
                held[name].update(values)
            saved.append(manager.save(version).result())
    return saved


def is_whole(path: Path, version: int) -> bool:
    found, wanted = tk.load(path), state(version)
    assert tk.verify(path).ok
    assert found["progress"] == {"version": version}
    return all(torch.equal(found[name]["w"], wanted[name]["w"]) for name in (*PARTS, "head"))


def inodes(path: Path) -> dict[str, int]:
    return {file.name.split(".")[0]: file.stat().st_ino for file in path.glob("*.safetensors")}


def damage(file: Path) -> None:
    """Change a byte in place and put the time back: size and mtime say that nothing happened."""
    status = file.stat()
    file.chmod(0o644)
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\xff")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    file.chmod(0o444)


def test_unchanged_shards_are_the_same_inode_and_changed_ones_are_not(tmp_path):
    first, second = save_steps(tmp_path, [1, 2])
    before, after = inodes(first.path), inodes(second.path)
    assert {name for name in after if after[name] == before[name]} == set(PARTS)
    assert second.linked_bytes == sum((second.path / f"{part}.safetensors").stat().st_size for part in PARTS)
    assert second.written_bytes == (second.path / "head.safetensors").stat().st_size
    assert second.notes == ()
    assert is_whole(first.path, 1)
    assert is_whole(second.path, 2)


def test_a_save_over_itself_links_what_did_not_change(tmp_path):
    before = inodes(tk.save(state(1), tmp_path / "ckpt").path)
    after = inodes(tk.save(state(2), tmp_path / "ckpt").path)
    assert {name for name in after if after[name] == before[name]} == set(PARTS)
    assert is_whole(tmp_path / "ckpt", 2)


def test_shards_of_a_group_keep_their_inode_under_the_name_that_their_content_gives(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    tk.freeze(model, "0")
    first = inodes(tk.save({"model": model}, tmp_path / "ckpt").path)
    with torch.no_grad():
        model[1].weight.zero_()
    saved = tk.save({"model": model}, tmp_path / "ckpt")
    assert len(set(first.values()) & set(inodes(saved.path).values())) == 1
    assert saved.linked_bytes == saved.written_bytes
    assert torch.equal(tk.load(saved.path)["model"]["0.weight"], model[0].weight)


def test_a_tensor_of_another_dtype_or_shape_with_equal_bytes_is_written(tmp_path):
    for value in (torch.zeros(8, 2), torch.zeros(2, 8), torch.zeros(16, dtype=torch.int32)):
        saved = tk.save({"w": value}, tmp_path / "ckpt")
        assert saved.linked_bytes == 0
        assert tk.load(saved.path)["w"].dtype == value.dtype
        assert tk.load(saved.path)["w"].shape == value.shape


def test_a_copy_of_one_checkpoint_is_whole(tmp_path):
    path = save_steps(tmp_path / "run", [1, 2])[-1].path
    copy = shutil.copytree(path, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "run")
    assert is_whole(copy, 2)
    assert all(file.stat().st_nlink == 1 for file in copy.iterdir())


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_removing_a_checkpoint_hurts_no_other(gone, tmp_path):
    saved = save_steps(tmp_path, [1, 2, 3])
    shutil.rmtree(saved[gone - 1].path)
    for version in {1, 2, 3} - {gone}:
        assert is_whole(saved[version - 1].path, version)
    save_steps(tmp_path, [4])
    assert is_whole(tmp_path / "step-00000004", 4)


@pytest.mark.parametrize("part", PARTS)
def test_silent_damage_of_a_shared_shard_is_found_in_rotation_and_the_next_save_writes_it_anew(part, tmp_path):
    held = state(0)
    with tk.CheckpointManager(tmp_path, held) as manager:
        path = manager.save(0).wait()
        damage(path / f"{part}.safetensors")
        for version in range(1, len(PARTS) + 3):
            held["head"]["w"] += 1
            held["progress"]["version"] = version
            saved = manager.save(version).result()
            if saved.notes:
                break
    [note] = saved.notes
    assert note.startswith(f"{part}.safetensors: written again, not linked: the parent's file is damaged (")
    assert "bytes 0 to 2800 differ from their digest" in note
    found, mended = manager.notes
    assert found.startswith(f"step-{version - 1:08}/{part}.safetensors: the parent's file is damaged (")
    assert found.endswith("; the next save writes it anew")
    assert mended == note
    assert is_whole(saved.path, version)
    with pytest.raises(CorruptError, match=f"{part}.safetensors: {part}.w: bytes 0 to 2800 differ from their digest"):
        tk.load(path)


def turn_away(file: Path) -> None:
    """Only the time differs: a copy made without it, a restore, a tool that touched everything."""
    file.touch()


def shorten(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def replace_by_a_link(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/null")


def take_away(file: Path) -> None:
    file.unlink()


def damage_with_a_new_time(file: Path) -> None:
    damage(file)
    file.touch()


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (turn_away, None),
        (damage_with_a_new_time, "the parent's file is damaged"),
        (shorten, "the parent's file is damaged"),
        (replace_by_a_link, "the parent's file is damaged"),
        (take_away, "no such file or directory"),
    ],
)
@pytest.mark.parametrize("part", PARTS)
def test_what_is_not_as_the_record_says_is_looked_into_before_it_is_linked(part, change, note, tmp_path):
    held = state(1)
    with tk.CheckpointManager(tmp_path, held) as manager:
        path = manager.save(1).wait()
        change(path / f"{part}.safetensors")
        held["progress"]["version"] = 2
        saved = manager.save(2).result()
    if note is None:
        assert saved.notes == ()
        assert inodes(saved.path)[part] == inodes(path)[part]
    else:
        assert [text.split(" (")[0] for text in saved.notes] == [
            f"{part}.safetensors: written again, not linked: {note}"
        ]
    assert tk.verify(saved.path).ok
    assert torch.equal(tk.load(saved.path)[part]["w"], state(1)[part]["w"])


@pytest.mark.parametrize(
    ("number", "says"), [(errno.EMLINK, "too many links"), (errno.EPERM, "operation not permitted")]
)
def test_what_cannot_be_linked_is_written_and_noted(number, says, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    first, second = save_steps(tmp_path, [1, 2])
    assert first.notes == ()
    assert second.notes == tuple(f"{part}.safetensors: written again, not linked: {says}" for part in PARTS)
    assert second.linked_bytes == 0
    assert not set(inodes(first.path).values()) & set(inodes(second.path).values())
    assert is_whole(second.path, 2)


def test_shared_shards_are_read_only_and_count_once_in_what_a_run_takes(tmp_path):
    saved = save_steps(tmp_path, [1, 2, 3])
    run = tk.checkpoints(tmp_path)
    assert run.disk_bytes == saved[0].written_bytes + saved[1].written_bytes + saved[2].written_bytes
    assert all(file.stat().st_mode & 0o222 == 0 for each in saved for file in each.path.iterdir())
