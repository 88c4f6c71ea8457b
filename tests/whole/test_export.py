"""A model is exported for use without its class: the same outputs, the same weights, a record, a file that is whole."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest
import torch
from tests.whole.nasty_models import VECTORS, LoRA, Tied
from torch import nn

import torchkeep as tk
from torchkeep.errors import ConflictError, FormatError
from torchkeep.folder.digests import digest_of
from torchkeep.folder.record import decode_record


def record_in(path):
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("extra/torchkeep.json"))
        return decode_record(archive.read(name), str(path))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(LoRA(nn.Linear(4, 8), 2), nn.Dropout(), nn.BatchNorm1d(8))


def test_it_runs_without_the_class_and_gives_the_same(model, tmp_path):
    saved = tk.export(model, VECTORS, tmp_path / "new" / "model.pt2", step=3, metrics={"acc": 0.5})
    assert saved.written_bytes == (tmp_path / "new" / "model.pt2").stat().st_size
    assert model.training
    torch.save((VECTORS, model.eval()(VECTORS)), tmp_path / "expected.pt")
    program = """
import sys, torch
inputs, expected = torch.load(sys.argv[2])
assert torch.equal(torch.export.load(sys.argv[1]).module()(inputs), expected)
assert not [name for name in sys.modules if name.startswith(("tests", "torchkeep"))]
"""
    command = [sys.executable, "-c", program, saved.path, tmp_path / "expected.pt"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr


def test_the_record_inside_is_that_of_a_whole_model_with_the_digests_of_the_weights(model, tmp_path):
    record = record_in(tk.export(model, VECTORS, tmp_path / "model.pt2", step=3, metrics={"acc": 0.5}).path)
    assert (record.step, record.metrics) == (3, {"acc": 0.5})
    assert record.entries["model"].facts["structure"]["objects"][0]["class"] == "torch.nn.modules.container:Sequential"
    weights = torch.export.load(tmp_path / "model.pt2").state_dict
    assert set(record.tensors["model"]) == set(weights) == set(model.state_dict())
    for name, stored in record.tensors["model"].items():
        assert stored.chunks == (digest_of(weights[name].detach().contiguous().view(-1).view(torch.uint8).numpy()),)


def test_free_shapes_stay_free(model, tmp_path):
    batch = torch.export.Dim("batch", min=2)
    tk.export(model, VECTORS, tmp_path / "model.pt2", dynamic_shapes={"input": {0: batch}})
    assert torch.export.load(tmp_path / "model.pt2").module()(torch.ones(7, 4)).shape == (7, 8)


def test_its_own_file_is_replaced_and_no_other(model, tmp_path):
    tk.export(model, VECTORS, tmp_path / "model.pt2")
    tk.export(model, (VECTORS,), tmp_path / "model.pt2", step=1)
    assert record_in(tmp_path / "model.pt2").step == 1
    for name, content in {"text": b"not mine", "zip": b"PK\x05\x06" + bytes(18)}.items():
        (tmp_path / f"{name}.pt2").write_bytes(content)
        with pytest.raises(ConflictError):
            tk.export(model, VECTORS, tmp_path / f"{name}.pt2")
        assert (tmp_path / f"{name}.pt2").read_bytes() == content
    torch.export.save(torch.export.export(nn.Linear(4, 4), (VECTORS,)), tmp_path / "other.pt2")
    with pytest.raises(ConflictError):
        tk.export(model, VECTORS, tmp_path / "other.pt2")
    assert not list(tmp_path.glob(".staging-*"))


def test_a_tie_and_keyword_inputs_are_exported(tmp_path):
    model = Tied().eval()
    words = torch.tensor([[1, 2, 3]])
    tk.export(model, {"words": words}, tmp_path / "model.pt2")
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(words=words), model(words))


class Branching(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values if values.sum() > 0 else -values


def test_what_torch_cannot_export_is_told_and_nothing_is_written(tmp_path):
    with pytest.raises(FormatError, match=r"torch.export cannot export tests.whole.test_export.Branching") as caught:
        tk.export(Branching(), VECTORS, tmp_path / "model.pt2")
    assert caught.value.faults
    assert not list(tmp_path.iterdir())
    with pytest.raises(FormatError, match=r"name it model.pt2"):
        tk.export(nn.Linear(2, 2), VECTORS, tmp_path / "model.onnx")
