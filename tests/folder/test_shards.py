"""How shards are named and laid out, and that any safetensors reader opens them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import torchkeep as tk
from torchkeep.errors import CheckpointError
from torchkeep.folder.shards import file_order, header_of, single_file_names, stems_of
from torchkeep.tensors import TensorSpec

ALIGNMENT_BYTES = 4096
NASTY = {
    "flag": torch.tensor([True, False, True]),
    "half": torch.arange(7, dtype=torch.float16),
    "wide": torch.arange(5, dtype=torch.float64),
    "brain": torch.arange(3, dtype=torch.bfloat16),
    "scalar": torch.tensor(7, dtype=torch.int32),
    "nothing": torch.empty(0, 3),
    "eighth": torch.arange(5).to(torch.float8_e4m3fn),
    "complex": torch.arange(3).to(torch.complex64),
    'a "quoted" näme \\ \n': torch.arange(3, dtype=torch.int16),
}


def as_transformers_reads(folder: Path, stem: str) -> dict[str, torch.Tensor]:
    """Read a group as transformers does: the index if there is one, else the one file."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.exists():
        return load_file(folder / f"{stem}.safetensors")
    content = json.loads(index.read_text())
    found = {
        name: value
        for file in sorted(set(content["weight_map"].values()))
        for name, value in load_file(folder / file).items()
    }
    assert found.keys() == content["weight_map"].keys()
    for name, file in content["weight_map"].items():
        with safe_open(folder / file, "pt") as shard:
            assert shard.metadata()["format"] == "pt"
            assert name in shard.keys()  # noqa: SIM118 - it is no mapping
    assert content["metadata"]["total_size"] == sum(value.numel() * value.element_size() for value in found.values())
    return found


def header_of_file(file: Path) -> tuple[int, dict[str, dict[str, object]]]:
    """Where data begins, in bytes, and the header."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return 8 + length, json.loads(data[8 : 8 + length])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """One group of two shards, one of one, and loose tensors of every width."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    tk.freeze(model, "0")
    return tk.save({"model": model, "nasty": NASTY, "loose": torch.arange(3)}, tmp_path / "ckpt").path


@pytest.mark.parametrize("entry", ["model", "nasty"])
def test_what_safetensors_reads_is_what_load_gives(entry, checkpoint):
    ours, theirs = tk.load(checkpoint)[entry], as_transformers_reads(checkpoint, entry)
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        assert theirs[name].dtype == value.dtype
        assert theirs[name].shape == value.shape
        assert (
            theirs[name].view(torch.uint8).equal(value.view(torch.uint8)) if value.dim() else theirs[name].equal(value)
        )


def test_the_index_is_there_only_where_a_group_has_more_than_one_shard(checkpoint):
    assert sorted(path.name for path in checkpoint.glob("*.index.json")) == ["model.safetensors.index.json"]
    assert len(list(checkpoint.glob("model-*.safetensors"))) == 2


def test_data_begins_at_a_page_has_no_gaps_and_every_tensor_is_aligned(checkpoint):
    for file in checkpoint.glob("*.safetensors"):
        begin, header = header_of_file(file)
        assert begin % ALIGNMENT_BYTES == 0
        assert header.pop("__metadata__") == {"format": "pt"}
        position = 0
        for name, member in header.items():
            first, last = member["data_offsets"]
            assert first == position, name
            count = torch.Size(member["shape"]).numel()
            assert count == 0 or first % ((last - first) // count) == 0, name
            position = last
        assert begin + position == file.stat().st_size


def test_one_file_is_read_by_safetensors_too(tmp_path):
    path = tk.save(NASTY, tmp_path / "w.safetensors").path
    theirs = load_file(path)
    assert theirs.keys() == NASTY.keys()
    assert all(theirs[name].dtype == value.dtype for name, value in NASTY.items())
    begin, header = header_of_file(path)
    assert begin % ALIGNMENT_BYTES == 0
    assert header["__metadata__"].keys() == {"format", "torchkeep"}


def test_a_file_of_one_entry_has_its_names_and_one_of_several_has_theirs_in_front(tmp_path):
    one = tk.save({"model": torch.nn.Linear(2, 1), "epoch": 1}, tmp_path / "one.safetensors").path
    two = tk.save({"g": {"w": torch.zeros(1)}, "d": {"w": torch.ones(1)}}, tmp_path / "two.safetensors").path
    assert load_file(one).keys() == {"weight", "bias"}
    assert load_file(two).keys() == {"g.w", "d.w"}


def test_complex_numbers_without_a_code_are_pairs_for_others_and_themselves_for_load(tmp_path):
    value = torch.complex(torch.arange(6.0).double(), -torch.arange(6.0).double()).reshape(2, 3)
    path = tk.save({"group": {"z": value}}, tmp_path / "ckpt").path
    theirs = load_file(path / "group.safetensors")["z"]
    assert torch.equal(theirs, torch.view_as_real(value))
    assert torch.equal(tk.load(path)["group"]["z"], value)


def test_a_header_is_these_bytes():
    specs = {"b": TensorSpec("uint8", (3,)), "w": TensorSpec("float32", (1, 2)), "s": TensorSpec("int64", ())}
    order = file_order(specs)
    assert order == ["s", "w", "b"]
    text = (
        b'{"__metadata__":{"format":"pt"},'
        b'"s":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
        b'"w":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]},'
        b'"b":{"dtype":"U8","shape":[3],"data_offsets":[16,19]}}'
    )
    assert header_of(specs, order, {"format": "pt"}) == struct.pack("<Q", 4088) + text.ljust(4088)


@pytest.mark.parametrize("length", [4087, 4088, 4089])
def test_a_header_that_just_fits_is_padded_by_nothing(length):
    empty = len(header_of({}, [], {"k": ""}).rstrip()) - 8
    header = header_of({}, [], {"k": "x" * (length - empty)})
    assert len(header) == (4096 if length <= 4088 else 8192)
    assert int.from_bytes(header[:8], "little") == len(header) - 8


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["model", "optimizer"], ["model", "optimizer"]),
        (["model", "Model", "MODEL"], ["model", "Model~2", "MODEL~3"]),
        (["model~2", "model", "Model"], ["model%7E2", "model", "Model~2"]),
        (["a/b", "a\\b", "a b", "ä"], ["a%2Fb", "a%5Cb", "a%20b", "%C3%A4"]),
        (["..", ".", "", ".hidden"], ["%2E.", "%2E", "%", "%2Ehidden"]),
        (["con", "NUL.txt", "com1", "console"], ["%63on", "%4EUL.txt", "%63om1", "console"]),
        (["\ud800", "\0"], ["%ED%A0%80", "%00"]),
    ],
)
def test_a_stem_is_a_safe_file_name_of_its_own(names, stems):
    assert list(stems_of(names).values()) == stems


def test_a_long_stem_is_cut_and_stays_its_own():
    stems = list(stems_of(["x" * 101, "x" * 102, "x" * 100]).values())
    assert stems[2] == "x" * 100
    assert [len(stem) for stem in stems] == [117, 117, 100]
    assert len(set(stems)) == 3


def test_nasty_entry_names_make_files_of_their_own_and_come_back(tmp_path):
    names = ["model", "Model", "../up", ".hidden", "con", "", "a/b", "a.b", "x" * 300, "naïve ☃"]
    path = tk.save({name: {"w": torch.tensor([at])} for at, name in enumerate(names)}, tmp_path / "ckpt").path
    files = [file.name for file in path.glob("*.safetensors")]
    assert len({name.lower() for name in files}) == len(names)
    assert [entry["w"].item() for entry in tk.load(path).values()] == list(range(len(names)))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["ckpt"]


def test_flattened_names_that_collide_in_one_file_stay_apart():
    assert single_file_names({"a": ["b.c"], "a.b": ["c"]}) == {("a", "b.c"): "a.b.c", ("a.b", "c"): "a.b.c~2"}


def test_too_many_tensors_for_one_file_are_refused_before_anything_is_published(tmp_path, monkeypatch):
    monkeypatch.setattr("torchkeep.folder.single_file.MAX_HEADER_BYTES", 4095)
    with pytest.raises(CheckpointError, match="too many tensors for one file") as caught:
        tk.save({"w": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert caught.value.remedy == "save a folder instead"
    assert list(tmp_path.iterdir()) == []
