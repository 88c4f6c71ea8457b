"""A live tensor as a Source of one, so that what is computed over files is computed over it as well."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torchkeep.live.memory import bytes_of, spec_of
from torchkeep.tensors import TensorSpec, check_range

if TYPE_CHECKING:
    import torch


class HeldTensor:
    """A `Source` of one tensor that is in memory.

    Attributes:
        spec: What reads it.
    """

    format = "memory"

    def __init__(self, tensor: torch.Tensor, path: Path) -> None:
        self._bytes = bytes_of(tensor)
        self.spec = spec_of(tensor)
        self.path = path
        self.tree: object = self.spec
        self.metadata: Mapping[str, object] = {}

    def read_into(self, spec: TensorSpec, buffer: memoryview) -> None:
        """Copy all of it; see `Source.read_into`."""
        self.read_range_into(spec, 0, buffer)

    def read_range_into(self, spec: TensorSpec, begin: int, buffer: memoryview) -> None:
        """Copy a part of it; see `Source.read_range_into`."""
        check_range(spec, begin, buffer)
        buffer.cast("B")[:] = self._bytes[begin : begin + buffer.nbytes]

    def close(self) -> None:
        """Nothing is open."""
