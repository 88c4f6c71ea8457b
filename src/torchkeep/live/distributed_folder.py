"""Writing a folder of ``torch.distributed.checkpoint`` from a Source, without a process group, a tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from torchkeep.errors import FormatError
from torchkeep.live.build import Builder
from torchkeep.tensors import Source, TensorSpec

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import WriteItem


def write_distributed(
    folder: Path, tree: object, source: Source, progress: Callable[[int], object] | None = None
) -> None:
    """Write a tree as ``torch.distributed.checkpoint.save`` would; one tensor is held at a time, by one thread.

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

    def stand_ins(self, node: Any) -> Any:  # noqa: ANN401 - whatever was saved
        """The tree with a tensor without memory for each spec."""
        return _StandIns(self).value(node)

    def stand_in(self, spec: TensorSpec) -> torch.Tensor:
        """A tensor without memory that `resolve_data` knows the spec of."""
        tensor = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="meta")
        self._specs[id(tensor)] = spec
        self._held.append(tensor)  # an id is of one object as long as it lives
        return tensor

    def resolve_data(self, write_item: WriteItem) -> Any:  # noqa: ANN401 - a tensor or bytes
        """Read what is written now."""
        spec = self._specs.get(id(self.state_dict.get(write_item.index.fqn)))
        if spec is None:
            return super().resolve_data(write_item)
        if self._progress is not None:
            self._progress(spec.nbytes)
        return self._builder.read(spec)


class _StandIns(Builder):
    def __init__(self, planner: _LazyPlanner) -> None:
        super().__init__(planner._builder.source)  # noqa: SLF001 - one class in two halves
        self._planner = planner

    def value(self, node: object) -> Any:  # noqa: ANN401 - whatever was saved
        return self._planner.stand_in(node) if isinstance(node, TensorSpec) else super().value(node)

    def _state(self, node: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
        return Builder(self.source)._state(node)  # noqa: SLF001 - the same class
