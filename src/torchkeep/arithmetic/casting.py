"""A source whose tensors have another dtype, cast piece by piece while they are read."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from torchkeep.arithmetic.elements import decode, encode, is_readable, pieces_of
from torchkeep.errors import FormatError
from torchkeep.tensors import DTYPE_NAMES, Source, TensorSpec, bits_of, check_range, is_floating


def check_target(dtype: str) -> None:
    """Refuse a dtype that tensors cannot be cast to.

    Raises:
        FormatError: It is no floating-point dtype of a byte or more.

    Example:
        >>> check_target("bfloat16")
    """
    if dtype not in DTYPE_NAMES or not is_floating(dtype) or not is_readable(dtype) or dtype == "float8_e8m0fnu":
        raise FormatError(
            f"{dtype!r} is no dtype to cast to",
            remedy="float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2 and their fnuz forms are",
        )


class Casting:
    """A `Source` over another one, in which some tensors have another dtype; values are rounded as torch rounds them.

    Args:
        source: Where the tensors are.
        dtype: What they are cast to, torch's name without ``torch.``.
        specs: Which of them: those of a real floating-point dtype of these. The others stay as they are.

    Attributes:
        overflowed: How many finite values of a tensor became infinite, by spec, as far as they were read.

    Raises:
        FormatError: As for `check_target`.
    """

    def __init__(self, source: Source, dtype: str, specs: Collection[TensorSpec]) -> None:
        check_target(dtype)
        self._source = source
        self.format = source.format
        self.path: Path = source.path
        self.metadata: Mapping[str, object] = source.metadata
        self.tree = source.tree
        self.overflowed: dict[TensorSpec, int] = {}
        self._cast = {
            replace(spec, dtype=dtype): spec
            for spec in specs
            if is_floating(spec.dtype) and is_readable(spec.dtype) and spec.dtype != dtype
        }
        self._dtype = dtype
        self._counting = threading.Lock()

    def spec_of(self, spec: TensorSpec) -> TensorSpec:
        """What a tensor of the source under it is here."""
        cast = replace(spec, dtype=self._dtype)
        return cast if self._cast.get(cast) == spec else spec

    def read_into(self, spec: TensorSpec, buffer: memoryview) -> None:
        """Read a tensor, cast; see `Source.read_into`."""
        if buffer.nbytes != spec.nbytes:
            raise ValueError(f"the buffer for {spec} is not of {spec.nbytes:,} bytes")
        self.read_range_into(spec, 0, buffer)

    def read_range_into(self, spec: TensorSpec, begin: int, buffer: memoryview) -> None:
        """Read a part of a tensor, cast; see `Source.read_range_into`."""
        held = self._cast.get(spec)
        if held is None:
            self._source.read_range_into(spec, begin, buffer)
            return
        check_range(spec, begin, buffer)
        flat = buffer.cast("B")
        bits, held_bits = bits_of(spec.dtype), bits_of(held.dtype)
        for at, end in pieces_of(spec.dtype, begin, begin + flat.nbytes):
            stored = memoryview(bytearray((end - at) * held_bits // bits))
            self._source.read_range_into(held, at * held_bits // bits, stored)
            values = decode(held.dtype, stored)
            made = encode(spec.dtype, values)
            flat[at - begin : end - begin] = made
            self._count(spec, np.isinf(decode(spec.dtype, made)).sum() - np.isinf(values).sum())

    def close(self) -> None:
        """Close the source under it."""
        self._source.close()

    def _count(self, spec: TensorSpec, more: int) -> None:
        if more:
            with self._counting:
                self.overflowed[spec] = self.overflowed.get(spec, 0) + int(more)
