"""A folder that `convert` writes is to torch.distributed.checkpoint as one that it saved itself."""

from __future__ import annotations

import pickle
import warnings
from argparse import Namespace
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

import torchkeep as tk
from torchkeep.errors import FormatError
from torchkeep.live.memory import bytes_of
from torchkeep.tensors import DTYPE_NAMES

DTYPES = sorted(name for name in DTYPE_NAMES if hasattr(torch, name))


def filled(dtype, *shape):
    """A tensor of any bytes that are values of the dtype."""
    made = torch.empty(shape, dtype=dtype)
    content = torch.arange(made.nbytes, dtype=torch.uint8) % 2
    made.view(torch.uint8).view(-1).copy_(content) if shape else made.reshape(1).view(torch.uint8).copy_(content)
    return made


def nasty():
    """All that a tree can hold at once."""
    tied = torch.arange(6.0).reshape(2, 3)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    return {
        "dtypes": {name: filled(getattr(torch, name), 3, 2) for name in DTYPES},
        "scalars": {name: filled(getattr(torch, name)) for name in DTYPES},
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "tied": {"a": tied, "b": tied, "row": tied[1]},
        "empty": [torch.zeros(0), torch.zeros(0, 3), torch.zeros(2, 0, 3)],
        "images": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "deep": {"a": {"b": [{"c": torch.ones(1)}, [torch.ones(2), 5], "text"]}},
        "plain": {"list": [1, [2.5, None]], "tuple": (1, torch.ones(2), {"x": torch.zeros(1)}), "set": {1, 2}},
        "bytes": b"\x00\xff",
        "args": Namespace(lr=0.1, path=Path("data"), size=torch.Size([2, 3]), means=np.arange(3.0)),
        "array": np.arange(4.0),
        "number": np.float64(2.5),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "dotted.name": 1,
        "parameters": (nn.Parameter(torch.ones(2)),),
    }


def is_same(left, right):
    if isinstance(left, torch.Tensor):
        return (type(left), left.dtype, left.shape) == (type(right), right.dtype, right.shape) and bytes_of(
            left
        ) == bytes_of(right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(is_same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(is_same, left, right))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, Namespace):
        return is_same(vars(left), vars(right))
    return type(left) is type(right) and left == right


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same state as torch saves it and as it is converted."""
    folder = tmp_path_factory.mktemp("dcp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = nasty()
        dcp.save(state, checkpoint_id=folder / "torch", no_dist=True)
    torch.save(state, folder / "a.pt")
    tk.convert(folder / "a.pt", folder / "ours", to="dcp")
    return folder, state


def test_the_metadata_is_torchs_own(both):
    theirs, ours = (pickle.loads((both[0] / name / ".metadata").read_bytes()) for name in ("torch", "ours"))
    assert list(ours.state_dict_metadata.items()) == list(theirs.state_dict_metadata.items())
    assert ours.planner_data == theirs.planner_data
    assert set(ours.storage_data) == set(theirs.storage_data)
    assert {each: each.index for each in ours.storage_data} == {each: each.index for each in theirs.storage_data}
    assert (type(ours), ours.version) == (type(theirs), theirs.version)


@pytest.mark.filterwarnings("ignore")
def test_torch_makes_the_same_file_of_both(both):
    folder, _ = both
    made = []
    for name in ("torch", "ours"):
        dcp_to_torch_save(folder / name, folder / f"{name}.pt")
        made.append(torch.load(folder / f"{name}.pt", weights_only=False))
    assert is_same(*made)
    assert is_same(made[1]["dtypes"], both[1]["dtypes"])
    assert is_same(made[1]["scalars"], both[1]["scalars"])


@pytest.mark.filterwarnings("ignore")
def test_it_loads_into_what_has_other_values(both):
    folder, state = both

    def blank(node):
        if isinstance(node, torch.Tensor):
            return torch.zeros(node.nbytes, dtype=torch.uint8).view(node.dtype).view(node.shape)
        if isinstance(node, dict):
            return {key: blank(value) for key, value in node.items()}
        return [blank(each) for each in node] if isinstance(node, list) else None

    into = blank({key: value for key, value in state.items() if "parameters" not in key})
    dcp.load(into, checkpoint_id=folder / "ours", no_dist=True)
    wanted = {key: value for key, value in state.items() if key in into}
    assert is_same(into, {**wanted, "model": dict(wanted["model"])})


def test_it_is_read_back_as_what_was_saved(both):
    folder, _ = both
    assert tk.diff(folder / "torch", folder / "ours").is_equal
    assert tk.diff(folder / "a.pt", folder / "ours").is_equal


def test_sparse_and_quantized_tensors_are_kept_as_values(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 2, torch.qint8)
        state = {"sparse": torch.eye(3).to_sparse(), "in": [torch.eye(2).to_sparse_csr(), quantized]}
        torch.save(state, tmp_path / "a.pt")
        assert tk.convert(tmp_path / "a.pt", tmp_path / "new", to="dcp").losses == ()
        into = {"sparse": None, "in": [torch.zeros(1), torch.zeros(1)]}
        dcp.load(into, checkpoint_id=tmp_path / "new", no_dist=True)
    assert torch.equal(into["sparse"].to_dense(), torch.eye(3))
    assert torch.equal(into["in"][0].to_dense(), torch.eye(2))
    assert torch.equal(into["in"][1].int_repr(), quantized.int_repr())
    assert tk.diff(tmp_path / "a.pt", tmp_path / "new").is_equal


def test_what_flattening_loses_is_said_before(tmp_path):
    state = {
        "empty": {},
        "deep": [{"none": OrderedDict()}, torch.ones(1)],
        "counts": defaultdict(int, a=1),
        "numbers": {0: 1, "a": 2},
    }
    torch.save(state, tmp_path / "a.pt")
    said = tk.convert(tmp_path / "a.pt", tmp_path / "new", to="dcp", dry_run=True)
    assert said.losses == (
        "empty: an empty dict",
        "deep.0.none: an empty OrderedDict",
        "counts: a defaultdict becomes a dict",
        "numbers: keys that are no text become text",
    )
    assert not (tmp_path / "new").exists()


def test_values_that_would_have_one_name_are_all_named_and_nothing_is_written(tmp_path):
    torch.save({"a": {"b": 1, 0: 2, "0": 3}, "a.b": 4}, tmp_path / "a.pt")
    with pytest.raises(FormatError, match="two values would have one name") as caught:
        tk.convert(tmp_path / "a.pt", tmp_path / "new", to="dcp", dry_run=True)
    assert caught.value.faults == ("'a.0': ('a', '0') and ('a', '0')", "'a.b': ('a', 'b') and ('a.b',)")
    assert not (tmp_path / "new").exists()
