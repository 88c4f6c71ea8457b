"""What a save was asked to keep: entries as nodes, and tensors by group and name with readers of their bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torchkeep.folder.record import Entry, Node
from torchkeep.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class DraftTensor:
    """A tensor to save.

    Attributes:
        spec: Its dtype and shape.
        may_change: Whether training may change it.
        read: Its bytes in C order.
        is_divisible: Whether `read` gives memory that is there anyway, so that it may be called for every part.
    """

    spec: TensorSpec
    may_change: bool
    read: Callable[[], memoryview]
    is_divisible: bool = False


@dataclass(frozen=True, slots=True)
class Draft:
    """Everything that a save was asked to keep, with tensors by group and name."""

    entries: Mapping[str, Entry]
    groups: Mapping[str, Mapping[str, DraftTensor]]
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
