"""What a header's length begins with says nothing of the format: bytes of pickles, archives and texts among them."""

import struct

import pytest
import torch
from safetensors.torch import save_file

import torchkeep as tk


@pytest.mark.parametrize("first_byte", [0x80, 0x28, 0x50, 0x63, 0x7B, 0x1F, 0x42])
def test_a_header_whose_length_begins_like_another_format_is_read(tmp_path, first_byte):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"k": "x"})
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length]
    padded = header + b" " * ((first_byte - length) % 256)
    assert struct.pack("<Q", len(padded))[0] == first_byte
    path.write_bytes(struct.pack("<Q", len(padded)) + padded + content[8 + length :])
    with tk.open(path) as checkpoint:
        assert checkpoint.format == "safetensors"
        assert torch.equal(checkpoint.tensors["a"].torch(), torch.ones(2))
