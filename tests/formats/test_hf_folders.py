"""Hugging Face folders: the index and its shards agree, or every disagreement is told at once."""

from __future__ import annotations

import json
import os

import pytest
import torch
from tests.hostile.safetensors_headers import entry, file_of

from torchkeep.errors import CheckpointError, CorruptError, FormatError, LimitError
from torchkeep.formats import open_source

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """A folder of two shards and their index."""
    for number, name in enumerate(["a", "b"]):
        (tmp_path / f"{number}.safetensors").write_bytes(file_of({name: entry()}, bytes([number]) * 8))
    write_index(tmp_path, {"b": "1.safetensors", "a": "0.safetensors"})
    return tmp_path


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 16}, "weight_map": weight_map}))


@pytest.mark.parametrize("name", ["", INDEX])
def test_a_folder_and_its_index_open_alike_in_the_order_of_the_index(folder, name):
    source = open_source(folder / name)
    assert (source.format, list(source.tree), dict(source.metadata)) == ("huggingface", ["b", "a"], {"total_size": 16})
    buffer = bytearray(8)
    source.read_into(source.tree["b"], memoryview(buffer))
    assert buffer == b"\1" * 8
    source.close()


def test_shards_written_by_torch_open_too_and_tied_tensors_stay_tied(tmp_path):
    weight = torch.ones(2)
    torch.save({"a": weight, "b": weight}, tmp_path / "pytorch_model-1.bin")
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-1.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    source = open_source(tmp_path)
    assert source.tree["a"].key == source.tree["b"].key
    source.close()


def test_a_folder_of_one_file_opens_it(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(file_of({"w": entry()}))
    (tmp_path / "config.json").write_text("{}")
    source = open_source(tmp_path)
    assert source.format == "safetensors"
    source.close()


def test_a_folder_without_a_checkpoint_says_what_was_looked_for(tmp_path):
    with pytest.raises(FormatError, match=r"looked for \*.safetensors.index.json"):
        open_source(tmp_path)


def test_a_folder_of_several_files_asks_for_one(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(file_of({"w": entry()}))
    with pytest.raises(FormatError, match=r"name one that is in it: a\.safetensors, b\.safetensors"):
        open_source(tmp_path)


OUTSIDE = ["../x.safetensors", "/etc/passwd", "sub/x", "..", "", "C:\\x", "\\\\host\\x", "file://x", "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_117_a_shard_outside_of_the_folder_is_refused(folder, name):
    write_index(folder, {"a": name})
    with pytest.raises(CorruptError, match="not the name of a file beside the index"):
        open_source(folder)


def test_129_a_link_out_of_the_folder_is_refused(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("elsewhere") / "x"
    target.write_bytes(file_of({"a": entry()}))
    (folder / "0.safetensors").unlink()
    (folder / "0.safetensors").symlink_to(target)
    with pytest.raises(CorruptError, match="a link that leads out of the folder"):
        open_source(folder)


def test_a_link_into_the_blobs_of_the_hubs_cache_is_followed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1a2b"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "sha").write_bytes(file_of({"a": entry()}))
    (snapshot / "0.safetensors").symlink_to("../../blobs/sha")
    write_index(snapshot, {"a": "0.safetensors"})
    source = open_source(snapshot)
    assert list(source.tree) == ["a"]
    source.close()


def test_118_a_pipe_in_place_of_a_shard_is_refused_without_waiting(folder):
    (folder / "0.safetensors").unlink()
    os.mkfifo(folder / "0.safetensors")
    with pytest.raises(CorruptError, match="not a regular file"):
        open_source(folder)


def test_119_120_every_disagreement_is_told_at_once(folder):
    (folder / "empty.safetensors").write_bytes(b"")
    write_index(folder, {"b": "0.safetensors", "c": "gone.safetensors", "d": "empty.safetensors"})
    with pytest.raises(CorruptError) as raised:
        open_source(folder)
    assert raised.value.faults == (
        "'gone.safetensors': not there",
        "'empty.safetensors': not a checkpoint: the file is empty",
        "'b' is not in '0.safetensors'",
        "'a' in '0.safetensors' is not in the index",
    )


INDEXES = {
    "not JSON": (b"{", CorruptError, "index is damaged"),
    "not UTF-8": (b'{"\xff": 1}', CorruptError, "index is damaged"),
    "no weight_map": (b"{}", CorruptError, "no weight_map"),
    "weight_map of numbers": (b'{"weight_map": {"a": 1}}', CorruptError, "no weight_map"),
    "a list": (b"[]", CorruptError, "no weight_map"),
    "a tensor twice": (b'{"weight_map": {"a": "0", "a": "1"}}', CorruptError, "there twice"),
    "nested 100,000 deep": (b'{"a":' * 100_000, CorruptError, "nested too deeply"),
    "20,000 shards": (
        json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(20_000)}}).encode(), LimitError, "10,000"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "kind", "words"), INDEXES.values(), ids=INDEXES)
def test_122_a_bad_index_is_refused(folder, content, kind, words):
    (folder / INDEX).write_bytes(content)
    with pytest.raises(kind, match=words):
        open_source(folder)


def test_an_index_that_names_itself_is_refused(folder):
    write_index(folder, {"a": INDEX})
    with pytest.raises(CorruptError, match="not a checkpoint: a JSON text"):
        open_source(folder)


def test_a_shard_is_closed_with_its_folder(folder):
    source = open_source(folder)
    source.close()
    with pytest.raises(CheckpointError, match="was closed"):
        source.read_into(source.tree["a"], memoryview(bytearray(8)))
