"""Whatever training holds comes back bit for bit: tensors of every kind, ties, formats, plain values beside them."""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import enum
import math
import pathlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import torchkeep as tk

STRIDED_DTYPES = [
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz", "float4_e2m1fn_x2"),
]


class Colour(enum.Enum):
    RED = 1


@dataclass
class Settings:
    depth: int
    rates: tuple[float, ...]


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one.numel() == 0 or torch.equal(
        one.detach().contiguous().reshape(-1).view(torch.uint8),
        other.detach().contiguous().reshape(-1).view(torch.uint8),
    )


@pytest.mark.parametrize("as_one_file", [False, True], ids=["folder", "file"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7, 5)], ids=str)
@pytest.mark.parametrize("dtype", STRIDED_DTYPES)
def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path, dtype, shape, as_one_file):
    count = math.prod(shape) * getattr(torch, dtype).itemsize
    raw = torch.randint(0, 2 if dtype == "bool" else 256, (count,), dtype=torch.uint8)
    tensor = raw.view(getattr(torch, dtype)).reshape(shape)
    path = tmp_path / ("w.safetensors" if as_one_file else "ckpt")
    tk.save({"t": tensor, "beside": 1}, path)
    assert same_bits(tk.load(path)["t"], tensor)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(24.0).reshape(4, 6).t(),
        lambda: torch.arange(24.0)[::3],
        lambda: torch.zeros(1).expand(5, 4),
        lambda: torch.randn(3, dtype=torch.complex64).conj(),
        lambda: torch.randn(3, dtype=torch.complex64).conj().imag,
        lambda: torch.tensor([math.nan, -0.0, math.inf, 5e-324]),
    ],
    ids=["transposed", "strided", "expanded", "conjugate", "negative", "nasty values"],
)
def test_a_view_is_saved_as_its_own_elements(tmp_path, make):
    tensor = make()
    tk.save({"t": tensor}, tmp_path / "ckpt")
    assert same_bits(tk.load(tmp_path / "ckpt")["t"], tensor.resolve_conj().resolve_neg())


def test_a_small_view_of_a_large_storage_takes_its_own_bytes_only(tmp_path):
    saved = tk.save({"t": torch.zeros(1_000_000)[:10]}, tmp_path / "ckpt")
    assert saved.record.tensor_bytes == 40


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(4).to_sparse(),
        lambda: torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 2.0], (2, 3)),
        lambda: torch.eye(4).to_sparse_csr(),
        lambda: torch.eye(4).to_sparse_csc(),
        lambda: torch.eye(4).to_sparse_bsr((2, 2)),
        lambda: torch.eye(4).to_sparse_bsc((2, 2)),
        lambda: torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 3, torch.qint8),
        lambda: torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 3, torch.quint8),
        lambda: torch.quantize_per_channel(torch.randn(2, 3), torch.rand(2), torch.tensor([1, 2]), 0, torch.qint8),
    ],
    ids=["coo", "coo uncoalesced", "csr", "csc", "bsr", "bsc", "qint8", "quint8", "per channel"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sparse_and_quantised_tensors_come_back(tmp_path, make):
    tensor = make()
    tk.save({"t": tensor}, tmp_path / "ckpt")
    back = tk.load(tmp_path / "ckpt")["t"]
    assert (back.layout, back.dtype, back.shape, back.is_quantized) == (
        tensor.layout,
        tensor.dtype,
        tensor.shape,
        tensor.is_quantized,
    )
    plain = torch.Tensor.dequantize if tensor.is_quantized else torch.Tensor.to_dense
    assert torch.equal(plain(back), plain(tensor))


def test_tied_tensors_are_stored_once_and_tied_again(tmp_path):
    embedding = nn.Embedding(10, 4)
    head = nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "head": head})
    saved = tk.save({"model": model, "also": embedding.weight}, tmp_path / "ckpt")
    assert saved.record.tensor_bytes == 160
    back = tk.load(tmp_path / "ckpt")
    assert back["model"]["embedding.weight"].data_ptr() == back["model"]["head.weight"].data_ptr()
    assert torch.equal(back["also"], embedding.weight)


@pytest.mark.parametrize("name", ["channels_last", "channels_last_3d"])
def test_the_memory_format_comes_back(tmp_path, name):
    memory_format = getattr(torch, name)
    tensor = torch.randn(2, 3, 4, 5, *([6] if name.endswith("3d") else [])).contiguous(memory_format=memory_format)
    tk.save({"t": tensor}, tmp_path / "ckpt")
    back = tk.load(tmp_path / "ckpt")["t"]
    assert back.is_contiguous(memory_format=memory_format)
    assert torch.equal(back, tensor)


def test_parameters_and_requires_grad_come_back_as_torch_save_keeps_them(tmp_path):
    saved = {"alpha": nn.Parameter(torch.tensor(0.25)), "w": torch.ones(2, requires_grad=True), "n": 1}
    tk.save(saved, tmp_path / "ckpt")
    back = tk.load(tmp_path / "ckpt")
    assert type(back["alpha"]) is nn.Parameter
    assert back["w"].requires_grad


PLAIN = {
    "epoch": 12,
    "best_loss": 0.31,
    "nasty floats": [math.inf, -math.inf, -0.0],
    "args": argparse.Namespace(lr=0.1, name="run"),
    "path": pathlib.Path("a/b"),
    "when": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
    "took": dt.timedelta(seconds=1.5),
    "tuple": (1, (2, 3)),
    "set": {1, 2},
    "bytes": b"\x00\xff",
    "complex": 1 + 2j,
    "ints as keys": {0: "a", 1: "b"},
    "counter": collections.Counter("aab"),
    "ordered": collections.OrderedDict(b=1, a=2),
    "default": collections.defaultdict(list, {"a": [1]}),
    "numpy scalar": np.float32(0.5),
    "small array": np.arange(4),
    "large array": np.arange(10_000).reshape(100, 100),
    "backwards array": np.arange(10_000)[::-1],
    "read-only array": np.broadcast_to(np.float32(1), (2000,)),
    "enum": Colour.RED,
    "dataclass": Settings(3, (0.1, 0.2)),
    "dtype": torch.bfloat16,
    "device": torch.device("cuda", 1),
    "size": torch.Size([2, 3]),
    "none": None,
    "a.b": {"c": torch.ones(1)},
    "a": {"b": {"c": torch.zeros(1)}},
}


def test_everything_beside_tensors_comes_back_equal_and_of_the_same_type(tmp_path):
    tk.save(PLAIN, tmp_path / "ckpt")
    back = tk.load(tmp_path / "ckpt")
    assert list(back) == list(PLAIN)
    for key, value in PLAIN.items():
        assert type(back[key]) is type(value), key
        if isinstance(value, np.ndarray):
            assert np.array_equal(back[key], value)
        else:
            assert back[key] == value, key


def test_what_has_no_encoding_is_refused_with_every_path_and_nothing_is_written(tmp_path):
    saved = {
        "model": nn.Linear(1, 1),
        "hparams": {"act": torch.relu, "ok": 1},
        "log": [1, print],
        "m": torch.ones(1, device="meta"),
    }
    with pytest.raises(tk.errors.FormatError) as refused:
        tk.save(saved, tmp_path / "ckpt")
    text = str(refused.value)
    assert "cannot save: 3 values have no encoding" in text
    assert "hparams.act: <class 'builtin_function_or_method'>" in text
    assert "log.1: <class 'builtin_function_or_method'>" in text
    assert "m: a meta tensor: it has no values" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("saved", [[1, torch.ones(2)], torch.ones(3), 7, {}, {1: torch.ones(1)}, None], ids=repr)
def test_what_is_no_mapping_of_entries_comes_back_as_it_was(tmp_path, saved):
    tk.save(saved, tmp_path / "ckpt")
    back = tk.load(tmp_path / "ckpt")
    assert repr(back) == repr(saved)


def test_objects_with_a_state_are_kept_by_it_wherever_they_stand(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    tk.save({"lists": {"optimizers": [optimizer], "schedulers": [scheduler], "models": [model]}}, tmp_path / "ckpt")
    back = tk.load(tmp_path / "ckpt")["lists"]
    assert back["schedulers"][0] == scheduler.state_dict()
    assert back["optimizers"][0]["param_groups"][0]["lr"] == 0.1
    assert torch.equal(back["models"][0]["weight"], model.weight)
    again = torch.optim.lr_scheduler.StepLR(optimizer, 7)
    tk.load(tmp_path / "ckpt", into={"lists.schedulers.0": again, "lists.models.0": nn.Linear(2, 1)})
    assert again.step_size == 2
