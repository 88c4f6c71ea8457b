"""Folders of ours, of Hugging Face and of runs that a loader must survive: a good one, and what can be done to it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.safetensors_headers import entry, file_of

from torchkeep.folder.digests import digest_of
from torchkeep.folder.draft import Draft, DraftTensor
from torchkeep.folder.record import RECORD_NAME, Entry
from torchkeep.folder.write import save_folder
from torchkeep.tensors import TensorSpec

WEIGHTS = bytes(range(16))


def write_checkpoint(folder: Path, step: int = 3) -> Path:
    """A good checkpoint of two entries with a shard each, of as many other bytes."""
    entries, groups = {}, {}
    for group, held in {"model": WEIGHTS, "head": bytes([step]) * 16}.items():
        tensor = DraftTensor(TensorSpec("uint8", (16,)), may_change=True, reader=memoryview, source=held)
        entries[group] = Entry("value", {"w": {"$tensor": [group, "w"]}})
        groups[group] = {"w": tensor}
    folder.parent.mkdir(parents=True, exist_ok=True)
    return save_folder(folder, Draft(entries, groups, step=step), None, None, 1).path


def signed(members: dict[str, Any]) -> bytes:
    """A record of any members with a digest that is right for it."""
    raw = json.dumps({name: value for name, value in members.items() if name != "digest"}).encode()[:-1]
    raw += b',"digest":"'
    return raw + digest_of(raw).encode() + b'"}\n'


def with_record(edit: Callable[[Any], object]) -> Callable[[Path], Path]:
    """A checkpoint whose record was edited and signed again, as by malice."""

    def make(folder: Path) -> Path:
        path = write_checkpoint(folder / "ckpt")
        members = json.loads((path / RECORD_NAME).read_bytes())
        edit(members)
        return _replaced(path, RECORD_NAME, signed(members))

    return make


def with_record_text(old: str, new: str) -> Callable[[Path], Path]:
    """A checkpoint in whose record a text was replaced, with a digest that is right for it."""

    def make(folder: Path) -> Path:
        path = write_checkpoint(folder / "ckpt")
        text = (path / RECORD_NAME).read_text().rpartition(',"digest":"')[0]
        raw = text.replace(old, new, 1).encode() + b',"digest":"'
        return _replaced(path, RECORD_NAME, raw + digest_of(raw).encode() + b'"}\n')

    return make


def with_record_of_another(folder: Path) -> Path:
    """125: a checkpoint with the record of another one of the same shape."""
    path, other = write_checkpoint(folder / "ckpt"), write_checkpoint(folder / "other", 4)
    return _replaced(path, RECORD_NAME, (other / RECORD_NAME).read_bytes())


def with_record_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """A checkpoint whose record has other bytes."""

    def make(folder: Path) -> Path:
        path = write_checkpoint(folder / "ckpt")
        return _replaced(path, RECORD_NAME, change((path / RECORD_NAME).read_bytes()))

    return make


def with_shard(put: Callable[[Path, Path], object]) -> Callable[[Path], Path]:
    """A checkpoint in which something else is in the place of a shard; `put` gets that place and the whole's folder."""

    def make(folder: Path) -> Path:
        path = write_checkpoint(folder / "ckpt")
        shard = path / "head.safetensors"
        shard.chmod(0o644)
        put(shard, folder)
        return path

    return make


def _replaced(path: Path, name: str, data: bytes) -> Path:
    (path / name).unlink()
    (path / name).write_bytes(data)
    return path


def linked(to: str) -> Callable[[Path, Path], object]:
    """Put a symbolic link in a shard's place."""

    def put(shard: Path, folder: Path) -> None:
        shard.unlink()
        shard.symlink_to(to.format(shard=shard, folder=folder))

    return put


def hard_linked(shard: Path, folder: Path) -> None:
    """Put a hard link to a foreign file in a shard's place."""
    (folder / "foreign").write_bytes(b"somebody's")
    shard.unlink()
    os.link(folder / "foreign", shard)


def swapped(shard: Path, _folder: Path) -> None:
    """Exchange the contents of two shards."""
    other = shard.with_name("model.safetensors")
    shard.rename(shard.with_name("x"))
    other.rename(shard)
    shard.with_name("x").rename(other)


def piped(path: Path, _folder: Path) -> None:
    """Put a pipe in a file's place."""
    path.unlink()
    os.mkfifo(path)


def in_a_folder(content: bytes, name: str = "x") -> Callable[[Path], Path]:
    """A file of any content."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def sparse(head: bytes, nbytes: int) -> Callable[[Path], Path]:
    """A file of which only the head is there and the rest is a hole."""

    def make(folder: Path) -> Path:
        path = in_a_folder(head)(folder)
        os.truncate(path, nbytes)
        return path

    return make


def hugging_face(weight_map: object, *, index: bytes | None = None) -> Callable[[Path], Path]:
    """A Hugging Face folder of two shards, with any weight_map or any index."""

    def make(folder: Path) -> Path:
        for number, name in enumerate(["a", "b"]):
            (folder / f"{number}.safetensors").write_bytes(file_of({name: entry()}))
        data = json.dumps({"metadata": {"total_size": 16}, "weight_map": weight_map}).encode()
        (folder / "model.safetensors.index.json").write_bytes(data if index is None else index)
        return folder

    return make


def index_of(count: int) -> bytes:
    """117: an index of very many names."""
    return b'{"weight_map":{' + b",".join(b'"%d":"0.safetensors"' % number for number in range(count)) + b"}}"


GOOD_MAP = {"a": "0.safetensors", "b": "1.safetensors"}


def hugging_face_with(put: Callable[[Path, Path], object]) -> Callable[[Path], Path]:
    """A good Hugging Face folder in which something else is in the place of its first shard."""

    def make(folder: Path) -> Path:
        hugging_face(GOOD_MAP)(folder)
        put(folder / "0.safetensors", folder)
        return folder

    return make


def run_of(put: Callable[[Path], object]) -> Callable[[Path], Path]:
    """A run of steps 3 and 4 with something else in its folder; the newest checkpoint is opened."""

    def make(folder: Path) -> Path:
        for step in (3, 4):
            write_checkpoint(folder / f"step-{step:08d}", step)
        put(folder)
        return folder / "step-00000004"

    return make


def crowded(folder: Path) -> None:
    """Put folders, temporary files and names that are not UTF-8 into a run."""
    for number in range(2_000):
        (folder / f"file-{number}").touch()
    (folder / "step-00000009").mkdir()
    (folder / ".staging-0123456789abcdef").mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/step-\xff\xfe")).mkdir()
