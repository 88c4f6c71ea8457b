"""Folders of torch.distributed.checkpoint that a loader must survive: a good one, and edits of what it says."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

DATA = "__0_0.distcp"
WEIGHT = torch.arange(8.0).reshape(2, 4)
CHUNKS = {(0, 0): (2, 3), (0, 3): (2, 1)}


def saved(value: object) -> bytes:
    """What torch.save writes."""
    made = io.BytesIO()
    torch.save(value, made)
    return made.getvalue()


def chunk(offsets: tuple[int, ...], sizes: tuple[int, ...]) -> ChunkStorageMetadata:
    """One chunk; negative numbers too, which torch.Size takes."""
    return ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


def write_folder(folder: Path, edit: Callable[[Metadata], object] = lambda _: None, value: bytes | None = None) -> Path:
    """A folder of one tensor in two chunks, ``"model.weight"``, and one value, ``"epoch"``, its metadata edited."""
    folder.mkdir(exist_ok=True)
    content = b""
    places = {}
    pieces = {
        MetadataIndex("epoch"): saved(3) if value is None else value,
        **{
            MetadataIndex("model.weight", at): saved(WEIGHT[:, at[1] : at[1] + sizes[1]].clone())
            for at, sizes in CHUNKS.items()
        },
    }
    for index, piece in pieces.items():
        places[index] = _StorageInfo(DATA, len(content), len(piece))
        content += piece
    (folder / DATA).write_bytes(content)
    weight = TensorStorageMetadata(
        TensorProperties(torch.float32), torch.Size([2, 4]), [chunk(at, sizes) for at, sizes in CHUNKS.items()]
    )
    metadata = Metadata(
        {"model.weight": weight, "epoch": BytesStorageMetadata()},
        {"model.weight": ("model", "weight"), "epoch": ("epoch",)},
        places,
        version="1.0.0",
    )
    edit(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def weight_of(metadata: Metadata) -> TensorStorageMetadata:
    """What the metadata says of the tensor."""
    said = metadata.state_dict_metadata["model.weight"]
    assert isinstance(said, TensorStorageMetadata)
    return said


def with_chunks(*chunks: ChunkStorageMetadata) -> Callable[[Metadata], object]:
    """An edit: other chunks of the tensor."""
    return lambda metadata: setattr(weight_of(metadata), "chunks", list(chunks))


def with_place(**fields: object) -> Callable[[Metadata], object]:
    """An edit: the tensor's first chunk lies elsewhere."""

    def edit(metadata: Metadata) -> None:
        info = metadata.storage_data[MetadataIndex("model.weight", (0, 0))]
        for name, content in fields.items():
            setattr(info, name, content)

    return edit


def with_path(name: str, path: object) -> Callable[[Metadata], object]:
    """An edit: a name was flattened from another path."""
    return lambda metadata: metadata.planner_data.__setitem__(name, path)


def with_size(*size: int) -> Callable[[Metadata], object]:
    """An edit: another shape of the tensor."""
    return lambda metadata: setattr(weight_of(metadata), "size", torch.Size(size))


def stored_twice(metadata: Metadata) -> None:
    """An edit: a second place for the value, by a key that is the same one only when it is read."""
    metadata.storage_data[_SecondIndex("epoch")] = _StorageInfo(DATA, 0, 0)


class _SecondIndex:
    """Pickles as the index of a name, and is another key in a dict."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[object, ...]:
        return MetadataIndex, (), vars(MetadataIndex(self.name))
