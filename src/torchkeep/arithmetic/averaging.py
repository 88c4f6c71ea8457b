"""A source whose tensors are the weighted average of those of other sources, computed piece by piece while read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from torchkeep.arithmetic.elements import Values, decode, encode, is_readable, pieces_of
from torchkeep.errors import FormatError
from torchkeep.tensors import Source, TensorSpec, bits_of, check_range, is_floating


def ema_weights(count: int, decay: float) -> tuple[float, ...]:
    """The weights that an exponential moving average gives to `count` checkpoints in order, oldest first.

    They are those of ``average = decay * average + (1 - decay) * next``, begun with the first, as
    `torch.optim.swa_utils.get_ema_avg_fn` computes it; they add up to 1.

    Raises:
        ValueError: `decay` is not from 0 to below 1.

    Example:
        >>> ema_weights(3, 0.5)
        (0.25, 0.25, 0.5)
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is a number from 0 to below 1; not {decay!r}")
    later = [(1 - decay) * decay ** (count - 1 - at) for at in range(1, count)]
    return (decay ** (count - 1), *later)


class Averaging:
    """A `Source` of averages over other sources.

    Floating-point and complex tensors are summed in double precision and rounded once to their dtype; all others, as
    counts of batches, are the last source's.

    Args:
        sources: Where the tensors are, in order; the last gives what is not averaged.
        weights: One for each source; they add up to 1.
        specs: For each name, the tensor of each source, equal in shape. The last one's dtype is the result's.
        last_only: Names that are taken from the last source though they could be averaged.
        metadata: What to say of where it comes from.

    Attributes:
        tensors: The averaged tensors by name; they are read by these specs.
    """

    format = "average"

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        specs: Mapping[str, Sequence[TensorSpec]],
        last_only: frozenset[str] = frozenset(),
        metadata: Mapping[str, object] | None = None,
    ) -> None:
        self._sources = sources
        self._weights = weights
        self._specs = specs
        self._last_only = last_only
        self.path: Path = sources[-1].path
        self.metadata: Mapping[str, object] = metadata or {}
        ties: dict[object, str] = {}
        self.tensors: dict[str, TensorSpec] = {}
        for name, of_each in specs.items():
            # Tied in every source: tied here.
            first = ties.setdefault(tuple((spec.key, spec.dtype, spec.shape) for spec in of_each), name)
            last = of_each[-1]
            self.tensors[name] = TensorSpec(last.dtype, last.shape, first, memory_format=last.memory_format)
        self.tree: object = self.tensors

    def is_averaged(self, name: str) -> bool:
        """Whether a tensor is averaged, or taken from the last source."""
        dtype = self.tensors[name].dtype
        return name not in self._last_only and (is_floating(dtype) or dtype.startswith("complex"))

    def read_into(self, spec: TensorSpec, buffer: memoryview) -> None:
        """Compute a tensor; see `Source.read_into`."""
        if buffer.nbytes != spec.nbytes:
            raise ValueError(f"the buffer for {spec} is not of {spec.nbytes:,} bytes")
        self.read_range_into(spec, 0, buffer)

    def read_range_into(self, spec: TensorSpec, begin: int, buffer: memoryview) -> None:
        """Compute a part of a tensor; see `Source.read_range_into`.

        Raises:
            CorruptError: As for any of the sources.
            FormatError: The dtype cannot be computed with.
        """
        check_range(spec, begin, buffer)
        name, flat = str(spec.key), buffer.cast("B")
        held = self._specs[name]
        if not self.is_averaged(name):
            self._sources[-1].read_range_into(held[-1], begin, flat)
            return
        if not all(is_readable(one.dtype) for one in held):
            raise FormatError(f"{name}: values of {spec.dtype} are not averaged", remedy="average another dtype")
        wide = np.complex128 if spec.dtype.startswith("complex") else np.float64
        bits = bits_of(spec.dtype)
        for at, end in pieces_of(spec.dtype, begin, begin + flat.nbytes):
            total: Values = np.zeros((end - at) * 8 // bits, wide)
            for source, weight, one in zip(self._sources, self._weights, held, strict=True):
                held_bits = bits_of(one.dtype)
                piece = memoryview(bytearray((end - at) * held_bits // bits))
                source.read_range_into(one, at * held_bits // bits, piece)
                total += decode(one.dtype, piece).astype(wide) * weight
            flat[at - begin : end - begin] = encode(spec.dtype, total)

    def close(self) -> None:
        """Close all sources."""
        for source in self._sources:
            source.close()
