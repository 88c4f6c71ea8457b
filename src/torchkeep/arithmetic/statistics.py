"""What the values of a tensor are like, in one pass: extremes, mean, spread, zeros, and where they are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from torchkeep.arithmetic.elements import Values, inner_product, is_readable
from torchkeep.arithmetic.ranges import Progress, in_ranges, ranges_of, values_in
from torchkeep.tensors import Source, TensorSpec


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """What the values of a tensor are like. Of complex ones the absolute values are taken.

    Attributes:
        count: Elements.
        minimum: The least finite value; None without one.
        maximum: The greatest finite value; None without one.
        mean: Of the finite values.
        std: Of the finite values, as ``torch.std`` with its usual correction (N - 1); None below two of them.
        zero_count: Elements that are zero.
        nan_count: Elements that are NaN.
        inf_count: Elements that are infinite.
        first_nan: Where the first NaN stands, an index per axis, or None.
        first_inf: Where the first infinite value stands, or None.
    """

    count: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    std: float | None
    zero_count: int
    nan_count: int
    inf_count: int
    first_nan: tuple[int, ...] | None
    first_inf: tuple[int, ...] | None

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return not self.nan_count and not self.inf_count


@dataclass(slots=True)
class _Sums:
    """Sums over some values, which can be put together with those over others (Chan, Golub, LeVeque 1983)."""

    count: int = 0
    finite: int = 0
    mean: float = 0.0
    squares: float = 0.0  # of the differences from the mean
    minimum: float = math.inf
    maximum: float = -math.inf
    zeros: int = 0
    nans: int = 0
    infs: int = 0
    first_nan: int | None = None
    first_inf: int | None = None

    def add(self, other: _Sums) -> None:
        """Put the sums over the values that follow to these."""
        together = self.finite + other.finite
        if other.finite:
            apart = other.mean - self.mean
            self.squares += other.squares + apart * apart * self.finite * other.finite / together
            self.mean += apart * other.finite / together
        self.first_nan = _earlier(self.first_nan, other.first_nan, self.count)
        self.first_inf = _earlier(self.first_inf, other.first_inf, self.count)
        self.finite = together
        self.count += other.count
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self.zeros, self.nans, self.infs = self.zeros + other.zeros, self.nans + other.nans, self.infs + other.infs


def statistics_of(
    source: Source, specs: Mapping[str, TensorSpec], threads: int = 1, progress: Progress | None = None
) -> dict[str, TensorStatistics]:
    """The statistics of tensors by name; tied ones are read once, and those of less than a byte per value left out.

    Memory stays below 16 MiB per thread, whatever the sizes.

    Raises:
        CorruptError: Bytes are absent or differ from their checksum.
    """
    distinct: dict[object, str] = {}
    for name, spec in specs.items():
        if is_readable(spec.dtype):
            distinct.setdefault((spec.key, spec.dtype, spec.shape), name)

    def sums_of(name: str, begin: int, end: int) -> _Sums:
        total = _Sums()
        for values in values_in(source, specs[name], begin, end):
            total.add(_sums(values))
        return total

    parts = in_ranges({name: specs[name] for name in distinct.values()}, sums_of, threads, progress)
    found = {name: _finish(specs[name], sums) for name, sums in parts.items()}
    keys = {name: (spec.key, spec.dtype, spec.shape) for name, spec in specs.items() if is_readable(spec.dtype)}
    return {name: found[distinct[key]] for name, key in keys.items()}


def histogram_of(source: Source, spec: TensorSpec, low: float, high: float, bins: int) -> list[int]:
    """How many finite values of a tensor lie in each of `bins` equal parts of `low` to `high`, both inclusive.

    Where no double is between `low` and `high`, or only one, few of the parts can hold anything; where `low` is `high`,
    the part in the middle does.

    Raises:
        CorruptError: As for `Source.read_into`.
        FormatError: Values of less than a byte.
    """
    low, high = float(low), float(high)  # of integers too: those of 64 bits are rounded, and so is each value
    counts = np.zeros(bins, np.int64)
    for begin, end in ranges_of(spec):
        for values in values_in(source, spec, begin, end):
            real = _as_real(values).astype(np.float64)
            real = real[(real >= low) & (real <= high)]
            if low < high:
                parts = np.minimum((real - low) / (high - low) * bins, bins - 1).astype(np.int64)
            else:
                parts = np.full(len(real), bins // 2)
            counts += np.bincount(parts, minlength=bins)
    return [int(count) for count in counts]


def _as_real(values: Values) -> Values:
    return np.abs(values.astype(np.complex128)) if np.iscomplexobj(values) else values


def _sums(values: Values) -> _Sums:
    real = _as_real(values)
    exact = real.view(np.uint8) if real.dtype == np.bool_ else real
    numbers = exact.astype(np.float64)
    sums = _Sums(count=len(exact), zeros=len(exact) - int(np.count_nonzero(exact)))
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(numbers.sum())
    if not math.isfinite(total):
        is_nan, is_inf = np.isnan(numbers), np.isinf(numbers)
        sums.nans, sums.infs = int(is_nan.sum()), int(is_inf.sum())
        sums.first_nan = int(is_nan.argmax()) if sums.nans else None
        sums.first_inf = int(is_inf.argmax()) if sums.infs else None
        keep = ~(is_nan | is_inf)
        exact, numbers = exact[keep], numbers[keep]
    sums.finite = len(numbers)
    if sums.finite:
        sums.minimum, sums.maximum = exact.min().item(), exact.max().item()
        with np.errstate(over="ignore", invalid="ignore"):
            sums.mean = float(numbers.mean())
            numbers -= sums.mean
            sums.squares = inner_product(numbers, numbers)
    return sums


def _earlier(first: int | None, later: int | None, count: int) -> int | None:
    if first is not None:
        return first
    return None if later is None else later + count


def _finish(spec: TensorSpec, parts: Iterable[_Sums]) -> TensorStatistics:
    total = _Sums()
    for part in parts:
        total.add(part)
    has_values = bool(total.finite)
    return TensorStatistics(
        count=spec.numel,
        minimum=total.minimum if has_values else None,
        maximum=total.maximum if has_values else None,
        mean=total.mean if has_values else None,
        std=math.sqrt(total.squares / (total.finite - 1)) if total.finite > 1 else None,
        zero_count=total.zeros,
        nan_count=total.nans,
        inf_count=total.infs,
        first_nan=_index(spec, total.first_nan),
        first_inf=_index(spec, total.first_inf),
    )


def _index(spec: TensorSpec, position: int | None) -> tuple[int, ...] | None:
    return None if position is None else index_of(spec.shape, position)


def index_of(shape: tuple[int, ...], position: int) -> tuple[int, ...]:
    """Where an element stands that is at a position in C order.

    Example:
        >>> index_of((3, 4), 6)
        (1, 2)
    """
    index = []
    for size in reversed(shape):
        position, at = divmod(position, size)
        index.append(at)
    return tuple(reversed(index))
