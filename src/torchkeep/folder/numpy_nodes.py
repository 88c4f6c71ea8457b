"""Nodes of numpy's scalars, arrays and dtypes, as little-endian bytes in C order; numpy is imported when one is met.

A dtype is written as numpy's own text, ``"<f4"``. Booleans, integers, floats, complex numbers, dates, durations, bytes
and text have a node; objects and structured types have none.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torchkeep.errors import FormatError
from torchkeep.folder.leaf_nodes import Decoder, Members, Node, base64_of, bytes_in, int_in, list_in, text_in

if TYPE_CHECKING:
    import numpy as np

_KINDS = "biufcmMSU"
_DTYPE = re.compile(r"[|<>](?:[biufc]\d{1,2}|[SU]\d{1,9}|[mM]8(?:\[\d{0,9}(?:generic|[YMWDhms]|ms|us|ns|ps|fs|as)\])?)")


def encode_numpy(value: object) -> Node | None:
    """The node of a numpy scalar, array or dtype, or None for anything else.

    Raises:
        ValueError: It holds objects or fields, or is an array of a subclass; the message says so.
    """
    if "numpy" not in sys.modules:
        return None
    import numpy as np

    if isinstance(value, np.generic):
        return {"$numpy.scalar": _scalar_payload(value)}
    if isinstance(value, np.ndarray):
        return {"$numpy.array": _array_payload(value)}
    return {"$numpy.dtype": _known(value).str} if isinstance(value, np.dtype) else None


def _scalar_payload(value: np.generic) -> Node:
    # Not through an array, which would drop NULs at the end.
    if isinstance(value, str):
        return [f"<U{len(value)}", base64_of(value.encode("utf-32-le", "surrogatepass"))]
    if isinstance(value, bytes):
        return [f"|S{len(value)}", base64_of(bytes(value))]
    dtype = _known(value.dtype).newbyteorder("<")
    return [dtype.str, base64_of(value.astype(dtype).tobytes())]


def _array_payload(array: np.ndarray[Any, np.dtype[Any]]) -> Node:
    import numpy as np

    if type(array) is not np.ndarray:
        raise ValueError(f"{type(array)}; numpy.asarray(value) has an encoding")
    dtype = _known(array.dtype).newbyteorder("<")
    if not dtype.itemsize:
        raise ValueError(f"numpy's {dtype.str} has elements of no bytes")
    return [dtype.str, list(array.shape), base64_of(array.astype(dtype, copy=False).tobytes("C"))]


def _known(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind not in _KINDS:
        raise ValueError(f"numpy's {dtype} has no encoding")
    return dtype


def _dtype_of(payload: object) -> np.dtype[Any]:
    import numpy as np

    if not _DTYPE.fullmatch(text_in(payload)):
        raise ValueError("not a dtype")
    try:
        return np.dtype(text_in(payload))
    except TypeError as error:
        raise FormatError(f"numpy has no dtype {payload!r} on this machine") from error


def _scalar(payload: object, _: Members) -> object:
    import numpy as np

    text, encoded = list_in(payload, 2)
    data = bytes_in(encoded)
    if text_in(text).startswith("<U"):
        value: object = np.str_(data.decode("utf-32-le", "surrogatepass"))
    elif text_in(text).startswith("|S"):
        value = np.bytes_(data)
    else:
        return _elements(_dtype_of(text), 1, data)[0]
    if text != f"<U{len(data) // 4}" and text != f"|S{len(data)}":
        raise ValueError("its bytes are not as many as its dtype has")
    return value


def _array(payload: object, _: Members) -> object:
    text, shape, encoded = list_in(payload, 3)
    sizes = tuple(int_in(size) for size in list_in(shape))
    if any(size < 0 for size in sizes):
        raise ValueError("a negative size")
    return _elements(_dtype_of(text), math.prod(sizes), bytes_in(encoded)).reshape(sizes)


def _elements(dtype: np.dtype[Any], count: int, data: bytes) -> np.ndarray[Any, np.dtype[Any]]:
    import numpy as np

    if not dtype.itemsize or count * dtype.itemsize != len(data):
        raise ValueError("its bytes are not as many as its dtype and shape have")
    elements = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
    if dtype.kind == "b" and data.strip(b"\0\1"):
        raise ValueError("a boolean that is neither 0 nor 1")
    if dtype.kind == "U" and any(point > sys.maxunicode for point in np.frombuffer(data, "<u4")):
        raise ValueError("text beyond Unicode")
    return elements


NUMPY_DECODERS: Mapping[str, Decoder] = {
    "$numpy.scalar": _scalar,
    "$numpy.array": _array,
    "$numpy.dtype": lambda payload, _: _dtype_of(payload),
}
