"""What a save was asked to keep: entries as nodes, and tensors by group and name with readers of their bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torchkeep.folder.record import Entry, Node
from torchkeep.tensors import TensorSpec

PIECE_BYTES = 4 * 2**20  # of a tensor that is nowhere in memory: read and written at once


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor's bytes in memory that nobody changes: from `offset` on in page-aligned `memory`, with their digests."""

    memory: memoryview
    offset: int
    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DraftTensor:
    """A tensor to save; a checkpoint may have many thousands of them.

    Attributes:
        spec: Its dtype and shape.
        may_change: Whether training may change it.
        reader: Gives the bytes of `source` in C order.
        source: The live object, for `reader` and for whoever copies it in a way of his own.
        is_divisible: Whether `read` gives memory that is there anyway, so that it may be called for every part.
        fill: For a tensor that is nowhere in memory: reads its bytes from a position on into a buffer, and is called
            in place of `read` where bytes are written.
        held: Where its bytes are kept, once they are.
    """

    spec: TensorSpec
    may_change: bool
    reader: Callable[[Any], memoryview]
    source: object = None
    is_divisible: bool = False
    fill: Callable[[int, memoryview], None] | None = None
    held: Held | None = None

    def read(self) -> memoryview:
        """Its bytes in C order."""
        if self.held is None:
            return self.reader(self.source)
        return self.held.memory[self.held.offset : self.held.offset + self.spec.nbytes]

    def hold(self, held: Held) -> DraftTensor:
        """The same tensor, read from where it is kept."""
        return replace(self, is_divisible=True, fill=None, held=held)

    def pieces(self, begin: int, end: int) -> Iterator[memoryview]:
        """The bytes from `begin` to `end` where they are read a piece at a time; each is overwritten by the next."""
        if self.fill is None:
            raise ValueError("this tensor is read at once")
        buffer = memoryview(bytearray(min(PIECE_BYTES, end - begin)))
        for at in range(begin, end, PIECE_BYTES):
            piece = buffer[: min(PIECE_BYTES, end - at)]
            self.fill(at, piece)
            yield piece


Name: TypeAlias = tuple[str, str]  # of a tensor: its group, and its name there
Groups: TypeAlias = Mapping[str, Mapping[str, DraftTensor]]


@dataclass(frozen=True, slots=True)
class Draft:
    """Everything that a save was asked to keep, with tensors by group and name."""

    entries: Mapping[str, Entry]
    groups: Groups
    whole: str | None = None
    step: int | None = None
    metrics: Node = None
    rng: Node = None
    provenance: Mapping[str, object] = field(default_factory=dict)
    saved_at_ns: int = field(default_factory=time.time_ns)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.spec.nbytes for group in self.groups.values() for tensor in group.values())
