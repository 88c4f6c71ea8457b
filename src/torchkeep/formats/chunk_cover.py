"""Whether the chunks of a sharded tensor are the whole of it: inside its shape, without overlap, nothing left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torchkeep.formats.faults import ExcessError

_MAX_COMPARISONS = 2_000_000


@dataclass(frozen=True, slots=True)
class Box:
    """A block of a tensor's elements: where it begins and how far it goes on each axis, in elements."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    def begin_in(self, shape: tuple[int, ...]) -> int | None:
        """Which element of a tensor in C order the block begins at, where it stands in one piece; else None."""
        axis = next((axis for axis, size in enumerate(self.sizes) if size != 1), len(shape))
        if self.sizes[axis + 1 :] != shape[axis + 1 :]:
            return None
        return sum(offset * math.prod(shape[axis + 1 :]) for axis, offset in enumerate(self.offsets))


def why_not_whole(shape: tuple[int, ...], boxes: Sequence[Box]) -> str | None:
    """Why blocks are not the whole of a shape, or None; blocks without elements count for nothing.

    Raises:
        ExcessError: There are so many that comparing them would take long.

    Example:
        >>> why_not_whole((4,), [Box((0,), (2,)), Box((1,), (3,))])
        'its chunks at (0,) and (1,) overlap'
    """
    for box in boxes:
        if len(box.sizes) != len(shape) or len(box.offsets) != len(shape):
            return (
                f"a chunk has {len(box.sizes)} sizes and {len(box.offsets)} offsets, and the tensor {len(shape)} axes"
            )
        if any(at + size > most for at, size, most in zip(box.offsets, box.sizes, shape, strict=True)):
            return f"its chunk of {box.sizes} at {box.offsets} reaches out of {shape}"
    solid = [box for box in boxes if box.numel]
    clash = _find_overlap(solid)
    if clash:
        return f"its chunks at {clash[0].offsets} and {clash[1].offsets} overlap"
    held, wanted = sum(box.numel for box in solid), math.prod(shape)
    return None if held == wanted else f"its chunks hold {held:,} of its {wanted:,} elements"


def _find_overlap(boxes: list[Box]) -> tuple[Box, Box] | None:
    """Sweep along the axis with the most cuts: only blocks that are open at the same place are compared."""
    if len(boxes) < 2 or not boxes[0].sizes:
        return (boxes[0], boxes[1]) if len(boxes) > 1 else None
    axis = max(range(len(boxes[0].sizes)), key=lambda axis: len({box.offsets[axis] for box in boxes}))
    comparisons = 0
    begun: list[Box] = []
    for box in sorted(boxes, key=lambda box: box.offsets[axis]):
        begun = [other for other in begun if other.offsets[axis] + other.sizes[axis] > box.offsets[axis]]
        comparisons += len(begun) + 1
        if comparisons > _MAX_COMPARISONS:
            raise ExcessError(f"a tensor is cut into {len(boxes):,} chunks that are in no order")
        for other in begun:
            if _overlap(box, other):
                return other, box
        begun.append(box)
    return None


def _overlap(box: Box, other: Box) -> bool:
    return all(
        at < other_at + other_size and other_at < at + size
        for at, size, other_at, other_size in zip(box.offsets, box.sizes, other.offsets, other.sizes, strict=True)
    )
