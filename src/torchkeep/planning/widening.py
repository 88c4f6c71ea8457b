"""Which dtypes hold every value of which others."""

from __future__ import annotations

# Integers: (signed, bits of magnitude). Floats: (bits of significand, largest exponent, smallest exponent of a value).
_INTEGERS = {
    "bool": (False, 1),
    "uint8": (False, 8),
    "uint16": (False, 16),
    "uint32": (False, 32),
    "uint64": (False, 64),
    "int8": (True, 7),
    "int16": (True, 15),
    "int32": (True, 31),
    "int64": (True, 63),
}
_WIDE_FLOATS = {
    "float16": (11, 15, -24),
    "bfloat16": (8, 127, -133),
    "float32": (24, 127, -149),
    "float64": (53, 1023, -1074),
}
_FLOATS = _WIDE_FLOATS | {
    "float8_e4m3fn": (4, 8, -9),
    "float8_e4m3fnuz": (4, 7, -10),
    "float8_e5m2": (3, 15, -16),
    "float8_e5m2fnuz": (3, 15, -17),
    "float8_e8m0fnu": (1, 127, -127),
}
_COMPLEX = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}


def widens(source: str, target: str) -> bool:
    """Whether every value of one dtype is a value of another; dtypes are torch's names without ``torch.``.

    Example:
        >>> widens("bfloat16", "float32"), widens("int64", "float32"), widens("float16", "bfloat16")
        (True, False, False)
    """
    if source == target:
        return True
    if source in _COMPLEX and target in _COMPLEX:
        return widens(_COMPLEX[source], _COMPLEX[target])
    if source in _INTEGERS:
        signed, bits = _INTEGERS[source]
        if target in _INTEGERS:
            target_signed, target_bits = _INTEGERS[target]
            return bits <= target_bits and target_signed >= signed
        return target in _WIDE_FLOATS and bits <= _WIDE_FLOATS[target][0]
    if source in _FLOATS and target in _WIDE_FLOATS:
        significand, largest, smallest = _FLOATS[source]
        to_significand, to_largest, to_smallest = _WIDE_FLOATS[target]
        return significand <= to_significand and largest <= to_largest and smallest >= to_smallest
    return False
