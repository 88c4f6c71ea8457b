"""What torch.save writes, in both of its containers, opens leaf by leaf as torch.load gives it."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import decimal
import fractions
import io
import math
import pathlib
import types
import uuid
import zipfile

import numpy as np
import pytest
import torch

from torchkeep.formats import open_source
from torchkeep.tensors import Described, TensorSpec, tensors_of

CONTAINERS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}
FLOATS = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
SPECIAL = torch.tensor([0x7FC00001, 0x7F800001, -0x80000000, 1], dtype=torch.int32)


@pytest.fixture(params=CONTAINERS)
def container(request):
    return CONTAINERS[request.param]


@pytest.fixture
def opened(tmp_path, container):
    sources = []

    def save_and_open(value, **options):
        torch.save(value, tmp_path / "saved", **container, **options)
        sources.append(open_source(tmp_path / "saved"))
        return sources[-1]

    yield save_and_open
    for source in sources:
        source.close()


def read(source, spec):
    buffer = bytearray(spec.nbytes)
    source.read_into(spec, memoryview(buffer))
    dtype = getattr(torch, spec.dtype)
    return torch.frombuffer(buffer, dtype=dtype).reshape(spec.shape) if buffer else torch.empty(spec.shape, dtype=dtype)


def bits(tensor):
    return tensor.resolve_conj().resolve_neg().detach().contiguous().flatten().view(torch.uint8).tolist()


def assert_same_tensor(source, spec, tensor):
    assert isinstance(spec, TensorSpec)
    assert (spec.dtype, spec.shape) == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
    assert bits(read(source, spec)) == bits(tensor)


def build(model):
    loss = model(torch.ones(2, 4)).sum()
    loss.backward()
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.step()
    return optimizer


TENSORS = {
    "contiguous": FLOATS,
    "zero-dimensional": torch.tensor(3.5),
    "empty": torch.empty(0, 5),
    "transposed": FLOATS.transpose(0, 2),
    "sliced": FLOATS[:, 1:, ::2],
    "offset": FLOATS[1],
    "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 1000),
    "as_strided with overlaps": torch.arange(10.0).as_strided((4, 3), (2, 1)),
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "channels_last_3d": torch.randn(2, 3, 4, 5, 2).to(memory_format=torch.channels_last_3d),
    "NaN payloads and signed zero": SPECIAL.view(torch.float32),
    "conjugated": torch.tensor([1 + 2j, 3 - 4j]).conj(),
    "negated": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
    "conjugated and strided": torch.tensor([[1 + 2j, 3 - 4j], [5, 6j]]).t().conj(),
    "bool": torch.tensor([True, False]),
    **{
        str(dtype): torch.arange(6).to(dtype)
        for dtype in (
            torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128, torch.uint8, torch.int8,
            torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_a_tensor_has_the_bits_that_torch_loads(opened, tensor):
    source = opened({"t": tensor})
    assert_same_tensor(source, source.tree["t"], tensor)


def test_a_view_far_larger_than_a_piece_is_gathered_from_many(opened):
    tensor = torch.arange(3 * 2048 * 2048, dtype=torch.float32).reshape(3, 2048, 2048).permute(2, 0, 1)[::3]
    source = opened({"t": tensor})
    assert torch.equal(read(source, source.tree["t"]), tensor)


@pytest.mark.parametrize("name", ["channels_last", "channels_last_3d"])
def test_a_memory_format_is_told(opened, name):
    assert opened({"t": TENSORS[name]}).tree["t"].memory_format == name


def test_tied_tensors_have_equal_keys_and_views_of_one_storage_have_not(opened):
    weight = torch.nn.Parameter(FLOATS)
    tree = opened({"a": weight, "b": weight, "c": FLOATS[0]}).tree
    assert tree["a"].key == tree["b"].key != tree["c"].key


def test_a_parameter_keeps_its_flags(opened):
    tree = opened({"p": torch.nn.Parameter(FLOATS, requires_grad=False), "t": FLOATS.clone().requires_grad_()}).tree
    assert (tree["p"].parameter, tree["p"].requires_grad) == (True, False)
    assert (tree["t"].parameter, tree["t"].requires_grad) == (False, True)


def test_a_parameter_with_attributes_is_a_parameter(opened):
    parameter = torch.nn.Parameter(FLOATS)
    parameter.note = "kept"
    spec = opened({"p": parameter}).tree["p"]
    assert spec.parameter
    assert spec.shape == (2, 3, 4)


PLAIN = [
    None, True, 0, -1, 1 << 70, 1.5, math.inf, "text", "", b"bytes", bytearray(b"x"), 2 + 3j, range(1, 9, 2),
    (1, (2,)), [1, [2]], {1, 2}, frozenset({3}), {"a": {2: "b", (1, 2): None}},
    collections.OrderedDict(a=1), collections.defaultdict(list, a=[1]), collections.defaultdict(None, a=1),
    collections.Counter("abca"), collections.deque([1, 2, 3], maxlen=3),
    pathlib.Path("/data/x"), pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("c:/a"),
    dt.datetime(2024, 2, 29, 1, 2, 3, 4), dt.date(2024, 2, 29), dt.time(1, 2, 3, fold=1),
    dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2), "X")),
    dt.timedelta(days=-1, microseconds=5), argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=[1])),
    types.SimpleNamespace(a=1), uuid.UUID(int=5), decimal.Decimal("1.50"), fractions.Fraction(1, 3),
    np.float64(1.5), np.int32(-3), np.bool_(True), np.str_("name"), np.dtype(">f8"),
]  # fmt: skip


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_a_plain_value_comes_back_equal_and_of_its_type(opened, value, protocol):
    tree = opened({"v": value}, pickle_protocol=protocol).tree
    assert tree["v"] == value
    assert type(tree["v"]) is type(value)


ARRAYS = [
    np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.array(["a", "bc"]),
    np.array([1, 2], dtype=">i4"), np.zeros((0, 3)), np.array(5), np.array([True, False]),
    np.random.RandomState(0).get_state()[1],
]  # fmt: skip


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_a_numpy_array_comes_back_equal_and_writable(opened, array, protocol):
    value = opened({"v": array, "again": array}, pickle_protocol=protocol).tree
    np.testing.assert_array_equal(value["v"], array)
    assert value["v"].dtype == array.dtype
    assert value["v"] is value["again"]
    assert value["v"].flags.writeable


def test_an_array_of_objects_is_described_with_what_is_in_it(opened):
    source = opened({"v": np.array([FLOATS, None], dtype=object)})
    assert repr(source.tree["v"]) == "<numpy.ndarray, not built>"
    assert [spec.shape for spec in tensors_of(source.tree).values()] == [(2, 3, 4)]


def test_dtype_device_and_size_are_described(opened):
    tree = opened({"dtype": torch.bfloat16, "device": torch.device("cuda", 3), "size": torch.Size([2, 3])}).tree
    described = {name: (value.class_path, value.args) for name, value in tree.items()}
    assert described == {
        "dtype": ("torch.dtype", ("bfloat16",)),
        "device": ("torch.device", ("cuda:3",)),
        "size": ("torch.Size", ((2, 3),)),
    }


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_a_sparse_tensor_is_described_by_its_parts(opened):
    coo = torch.sparse_coo_tensor([[0, 1], [2, 0]], [3.0, 4.0], (2, 3)).coalesce()
    csr = coo.to_sparse_csr()
    source = opened({"coo": coo, "csr": csr})
    state = source.tree["coo"].state
    assert (source.tree["coo"].class_path, state["layout"], state["shape"]) == ("torch.sparse", "sparse_coo", [2, 3])
    assert state["coalesced"] is True
    assert_same_tensor(source, state["indices"], coo.indices())
    assert_same_tensor(source, state["values"], coo.values())
    compressed = source.tree["csr"].state
    assert compressed["layout"] == "sparse_csr"
    assert_same_tensor(source, compressed["compressed"], csr.crow_indices())
    assert_same_tensor(source, compressed["plain"], csr.col_indices())


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantised_tensor_is_described_by_its_parts(opened):
    each = torch.quantize_per_tensor(FLOATS, 0.5, 3, torch.qint8)
    channel = torch.quantize_per_channel(FLOATS, torch.tensor([0.5, 1.0]), torch.tensor([0, 1]), 0, torch.quint8)
    source = opened({"each": each, "channel": channel})
    state = source.tree["each"].state
    assert (state["scheme"], state["dtype"], state["scale"], state["zero_point"]) == (
        "per_tensor_affine",
        "qint8",
        0.5,
        3,
    )
    assert_same_tensor(source, state["values"], each.int_repr())
    state = source.tree["channel"].state
    assert (state["scheme"], state["dtype"], state["axis"]) == ("per_channel_affine", "quint8", 0)
    assert_same_tensor(source, state["scales"], channel.q_per_channel_scales())


def test_a_training_checkpoint_comes_back_leaf_by_leaf(opened, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    optimizer = build(model)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2])
    saved = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 3,
    }
    source = opened(saved)
    loaded = torch.load(tmp_path / "saved", weights_only=False)
    compare(source, source.tree, loaded)
    assert source.tree["model"]._metadata == loaded["model"]._metadata


def compare(source, ours, theirs):
    if isinstance(theirs, torch.Tensor):
        assert_same_tensor(source, ours, theirs)
    elif isinstance(theirs, dict):
        assert type(ours) is type(theirs)
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            compare(source, ours[key], value)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            compare(source, one, other)
    else:
        assert ours == theirs


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_module_saved_whole_is_described_and_its_tensors_are_found(opened):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    source = opened(model)
    assert source.tree.class_path == "torch.nn.modules.container.Sequential"
    assert source.tree.state["training"] is True
    found = {
        name.replace("_modules.", "").replace("_parameters.", "").replace("_buffers.", "")
        for name in tensors_of(source.tree)
    }
    assert found == set(model.state_dict())


class Settings(dict):
    def __init__(self):
        super().__init__(lr=0.1)
        self.parent = self


def test_an_unknown_class_is_described_and_its_reference_to_itself_is_cut(opened):
    settings = opened({"settings": Settings()}).tree["settings"]
    assert settings.class_path.endswith("Settings")
    assert settings.items == (("lr", 0.1),)
    assert repr(settings.state["parent"]) == repr(settings)
    assert settings.state["parent"].state is None


def test_a_storage_saved_alone_is_described_with_its_values(opened):
    source = opened({"s": FLOATS.untyped_storage()})
    assert isinstance(source.tree["s"], Described)
    assert [spec.nbytes for spec in tensors_of(source.tree).values()] == [96]


def test_a_file_written_big_endian_is_turned_round(tmp_path):
    torch.save({"f": FLOATS, "c": torch.tensor([1 + 2j]), "b": torch.tensor([True])}, tmp_path / "little")
    with zipfile.ZipFile(tmp_path / "little") as little, zipfile.ZipFile(tmp_path / "big", "w") as big:
        for name in little.namelist():
            content = little.read(name)
            if name.endswith("byteorder"):
                content = b"big"
            elif "/data/" in name:
                content = np.frombuffer(content, "u4").byteswap().tobytes() if len(content) > 1 else content
            big.writestr(name, content)
    source = open_source(tmp_path / "big")
    assert_same_tensor(source, source.tree["f"], FLOATS)
    assert_same_tensor(source, source.tree["c"], torch.tensor([1 + 2j]))
    source.close()


def test_an_archive_packed_again_with_compression_opens(tmp_path):
    saved = io.BytesIO()
    torch.save({"a": FLOATS, "b": FLOATS[1]}, saved)
    with zipfile.ZipFile(saved) as stored, zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as deflated:
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    source = open_source(tmp_path / "x")
    assert_same_tensor(source, source.tree["b"], FLOATS[1])
    source.close()
