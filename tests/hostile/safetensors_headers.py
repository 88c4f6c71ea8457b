"""safetensors files that a loader must survive."""

from __future__ import annotations

import json


def framed(header: bytes | str, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of any header and data; `length` is what it says of its header."""
    raw = header.encode() if isinstance(header, str) else header
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(shape: object = (2,), begin: object = 0, end: object = 8, dtype: object = "F32") -> dict[str, object]:
    """The description of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_of(entries: dict[str, object], data: bytes = bytes(8)) -> bytes:
    """A file of described tensors."""
    return framed(json.dumps(entries), data)


def raw_entry(text: str, data: bytes = bytes(8)) -> bytes:
    """A file whose one tensor is described by this text."""
    return framed('{"w":{' + text + "}}", data)


GOOD = '"dtype":"F32","shape":[2],"data_offsets":[0,8]'


def many_entries(count: int) -> bytes:
    """39: a header of very many tensors of nothing."""
    fields = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return framed("{" + ",".join(f'"{index}":{fields}' for index in range(count)) + "}")
