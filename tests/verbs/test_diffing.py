"""A difference between two checkpoints is named, whatever their formats, and nothing else is."""

from __future__ import annotations

import datetime as dt
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import torchkeep as tk
from torchkeep.errors import FormatError, NotFoundError, PlanError
from torchkeep.verbs.diffing import ABSENT, Outcome, is_same_value

NAN = float("nan")


def network():
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(2, 3, 1), norm=nn.BatchNorm2d(3), fc=nn.Linear(3, 2)))


def trained(model, steps=1):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return optimizer


def outcomes(found):
    return {each.name: each.outcome.value for each in found.tensors if each.is_difference}


FORMATS = {
    "torch-zip": torch.save,
    "torch-legacy": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "safetensors": save_file,
    "folder": tk.save,
    "nested": lambda state, path: torch.save({"state_dict": state}, path),
    "in DataParallel": lambda state, path: torch.save({f"module.{k}": v for k, v in state.items()}, path),
}


@pytest.mark.parametrize("left", FORMATS)
@pytest.mark.parametrize("right", FORMATS)
def test_the_same_weights_in_any_two_formats_are_equal(left, right, tmp_path):
    state = network().state_dict()
    FORMATS[left](state, tmp_path / "a")
    FORMATS[right](state, tmp_path / "b")
    found = tk.diff(tmp_path / "a", tmp_path / "b")
    wrapped = (left == "in DataParallel") != (right == "in DataParallel")
    assert set(outcomes(found).values()) == ({"name_differs"} if wrapped else set())
    assert (found.is_equal, bool(found), found.values) == (not wrapped, wrapped, ())


def test_each_kind_of_difference_has_its_outcome(tmp_path):
    same = torch.ones(3)
    a = {
        "same": same, "values": torch.zeros(3), "shape": torch.zeros(3), "dtype": same, "both": torch.full((3,), 1.1),
        "old": same, "zero": torch.tensor([0.0]), "nan": torch.tensor([NAN]),
    }  # fmt: skip
    b = {
        "new": same, "values": torch.tensor([0.0, 1, 0]), "shape": torch.zeros(4), "dtype": same.half(), "same": same,
        "both": torch.full((3,), 1.1).half(), "zero": torch.tensor([-0.0]), "nan": torch.tensor([NAN]),
    }  # fmt: skip
    torch.save(a, tmp_path / "a.pt")
    torch.save(b, tmp_path / "b.pt")
    found = tk.diff(tmp_path / "a.pt", tmp_path / "b.pt")
    assert outcomes(found) == {
        "new": "only_in_second",
        "values": "values_differ",
        "shape": "shape_differs",
        "dtype": "dtype_differs",
        "both": "dtype_differs",
        "old": "only_in_first",
        "zero": "values_differ",  # 0 and -0: equal values and other bits
    }
    compared = {each.name: each.comparison for each in found.tensors}
    assert (compared["dtype"].is_equal, compared["both"].is_equal) == (True, False)
    assert (compared["values"].differing_count, compared["values"].largest_at) == (1, (1,))
    assert [each.name for each in found.movers()] == ["values", "both"]
    assert compared["shape"] is None


def test_values_that_are_no_tensors_are_compared_by_what_they_say(tmp_path):
    when = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    a = {
        "w": torch.ones(2),
        "epoch": 3,
        "best": NAN,
        "lrs": [0.1, 0.2],
        "when": when,
        "gone": 1,
        "flag": True,
        "t": (1, 2),
    }
    b = {
        "w": torch.ones(2),
        "epoch": 4,
        "best": NAN,
        "lrs": [0.1, 0.3],
        "when": when,
        "came": None,
        "flag": 1,
        "t": [1, 2],
    }
    torch.save(a, tmp_path / "a.pt")
    tk.save(b, tmp_path / "b")
    found = tk.diff(tmp_path / "a.pt", tmp_path / "b")
    differing = {each.name: (each.first, each.second) for each in found.values}
    assert differing == {
        "epoch": (3, 4),
        "lrs": ([0.1, 0.2], [0.1, 0.3]),
        "gone": (1, ABSENT),
        "came": (ABSENT, None),
        "flag": (True, 1),
    }
    assert (found.value_count, found.is_equal, outcomes(found)) == (8, False, {})


def test_a_checkpoint_of_torch_save_and_one_of_ours_differ_in_nothing(tmp_path):
    model = network()
    optimizer = trained(model)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}, tmp_path / "a.pt")
    tk.save({"model": model, "optimizer": optimizer, "epoch": 1}, tmp_path / "b")
    found = tk.diff(tmp_path / "a.pt", tmp_path / "b")
    assert outcomes(found) == {}
    assert found.values == ()
    assert "optimizer.state.fc.weight.exp_avg" in {each.name for each in found.tensors}


def test_a_checkpoint_is_compared_with_its_parent_and_shared_shards_are_not_read(tmp_path, monkeypatch):
    model = network()
    model.conv.requires_grad_(False)
    with tk.CheckpointManager(tmp_path / "run", {"model": model}) as manager:
        manager.resume()
        manager.save(0, metrics={"acc": 0.5}).wait()
        with torch.no_grad():
            model.fc.weight += 1
        path = manager.save(1, metrics={"acc": 0.6}).wait()
    from torchkeep.folder.read import FolderSource

    read = []
    plain = FolderSource.read_range_into
    monkeypatch.setattr(
        FolderSource,
        "read_range_into",
        lambda self, spec, *rest: (read.append(spec.key[1]), plain(self, spec, *rest))[1],
    )
    found = tk.diff(path)
    assert found.first.name == "step-00000000"
    assert outcomes(found) == {"model.fc.weight": "values_differ"}
    assert {each.name for each in found.values} == {"(step)", "(metric) acc"}
    assert "conv.weight" not in read
    assert "fc.weight" in read


def test_without_a_parent_that_is_said(tmp_path):
    tk.save(network(), tmp_path / "a")
    torch.save(network().state_dict(), tmp_path / "a.pt")
    with pytest.raises(FormatError, match="it is the first of its run and has no parent"):
        tk.diff(tmp_path / "a")
    with pytest.raises(FormatError, match="only a folder of torchkeep has a parent"):
        tk.diff(tmp_path / "a.pt")
    with tk.CheckpointManager(tmp_path / "run", {"model": network()}) as manager:
        manager.resume()
        first = manager.save(0).wait()
        second = manager.save(1).wait()
    import shutil

    shutil.rmtree(first)
    with pytest.raises(NotFoundError, match="its parent is not in the run any more"):
        tk.diff(second)


def test_rules_are_applied_before_anything_is_compared(tmp_path):
    state = network().state_dict()
    torch.save({f"backbone.{name}": value for name, value in state.items()}, tmp_path / "a.pt")
    torch.save({**state, "fc.bias": torch.zeros(2)}, tmp_path / "b.pt")
    rules = [tk.Rename(r"^backbone\.", "")]
    assert outcomes(tk.diff(tmp_path / "a.pt", tmp_path / "b.pt", rules=rules)) == {"fc.bias": "values_differ"}
    found = tk.diff(tmp_path / "a.pt", tmp_path / "b.pt", rules=[*rules, tk.Skip("fc.bias")])
    assert (found.is_equal, len(found.of(Outcome.SKIPPED))) == (True, 1)
    with pytest.raises(PlanError, match=r"the rules give several tensors one name\n  backbone.conv.weight and "):
        tk.diff(tmp_path / "a.pt", tmp_path / "b.pt", rules=[tk.Rename(r".*", "conv")])


def test_what_rules_make_of_tensors_is_compared(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"q": weight, "k": weight + 1, "t": weight}, tmp_path / "a.pt")
    torch.save({"qk": torch.cat([weight, weight + 1]), "t": weight.t().contiguous() + 1}, tmp_path / "b.pt")
    found = tk.diff(
        tmp_path / "a.pt", tmp_path / "b.pt", rules=[tk.rules.Fuse(["q", "k"], "qk"), tk.rules.Transpose("t")]
    )
    assert outcomes(found) == {"t": "values_differ"}
    assert found.movers()[0].comparison.largest_step == 1.0


def test_only_the_weights_can_be_compared(tmp_path):
    model = network()
    torch.save({"model": model.state_dict(), "optimizer": trained(model).state_dict(), "epoch": 1}, tmp_path / "a.pt")
    save_file({k: v.clone() for k, v in torch.load(tmp_path / "a.pt")["model"].items()}, tmp_path / "b.safetensors")
    whole = tk.diff(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert set(outcomes(whole).values()) == {"only_in_first"}
    assert tk.diff(tmp_path / "a.pt", tmp_path / "b.safetensors", weights_only=True).is_equal
    torch.save({"epoch": 1}, tmp_path / "none.pt")
    with pytest.raises(NotFoundError, match="no entry looks like weights"):
        tk.diff(tmp_path / "a.pt", tmp_path / "none.pt", weights_only=True)


def test_real_checkpoints_of_two_versions_differ_as_their_architectures_do(real_checkpoint):
    old, new, tuned = (
        next(real_checkpoint("chgnet").glob(f"chgnet/pretrained/{name}/*.pth.tar"))
        for name in ("0.2.0", "0.3.0", "r2scan")
    )
    changed = tk.diff(old, new, weights_only=True)
    counts = {outcome: len(changed.of(outcome)) for outcome in Outcome}
    assert (counts[Outcome.SHAPE_DIFFERS], counts[Outcome.ONLY_IN_FIRST], counts[Outcome.ONLY_IN_SECOND]) == (7, 9, 46)
    assert counts[Outcome.EQUAL] + counts[Outcome.VALUES_DIFFER] == 83
    fine_tuned = tk.diff(new, tuned, weights_only=True)
    assert (len(fine_tuned.tensors), len(fine_tuned.of(Outcome.EQUAL))) == (136, 8)
    assert tk.diff(new, new).is_equal


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (NAN, NAN, True),
        (1, 1.0, True),
        (True, 1, False),
        ([1, NAN], [1, NAN], True),
        ([1], [1, 2], False),
        ("a", b"a", False),
        (np.arange(3), np.arange(3), True),
        (np.arange(3), np.arange(4), False),
        (np.float32(2), 2.0, True),
        (None, ABSENT, False),
        ({1, 2}, {2, 1}, True),
    ],
)
def test_values_say_the_same_or_not(one, other, same):
    assert is_same_value(one, other) is same
