"""Any part of a tensor is read from any format as it stands in the whole."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import torchkeep as tk
from torchkeep.errors import CorruptError
from torchkeep.formats.chunk_cover import boxes_of_range
from torchkeep.tensors import tensors_of
from torchkeep.verbs.sources import open_source

BASE = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32)
NASTY = {
    "plain": BASE.reshape(24, 5),
    "transposed": BASE.reshape(24, 5).t(),
    "channels_last": BASE.reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "strided": BASE.reshape(24, 5)[3:20:2, 1:4],
    "conjugated": torch.complex(BASE, BASE.flip(0)).reshape(6, 20).conj(),
    "negated": torch.complex(BASE, BASE).conj().imag,
    "expanded": BASE[:7].reshape(7, 1).expand(7, 6),
    "scalar": torch.tensor(3, dtype=torch.int16),
    "empty": torch.zeros(3, 0),
    "bits": torch.tensor([[True, False], [False, True]]),
}
CONTIGUOUS = {name: tensor.resolve_conj().resolve_neg().contiguous() for name, tensor in NASTY.items()}


def _hf(path):
    path.mkdir()
    half = dict(list(CONTIGUOUS.items())[:4])
    rest = dict(list(CONTIGUOUS.items())[4:])
    save_file(half, path / "a.safetensors")
    save_file(rest, path / "b.safetensors")
    where = {**dict.fromkeys(half, "a.safetensors"), **dict.fromkeys(rest, "b.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _trainer(path):
    path.mkdir()
    save_file(CONTIGUOUS, path / "model.safetensors")
    torch.save({"state": {0: {"exp_avg": BASE}}, "param_groups": []}, path / "optimizer.pt")


WRITERS = {
    "torchkeep": lambda path: tk.save(NASTY, path),
    "torch-zip": lambda path: torch.save(NASTY, path),
    "torch-legacy": lambda path: torch.save(
        {k: t for k, t in NASTY.items() if k not in {"conjugated", "negated"}},
        path,
        _use_new_zipfile_serialization=False,
    ),
    "safetensors": lambda path: save_file(CONTIGUOUS, path),
    "huggingface": _hf,
    "training-folder": _trainer,
    "torch-dcp": lambda path: dcp.save(dict(CONTIGUOUS), checkpoint_id=path, no_dist=True),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_range_of_every_layout_is_what_the_whole_has_there(kind, tmp_path):
    WRITERS[kind](tmp_path / "saved")
    source = open_source(tmp_path / "saved")
    assert source.format == kind
    for spec in tensors_of(source.tree).values():
        whole = bytearray(spec.nbytes)
        source.read_into(spec, memoryview(whole))
        item_bytes = spec.nbytes // spec.numel if spec.numel else 1
        for begin in range(0, spec.numel, 7):
            for end in {begin, begin + 1, min(begin + 11, spec.numel), spec.numel}:
                part = bytearray((end - begin) * item_bytes)
                source.read_range_into(spec, begin * item_bytes, memoryview(part))
                assert part == whole[begin * item_bytes : end * item_bytes], (spec, begin, end)
        if item_bytes > 1 and spec.numel:
            with pytest.raises(ValueError, match="are not whole elements of"):
                source.read_range_into(spec, 1, memoryview(bytearray(item_bytes)))
            with pytest.raises(ValueError, match="are not whole elements of"):
                source.read_range_into(spec, spec.nbytes, memoryview(bytearray(item_bytes)))
    source.close()


@given(st.lists(st.integers(0, 4), max_size=4).map(tuple), st.data())
def test_boxes_of_a_range_are_its_elements_in_order(shape, data):
    numel = math.prod(shape)
    begin = data.draw(st.integers(0, numel))
    end = data.draw(st.integers(begin, numel))
    numbers = torch.arange(numel).reshape(shape)
    boxes = list(boxes_of_range(shape, begin, end))
    parts = [
        numbers[tuple(slice(at, at + size) for at, size in zip(box.offsets, box.sizes, strict=True))].reshape(-1)
        for box in boxes
    ]
    assert (torch.cat(parts).tolist() if parts else []) == list(range(begin, end))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@pytest.mark.parametrize("kind", ["torchkeep", "torch-zip"])
def test_a_range_beside_a_flipped_byte_is_refused_where_a_checksum_covers_both(kind, tmp_path):
    path = tmp_path / "saved"
    WRITERS[kind](path)
    file = next(path.glob("*.safetensors")) if path.is_dir() else path
    content = bytearray(file.read_bytes())
    at = bytes(content).index(BASE.numpy().tobytes())
    content[at + 4 * 100] ^= 1
    file.unlink()
    file.write_bytes(content)
    source = open_source(path)
    spec = tensors_of(source.tree)["plain"]
    with pytest.raises(CorruptError):
        source.read_range_into(spec, 0, memoryview(bytearray(8)))
    source.close()
