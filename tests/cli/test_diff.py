from __future__ import annotations

import json

import pytest
import torch

import torchkeep as tk
from torchkeep.cli import main


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Give two checkpoints that differ in every way, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    torch.manual_seed(0)
    weight = torch.ones(4, 2)
    torch.save(
        {"model": {"fc.weight": weight, "fc.bias": torch.zeros(2), "gone": weight, "same": weight}, "epoch": 3}, "a.pt"
    )
    moved = weight.clone()
    moved[3, 1] = 3.0
    tk.save(
        {"model": {"fc.weight": moved, "fc.bias": torch.zeros(3), "new": weight.half(), "same": weight}, "epoch": 4},
        "b",
    )


def test_the_text_names_every_difference_and_the_exit_code_is_1(pair, capsys):
    assert main(["diff", "a.pt", "b"]) == 1
    assert (
        capsys.readouterr().out
        == """\
A: a.pt
B: b
5 tensors: 1 equal, 1 in values, 1 in shape, 1 only in A, 1 only in B; 1 of 1 other values differ

only in A
model.gone  float32 (4, 2)

only in B
model.new  float16 (4, 2)

shape differs  A             B
model.fc.bias  float32 (2,)  float32 (3,)

weights that differ  dtype    change    cosine  differing  largest  at
model.fc.weight      float32   0.707  0.883883     1 of 8        2  [3, 1]

value differs  A  B
epoch          3  4
"""
    )


def test_equal_checkpoints_exit_with_0(pair, capsys):
    assert main(["diff", "a.pt", "a.pt"]) == 0
    assert (
        capsys.readouterr().out == "A: a.pt\nB: a.pt\n4 tensors: no difference, 4 equal; 0 of 1 other values differ\n"
    )


def test_json_has_every_tensor_with_the_numbers(pair, capsys):
    assert main(["diff", "a.pt", "b", "--json"]) == 1
    values = json.loads(capsys.readouterr().out)
    assert (values["schema"], values["equal"], values["value_count"]) == (1, False, 1)
    assert values["values"] == [{"name": "epoch", "first": 3, "second": 4}]
    by_name = {each["name"]: each for each in values["tensors"]}
    assert by_name["model.fc.weight"] == {
        "name": "model.fc.weight",
        "first_name": "model.fc.weight",
        "outcome": "values_differ",
        "in_weights": True,
        "first": {"dtype": "float32", "shape": [4, 2]},
        "second": {"dtype": "float32", "shape": [4, 2]},
        "bit_equal": False,
        "differing_count": 1,
        "relative_change": pytest.approx(2 / 8**0.5),
        "cosine": pytest.approx(0.8838834764831843),
        "largest_step": 2.0,
        "largest_at": [3, 1],
    }
    assert by_name["model.gone"]["second"] is None


def test_rules_and_the_number_of_lines_are_options(pair, capsys):
    rules = ["--skip", "model.fc", "--rename", "model.gone=model.new"]
    assert main(["diff", "a.pt", "b", *rules, "--weights", "--top", "1"]) == 1
    assert "only dtype differs" in capsys.readouterr().out
    assert main(["diff", "a.pt", "b", "--top", "-1"]) == 2
    assert "argument --top: a number of 0 or more is wanted, not '-1'" in capsys.readouterr().err


def test_the_rules_of_a_recorded_plan_can_be_applied(pair, tmp_path, capsys):
    (tmp_path / "plan.json").write_text(
        json.dumps({"schema": 1, "rules": ["Only('model.same')"], "rows": [], "source": "a.pt"})
    )
    assert main(["diff", "a.pt", "b", "--weights", "--plan", "plan.json"]) == 0
    assert "no difference, 1 equal, 4 skipped" in capsys.readouterr().out
    assert main(["diff", "a.pt", "b", "--plan", "plan.json", "--skip", "x"]) == 2
    assert "--plan takes the rules of the recorded plan, so no others" in capsys.readouterr().err


def test_a_nan_in_a_report_is_null_in_json(tmp_path, capsys):
    torch.save({"w": torch.zeros(2)}, tmp_path / "a.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "b.pt")
    assert main(["diff", str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), "--json"]) == 1
    (tensor,) = json.loads(capsys.readouterr().out)["tensors"]
    assert (tensor["relative_change"], tensor["cosine"]) == (None, None)
