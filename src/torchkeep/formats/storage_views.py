"""A tensor as a view of a storage: where its bytes stand, and how they come out in C order."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torchkeep.errors import CorruptError
from torchkeep.formats.chunk_cover import Box, boxes_of_range
from torchkeep.tensors import TensorSpec, bits_of, check_range

if TYPE_CHECKING:
    import numpy as np

ReadRange = Callable[[int, memoryview], None]
_PIECE_BYTES = 16 << 20
_CHANNELS_LAST = {4: ("channels_last", (1, 3, 2, 0)), 5: ("channels_last_3d", (1, 4, 3, 2, 0))}


@dataclass(frozen=True, slots=True)
class StorageView:
    """Which elements of which storage a tensor is made of; equal views are tied tensors.

    Attributes:
        storage: The storage's key in its file.
        dtype: torch's name without ``torch.``.
        offset: First element, in elements of `dtype`.
        shape: Sizes in elements.
        stride: Steps in elements, none negative.
        conjugated: The imaginary parts are stored with the other sign.
        negated: The values are stored with the other sign.
        file: Which of several files of one source the storage is in; empty where there is one.
    """

    storage: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    conjugated: bool = False
    negated: bool = False
    file: str = ""

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return bits_of(self.dtype) // 8

    @property
    def begin_bytes(self) -> int:
        """Where the view's first byte stands in its storage."""
        return self.offset * self.item_bytes

    @property
    def end_bytes(self) -> int:
        """The end of the last byte that the view needs of its storage."""
        if 0 in self.shape:
            return self.begin_bytes
        return self.begin_bytes + _span(self.shape, self.stride) * self.item_bytes


def part_of(view: StorageView, box: Box) -> StorageView:
    """A block of a view's elements as a view of the same storage."""
    offset = view.offset + sum(at * step for at, step in zip(box.offsets, view.stride, strict=True))
    return replace(view, shape=box.sizes, offset=offset)


def range_of(view: StorageView, begin: int, end: int) -> Iterator[StorageView]:
    """The views that hold the elements from `begin` to `end` of a view in C order, one after the other.

    Example:
        >>> transposed = StorageView("0", "float32", 0, (3, 2), (1, 3))
        >>> [(part.offset, part.shape) for part in range_of(transposed, 1, 6)]
        [(3, (1, 1)), (1, (2, 2))]
    """
    if is_contiguous(view.shape, view.stride):
        yield replace(view, offset=view.offset + begin, shape=(end - begin,), stride=(1,))
        return
    yield from (part_of(view, box) for box in boxes_of_range(view.shape, begin, end))


def parts_of_range(view: StorageView, begin: int, flat: memoryview) -> Iterator[tuple[StorageView, memoryview]]:
    """The views that hold a view's bytes from `begin` on in C order, each with the part of `flat` that it fills."""
    at = 0
    for part in range_of(view, begin // view.item_bytes, (begin + flat.nbytes) // view.item_bytes):
        nbytes = math.prod(part.shape) * view.item_bytes
        yield part, flat[at : at + nbytes]
        at += nbytes


def is_contiguous(shape: Sequence[int], stride: Sequence[int], order: Sequence[int] | None = None) -> bool:
    """Whether elements stand side by side when axes are walked from the innermost; `order` names them in that way."""
    expected = 1
    for axis in reversed(range(len(shape))) if order is None else order:
        if shape[axis] != 1:
            if stride[axis] != expected:
                return False
            expected *= shape[axis]
    return True


def memory_format_of(shape: tuple[int, ...], stride: tuple[int, ...]) -> str:
    """The memory format by torch's name; anything that is no channels-last form is ``"contiguous"``."""
    name, order = _CHANNELS_LAST.get(len(shape), ("contiguous", ()))
    if 0 in shape or is_contiguous(shape, stride) or not is_contiguous(shape, stride, order):
        return "contiguous"
    return name


def read_view(view: StorageView, read: ReadRange, buffer: memoryview) -> None:
    """Read a view's elements in C order; `read(begin_bytes, buffer)` reads the storage.

    Where the view has holes or another order, that is done in pieces of at most 16 MiB.
    """
    if not buffer.nbytes:
        return
    if is_contiguous(view.shape, view.stride):
        read(view.begin_bytes, buffer)
        return
    import numpy as np

    unit = np.dtype(f"u{view.item_bytes}" if view.item_bytes <= 8 else f"V{view.item_bytes}")
    out = np.frombuffer(buffer, unit).reshape(view.shape)
    # The longest stride first: the storage is then read once, from front to back.
    axes = sorted(range(len(view.shape)), key=lambda axis: -view.stride[axis])
    _gather(out.transpose(axes), [view.stride[axis] for axis in axes], view.offset, read)


def _gather(out: np.ndarray[Any, Any], stride: list[int], offset: int, read: ReadRange) -> None:
    import numpy as np

    item_bytes = out.dtype.itemsize
    span = _span(out.shape, stride)
    if span * item_bytes <= _PIECE_BYTES:
        raw = bytearray(span * item_bytes)
        read(offset * item_bytes, memoryview(raw))
        steps = [step * item_bytes for step in stride]
        out[...] = np.lib.stride_tricks.as_strided(np.frombuffer(raw, out.dtype), out.shape, steps)
        return
    inner = _span(out.shape[1:], stride[1:])
    rows = (_PIECE_BYTES // item_bytes - inner) // stride[0] + 1
    for first in range(0, out.shape[0], max(rows, 1)):
        begin = offset + first * stride[0]
        if rows < 2:
            _gather(out[first, ...], stride[1:], begin, read)
        else:
            _gather(out[first : first + rows], stride, begin, read)


def _span(shape: Sequence[int], stride: Sequence[int]) -> int:
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def to_native(view: StorageView, buffer: memoryview, byteorder: str) -> None:
    """Turn stored bytes into the values they stand for: native endian, with lazy signs carried out."""
    if not buffer.nbytes:
        return
    parts = 2 if view.dtype.startswith("complex") else 1
    part_bytes = view.item_bytes // parts
    if byteorder != sys.byteorder and part_bytes > 1:
        import numpy as np

        np.frombuffer(buffer, f"u{part_bytes}").byteswap(inplace=True)
    if view.negated:
        _flip_signs(buffer, part_bytes, 0, part_bytes)
    if view.conjugated and parts == 2:
        _flip_signs(buffer, part_bytes, part_bytes, view.item_bytes)


def _flip_signs(buffer: memoryview, part_bytes: int, first: int, every: int) -> None:
    import numpy as np

    sign = first + (part_bytes - 1 if sys.byteorder == "little" else 0)
    np.frombuffer(buffer, "u1").reshape(-1)[sign::every] ^= 0x80


def check_booleans(dtype: str, buffer: memoryview, where: object) -> None:
    """Refuse bytes that are neither 0 nor 1 where a tensor is of booleans.

    Raises:
        CorruptError: There are some; torch's behaviour on such a tensor is undefined.
    """
    if dtype != "bool":
        return
    for begin in range(0, buffer.nbytes, _PIECE_BYTES):
        others = bytes(buffer[begin : begin + _PIECE_BYTES]).translate(None, b"\0\1")
        if others:
            raise CorruptError(
                f"a tensor of booleans holds the byte {others[0]}",
                where=str(where),
                remedy="read it with the program that wrote it, and save it as uint8",
            )


def read_range(
    spec: TensorSpec, begin: int, buffer: memoryview, read: Callable[[StorageView, memoryview], None]
) -> None:
    """Read a part of a tensor's bytes, one view after the other; see `Source.read_range_into`.

    Args:
        spec: A tensor whose key is a `StorageView`.
        begin: The first byte.
        buffer: As many bytes as are wanted.
        read: Reads all of a view.
    """
    if not isinstance(spec.key, StorageView):
        raise ValueError(f"{spec} is not of this source")
    check_range(spec, begin, buffer)
    for part, piece in parts_of_range(spec.key, begin, buffer.cast("B")):
        read(part, piece)
