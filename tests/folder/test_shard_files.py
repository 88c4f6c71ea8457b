"""Writing from several threads in whole blocks: whatever the sizes, a file is its header and tensors, in order."""

from __future__ import annotations

import errno
import fcntl
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import torchkeep as tk
from torchkeep.folder import aligned_file, shard_files
from torchkeep.folder.aligned_file import AlignedFile, BounceBuffers, as_bytes
from torchkeep.folder.digests import chunk_digests
from torchkeep.folder.draft import DraftTensor
from torchkeep.folder.shard_files import Progress, ShardFile, chunks_of, spans_of, write_shards
from torchkeep.folder.shards import file_order, header_of
from torchkeep.tensors import TensorSpec

BLOCK = aligned_file.BLOCK_BYTES
SIZES = st.one_of(
    st.integers(0, 40), st.integers(BLOCK - 3, BLOCK + 3), st.integers(0, 5 * BLOCK), st.just(20 * BLOCK + 1)
)


def draft_of(content, is_divisible=True):
    spec = TensorSpec("uint8", (len(content),))
    return DraftTensor(spec, may_change=True, reader=memoryview, source=content, is_divisible=is_divisible)


@pytest.fixture(scope="module")
def small_pieces():
    """Cut everything small, so that a few kilobytes meet every case, and go past the page cache with them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_files, "_SPAN_BYTES", 2 * BLOCK + 100)
        patch.setattr(aligned_file, "BOUNCE_BYTES", 2 * BLOCK)
        patch.setattr(aligned_file, "_STRIDE_BYTES", 1000)
        patch.setattr(aligned_file, "_DIRECT_FROM_BYTES", 0)
        yield


@settings(max_examples=60, deadline=None)
@given(files=st.lists(st.lists(SIZES, min_size=1, max_size=12), min_size=1, max_size=4), threads=st.integers(1, 5))
def test_files_hold_their_headers_and_tensors_byte_for_byte(files, threads, small_pieces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    contents = [{f"t{i}": os.urandom(size) for i, size in enumerate(sizes)} for sizes in files]
    drafts = [{name: draft_of(content) for name, content in each.items()} for each in contents]
    jobs = [ShardFile(folder / f"{i}.part", f"group {i}", each, i) for i, each in enumerate(drafts)]
    for number, (written, each, content) in enumerate(
        zip(write_shards(jobs, threads, Progress()), drafts, contents, strict=True)
    ):
        specs = {name: draft.spec for name, draft in each.items()}
        order = file_order(specs)
        header = header_of(specs, order, {"format": "pt"})
        assert written.path.read_bytes() == header + b"".join(content[name] for name in order)
        assert {n: t.chunks for n, t in written.layout.stored("f").items()} == {
            n: chunk_digests(content[n]) for n in order
        }
        assert (written.shard.group, written.shard.splits) == (f"group {number}", number)
        assert written.shard.nbytes == written.path.stat().st_size
        assert written.path.stat().st_mode & 0o777 == 0o444


def test_a_tensor_without_a_name_is_written_after_one_that_is_read_in_pieces(tmp_path):
    first, second = os.urandom(100), os.urandom(50)

    def fill(begin, into):
        into[:] = first[begin : begin + len(into)]

    pieces = DraftTensor(TensorSpec("uint8", (100,)), may_change=True, reader=memoryview, source=first, fill=fill)
    drafts = {"first": pieces, "": draft_of(second)}
    (written,) = write_shards([ShardFile(tmp_path / "one", "group", drafts, 0)], 1, Progress())
    assert written.path.read_bytes().endswith(first + second)


def test_spans_follow_each_other_and_cut_no_chunk_and_no_copy(monkeypatch):
    monkeypatch.setattr(shard_files, "_SPAN_BYTES", 100)
    sizes = {"a": 30, "b": 90, "none": 0, "copied": 500, "c": 1}
    monkeypatch.setattr(shard_files, "chunk_ranges", lambda n: [(i, min(i + 64, n)) for i in range(0, n, 64)])
    chunks = chunks_of(sizes, 4096)
    assert chunks.places == [4096, 4126, 4190, *range(4216, 4716, 64), 4716]
    spans = list(spans_of(chunks, {"copied"}))
    assert [each for span in spans for each in span] == list(range(len(chunks.tensors)))
    assert [{chunks.tensors[each] for each in span} for span in spans] == [{"a", "b"}, {"copied"}, {"c"}]
    assert [chunks.nbytes(span) for span in spans] == [120, 500, 1]


def test_a_file_system_that_refuses_unbuffered_writes_gets_buffered_ones(tmp_path, monkeypatch, small_pieces):
    """The kernel itself refuses: blocks of one byte are aligned to nothing."""
    monkeypatch.setattr(aligned_file, "BLOCK_BYTES", 1)
    refused = []
    pwrite = os.pwrite

    def watched(descriptor, data, at):
        try:
            return pwrite(descriptor, data, at)
        except OSError as error:
            refused.append(error.errno)
            raise

    monkeypatch.setattr(os, "pwrite", watched)
    content = os.urandom(100_001)
    (written,) = write_shards([ShardFile(tmp_path / "0.part", "g", {"t": draft_of(content)}, 0)], 4, Progress())
    assert written.path.read_bytes().endswith(content)
    assert set(refused) <= {errno.EINVAL}
    if hasattr(os, "O_DIRECT") and is_direct_here(tmp_path):
        assert refused


def is_direct_here(folder):
    descriptor = os.open(folder / "probe", os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_other_refusals_are_not_tried_again(tmp_path, monkeypatch):
    calls = []

    def fail(_descriptor, _data, _at):
        calls.append(1)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_shards([ShardFile(tmp_path / "0.part", "g", {"t": draft_of(b"x" * 10)}, 0)], 1, Progress())
    assert calls == [1]


def test_a_write_that_takes_only_a_part_goes_on_with_the_rest(tmp_path, monkeypatch, small_pieces):
    pwrite = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda descriptor, data, at: pwrite(descriptor, data[: max(1, len(data) // 3)], at)
    )
    content = os.urandom(50_000)
    (written,) = write_shards([ShardFile(tmp_path / "0.part", "g", {"t": draft_of(content)}, 0)], 3, Progress())
    assert written.path.read_bytes().endswith(content)


def test_a_bounce_buffer_is_lent_to_one_at_a_time_and_used_again():
    buffers = BounceBuffers()
    with buffers.lend(1) as first, buffers.lend(BLOCK + 1) as second:
        assert len(first) == BLOCK
        assert len(second) == 2 * BLOCK
        assert first.ctypes.data % BLOCK == second.ctypes.data % BLOCK == 0
        assert first.ctypes.data != second.ctypes.data
    with buffers.lend(BLOCK) as again:
        assert again.ctypes.data in {first.ctypes.data, second.ctypes.data}


def test_there_is_one_flush_for_each_shard(tmp_path, monkeypatch):
    import torch

    flushed = []
    fsync = os.fsync

    def watched(descriptor):
        flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    tk.save({"model": {"w": torch.zeros(3 * 2**20)}, "other": {"v": torch.zeros(9)}}, tmp_path / "ckpt")
    assert sorted(name for name in flushed if name.endswith(".part")) == ["0.part", "1.part"]
    assert flushed.index("checkpoint.json") > max(flushed.index("0.part"), flushed.index("1.part"))


def test_threads_that_share_a_block_do_not_lose_each_others_bytes(tmp_path):
    path, buffers = tmp_path / "file", BounceBuffers()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    file = AlignedFile(descriptor, BLOCK)
    threads = [
        threading.Thread(target=file.put_seam, args=(as_bytes(memoryview(bytes([i]) * 64)), 64 * i))
        for i in range(BLOCK // 64)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    file.finish(buffers)
    os.close(descriptor)
    assert path.read_bytes() == b"".join(bytes([i]) * 64 for i in range(BLOCK // 64))
