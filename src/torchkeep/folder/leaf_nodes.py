"""Nodes of standard-library values that hold no other values: numbers, bytes, ranges, paths, dates.

A decoder gets a payload that may be anything JSON can hold. It raises ValueError, TypeError, KeyError or OverflowError
for what it cannot be, which `values.decode` turns into an error that names the place.
"""

from __future__ import annotations

import base64
import datetime as dt
import math
import pathlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

Node: TypeAlias = object
Members: TypeAlias = Mapping[str, object]
Decoder: TypeAlias = Callable[[object, Members], object]

ATOM_TYPES: frozenset[type] = frozenset((str, int, float, bool, type(None)))
# At most 640 digits: every Python reads these, however sys.set_int_max_str_digits was called.
_MAX_PLAIN_INT_BITS = 2_125
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_PATHS: dict[str, type[pathlib.PurePath]] = {
    "PosixPath": pathlib.Path,
    "WindowsPath": pathlib.Path,
    "PurePosixPath": pathlib.PurePosixPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
}


def encode_atom(value: object) -> Node:
    """The node of an exact str, int, float, bool or None; an integer of more than 640 digits becomes a ``$int``.

    Raises:
        ValueError: A string that `check_text` refuses.
    """
    if type(value) is float and not math.isfinite(value):
        return {"$float": str(value)}
    if type(value) is int and value.bit_length() > _MAX_PLAIN_INT_BITS:
        return {"$int": hex(value)}
    return check_text(value) if type(value) is str else value


def are_own_nodes(values: Collection[object]) -> bool:
    """Whether values are numbers of one kind, each its own node and the value of that: asked of all in a few passes.

    A random generator's state has hundreds, the order of an epoch may have millions.
    """
    kinds = set(map(type, values))
    if kinds <= {float}:
        return all(map(math.isfinite, values))  # type: ignore[arg-type]
    return kinds == {int} and max(map(int.bit_length, values)) <= _MAX_PLAIN_INT_BITS  # type: ignore[arg-type]


def decode_atom(node: object) -> object:
    """The value of an atom's node; ValueError, TypeError or KeyError for any other node."""
    if isinstance(node, dict) and len(node) == 1:
        ((tag, payload),) = node.items()
        return {"$float": _float, "$int": _int}[tag](payload, {})
    if type(node) is float and not math.isfinite(node):
        raise ValueError("a number too large for a float")
    if type(node) not in ATOM_TYPES:
        raise TypeError(f"a plain value wanted, found {type(node).__name__}")
    return node


def check_text(text: str) -> str:
    """The text itself; ValueError where JSON would join two lone surrogates to one character."""
    if not text.isascii() and _SURROGATE_PAIR.search(text):
        raise ValueError("a str with two surrogates in place of one character")
    return text


def encode_leaf(value: object) -> Node | None:
    """The node of a leaf that is not an atom, or None where it has none.

    Raises:
        ValueError: The value's type has a node and yet this value has none; the message says why.
    """
    kind = type(value)
    if isinstance(value, pathlib.PurePath):
        # The classes moved between modules of the standard library; their names did not.
        known = kind.__name__ in _PATHS and kind.__module__.partition(".")[0] == "pathlib"
        return {"$path": [kind.__name__, check_text(str(value))]} if known else None
    return _ENCODERS[kind](value) if kind in _ENCODERS else None


def _clock_node(tag: str, value: dt.datetime | dt.time) -> Node:
    zone = value.tzinfo
    if zone is not None and type(zone) is not dt.timezone:
        raise ValueError(f"its time zone is a {type(zone)}; fixed offsets have an encoding: astimezone(timezone.utc)")
    node: dict[str, object] = {tag: value.isoformat()}
    if value.fold:
        node["fold"] = value.fold
    if zone is not None and zone.tzname(None) != dt.timezone(zone.utcoffset(None)).tzname(None):
        node["zone"] = check_text(zone.tzname(None))
    return node


def base64_of(value: bytes | bytearray) -> str:
    """Bytes as base64 text."""
    return base64.b64encode(value).decode("ascii")


_ENCODERS: dict[type, Callable[[Any], Node]] = {
    bytes: lambda value: {"$bytes": base64_of(value)},
    bytearray: lambda value: {"$bytearray": base64_of(value)},
    complex: lambda value: {"$complex": [encode_atom(value.real), encode_atom(value.imag)]},
    range: lambda value: {"$range": [encode_atom(part) for part in (value.start, value.stop, value.step)]},
    dt.datetime: lambda value: _clock_node("$datetime", value),
    dt.date: lambda value: {"$date": value.isoformat()},
    dt.time: lambda value: _clock_node("$time", value),
    dt.timedelta: lambda value: {"$timedelta": [value.days, value.seconds, value.microseconds]},
}


def text_in(payload: object) -> str:
    """The payload as the text it should be."""
    if not isinstance(payload, str):
        raise TypeError(f"text wanted, found {type(payload).__name__}")
    return payload


def list_in(payload: object, length: int | None = None) -> list[object]:
    """The payload as the list, of `length` items if given, that it should be."""
    if not isinstance(payload, list) or length not in (None, len(payload)):
        raise TypeError("a list wanted" if length is None else f"a list of {length} wanted")
    return payload


def int_in(payload: object) -> int:
    """The payload as the integer that it should be."""
    value = decode_atom(payload)
    if type(value) is not int:
        raise TypeError(f"an integer wanted, found {type(value).__name__}")
    return value


def bytes_in(payload: object) -> bytes:
    """The bytes that the payload has in base64."""
    return base64.b64decode(text_in(payload), validate=True)


def _float(payload: object, _: Members) -> float:
    return _FLOATS[text_in(payload)]


def _int(payload: object, _: Members) -> int:
    if not re.fullmatch(r"-?0x[0-9a-f]+", text_in(payload)):
        raise ValueError("hexadecimal digits wanted")
    return int(text_in(payload), 16)


def _complex(payload: object, _: Members) -> complex:
    real, imaginary = (decode_atom(part) for part in list_in(payload, 2))
    if type(real) is not float or type(imaginary) is not float:
        raise TypeError("two floats wanted")
    return complex(real, imaginary)


def _path(payload: object, _: Members) -> pathlib.PurePath:
    kind, text = list_in(payload, 2)
    return _PATHS[text_in(kind)](text_in(text))


def _datetime(payload: object, members: Members) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text_in(payload))
    return moment.replace(fold=int_in(members.get("fold", 0)), tzinfo=_zone(moment.tzinfo, members))


def _time(payload: object, members: Members) -> dt.time:
    moment = dt.time.fromisoformat(text_in(payload))
    return moment.replace(fold=int_in(members.get("fold", 0)), tzinfo=_zone(moment.tzinfo, members))


def _zone(offset: dt.tzinfo | None, members: Members) -> dt.tzinfo | None:
    if "zone" not in members:
        return offset
    if not isinstance(offset, dt.timezone):
        raise TypeError("the name of a zone without an offset")
    return dt.timezone(offset.utcoffset(None), text_in(members["zone"]))


def _timedelta(payload: object, _: Members) -> dt.timedelta:
    days, seconds, microseconds = (int_in(part) for part in list_in(payload, 3))
    return dt.timedelta(days, seconds, microseconds)


LEAF_DECODERS: Mapping[str, Decoder] = {
    "$float": _float,
    "$int": _int,
    "$complex": _complex,
    "$bytes": lambda payload, _: bytes_in(payload),
    "$bytearray": lambda payload, _: bytearray(bytes_in(payload)),
    "$range": lambda payload, _: range(*(int_in(part) for part in list_in(payload, 3))),
    "$path": _path,
    "$datetime": _datetime,
    "$date": lambda payload, _: dt.date.fromisoformat(text_in(payload)),
    "$time": _time,
    "$timedelta": _timedelta,
}
