"""What every bad input is held to: one typed error, which says what and where."""

from __future__ import annotations

import pytest

from torchkeep.formats import open_source
from torchkeep.tensors import tensors_of


def open_and_read(path):
    """Open a file, read all of its tensors, and give its tree."""
    source = open_source(path)
    try:
        for spec in tensors_of(source.tree).values():
            source.read_into(spec, memoryview(bytearray(spec.nbytes)))
        return source.tree
    finally:
        source.close()


def refused(path, kind, words):
    with pytest.raises(kind) as raised:
        open_and_read(path)
    assert type(raised.value) is kind
    assert words in str(raised.value)
    assert str(path) in str(raised.value)
    return str(raised.value)
