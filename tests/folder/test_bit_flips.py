"""Every byte of a checkpoint is covered: whatever is changed in one is found by `load` and by `verify`.

Bits are drawn so that each is as likely as any other, in any file of the checkpoint. A flipped one is found when `load`
and `verify` both refuse it; with it put back both take the checkpoint again.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import torchkeep as tk
from torchkeep.errors import CorruptError, FormatError, LimitError, NotFoundError, UnsafeError

LOAD_INTO_FLIPS = 200
RECORD = "checkpoint.json"


def model_and_optimizer() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A frozen part, a trained one and moments: three shards, two of them of one group and so with an index."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 20), torch.nn.BatchNorm1d(20), torch.nn.Linear(20, 10))
    tk.freeze(model, "0")
    optimizer = torch.optim.Adam(tk.trainable(model))
    model(torch.randn(4, 20)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose record follows another one: some of its shards are links."""
    model, optimizer = model_and_optimizer()
    run = tmp_path_factory.mktemp("run")
    progress = {"loss": [0.5, float("nan")], "mask": torch.tensor([True, False, True])}
    with tk.CheckpointManager(run, {"model": model, "optimizer": optimizer, "progress": progress}) as manager:
        manager.save(1)
        progress["mask"][1] = True
        saved = manager.save(2, metrics={"accuracy": 0.5}).result()
    assert saved.linked_bytes
    assert saved.written_bytes
    assert len(saved.record.shards) == 4
    assert len(saved.record.indexes) == 1
    return saved.path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, optimizer = model_and_optimizer()
    saved = tk.save(
        {"model": model, "optimizer": optimizer, "epoch": 3}, tmp_path_factory.mktemp("one") / "w.safetensors"
    )
    return saved.path


@contextmanager
def changed(path: Path, data: bytes | None) -> Iterator[None]:
    """Put other bytes, or nothing, where a file is, and the file back afterwards."""
    aside = path.with_name(".aside")
    path.rename(aside)
    try:
        if data is not None:
            path.write_bytes(data)
        yield
    finally:
        aside.replace(path)


def refusal(path: Path, into: object = None) -> Exception | None:
    """The typed error of a load; None when it loads. Any other exception is a bug and goes through."""
    try:
        tk.load(path, into, io_threads=1)
    except (CorruptError, FormatError, LimitError, NotFoundError, UnsafeError) as error:
        return error
    return None


def is_refused(path: Path) -> bool:
    """Whether `load` and `verify` both find what was changed."""
    if refusal(path) is None:
        return False
    try:
        return not tk.verify(path, io_threads=1).ok
    except (FormatError, LimitError, NotFoundError, UnsafeError):
        return True


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def flips(files: list[Path], count: int, seed: int) -> Iterator[tuple[Path, int, int]]:
    """Random bits of files, each as likely as any other: file, byte, bit."""
    drawn = random.Random(seed)
    sizes = [path.stat().st_size for path in files]
    for path in drawn.choices(files, sizes, k=count):
        yield path, drawn.randrange(path.stat().st_size), drawn.randrange(8)


@contextmanager
def writable(files: list[Path]) -> Iterator[dict[Path, int]]:
    """Descriptors to change read-only files in place by."""
    for path in files:
        path.chmod(0o644)
    descriptors = {path: os.open(path, os.O_RDWR) for path in files}
    try:
        yield descriptors
    finally:
        for path, descriptor in descriptors.items():
            os.close(descriptor)
            path.chmod(0o444)


@contextmanager
def flipped(descriptor: int, at: int, bit: int) -> Iterator[None]:
    before = os.pread(descriptor, 1, at)
    os.pwrite(descriptor, bytes([before[0] ^ 1 << bit]), at)
    try:
        yield
    finally:
        os.pwrite(descriptor, before, at)


def undetected(path: Path, files: list[Path], count: int, seed: int) -> list[tuple[str, int, int]]:
    """Flips that `load` or `verify` does not see."""
    assert tk.verify(path).ok
    with writable(files) as descriptors:
        missed = []
        for changed_file, at, bit in flips(files, count, seed):
            with flipped(descriptors[changed_file], at, bit):
                if not is_refused(path):
                    missed.append((changed_file.name, at, bit))
    assert tk.verify(path).ok
    return missed


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(4))
def test_every_flipped_bit_of_a_folder_is_found_by_load_and_by_verify(folder, seed, campaign):
    count = campaign.size(2_500, 20_000)
    missed = undetected(folder, files_of(folder), count, seed)
    assert missed == []
    campaign.report("a bit of a folder flipped", tried=count, undetected=len(missed))


@pytest.mark.slow
@pytest.mark.campaign
def test_every_flipped_bit_of_a_file_is_found_by_load_and_by_verify(file, campaign):
    count = campaign.size(2_000, 20_000)
    missed = undetected(file, [file], count, seed=4)
    assert missed == []
    campaign.report("a bit of a single file flipped", tried=count, undetected=len(missed))


def bits_undetected(file: Path, begin: int, end: int) -> list[tuple[int, int]]:
    """Bits of a range of a file that `load` or `verify` misses when they are flipped."""
    with writable([file]) as descriptors:
        missed = []
        for at in range(begin, end):
            for bit in range(8):
                with flipped(descriptors[file], at, bit):
                    if not is_refused(file):
                        missed.append((at, bit))
    return missed


def test_every_bit_of_the_first_bytes_of_a_file_is_found(file):
    name = file.read_bytes().index(b'torchkeep":')
    assert bits_undetected(file, 0, name) == []
    assert bits_undetected(file, name + len("torchkeep"), 200) == []


def test_every_bit_of_the_name_that_the_record_has_in_a_file_is_found(file):
    name = file.read_bytes().index(b'torchkeep":')
    assert bits_undetected(file, name, name + len("torchkeep")) == []


def truncations_undetected(path: Path, file: Path, lengths: Iterable[int]) -> list[int]:
    """Lengths to which a file can be cut, from the longest on, without `load` or `verify` seeing it."""
    kept = []
    with changed(file, file.read_bytes()):
        for length in sorted(lengths, reverse=True):
            os.truncate(file, length)
            if not is_refused(path):
                kept.append(length)
    assert tk.verify(path).ok
    return kept


@pytest.mark.slow
@pytest.mark.campaign
def test_every_truncation_of_the_record_is_found(folder, campaign):
    lengths = range((folder / RECORD).stat().st_size)
    kept = truncations_undetected(folder, folder / RECORD, lengths)
    assert kept == []
    campaign.report("the record cut short, at every byte", tried=len(lengths), undetected=len(kept))


@pytest.mark.campaign
def test_every_truncation_of_any_file_is_found(folder, file, campaign):
    tried = 0
    drawn = random.Random(6)
    for path, of in [*((folder, each) for each in files_of(folder)), (file, file)]:
        size = of.stat().st_size
        lengths = {0, 1, size - 1, *drawn.sample(range(size), min(size, campaign.size(20, 1_000)))}
        assert truncations_undetected(path, of, lengths) == [], of.name
        tried += len(lengths)
    campaign.report("any file cut short", tried=tried, undetected=0)


def test_every_file_that_is_absent_is_named(folder):
    for path in files_of(folder):
        if path.name != RECORD:
            with changed(path, None):
                assert f"{path.name}: absent" in str(refusal(folder))
                assert f"{path.name}: absent" in tk.verify(folder).faults


def test_a_folder_without_its_record_is_refused(folder):
    with changed(folder / RECORD, None):
        assert is_refused(folder)


@pytest.mark.parametrize(
    "change", [lambda d: d + b"\0", lambda d: d + b"\n", lambda d: d[:-1], lambda d: b"", lambda d: d * 2]
)
def test_every_file_of_another_length_is_found(folder, change):
    for path in files_of(folder):
        data = path.read_bytes()
        if change(data) != data:
            with changed(path, change(data)):
                assert is_refused(folder), path.name


def test_every_file_in_the_place_of_another_is_found(folder):
    files = files_of(folder)
    for path in files:
        for other in files:
            if other != path:
                with changed(path, other.read_bytes()):
                    assert is_refused(folder), (path.name, other.name)


def test_a_shard_of_another_save_is_found(folder):
    sibling = folder.with_name("step-00000001")
    [shard] = [path for path in sibling.glob("progress*") if path.read_bytes() != (folder / path.name).read_bytes()]
    with changed(folder / shard.name, shard.read_bytes()):
        assert is_refused(folder)


@pytest.mark.parametrize(
    "change", [lambda d: d + b"\0", lambda d: d[:-1], lambda d: d[:4096], lambda d: b"", lambda d: d * 2]
)
def test_a_file_of_another_length_is_found(file, change):
    with changed(file, change(file.read_bytes())):
        assert is_refused(file)


def test_a_refused_load_leaves_model_and_optimizer_bit_for_bit_as_they_were(folder):
    model, optimizer = model_and_optimizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moments = {name: value.clone() for name, value in optimizer.state_dict()["state"][0].items()}
    files = files_of(folder)
    with writable(files) as descriptors:
        for path, at, bit in flips(files, LOAD_INTO_FLIPS, seed=5):
            with flipped(descriptors[path], at, bit), torch.no_grad():
                error = refusal(folder, {"model": model, "optimizer": optimizer})
            # What nobody asked for is not read: the mask is neither the model's nor the optimizer's.
            assert error is not None or path.name.startswith("progress")
            if error is not None:
                assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
                assert all(torch.equal(v, moments[n]) for n, v in optimizer.state_dict()["state"][0].items())
