"""Every truncation and every flipped bit of a small file: a typed error, or the values that were saved."""

from __future__ import annotations

import random
import struct

import pytest
import torch
from tests.hostile import archives, pickles
from tests.hostile.safetensors_headers import entry, file_of

from torchkeep.errors import CheckpointError, CorruptError
from torchkeep.formats import open_source
from torchkeep.tensors import Described, tensors_of


def saved(folder, **options):
    value = {"w": torch.arange(4.0), "view": torch.arange(6.0)[::2], "b": torch.tensor([True, False]), "epoch": 3}
    torch.save(value, folder / "saved", **options)
    return (folder / "saved").read_bytes()


def contents(path):
    """Everything that a file says: its tree with the bytes of its tensors."""
    source = open_source(path)
    try:
        found = []
        for name, spec in tensors_of(source.tree).items():
            buffer = bytearray(spec.nbytes)
            source.read_into(spec, memoryview(buffer))
            found.append((name, spec.dtype, spec.shape, bytes(buffer)))
        plain = {name: value for name, value in source.tree.items() if isinstance(value, (int, str, Described))}
        return found, str(plain)
    finally:
        source.close()


MADE = {
    "zip": saved,
    "legacy": lambda folder: saved(folder, _use_new_zipfile_serialization=False),
    "safetensors": lambda _folder: file_of({"a": entry([1], 0, 4), "b": entry([1], 4, 8)}),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_file_cut_short_anywhere_is_a_typed_error(tmp_path, make):
    content = make(tmp_path)
    path = tmp_path / "x"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            contents(path)


def test_a_truncated_file_is_a_corrupt_error_that_says_how_much_is_short(tmp_path):
    (tmp_path / "x").write_bytes(saved(tmp_path, _use_new_zipfile_serialization=False)[:-3])
    with pytest.raises(CorruptError, match="ends 3 bytes before the end of storage"):
        contents(tmp_path / "x")


def test_each_flipped_bit_of_an_archive_is_a_typed_error_or_changes_nothing(tmp_path):
    content = archives.torch_zip(pickles.stream(b"}" + pickles.text("w") + pickles.tensor((4,), (1,))[2:-1] + b"s"))
    path = tmp_path / "x"
    path.write_bytes(content)
    expected = contents(path)
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert contents(path) == expected
        except CheckpointError:
            pass


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_random_damage_never_raises_anything_untyped(tmp_path, make):
    content = make(tmp_path)
    chance = random.Random(20)
    path = tmp_path / "x"
    for _ in range(1_500):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(damaged))
            damaged[at : at + chance.choice([0, 1, 1, 4])] = chance.randbytes(chance.choice([0, 1, 4]))
        path.write_bytes(damaged)
        try:
            contents(path)
        except CheckpointError:
            pass


def test_random_opcodes_never_raise_anything_untyped(tmp_path):
    chance = random.Random(5)
    opcodes = b"(012FGIJKLMNPQRSTUVXabcd}eghijlopqrst)uBC\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x8f\x90\x91\x92\x93\x94"
    seeds = [pickles.tensor((4,), (1,)), pickles.text("a"), b"K\x01", b"N", b"}", b"]", b"(", pickles.named("a", "B")]
    seeds += [pickles.named("collections", "OrderedDict") + b")R", pickles.numbers((1, 2)), pickles.storage()]
    for _ in range(3_000):
        parts = [bytes([chance.choice(opcodes)]) if chance.random() < 0.6 else chance.choice(seeds) for _ in range(12)]
        (tmp_path / "x").write_bytes(archives.torch_zip(pickles.stream(b"".join(parts), 4)))
        try:
            open_source(tmp_path / "x").close()
        except CheckpointError:
            pass


def test_a_damaged_storage_is_found_whichever_of_its_views_is_read_first(tmp_path):
    whole = pickles.tensor((4,), (1,))[2:-1]
    last = pickles.tensor((1,), (1,), 3)[2:-1]
    content = archives.torch_zip(pickles.stream(b"(" + whole + last + b"l"))
    (tmp_path / "x").write_bytes(content.replace(archives.FOUR_FLOATS, struct.pack("<4f", 9, 2, 3, 4)))
    source = open_source(tmp_path / "x")
    for spec in reversed(source.tree):
        with pytest.raises(CorruptError, match=r"'a/data/0' is damaged: its CRC-32 is \w+, and \w+ was recorded"):
            source.read_into(spec, memoryview(bytearray(spec.nbytes)))
    source.close()
