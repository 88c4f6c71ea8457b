"""Whether the chunks of a sharded tensor are the whole of it: inside its shape, without overlap, nothing left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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

    def within(self, other: Box) -> Box | None:
        """The part of this block that lies in another one of the same tensor; None where there is none."""
        offsets = tuple(map(max, self.offsets, other.offsets))
        ends = map(min, self._ends(), other._ends())
        sizes = tuple(end - at for at, end in zip(offsets, ends, strict=True))
        return Box(offsets, sizes) if all(size > 0 for size in sizes) else None

    def seen_from(self, other: Box) -> Box:
        """This block with its place counted from where another one begins."""
        return Box(tuple(at - begin for at, begin in zip(self.offsets, other.offsets, strict=True)), self.sizes)

    def _ends(self) -> tuple[int, ...]:
        return tuple(at + size for at, size in zip(self.offsets, self.sizes, strict=True))


def boxes_of_range(shape: tuple[int, ...], begin: int, end: int) -> Iterator[Box]:
    """The blocks that hold the elements from `begin` to `end` of a shape in C order, one after the other.

    Example:
        >>> [(box.offsets, box.sizes) for box in boxes_of_range((3, 4), 2, 9)]
        [((0, 2), (1, 2)), ((1, 0), (1, 4)), ((2, 0), (1, 1))]
    """
    if begin >= end:
        return
    if not shape:
        yield Box((), ())
        return
    row = math.prod(shape[1:])
    (first, head), (last, tail) = divmod(begin, row), divmod(end, row)
    if first == last:
        yield from _in_row(first, boxes_of_range(shape[1:], head, tail))
        return
    if head:
        yield from _in_row(first, boxes_of_range(shape[1:], head, row))
        first += 1
    if first < last:
        yield Box((first, *(0,) * (len(shape) - 1)), (last - first, *shape[1:]))
    yield from _in_row(last, boxes_of_range(shape[1:], 0, tail))


def _in_row(row: int, boxes: Iterator[Box]) -> Iterator[Box]:
    yield from (Box((row, *box.offsets), (1, *box.sizes)) for box in boxes)


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
