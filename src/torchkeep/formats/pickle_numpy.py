"""numpy scalars, dtypes and arrays of plain numbers and text from pickles; arrays of objects stay described."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torchkeep.tensors import Described, Named

if TYPE_CHECKING:
    import numpy as np

_KINDS = frozenset("biufcSU")
_MAX_RANK = 32


def _dtype(state: object, code: str) -> np.dtype[np.generic]:
    import numpy as np

    if not isinstance(state, tuple) or len(state) != 8:
        raise ValueError("a dtype with fields or units")
    dtype = np.dtype(code)
    if dtype.kind not in _KINDS or dtype.itemsize == 0:
        raise ValueError("not a dtype of plain numbers or text")
    return dtype.newbyteorder(">") if state[1] == ">" else dtype


def finish_dtype(target: Described, state: object) -> object:
    """The dtype that a description and its state are of.

    Raises:
        ValueError: It is not of plain numbers or text.
    """
    code = target.args[0] if target.args else None
    if not isinstance(code, str) or len(code) > 10 or not code[:1].isalpha() or not code[1:].isdigit():
        raise ValueError("not a dtype of plain numbers or text")
    return _dtype(state, code)


def _scalar(dtype: object, raw: object) -> object:
    import numpy as np

    if not isinstance(dtype, np.dtype):
        raise TypeError("a scalar without its dtype")
    content = _content(raw)
    if len(content) != dtype.itemsize:
        raise ValueError("a scalar of another size")
    return np.frombuffer(content, dtype, 1)[0]


def _reconstruct(kind: object, _shape: object, _code: object) -> object:
    if not isinstance(kind, Named) or kind.class_path != "numpy.ndarray":
        raise TypeError("not a plain array")
    return Described("numpy.ndarray")


def finish_array(_target: Described, state: object) -> object:
    """The array that a state describes.

    Raises:
        ValueError: It is not of plain numbers or text, or its bytes do not fill its shape.
    """
    if not isinstance(state, tuple) or len(state) != 5:
        raise ValueError("not the state of an array")
    _version, shape, dtype, fortran, raw = state
    return _array(shape, dtype, "F" if fortran else "C", _content(raw))


def _from_buffer(raw: object, dtype: object, shape: object, order: object, axes: object = None) -> object:
    if order not in {"C", "F"} or axes is not None:
        raise ValueError("an order of axes of its own")
    return _array(shape, dtype, str(order), _content(raw))


def _array(shape: object, dtype: object, order: str, content: bytes) -> object:
    import numpy as np

    if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple) or len(shape) > _MAX_RANK:
        raise TypeError("not an array of plain numbers or text")
    if not all(type(size) is int and 0 <= size < 1 << 62 for size in shape):
        raise ValueError("sizes that are none")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError("bytes that do not fill the shape")
    flat = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C").copy(order="K")


def _content(raw: object) -> bytes:
    if isinstance(raw, str):
        return raw.encode("latin-1")
    if not isinstance(raw, (bytes, bytearray)):
        raise TypeError("not bytes")
    return bytes(raw)


_MAKERS: Mapping[str, Callable[..., object]] = {
    "multiarray.scalar": _scalar,
    "multiarray._reconstruct": _reconstruct,
    "numeric._frombuffer": _from_buffer,
}
CONSTRUCTORS: Mapping[str, Callable[..., object]] = {
    f"numpy.{core}.{name}": make for core in ("core", "_core") for name, make in _MAKERS.items()
}
FINISHERS: Mapping[str, Callable[[Described, object], object]] = {
    "numpy.dtype": finish_dtype,
    "numpy.ndarray": finish_array,
}
