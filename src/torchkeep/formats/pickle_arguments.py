"""The arguments of pickle's opcodes: numbers and texts, each bounded before memory is taken for it."""

from __future__ import annotations

import codecs
import struct

from torchkeep.formats.faults import ExcessError, MalformedError
from torchkeep.formats.regular_file import ByteStream

_MAX_INTEGER_BYTES = 1_024


def read_count(stream: ByteStream, width_bytes: int) -> int:
    """An unsigned number."""
    return int.from_bytes(stream.take(width_bytes), "little")


def read_integer(stream: ByteStream) -> int:
    """A signed number of four bytes."""
    return int.from_bytes(stream.take(4), "little", signed=True)


def read_float(stream: ByteStream) -> float:
    """A float of eight big-endian bytes."""
    value: float = struct.unpack(">d", stream.take(8))[0]
    return value


def read_sized(stream: ByteStream, width_bytes: int) -> bytes:
    """Bytes behind their number."""
    return stream.take(read_count(stream, width_bytes))


def read_text(stream: ByteStream, width_bytes: int) -> str:
    """A text behind the number of its bytes."""
    return decoded(read_sized(stream, width_bytes))


def read_long(stream: ByteStream, width_bytes: int) -> int:
    """A signed number of as many bytes as are said; converting more to text would take quadratic time."""
    count = read_count(stream, width_bytes)
    if count > _MAX_INTEGER_BYTES:
        raise ExcessError(f"an integer of {count:,} bytes")
    return int.from_bytes(stream.take(count), "little", signed=True)


def read_decimal(stream: ByteStream) -> int:
    """A number written in digits, with or without Python 2's L."""
    return _number(stream.take_line().rstrip(b"L"))


def read_decimal_or_boolean(stream: ByteStream) -> int:
    """A number written in digits; 00 and 01 are False and True."""
    line = stream.take_line()
    return line == b"01" if line in {b"00", b"01"} else _number(line)


def read_decimal_float(stream: ByteStream) -> float:
    """A float written in digits."""
    line = stream.take_line()
    try:
        return float(line)
    except ValueError:
        raise MalformedError(f"{line[:20]!r} is not a number") from None


def read_quoted(stream: ByteStream) -> str | bytes:
    """A Python 2 string in quotes, with escapes."""
    quoted = stream.take_line().strip()
    if len(quoted) < 2 or quoted[:1] != quoted[-1:] or quoted[:1] not in {b"'", b'"'}:
        raise MalformedError("a string has no closing quote")
    try:
        raw: bytes = codecs.escape_decode(quoted[1:-1])[0]
    except ValueError:
        raise MalformedError("a string has a broken escape") from None
    return text_or_bytes(raw)


def read_escaped(stream: ByteStream) -> str:
    r"""A text with ``\u`` escapes."""
    try:
        return stream.take_line().decode("raw-unicode-escape")
    except UnicodeDecodeError:
        raise MalformedError("a text has a broken escape") from None


def text_or_bytes(raw: bytes) -> str | bytes:
    """A Python 2 string, which held text and bytes alike: what is not UTF-8 stays bytes."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


def decoded(raw: bytes) -> str:
    """A text as pickle encodes it: UTF-8 in which lone surrogates may stand."""
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise MalformedError("a text is not UTF-8") from None


def _number(line: bytes) -> int:
    if len(line) > _MAX_INTEGER_BYTES:
        raise ExcessError(f"an integer of {len(line):,} digits")
    try:
        return int(line)
    except ValueError:
        raise MalformedError(f"{line[:20]!r} is not an integer") from None
