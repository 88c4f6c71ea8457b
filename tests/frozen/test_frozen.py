"""Checkpoints that earlier versions wrote, committed as files: every later version must read them as they were meant.

``python tests/frozen/test_frozen.py v2`` writes a new set when docs/format.md gets a new version; an old set is never
written again.
"""

from __future__ import annotations

import argparse
import collections
import datetime as dt
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torchkeep as tk

HERE = Path(__file__).parent
VERSIONS = sorted(path.name for path in HERE.glob("v*"))
PLAIN = {
    "epoch": 12,
    "floats": [math.inf, -0.0, 0.1],
    "args": argparse.Namespace(lr=0.1),
    "when": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    "tuple": (1, {2}, b"\x00"),
    "keys": {0: "a", (1, 2): None},
    "ordered": collections.OrderedDict(b=1, a=2),
    "array": np.arange(3, dtype=np.int16),
    "dtype": torch.bfloat16,
    "size": torch.Size([2, 3]),
}
DTYPES = ("bool", "uint8", "int64", "float16", "bfloat16", "float32", "float64", "complex64", "complex128")


def tensors() -> dict[str, torch.Tensor]:
    found = {dtype: torch.arange(6).reshape(2, 3).to(getattr(torch, dtype)) for dtype in DTYPES}
    found["float8_e5m2"] = torch.tensor([1.0, 2.0]).to(torch.float8_e5m2)
    found["scalar"], found["empty"] = torch.tensor(1.5), torch.zeros(0, 3)
    return found


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        for number, value in enumerate(model.state_dict().values()):
            value.fill_(number)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for number, parameter in enumerate(model.parameters()):
        optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, number)
    return model, optimizer


def write(folder: Path) -> None:
    model, optimizer = build()
    tk.freeze(model, "0")
    state = {"model": model, "optimizer": optimizer, "tensors": tensors(), "plain": PLAIN, "alpha": torch.tensor(0.25)}
    tk.save(state, folder / "ckpt", step=7, metrics={"loss": 0.5, "bad": math.nan})
    tk.save(model, folder / "weights.safetensors")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_checkpoint_of_an_earlier_version_reads_as_it_was_meant(version):
    state = tk.load(HERE / version / "ckpt")
    assert list(state) == ["model", "optimizer", "tensors", "plain", "alpha"]
    assert repr(state["plain"]) == repr(PLAIN)
    for name, tensor in tensors().items():
        assert state["tensors"][name].dtype == tensor.dtype
        assert torch.equal(state["tensors"][name].to(torch.complex128), tensor.to(torch.complex128)), name
    assert state["alpha"].item() == 0.25
    with tk.open(HERE / version / "ckpt") as checkpoint:
        assert checkpoint.step == 7
        assert checkpoint.metrics["loss"] == 0.5
        assert math.isnan(checkpoint.metrics["bad"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["ckpt", "weights.safetensors"])
def test_a_model_of_an_earlier_version_loads_into_a_live_one_and_verifies(version, name):
    model, _ = build()
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    tk.load(HERE / version / name, into=other)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert tk.verify(HERE / version / name)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_optimizer_of_an_earlier_version_loads_by_name(version):
    model, optimizer = build()
    other = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    tk.load(HERE / version / "ckpt", into={"model": model, "optimizer": other})
    assert other.param_groups[0]["lr"] == 0.5
    for parameter in model.parameters():
        mine, theirs = (each.state[parameter]["momentum_buffer"] for each in (other, optimizer))
        assert torch.equal(mine, theirs)


def test_there_is_a_set_for_every_version_of_the_format():
    assert VERSIONS == ["v1"]


if __name__ == "__main__":
    write(HERE / sys.argv[1])
