"""TorchScript archives: the state dict that torch gives, told from other tensors by code that is read and never run."""

from __future__ import annotations

import zipfile

import pytest
import torch
from torch import nn

import torchkeep as tk

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit.*deprecated:DeprecationWarning")


class Nasty(nn.Module):
    """Tensors in every place: parameters, buffers of both kinds, plain attributes, lists of them, a shared child."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.BatchNorm1d(2)])
        self.again = self.layers[0]
        self.attribute = torch.ones(3)
        self.listed = [torch.ones(1)]
        self.register_buffer("kept", torch.ones(4))
        self.register_buffer("transient", torch.ones(2), persistent=False)

    def forward(self, x):
        return self.again(self.layers[1](self.layers[0](x)))


def archive(path, *, traced):
    made = torch.jit.trace(Nasty().eval(), torch.ones(1, 2)) if traced else torch.jit.script(Nasty())
    torch.jit.save(made, path)
    return torch.jit.load(path).state_dict()


@pytest.mark.parametrize("traced", [False, True], ids=["scripted", "traced"])
def test_the_weights_of_an_archive_are_the_state_dict_of_its_module(tmp_path, traced):
    state = archive(tmp_path / "model.pt", traced=traced)
    with tk.open(tmp_path / "model.pt") as checkpoint:
        assert checkpoint.format == "torchscript"
        weights = checkpoint.weights()
        assert list(weights) == list(state)
        assert all(torch.equal(weights[name].torch(), value) for name, value in state.items())
    if not traced:
        assert "attribute" in checkpoint.tensors
        assert "attribute" not in weights
    assert tk.load(tmp_path / "model.pt", into=Nasty(), strict=False).plan.coverage == 1.0


def test_code_that_says_nothing_of_a_class_leaves_all_its_tensors_in(tmp_path):
    state = archive(tmp_path / "model.pt", traced=False)
    with zipfile.ZipFile(tmp_path / "model.pt") as whole, zipfile.ZipFile(tmp_path / "bare.pt", "w") as bare:
        for member in whole.infolist():
            if "/code/" not in member.filename:
                bare.writestr(member.filename, whole.read(member))
    with tk.open(tmp_path / "bare.pt") as checkpoint:
        assert set(checkpoint.weights()) == {*state, "attribute"}
