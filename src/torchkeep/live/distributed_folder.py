"""Writing a folder of ``torch.distributed.checkpoint`` from a Source, without a process group, a tensor at a time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from torchkeep.errors import FormatError
from torchkeep.live.build import Builder
from torchkeep.tensors import Source, TensorSpec

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import SavePlan, WriteItem

_CHUNK_BYTES = 64 << 20


def write_distributed(
    folder: Path, tree: object, source: Source, progress: Callable[[int], object] | None = None
) -> None:
    """Write a tree as ``torch.distributed.checkpoint.save`` would, by one thread that holds at most 64 MiB of a tensor.

    A larger tensor is written as rows in several chunks, as those of a sharded one are.

    Args:
        folder: An empty folder.
        tree: A mapping; plain values, `TensorSpec` at the tensors, `Described` of torch's own classes.
        source: Where the tensors are.
        progress: Told how many bytes more are written.

    Raises:
        FormatError: The tree is no mapping with text for keys.
        CorruptError: Bytes are absent or differ from their checksum.
    """
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise FormatError(
            "a folder of torch.distributed.checkpoint holds a mapping of names", remedy="convert one entry of it"
        )
    planner = _LazyPlanner(source, progress)
    writer = FileSystemWriter(folder, thread_count=1, overwrite=True)
    try:
        save_distributed(planner.stand_ins(tree), storage_writer=writer, planner=planner, no_dist=True)
    except CheckpointException as error:
        # torch gathers the errors of all ranks; here there is one.
        raise next(iter(error.failures.values()))[0] from None


class _LazyPlanner(DefaultSavePlanner):
    """Plans with tensors that have no memory, and reads each when it is written."""

    def __init__(self, source: Source, progress: Callable[[int], object] | None) -> None:
        super().__init__()
        self._builder = Builder(source)
        self._progress = progress
        self._specs: dict[int, TensorSpec] = {}
        self._held: list[torch.Tensor] = []
        self._last = torch.empty(0)

    def stand_ins(self, node: Any) -> Any:  # noqa: ANN401 - whatever was saved
        """The tree with a tensor without memory for each spec."""
        return _StandIns(self).value(node)

    def stand_in(self, spec: TensorSpec) -> torch.Tensor:
        """A tensor without memory that `resolve_data` knows the spec of."""
        tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="meta")
        self._specs[id(tensor)] = spec
        self._held.append(tensor)  # an id is of one object as long as it lives
        return tensor

    def create_local_plan(self) -> SavePlan:
        """Plan what is written, large tensors as chunks."""
        plan = super().create_local_plan()
        self.plan = replace(plan, items=[part for item in plan.items for part in self._cut(item)])
        return self.plan

    def _cut(self, item: WriteItem) -> list[WriteItem]:
        spec, whole = self._spec_of(item), item.tensor_data
        if spec is None or whole is None or spec.nbytes <= _CHUNK_BYTES or spec.shape[0] == 1:
            return [item]
        rows = max(1, _CHUNK_BYTES // (spec.nbytes // spec.shape[0]))
        parts = []
        for first in range(0, spec.shape[0], rows):
            offsets = torch.Size((first, *(0,) * (len(spec.shape) - 1)))
            sizes = torch.Size((min(rows, spec.shape[0] - first), *spec.shape[1:]))
            chunk = ChunkStorageMetadata(offsets=offsets, sizes=sizes)
            index = MetadataIndex(item.index.fqn, offsets)
            parts.append(replace(item, index=index, type=WriteItemType.SHARD, tensor_data=replace(whole, chunk=chunk)))
        return parts

    def _spec_of(self, item: WriteItem) -> TensorSpec | None:
        return self._specs.get(id(self.state_dict.get(item.index.fqn)))

    def resolve_data(self, write_item: WriteItem) -> Any:  # noqa: ANN401 - a tensor or bytes
        """Read what is written now."""
        spec, part = self._spec_of(write_item), write_item.tensor_data
        if spec is None or part is None:
            return super().resolve_data(write_item)
        # What was asked for before is written by now; torch's writer keeps it to the end, so its memory is let go here.
        self._last.untyped_storage().resize_(0)
        tensor = self._last = torch.empty(part.chunk.sizes, dtype=getattr(torch, spec.dtype))
        row_bytes = spec.nbytes // spec.shape[0] if spec.shape and spec.shape[0] else 0
        first = part.chunk.offsets[0] if spec.shape else 0
        self._builder.source.read_range_into(spec, first * row_bytes, _memory_of(tensor))
        if self._progress is not None:
            self._progress(tensor.nbytes)
        return tensor


class _StandIns(Builder):
    def __init__(self, planner: _LazyPlanner) -> None:
        super().__init__(planner._builder.source)  # noqa: SLF001 - one class in two halves
        self._planner = planner

    def value(self, node: object) -> Any:  # noqa: ANN401 - whatever was saved
        return self._planner.stand_in(node) if isinstance(node, TensorSpec) else super().value(node)

    def _state(self, node: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
        return Builder(self.source)._state(node)  # noqa: SLF001 - the same class


def _memory_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a new tensor, which numpy must not hold: its storage could not be resized then."""
    return memoryview((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr() or 1)).cast("B")
