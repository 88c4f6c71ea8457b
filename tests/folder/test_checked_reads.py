"""Reading many tensors at once: every byte arrives and is checked, whatever the sizes, the order and the threads."""

from __future__ import annotations

import os

import pytest
import torch

import torchkeep as tk
from torchkeep.errors import CorruptError
from torchkeep.folder import checked_reads
from torchkeep.folder.checked_reads import parts_of, units_of
from torchkeep.folder.record import StoredTensor

SIZES = [0, 1, 7, 4096, 100_000, 3, 2**20, 2**20 + 1, 5 * 2**20, 64 * 2**20 + 5, 12]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    state = {f"t{i}": torch.randint(0, 255, (size,), dtype=torch.uint8) for i, size in enumerate(SIZES)}
    return state, tk.save(state, tmp_path_factory.mktemp("saved") / "ckpt").path


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_tensor_arrives_in_new_and_in_existing_memory(threads, saved):
    state, path = saved
    found = tk.load(path, io_threads=threads)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    into = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    tk.load(path, into=into, io_threads=threads)
    assert all(torch.equal(into[name], tensor) for name, tensor in state.items())


def test_what_lies_side_by_side_is_read_by_one_call(monkeypatch, tmp_path):
    state = {f"t{i}": torch.full((10,), i) for i in range(1000)}
    path = tk.save(state, tmp_path / "ckpt").path
    calls = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: calls.append(len(buffers)) or preadv(fd, buffers, at))
    into = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    tk.load(path, into=into, io_threads=1)
    assert calls == [1, 1, 512, 488]  # for the check, then into their places, at most 512 at once
    assert all(torch.equal(into[name], tensor) for name, tensor in state.items())


def stored(shard, begin, nbytes):
    return StoredTensor("uint8", (nbytes,), shard, begin, begin + nbytes, ("0" * 32,) * -(-nbytes // (64 * 2**20)))


def test_units_are_of_one_file_without_gaps_and_of_a_bounded_size():
    small = [stored("a", 10 * i, 10) for i in range(4)]
    wanted = [*small, stored("a", 50, 10), stored("b", 60, 10), stored("b", 70, 9 * 2**20), stored("b", 0, 70)]
    parts = parts_of(wanted)
    assert [[parts.indexes[each] for each in unit] for unit in units_of(parts, wanted)] == [
        [0, 1, 2, 3],
        [4],
        [7],
        [5],
        [6],
    ]
    apart = [stored("a", 0, 10), stored("b", 10, 10)]  # follow each other, but for the file
    assert list(units_of(parts_of(apart), apart)) == [range(1), range(1, 2)]


@pytest.mark.parametrize("threads", [1, 3])
def test_all_damaged_tensors_are_named_with_the_first_range_that_differs(threads, saved, tmp_path):
    state, path = saved
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    record = tk.open(path).source.record
    (shard,) = record.shards
    begin = (path / shard).stat().st_size - sum(SIZES)
    with (copy / shard).open("r+b") as file:
        for name, at in (("t1", 0), ("t3", 4095), ("t9", 64 * 2**20), ("t9", 64 * 2**20 + 4)):
            file.seek(begin + record.tensors["model"][name].begin + at)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    into = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    with pytest.raises(CorruptError) as caught:
        tk.load(copy, into=into, io_threads=threads)
    assert caught.value.faults == (
        f"{shard}: model.t1: bytes 0 to 1 differ from their digest",
        f"{shard}: model.t3: bytes 0 to 4096 differ from their digest",
        f"{shard}: model.t9: bytes 67108864 to 67108869 differ from their digest",
    )
    assert not any(tensor.any() for tensor in into.values())


def test_a_call_that_reads_only_a_part_goes_on_with_the_rest(monkeypatch, saved):
    state, path = saved
    preadv = os.preadv
    short = lambda fd, buffers, at: preadv(fd, [buffers[0][: max(1, len(buffers[0]) // 2)]], at)
    monkeypatch.setattr(checked_reads.os, "preadv", short)
    into = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    tk.load(path, into=into)
    assert all(torch.equal(into[name], tensor) for name, tensor in state.items())


def test_tensors_that_overlap_in_memory_are_filled_one_after_the_other(tmp_path):
    memory = torch.zeros(12)
    path = tk.save({"a": torch.full((8,), 1.0), "b": torch.full((8,), 2.0)}, tmp_path / "ckpt").path
    tk.load(path, into={"a": memory[:8], "b": memory[4:]})
    assert memory.tolist() == [1.0] * 4 + [2.0] * 8


def test_a_sparse_tensor_whose_parts_are_tied_to_others_is_built_of_their_values(tmp_path):
    values = torch.tensor([3.0, 4.0])
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 2]]), values, (3,), check_invariants=True)
    path = tk.save({"values": sparse._values(), "sparse": sparse}, tmp_path / "ckpt").path
    assert tk.load(path)["sparse"].to_dense().tolist() == [3.0, 0.0, 4.0]
