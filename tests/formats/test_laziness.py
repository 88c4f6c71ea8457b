"""Opening costs the description alone: no torch, no tensor, nothing of the file's own."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from torchkeep.formats import open_source
from torchkeep.tensors import tensors_of

CONTAINERS = [{}, {"_use_new_zipfile_serialization": False}]
OPENS = """
import sys
from torchkeep.formats import open_source
from torchkeep.tensors import tensors_of
source = open_source(sys.argv[1])
for spec in tensors_of(source.tree).values():
    source.read_into(spec, memoryview(bytearray(spec.nbytes)))
source.close()
print(sorted({"torch", "numpy", "argparse", "collections.abc"} & set(sys.modules)))
"""


@pytest.mark.parametrize("options", CONTAINERS, ids=["zip", "legacy"])
def test_opening_and_reading_contiguous_tensors_imports_neither_torch_nor_numpy(tmp_path, options):
    torch.save(torch.nn.Linear(3, 3).state_dict(), tmp_path / "x", **options)
    done = subprocess.run([sys.executable, "-c", OPENS, tmp_path / "x"], capture_output=True, text=True, check=True)
    assert done.stdout == "['collections.abc']\n"


@pytest.mark.parametrize("options", CONTAINERS, ids=["zip", "legacy"])
def test_opening_reads_no_tensor(tmp_path, options, monkeypatch):
    torch.save({f"t{index}": torch.ones(1 << 18) for index in range(8)}, tmp_path / "x", **options)
    count = [0]
    from torchkeep.formats.regular_file import RegularFile

    read_into = RegularFile.read_into

    def counting(self, begin, buffer):
        count[0] += buffer.nbytes
        read_into(self, begin, buffer)

    monkeypatch.setattr(RegularFile, "read_into", counting)
    source = open_source(tmp_path / "x")
    assert count[0] < 1 << 20
    before = count[0]
    source.read_into(source.tree["t3"], memoryview(bytearray(1 << 20)))
    assert count[0] - before < (1 << 20) + 200
    source.close()


def test_a_source_is_read_from_many_threads(tmp_path):
    tensors = {f"t{index}": torch.full((1 << 14,), float(index))[:: 1 + index % 3] for index in range(64)}
    torch.save(tensors, tmp_path / "x")
    source = open_source(tmp_path / "x")

    def read(name):
        spec = source.tree[name]
        buffer = bytearray(spec.nbytes)
        source.read_into(spec, memoryview(buffer))
        return torch.equal(torch.frombuffer(buffer, dtype=torch.float32), tensors[name])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, tensors_of(source.tree)))
    source.close()


def test_a_read_takes_a_buffer_of_any_shape_and_refuses_one_of_another_size(tmp_path):
    torch.save({"t": torch.ones(2, 2)}, tmp_path / "x")
    source = open_source(tmp_path / "x")
    target = torch.zeros(2, 2)
    source.read_into(source.tree["t"], memoryview(target.numpy()))
    assert torch.equal(target, torch.ones(2, 2))
    with pytest.raises(ValueError, match="its buffer is not of 16 bytes"):
        source.read_into(source.tree["t"], memoryview(bytearray(15)))
    source.close()
