"""Pickle streams that a loader must survive; the numbers of the classic cases stand in the docstrings."""

from __future__ import annotations

import pickle
import struct


def named(module: str, name: str) -> bytes:
    """A GLOBAL opcode."""
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    """A BINUNICODE opcode."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def stream(body: bytes, protocol: int = 2) -> bytes:
    """A whole stream of a protocol."""
    return bytes([0x80, protocol]) + body + b"."


def integer(value: int) -> bytes:
    """The opcodes of a number."""
    return pickle.dumps(value, protocol=2)[2:-1]


def calling(module: str, name: str, argument: str = "true") -> bytes:
    """82: a global called on a text."""
    return stream(named(module, name) + text(argument) + b"\x85R")


def calling_by_stack_global(module: str, name: str) -> bytes:
    """83: the same by STACK_GLOBAL."""
    return stream(text(module) + text(name) + b"\x93" + text("true") + b"\x85R", 4)


def calling_by_inst(module: str, name: str) -> bytes:
    """83: the same by INST, in protocol 0."""
    return b"(" + text("true") + f"i{module}\n{name}\n.".encode()


def calling_by_obj(module: str, name: str) -> bytes:
    """83: the same by OBJ."""
    return stream(b"(" + named(module, name) + text("true") + b"o", 1)


def calling_by_newobj_ex(module: str, name: str) -> bytes:
    """83: the same by NEWOBJ_EX."""
    return stream(named(module, name) + b")}\x92", 4)


def extension() -> bytes:
    """83: EXT1."""
    return stream(b"\x82\x01")


def setting_state(module: str, name: str) -> bytes:
    """83: BUILD, which would call ``__setstate__``."""
    return stream(named(module, name) + b")\x81}" + text("a") + text("b") + b"sb")


def remembering_with_gaps(count: int) -> bytes:
    """88: values remembered by numbers far apart."""
    return stream(b"".join(b"Nr" + struct.pack("<I", 100 * index) + b"0" for index in range(count)) + b"N")


def laughing(levels: int) -> bytes:
    """89: each list names the one before it ten times."""
    body = b"]q\x000"
    for level in range(levels):
        body += b"](" + (b"h" + bytes([level])) * 10 + b"eq" + bytes([level + 1])
        body += b"0" if level < levels - 1 else b""
    return stream(body)


def laughing_key(levels: int) -> bytes:
    """89: a key whose hash takes exponential time."""
    return stream(b"}" + b"K\x01" + b"2\x86" * levels + b"K\x01s")


def containing_itself(kind: str) -> bytes:
    """90: a list or a dict in itself."""
    return stream({"list": b"]q\x00h\x00a", "dict": b"}q\x00" + text("a") + b"h\x00s"}[kind])


def deep(levels: int, opener: bytes = b"]", closer: bytes = b"a") -> bytes:
    """91: lists in lists."""
    return stream(opener * levels + closer * (levels - 1))


def deep_tuple(levels: int) -> bytes:
    """91: tuples in tuples."""
    return stream(b")" + b"\x85" * levels)


def deep_tuple_key(levels: int) -> bytes:
    """91: a key whose hash would overflow the C stack."""
    return stream(b"})" + b"\x85" * levels + b"Ns")


def allocating(module: str, name: str) -> bytes:
    """92: a constructor that takes a size."""
    return stream(named(module, name) + integer(1 << 40) + b"\x85R")


def persistent(identifier: bytes) -> bytes:
    """96: a persistent id that torch does not write."""
    return stream(identifier + b"Q")


def storage(key: str = "0", kind: str = "FloatStorage", numel: int = 4, device: str = "cpu") -> bytes:
    """The opcodes of a storage."""
    return b"(" + text("storage") + named("torch", kind) + text(key) + text(device) + integer(numel) + b"tQ"


def numbers(values: tuple[int, ...]) -> bytes:
    """The opcodes of a tuple of numbers."""
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, of: bytes | None = None) -> bytes:
    """103-107: a tensor of any shape, stride and offset over a storage of four floats."""
    args = (storage() if of is None else of) + integer(offset) + numbers(shape) + numbers(stride)
    hooks = named("collections", "OrderedDict") + b")R"
    return stream(named("torch._utils", "_rebuild_tensor_v2") + b"(" + args + b"\x89" + hooks + b"tR")


def quantized(stride: int) -> bytes:
    """109: a quantised tensor whose stride leads outside."""
    quantizer = b"(" + named("torch", "per_tensor_affine") + b"G" + struct.pack(">d", 0.5) + b"K\x00t"
    args = storage(kind="QInt8Storage", numel=16) + integer(0) + numbers((4,)) + numbers((stride,)) + quantizer
    return stream(named("torch._utils", "_rebuild_qtensor") + b"(" + args + b"\x89NtR")
