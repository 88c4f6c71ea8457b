"""How far apart two tensors are, in one pass over both: equal bits, elements that differ, norms, the largest step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from torchkeep.arithmetic.elements import Values, decode, inner_product, is_readable, pieces_of
from torchkeep.arithmetic.ranges import Progress, in_ranges
from torchkeep.arithmetic.statistics import index_of
from torchkeep.tensors import Source, TensorSpec, bits_of


@dataclass(frozen=True, slots=True)
class TensorComparison:
    """How far a tensor is from another of the same shape.

    Two NaN count as equal values, and so do 0 and -0; equal bits they may lack. Norms are Euclidean, over the elements
    that are finite on both sides.

    Attributes:
        is_bit_equal: Whether dtype and every bit are the same.
        differing_count: Elements whose values differ.
        largest_step: The greatest absolute difference of two finite elements.
        largest_at: Where it stands, an index per axis; None when no finite elements differ.
        first_norm: The norm of the first tensor; None where bits are equal and nothing needed reading.
        second_norm: The norm of the second; None likewise.
        step_norm: The norm of the difference.
        dot: The inner product of both; None likewise.
        count: Elements.
    """

    is_bit_equal: bool
    count: int
    differing_count: int = 0
    largest_step: float = 0.0
    largest_at: tuple[int, ...] | None = None
    first_norm: float | None = None
    second_norm: float | None = None
    step_norm: float = 0.0
    dot: float | None = None

    @property
    def is_equal(self) -> bool:
        """Whether all values are the same, whatever their dtypes."""
        return not self.differing_count

    @property
    def relative_change(self) -> float:
        """The norm of the difference over the first one's norm; infinite where only the first is zero."""
        if not self.step_norm:
            return 0.0
        return self.step_norm / self.first_norm if self.first_norm else math.inf

    @property
    def cosine(self) -> float | None:
        """The cosine of the angle between both; None where one is zero."""
        if self.is_bit_equal and not self.first_norm:
            return 1.0 if self.first_norm is None else None
        if not self.first_norm or not self.second_norm or self.dot is None:
            return None
        return max(-1.0, min(1.0, self.dot / self.first_norm / self.second_norm))


@dataclass(slots=True)
class _Sums:
    is_bit_equal: bool = True
    differing: int = 0
    largest: float = 0.0
    largest_at: int | None = None
    first: float = 0.0
    second: float = 0.0
    step: float = 0.0
    dot: float = 0.0


def compare(
    first: Source,
    second: Source,
    pairs: Mapping[str, tuple[TensorSpec, TensorSpec]],
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, TensorComparison]:
    """Compare tensors of equal shapes, of any dtypes, by name; memory stays below 24 MiB per thread.

    Args:
        first: Where the first of each pair is.
        second: Where the second of each pair is; it may be the same source.
        pairs: The specs to compare.
        threads: How many ranges are compared at once.
        progress: Told the bytes of the first that are done.

    Raises:
        ValueError: Shapes of a pair differ.
        CorruptError: Bytes are absent or differ from their checksum.
        FormatError: Values of less than a byte have another dtype on the other side.
    """
    for name, (left, right) in pairs.items():
        if left.shape != right.shape:
            raise ValueError(f"{name}: {left} and {right} have no elements in common to compare")

    def sums_of(name: str, begin: int, end: int) -> _Sums:
        return _compare_range(first, second, *pairs[name], begin, end)

    parts = in_ranges({name: left for name, (left, _) in pairs.items()}, sums_of, threads, progress)
    return {name: _finish(*pairs[name], sums) for name, sums in parts.items()}


def _compare_range(first: Source, second: Source, left: TensorSpec, right: TensorSpec, begin: int, end: int) -> _Sums:
    total = _Sums(is_bit_equal=left.dtype == right.dtype)
    item_bytes = bits_of(left.dtype) // 8 or 1
    ratio = bits_of(right.dtype) / bits_of(left.dtype)
    held: tuple[memoryview, memoryview] | None = None
    for at, stop in pieces_of(left.dtype, begin, end):
        other_at, other_stop = int(at * ratio), int(stop * ratio)
        if held is None:
            held = memoryview(bytearray(stop - at)), memoryview(bytearray(other_stop - other_at))
        one, other = held[0][: stop - at], held[1][: other_stop - other_at]
        first.read_range_into(left, at, one)
        second.read_range_into(right, other_at, other)
        is_same = left.dtype == right.dtype and bytes_equal(one, other)
        total.is_bit_equal &= is_same
        if is_readable(left.dtype):
            if is_same:
                _add_same(total, left.dtype, one)
            else:
                _add(total, decode(left.dtype, one), decode(right.dtype, other), at // item_bytes)
        elif not is_same:
            total.differing += int((np.frombuffer(one, np.uint8) != np.frombuffer(other, np.uint8)).sum())
    return total


def bytes_equal(one: memoryview, other: memoryview) -> bool:
    """Whether two buffers of one size hold the same bytes; by memcmp, where comparing memoryviews is slow."""
    return bool(np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)))


def _add_same(total: _Sums, dtype: str, stored: memoryview) -> None:
    numbers = _wide(decode(dtype, stored))
    norm = inner_product(numbers, numbers)
    if not math.isfinite(norm):
        numbers[~np.isfinite(numbers)] = 0
        norm = inner_product(numbers, numbers)
    total.first, total.second, total.dot = total.first + norm, total.second + norm, total.dot + norm


def _add(total: _Sums, one: Values, other: Values, position: int) -> None:
    differs = one != other
    x, y = _wide(one), _wide(other)
    norms = inner_product(x, x), inner_product(y, y)
    if not math.isfinite(norms[0] + norms[1]):
        differs &= ~((one != one) & (other != other))  # noqa: PLR0124 - only NaN differs from itself
        unusable = ~(np.isfinite(x) & np.isfinite(y))
        x[unusable] = 0
        y[unusable] = 0
        norms = inner_product(x, x), inner_product(y, y)
    total.differing += int(np.count_nonzero(differs))
    total.first, total.second = total.first + norms[0], total.second + norms[1]
    total.dot += inner_product(x, y)
    y -= x
    total.step += inner_product(y, y)
    sizes = np.abs(y) if np.iscomplexobj(y) else np.abs(y, out=y)
    largest = int(sizes.argmax())
    if sizes[largest] > total.largest:
        total.largest, total.largest_at = float(sizes[largest]), position + largest


def _wide(values: Values) -> Values:
    return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)


def _finish(left: TensorSpec, right: TensorSpec, parts: Iterable[_Sums]) -> TensorComparison:
    total = _Sums(is_bit_equal=left.dtype == right.dtype)
    for part in parts:
        total.is_bit_equal &= part.is_bit_equal
        total.differing += part.differing
        if part.largest > total.largest:
            total.largest, total.largest_at = part.largest, part.largest_at
        total.first, total.second = total.first + part.first, total.second + part.second
        total.step, total.dot = total.step + part.step, total.dot + part.dot
    return TensorComparison(
        is_bit_equal=total.is_bit_equal,
        count=left.numel,
        differing_count=total.differing,
        largest_step=total.largest,
        largest_at=None if total.largest_at is None else index_of(left.shape, total.largest_at),
        first_norm=math.sqrt(total.first),
        second_norm=math.sqrt(total.second),
        step_norm=math.sqrt(total.step),
        dot=total.dot,
    )
