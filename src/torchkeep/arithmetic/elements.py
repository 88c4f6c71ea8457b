"""Stored bytes as numpy values and back: the dtypes numpy has as they are, the others by way of float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any, TypeAlias, cast

import numpy as np

from torchkeep.errors import FormatError
from torchkeep.tensors import bits_of

Values: TypeAlias = "np.ndarray[Any, Any]"

# Mantissa bits, bias, code of the first magnitude that is not finite, whether -0 is NaN. The formats of
# https://arxiv.org/abs/2209.05433 (fn: no infinity) and https://arxiv.org/abs/2206.02915 (fnuz: no infinity, no -0).
_EIGHT_BITS = {
    "float8_e4m3fn": (3, 7, 0x7F, False),
    "float8_e5m2": (2, 15, 0x7C, False),
    "float8_e4m3fnuz": (3, 8, 0x80, True),
    "float8_e5m2fnuz": (2, 16, 0x80, True),
}
_SIGN = 0x80
_UNREADABLE = ("float4_e2m1fn_x2", "float6_e2m3", "float6_e3m2")
PIECE_ELEMENTS = 1 << 16  # what is computed on at once: as float64 it stays in a core's cache


def is_readable(dtype: str) -> bool:
    """Whether values of a dtype can be computed with; the sub-byte floats cannot."""
    return dtype not in _UNREADABLE


def decode(dtype: str, stored: memoryview) -> Values:
    r"""The values of stored bytes, flat: a view where numpy has the dtype, else float32 or complex64.

    Raises:
        FormatError: Values of less than a byte.

    Example:
        >>> decode("bfloat16", memoryview(b"\x80\x3f\x00\xc0")).tolist()
        [1.0, -2.0]
    """
    raw = np.frombuffer(stored, np.uint8)
    if dtype == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype == "complex32":
        return raw.view(np.float16).astype(np.float32).view(np.complex64)
    if dtype == "float8_e8m0fnu":
        return _powers()[raw]
    if dtype in _EIGHT_BITS:
        return _table(dtype)[raw]
    if not is_readable(dtype):
        raise FormatError(f"values of {dtype} are not computed with", remedy="convert it with the library that made it")
    return raw.view(np.dtype(dtype))


def encode(dtype: str, values: Values) -> memoryview:
    r"""Values as the bytes of a dtype, rounded to nearest, ties to even, as torch's ``to`` does.

    Raises:
        FormatError: The dtype is complex and the values are not, or the reverse, or it cannot be written.

    Example:
        >>> bytes(encode("bfloat16", np.array([1.0, -2.0])))
        b'\x80?\x00\xc0'
    """
    if np.iscomplexobj(values) != dtype.startswith("complex"):
        raise FormatError(f"{values.dtype} values are not stored as {dtype}", remedy="choose another dtype")
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "bfloat16":
            made = _bfloat16(values.astype(np.float32))
        elif dtype == "complex32":
            made = values.astype(np.complex64).view(np.float32).astype(np.float16)
        elif dtype in _EIGHT_BITS:
            made = _eight_bits(dtype, values.astype(np.float32))
        elif dtype == "float8_e8m0fnu" or not is_readable(dtype):
            raise FormatError(f"values are not stored as {dtype}", remedy="choose another dtype")
        else:
            made = values.astype(np.dtype(dtype))
    # Arrays are buffers, which the type stubs say only from Python 3.12 on.
    return memoryview(cast("bytearray", np.ascontiguousarray(made).view(np.uint8).reshape(-1)))


def inner_product(one: Values, other: Values) -> float:
    """The inner product of two arrays in double precision; of complex ones its real part.

    It is computed by one thread: threads of a numerical library beside ours would wait for each other.

    Example:
        >>> inner_product(np.array([1 + 2j]), np.array([3 + 1j]))
        5.0
    """
    if np.iscomplexobj(one):
        one, other = one.view(np.float64), other.view(np.float64)
    return float(np.einsum("i,i->", one, other))


def pieces_of(dtype: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Ranges of bytes that are computed on at once, from `begin` to `end` of a tensor."""
    step = whole_bytes(dtype, PIECE_ELEMENTS * max(bits_of(dtype), 8) // 8)
    for at in range(begin, end, step):
        yield at, min(at + step, end)


def whole_bytes(dtype: str, about_bytes: int) -> int:
    """The most bytes, not over `about_bytes`, that hold whole elements of a dtype.

    Example:
        >>> whole_bytes("float32", 7), whole_bytes("float6_e2m3", 7)
        (4, 6)
    """
    unit = math.lcm(bits_of(dtype), 8) // 8
    return about_bytes - about_bytes % unit


def _bfloat16(values: Values) -> Values:
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


@cache
def _magnitudes(dtype: str) -> Values:
    """The magnitude of each code without its sign, also where the format says that it is not finite, and one more."""
    mantissa_bits, bias, *_ = _EIGHT_BITS[dtype]
    codes = np.arange(0x81)
    exponent, mantissa = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    scale = 1 << mantissa_bits
    normal = np.ldexp((scale + mantissa) / scale, exponent - bias)
    return np.where(exponent == 0, np.ldexp(mantissa / scale, 1 - bias), normal)


@cache
def _table(dtype: str) -> Values:
    *_, first_not_finite, is_fnuz = _EIGHT_BITS[dtype]
    half = _magnitudes(dtype)[:0x80].astype(np.float32)
    half[first_not_finite:] = np.nan
    if dtype == "float8_e5m2":
        half[first_not_finite] = np.inf
    table = np.concatenate([half, -half])
    if is_fnuz:
        table[0x80] = np.nan
    return table


@cache
def _powers() -> Values:
    powers = np.ldexp(np.float64(1), np.arange(256) - 127)
    powers[0xFF] = np.nan
    return powers.astype(np.float32)


def _eight_bits(dtype: str, values: Values) -> Values:
    *_, first_not_finite, is_fnuz = _EIGHT_BITS[dtype]
    magnitudes = _magnitudes(dtype)
    sizes = np.abs(values).astype(np.float64)
    upper = np.clip(np.searchsorted(magnitudes, sizes), 1, 0x80)
    middle = (magnitudes[upper - 1] + magnitudes[upper]) / 2
    is_tie = sizes == middle
    codes = np.where(is_tie, upper - (upper & 1), np.where(sizes > middle, upper, upper - 1))
    # e4m3fn has no infinity, and torch takes its greatest value for all that is greater.
    codes = np.minimum(codes, first_not_finite - 1 if dtype == "float8_e4m3fn" else first_not_finite)
    not_a_number = _SIGN if is_fnuz else 0x7F
    if is_fnuz:
        codes = np.where((codes > 0) & (codes < _SIGN) & np.signbit(values), codes | _SIGN, codes)
    codes = np.where(np.isnan(values), not_a_number, codes)
    if not is_fnuz:
        codes = np.where(np.signbit(values), codes | _SIGN, codes)
    return codes.astype(np.uint8)
