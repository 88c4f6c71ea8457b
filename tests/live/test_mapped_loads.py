"""`load(mmap=True)`: tensors lie in the file, are checked, and nothing that is done to them reaches it."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import torchkeep as tk
from torchkeep.tensors import tensors_of
from torchkeep.verbs.sources import open_source

NESTED = {
    "weights": {"a.weight": torch.arange(60.0).view(3, 4, 5), "half": torch.rand(7).bfloat16()},
    "step": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "mask": torch.tensor([True, False]),
    "turned": torch.arange(6.0).view(2, 3).t(),
    "image": torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    "trained": torch.nn.Parameter(torch.rand(5)),
    "name": "net",
}
FLAT = dict(NESTED["weights"])
SAVERS = {
    "folder": (tk.save, NESTED),
    "file.safetensors": (tk.save, NESTED),
    "foreign.safetensors": (safetensors.torch.save_file, FLAT),
    "zip.pt": (torch.save, NESTED),
    "legacy.pt": (lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False), NESTED),
}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint of 128 MB, and beside it a small one to begin with."""
    path = tmp_path_factory.mktemp("large") / "ckpt"
    tk.save({str(index): torch.rand(2**22) for index in range(8)}, path)
    tk.save({"one": torch.rand(8)}, f"{path}-small")
    return str(path)


def mapped_files() -> str:
    return Path("/proc/self/maps").read_text()


def leaves(value):
    return [each for inner in value.values() for each in (leaves(inner) if isinstance(inner, dict) else [inner])]


@pytest.mark.parametrize("name", SAVERS)
def test_what_is_mapped_equals_what_is_read(tmp_path, name):
    save, value = SAVERS[name]
    save(value, tmp_path / name)
    read, mapped = tk.load(tmp_path / name), tk.load(tmp_path / name, mmap=True)
    for one, other in zip(leaves(read), leaves(mapped), strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other)
            facts = [(type(t), t.dtype, t.requires_grad, t.stride()) for t in (one, other)]
            assert facts[0] == facts[1]
        else:
            assert one == other


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not say what is mapped")
@pytest.mark.parametrize("name", ["folder", "file.safetensors", "foreign.safetensors", "zip.pt"])
def test_the_tensors_lie_in_the_file_as_long_as_they_live_and_outlive_it(tmp_path, name):
    save, value = SAVERS[name]
    save(value, tmp_path / name)
    assert str(tmp_path) not in mapped_files()
    mapped = tk.load(tmp_path / name, mmap=True)
    assert str(tmp_path / name) in mapped_files()
    weights = mapped.get("weights", mapped)
    tk.save({"newer": 1}, tmp_path / "folder") if name == "folder" else os.remove(tmp_path / name)
    shutil.rmtree(tmp_path / "folder", ignore_errors=True)
    assert torch.equal(weights["a.weight"], NESTED["weights"]["a.weight"])
    del mapped, weights
    gc.collect()
    assert str(tmp_path) not in mapped_files()


@pytest.mark.parametrize("name", ["folder", "zip.pt"])
def test_what_is_written_into_a_mapped_tensor_does_not_reach_the_file(tmp_path, name):
    save, value = SAVERS[name]
    save(value, tmp_path / name)
    tk.load(tmp_path / name, mmap=True)["weights"]["a.weight"].fill_(-1)
    assert torch.equal(tk.load(tmp_path / name)["weights"]["a.weight"], NESTED["weights"]["a.weight"])


@pytest.mark.parametrize("name", ["folder", "file.safetensors", "zip.pt"])
def test_a_damaged_file_is_never_mapped(tmp_path, name):
    save, value = SAVERS[name]
    save(value, tmp_path / name)
    mark = NESTED["weights"]["a.weight"].numpy().tobytes()
    files = [tmp_path / name] if (tmp_path / name).is_file() else list((tmp_path / name).iterdir())
    (damaged,) = [file for file in files if mark in file.read_bytes()]
    data = bytearray(damaged.read_bytes())
    data[data.index(mark) + 17] ^= 1
    damaged.chmod(0o644)
    damaged.write_bytes(data)
    with pytest.raises(tk.errors.CorruptError, match=r"differ|CRC"):
        tk.load(tmp_path / name, mmap=True)


def test_a_boolean_that_is_none_is_refused_as_by_reading(tmp_path):
    torch.save({"mask": torch.tensor([1, 2], dtype=torch.uint8).view(torch.bool)}, tmp_path / "mask.pt")
    told = []
    for mapped in (False, True):
        with pytest.raises(tk.errors.CorruptError) as caught:
            tk.load(tmp_path / "mask.pt", mmap=mapped)
        told.append(str(caught.value))
    assert told[0] == told[1]


def test_mapping_goes_without_into_and_says_why(tmp_path):
    tk.save(NESTED, tmp_path / "ckpt")
    why = "mmap=True goes without into: objects that exist have their memory, and are filled in place"
    with pytest.raises(ValueError, match=re.escape(why)):
        tk.load(tmp_path / "ckpt", into={"weights": {}}, mmap=True)


@pytest.mark.parametrize("name", ["folder", "foreign.safetensors", "zip.pt"])
def test_a_closed_source_gives_nothing_to_map(tmp_path, name):
    save, value = SAVERS[name]
    save(value, tmp_path / name)
    source = open_source(tmp_path / name)
    spec = next(spec for at, spec in tensors_of(source.tree).items() if at.endswith("a.weight"))
    assert source.extent_of(spec).descriptor >= 0
    source.close()
    with pytest.raises(tk.errors.NotFoundError, match="closed"):
        source.extent_of(spec)


LIMITED = """
import resource, sys, torch, torchkeep as tk
tk.load(sys.argv[1] + "-small", mmap=True)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**26, resource.RLIM_INFINITY))
try:
    tk.load(sys.argv[1], mmap=True)
except tk.errors.CheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say what is mapped")
def test_a_file_that_the_system_does_not_map_is_a_typed_error(large):
    done = subprocess.run([sys.executable, "-c", LIMITED, large], capture_output=True, text=True, check=True)
    assert f"{large}: cannot be mapped: Cannot allocate memory" in done.stdout


PROGRAM = """
import sys, torch, torchkeep as tk
tk.load(sys.argv[1] + "-small", mmap=True)
def private():
    lines = open("/proc/self/status").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
before = private()
held = tk.load(sys.argv[1], mmap=True)
total = sum(float(tensor.sum()) for tensor in held.values())
print((private() - before) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what is private")
def test_a_mapped_checkpoint_takes_no_memory_of_its_own(large):
    done = subprocess.run([sys.executable, "-c", PROGRAM, large], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 48  # of 128 MB
