"""Folders of torch.distributed.checkpoint: read as they were saved, or refused before anything is read."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from tests.formats.sharded_save import inputs, make_network, whole_tensors
from tests.hostile import archives, dcp_folders, pickles
from tests.hostile.dcp_folders import DATA, WEIGHT, chunk, with_chunks, with_path, with_place, with_size, write_folder
from tests.hostile.refusal import open_and_read, refused
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex

import torchkeep as tk
from torchkeep.errors import CheckpointError, CorruptError, FormatError, LimitError, NotFoundError, UnsafeError
from torchkeep.formats import dcp_folder, open_source
from torchkeep.formats.chunk_cover import Box, why_not_whole
from torchkeep.formats.faults import ExcessError
from torchkeep.formats.regular_file import FilePart, RegularFile
from torchkeep.tensors import Described, TensorSpec


def read(source, spec):
    made = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
    source.read_into(spec, memoryview(made.view(-1).view(torch.uint8).numpy()))
    return made


def built(source, node):
    """A tree with its tensors read."""
    if isinstance(node, TensorSpec):
        return read(source, node)
    if isinstance(node, dict):
        return {key: built(source, value) for key, value in node.items()}
    return [built(source, value) for value in node] if isinstance(node, list) else node


def is_same(left, right):
    if isinstance(right, torch.Tensor):
        return isinstance(left, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(right, dict):
        return list(left) == list(right) and all(is_same(left[key], right[key]) for key in right)
    if isinstance(right, list):
        return len(left) == len(right) and all(map(is_same, left, right))
    return type(left) is type(right) and left == right


def test_what_one_process_saved_is_read_nested_as_it_was(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "images": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "view": torch.rand(6, 4).t()[1:3],
        "scalar": torch.tensor(2),
        "nothing": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "eighths": torch.rand(3).to(torch.float8_e4m3fn),
        "list": [1, {"a": "b"}, [torch.ones(1)]],
        "tuple": (1, None),
        "lost": {},
        "holes": [1, {}, 2],
        "a.dotted.name": 0.5,
    }
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    source = open_source(tmp_path)
    expected = {**state, "holes": [1, None, 2]}
    del expected["lost"]  # torch.distributed.checkpoint drops empty dicts
    eighths = {"eighths": read(source, source.tree["eighths"]).float()}
    made = {**built(source, source.tree), **eighths}
    assert source.format == "torch-dcp"
    assert is_same(made, {**expected, "eighths": state["eighths"].float()})
    source.close()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A folder that two processes saved, each its shards."""
    folder = tmp_path_factory.mktemp("sharded")
    program = Path(__file__).with_name("sharded_save.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, program, str(rank), "2", folder / "rendezvous", folder / "ckpt"], stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        assert [rank.communicate(timeout=400)[0] for rank in ranks] == [b"saved", b"saved"]
    finally:
        for rank in ranks:
            rank.kill()
    return folder / "ckpt"


@pytest.mark.parametrize("name", whole_tensors())
@pytest.mark.parametrize("piece_bytes", [16 << 20, 16])
def test_shards_of_two_ranks_are_put_together(sharded, name, piece_bytes, monkeypatch):
    monkeypatch.setattr(dcp_folder, "_PIECE_BYTES", piece_bytes)
    source = open_source(sharded)
    assert torch.equal(read(source, source.tree["model"][name]), whole_tensors()[name])
    source.close()


@pytest.mark.parametrize("name", whole_tensors())
def test_any_range_of_a_tensor_is_put_together_from_the_shards_it_lies_in(sharded, name):
    source = open_source(sharded)
    spec, values = source.tree["model"][name], whole_tensors()[name].reshape(-1)
    item_bytes = values.itemsize
    for begin in range(values.numel()):
        for end in range(begin, values.numel() + 1):
            buffer = bytearray((end - begin) * item_bytes)
            source.read_range_into(spec, begin * item_bytes, memoryview(buffer))
            assert buffer == values[begin:end].clone().view(torch.uint8).numpy().tobytes()
    source.close()


def test_a_network_sharded_by_fsdp_loads_into_a_plain_one(sharded):
    trained = make_network()
    optimizer = torch.optim.AdamW(trained.parameters())
    trained(inputs()).square().sum().backward()
    optimizer.step()
    fresh = make_network().requires_grad_(False)
    for tensor in fresh.state_dict().values():
        tensor.zero_()
    rest = tk.load(sharded, into={"network": fresh})
    torch.testing.assert_close(fresh.state_dict(), trained.state_dict())
    moments = optimizer.state[trained[0].weight]["exp_avg"]
    assert moments.count_nonzero()
    torch.testing.assert_close(rest["optimizer"]["state"]["0.weight"]["exp_avg"], moments)


def test_values_of_every_rank_are_there(sharded):
    source = open_source(sharded)
    made = built(source, source.tree)
    assert made["epoch"] == 7
    assert made["of_rank_1"][1] == {"rank": 1}
    assert torch.equal(made["of_rank_1"][0], torch.ones(2))
    assert source.metadata == {"version": "1.0.0", "files": 2}
    source.close()


def test_looking_at_shards_imports_no_torch_and_reads_no_tensor(sharded):
    program = (
        "import sys\n"
        "from torchkeep.formats import open_source\n"
        "source = open_source(sys.argv[1])\n"
        "spec = source.tree['model']['rows']\n"
        "source.read_into(spec, memoryview(bytearray(spec.nbytes)))\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, sharded], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_the_paths_the_names_stay_flat(tmp_path):
    write_folder(tmp_path, lambda metadata: setattr(metadata, "planner_data", None))
    assert list(open_and_read(tmp_path)) == ["model.weight", "epoch"]


def test_a_tensor_inside_a_value_is_read_from_it(tmp_path):
    write_folder(tmp_path, value=dcp_folders.saved((1, torch.ones(2))))
    source = open_source(tmp_path)
    assert torch.equal(read(source, source.tree["epoch"][1]), torch.ones(2))
    assert torch.equal(read(source, source.tree["model"]["weight"]), WEIGHT)
    source.close()


def test_a_tensor_of_a_dtype_that_only_torch_has_is_described(tmp_path):
    write_folder(tmp_path, lambda metadata: setattr(dcp_folders.weight_of(metadata).properties, "dtype", torch.quint8))
    described = open_and_read(tmp_path)["model"]["weight"]
    assert isinstance(described, Described)
    assert described.state == {"dtype": "quint8", "shape": (2, 4)}


def test_files_are_open_only_while_they_are_read(tmp_path):
    source = open_source(write_folder(tmp_path))
    (tmp_path / DATA).write_bytes((tmp_path / DATA).read_bytes() + b"!")
    with pytest.raises(CorruptError, match="changed since the folder was opened"):
        read(source, source.tree["model"]["weight"])
    source.close()
    source.close()
    with pytest.raises(NotFoundError, match="was closed"):
        read(source, source.tree["model"]["weight"])


LIES = {
    "138: overlapping chunks": (with_chunks(chunk((0, 0), (2, 3)), chunk((0, 2), (2, 2))), "(0, 0) and (0, 2) overlap"),
    "138: a chunk twice": (with_chunks(*[chunk((0, 0), (2, 4))] * 2), "(0, 0) and (0, 0) overlap"),
    "138: a hole": (with_chunks(chunk((0, 0), (2, 3))), "hold 6 of its 8 elements"),
    "138: no chunks": (with_chunks(), "hold 0 of its 8 elements"),
    "138: beyond the shape": (with_chunks(chunk((0, 1), (2, 4))), "of (2, 4) at (0, 1) reaches out of (2, 4)"),
    "138: a negative offset": (with_chunks(chunk((0, -1), (2, 4))), "a shape is a tuple"),
    "138: another rank": (with_chunks(chunk((0,), (8,))), "has 1 sizes and 1 offsets, and the tensor 2 axes"),
    "139: a chunk that is nowhere": (
        with_chunks(chunk((0, 0), (2, 2)), chunk((0, 2), (2, 2))), "its chunk at (0, 2) is stored nowhere"),
    "139: an enormous shape": (with_size(1 << 40, 4), "of its 4,398,046,511,104 elements"),
    "a negative size": (with_size(-1, 4), "a shape is a tuple"),
    "142: an absolute path": (with_place(relative_path="/etc/passwd"), "not the name of a file beside the index"),
    "142: a path that leads out": (with_place(relative_path="../x"), "not the name of a file beside the index"),
    "142: a path with a NUL": (with_place(relative_path="a\0b"), "not the name of a file beside the index"),
    "a folder below": (with_place(relative_path="sub/x"), "not the name of a file beside the index"),
    "a path that is none": (with_place(relative_path=None), "not a file and a range of bytes"),
    "119: a file that is not there": (with_place(relative_path="__7_0.distcp"), "'__7_0.distcp': not there"),
    "142: past the end": (with_place(offset=1 << 40), "and objects up to byte 1,099,511,"),
    "a negative offset in the file": (with_place(offset=-5), "not a file and a range of bytes"),
    "a length of True": (with_place(length=True), "not a file and a range of bytes"),
    "too few bytes": (with_place(length=3), "a chunk of 24 bytes is stored in 3"),
    "the same bytes for two": (with_place(offset=0), "'epoch' and 'model.weight' are stored in the same bytes"),
    "two places for one": (dcp_folders.stored_twice, "'epoch': it is stored twice"),
    "a value that is nowhere": (lambda metadata: metadata.storage_data.clear(), "'epoch': it is stored nowhere"),
    "no places": (lambda metadata: setattr(metadata, "storage_data", None), "does not say what is stored, or where"),
    "no dtype": (
        lambda metadata: setattr(dcp_folders.weight_of(metadata).properties, "dtype", 7), "it has no dtype"),
    "an entry that is none": (
        lambda metadata: metadata.state_dict_metadata.update(epoch=3), "'epoch': it is neither a tensor nor a value"),
    "a path below a value": (with_path("model.weight", ("epoch", "x")), "stands where another stands"),
    "a path through a tensor": (with_path("epoch", ("model", "weight", "x")), "stands where another stands"),
    "two names on one path": (with_path("model.weight", ("epoch",)), "stands where another stands"),
    "a place far out in a list": (with_path("epoch", ("list", 1 << 60)), "0 names and 1,152,921,504,606,846,977"),
    "names among places": (with_path("epoch", ("model", 0)), "a list has 1 values, 1 names and 1 places"),
    "a negative place": (with_path("epoch", ("list", -1)), "its path is not of names and places"),
    "an empty path": (with_path("epoch", ()), "its path is none"),
    "a path of 10,000 keys": (with_path("epoch", ("a",) * 10_000), "its path is none"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "words"), LIES.values(), ids=LIES)
def test_metadata_that_lies_is_refused_before_a_tensor_is_read(tmp_path, edit, words):
    write_folder(tmp_path, edit)
    with pytest.raises(CorruptError) as raised:
        open_source(tmp_path)
    assert words in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_every_fault_is_told_at_once(tmp_path):
    def edit(metadata):
        with_chunks(chunk((0, 0), (2, 3)))(metadata)
        metadata.state_dict_metadata["gone"] = metadata.state_dict_metadata["epoch"]

    assert refused(write_folder(tmp_path, edit), CorruptError, "gone").count("\n") == 3


def test_142_metadata_that_would_run_something_is_unsafe_and_nothing_is_run(tmp_path):
    write_folder(tmp_path)
    (tmp_path / ".metadata").write_bytes(pickles.calling("os", "system", f"touch {tmp_path}/ran"))
    refused(tmp_path, UnsafeError, "os.system")
    assert not (tmp_path / "ran").exists()


def test_a_value_that_would_run_something_is_unsafe_and_named(tmp_path):
    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    write_folder(tmp_path, value=dcp_folders.saved(Runs()))
    refused(tmp_path, UnsafeError, "'epoch': the file wants to use posix.system")
    assert not (tmp_path / "ran").exists()


def test_142_truncated_metadata_is_corrupt_at_every_length(tmp_path):
    whole = (write_folder(tmp_path) / ".metadata").read_bytes()
    for length in [0, 1, 2, *range(11, len(whole), 37), len(whole) - 1]:
        (tmp_path / ".metadata").write_bytes(whole[:length])
        with pytest.raises(CorruptError):
            open_source(tmp_path)


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (pickles.stream(b"}"), FormatError, "not the metadata of torch.distributed.checkpoint"),
        (pickles.tensor((4,), (1,)), CorruptError, "is named where none can be"),
        (b"~", CorruptError, "is no pickle opcode"),
        (pickles.deep(5_000), LimitError, "nested deeper"),
    ],
)
def test_another_pickle_in_place_of_the_metadata_is_refused(tmp_path, content, kind, words):
    write_folder(tmp_path)
    (tmp_path / ".metadata").write_bytes(content)
    refused(tmp_path, kind, words)


def test_bytes_behind_the_metadata_are_refused(tmp_path):
    with (write_folder(tmp_path) / ".metadata").open("ab") as file:
        file.write(b"more")
    refused(tmp_path, CorruptError, "it goes on for 4 bytes behind its end")


def test_a_truncated_data_file_is_corrupt(tmp_path):
    content = (write_folder(tmp_path) / DATA).read_bytes()
    (tmp_path / DATA).write_bytes(content[:-1])
    refused(tmp_path, CorruptError, f"it has {len(content) - 1:,} bytes and objects up to byte {len(content):,}")


def test_118_a_pipe_in_place_of_a_data_file_is_refused_without_waiting(tmp_path):
    (write_folder(tmp_path) / DATA).unlink()
    os.mkfifo(tmp_path / DATA)
    refused(tmp_path, CorruptError, "not a regular file")


def test_129_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = write_folder(tmp_path / "ckpt")
    (folder / DATA).rename(tmp_path / "elsewhere")
    (folder / DATA).symlink_to(tmp_path / "elsewhere")
    refused(folder, CorruptError, "a link that leads out of the folder")


def test_a_flipped_bit_in_a_chunk_is_found_by_its_checksum(tmp_path):
    content = bytearray((write_folder(tmp_path) / DATA).read_bytes())
    content[content.index(WEIGHT[:, :3].clone().numpy().tobytes())] ^= 1
    (tmp_path / DATA).write_bytes(content)
    refused(tmp_path, CorruptError, "is damaged: its CRC-32")


@pytest.mark.parametrize(
    "other", [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32), [1]], ids=["shape", "dtype", "no tensor"]
)
def test_a_chunk_that_is_not_of_its_tensor_is_refused(tmp_path, other):
    piece = dcp_folders.saved(other)
    write_folder(tmp_path, with_place(relative_path="__1_0.distcp", offset=0, length=len(piece)))
    (tmp_path / "__1_0.distcp").write_bytes(piece)
    refused(tmp_path, CorruptError, "the chunk of 'model.weight' at (0, 0) should be float32 (2, 3) and is")


def test_64_a_deflated_object_is_refused(tmp_path):
    write_folder(tmp_path, value=archives.zipped([("a/data.pkl", pickles.stream(b"N"))], zipfile.ZIP_DEFLATED))
    refused(tmp_path, FormatError, "'epoch': it is compressed, which torch.save never does")


def test_values_that_are_larger_than_allowed_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(dcp_folder, "_MAX_VALUE_BYTES", 1_000)
    refused(write_folder(tmp_path), LimitError, "values that are no tensors have 1,")


def test_a_folder_of_distributed_folders_asks_for_one(tmp_path):
    for name in ("optimizer_0", "pytorch_model_fsdp_0"):
        write_folder(tmp_path / name)
    refused(tmp_path, FormatError, "name one that is in it: optimizer_0, pytorch_model_fsdp_0")


def test_a_chunk_is_put_in_its_place_with_little_memory_beside_the_tensor(tmp_path):
    tensor = torch.rand(4096, 2049)
    piece = dcp_folders.saved(tensor)

    def edit(metadata):
        said = dcp_folders.weight_of(metadata)
        said.size, said.chunks = torch.Size([4096, 2050]), [chunk((0, 0), (4096, 2049)), chunk((0, 2049), (4096, 1))]
        metadata.storage_data |= {
            MetadataIndex("model.weight", (0, 0)): _StorageInfo("__1_0.distcp", 0, len(piece)),
            MetadataIndex("model.weight", (0, 2049)): _StorageInfo("__2_0.distcp", 0, len(last)),
        }

    last = dcp_folders.saved(tensor[:, :1].clone())
    write_folder(tmp_path, edit)
    (tmp_path / "__1_0.distcp").write_bytes(piece)
    (tmp_path / "__2_0.distcp").write_bytes(last)
    source = open_source(tmp_path)
    spec = source.tree["model"]["weight"]
    made = torch.empty(spec.shape)
    tracemalloc.start()
    source.read_into(spec, memoryview(made.view(-1).view(torch.uint8).numpy()))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    source.close()
    assert torch.equal(made, torch.cat([tensor, tensor[:, :1]], 1))
    assert peak_bytes < 18 << 20 < tensor.nbytes


def test_objects_behind_an_extension_are_said_to_be(tmp_path):
    write_folder(tmp_path, with_place(transform_descriptors=["stream.zstd/1"]))
    refused(tmp_path, FormatError, "compressed or encrypted by an extension")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("x", CorruptError, "what is left of a distributed checkpoint: its .metadata is absent"),
        ("__0.metadata", FormatError, "each rank saved for itself"),
    ],
)
def test_a_folder_without_the_metadata_of_all_says_what_it_is(tmp_path, name, kind, words):
    (write_folder(tmp_path) / ".metadata").rename(tmp_path / name)
    refused(tmp_path, kind, words)


@pytest.mark.parametrize(("begin", "count"), [(-1, 2), (2, 3), (5, 1)])
def test_an_object_ends_where_its_place_ends(tmp_path, begin, count):
    (tmp_path / "x").write_bytes(b"abcdefghij")
    whole = RegularFile(tmp_path / "x")
    part = FilePart(whole, 2, 6)
    assert part.read(1, 4) == b"def"
    with pytest.raises(CorruptError, match="are wanted and the part has 4"):
        part.read_into(begin, memoryview(bytearray(count)))
    whole.close()


def test_a_read_wants_a_spec_of_this_source_and_a_buffer_of_its_size(tmp_path):
    source = open_source(write_folder(tmp_path))
    for spec, count in ((source.tree["model"]["weight"], 31), (TensorSpec("uint8", (2,), "x"), 2)):
        with pytest.raises(ValueError, match="is not of this source, or its buffer"):
            source.read_into(spec, memoryview(bytearray(count)))
    source.close()


GRID = [Box((row, column), (2, 3)) for row in range(0, 8, 2) for column in range(0, 9, 3)]
COVERS = {
    "a grid": ((8, 9), GRID, None),
    "a grid in no order": ((8, 9), GRID[1::2] + GRID[::2], None),
    "a scalar": ((), [Box((), ())], None),
    "a scalar twice": ((), [Box((), ())] * 2, "its chunks at () and () overlap"),
    "nothing": ((0, 3), [], None),
    "an empty chunk anywhere": ((4,), [Box((0,), (4,)), Box((2,), (0,)), Box((4,), (0,))], None),
    "a grid with one moved": ((8, 9), [*GRID[:-1], Box((5, 6), (2, 3))], "its chunks at (4, 6) and (5, 6) overlap"),
    "a grid with one left out": ((8, 9), GRID[1:], "its chunks hold 66 of its 72 elements"),
}


@pytest.mark.parametrize(("shape", "boxes", "fault"), COVERS.values(), ids=COVERS)
def test_chunks_are_the_whole_tensor_or_the_reason_is_given(shape, boxes, fault):
    assert why_not_whole(shape, boxes) == fault


def test_chunks_of_a_thousand_ranks_are_checked_quickly_and_too_many_in_no_order_are_refused():
    assert why_not_whole((100_000, 8), [Box((row, 0), (1, 8)) for row in range(100_000)]) is None
    nested = [Box((place, place), (10_000 - place, 1)) for place in range(10_000)]
    with pytest.raises(ExcessError, match="cut into 10,000 chunks that are in no order"):
        why_not_whole((10_000, 10_000), nested)


def test_every_error_of_a_folder_is_a_typed_one(tmp_path):
    whole = bytearray((write_folder(tmp_path) / ".metadata").read_bytes())
    for at in range(0, len(whole), 3):
        damaged = whole.copy()
        damaged[at] ^= 0x15
        (tmp_path / ".metadata").write_bytes(damaged)
        try:
            open_and_read(tmp_path)
        except CheckpointError:
            pass
