from __future__ import annotations

import json

import pytest
import torch

import torchkeep as tk
from torchkeep.cli import main


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Work in an empty folder with two checkpoints and a run."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("a", 1.0), ("b", 3.0)):
        state = {"fc.weight": torch.full((2, 2), value), "fc.count": torch.tensor(int(value))}
        torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3}, f"{name}.pt")
    model = torch.nn.Linear(2, 1)
    with tk.CheckpointManager("run", {"model": model}) as manager:
        manager.resume()
        for step, accuracy in enumerate([0.5, 0.9, 0.7]):
            with torch.no_grad():
                model.weight.fill_(step)
            manager.save(step, metrics={"acc": accuracy})


def test_what_is_lost_is_said_before_and_what_is_made_after(capsys):
    assert main(["convert", "a.pt", "a.safetensors", "--dtype", "bfloat16"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "a.safetensors: 2 tensors, 16 bytes of model (safetensors)\n"
    assert shown.err == "not kept: epoch: a value (int)\n"
    assert main(["diff", "a.pt", "a.safetensors", "--weights"]) == 1
    assert "only dtype differs" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    assert main(["convert", "a.pt", "new", "--to", "huggingface", "--dry-run"]) == 0
    assert capsys.readouterr().out == "would write 2 tensors, 24 bytes of model to new (huggingface)\n"
    assert not (tmp_path / "new").exists()


def test_shards_are_listed_and_sizes_are_read_as_people_write_them(capsys):
    assert main(["convert", "a.pt", "a.safetensors", "--max-shard-size", "16 B"]) == 2
    assert "a size is wanted, as 5GB or 500MB, not '16 B'" in capsys.readouterr().err
    assert main(["convert", "a.pt", "a.safetensors", "--max-shard-size", "16"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a-00001-of-00002.safetensors: 2 tensors, 24 bytes of model (safetensors)",
        "a-00002-of-00002.safetensors",
        "a.safetensors.index.json",
    ]


def test_conversion_as_json(capsys):
    assert main(["convert", "a.pt", "a.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1,
        "source": "a.pt",
        "target": "a.safetensors",
        "to": "safetensors",
        "entry": "model",
        "tensor_count": 2,
        "total_bytes": 24,
        "losses": ["epoch: a value (int)"],
        "files": ["a.safetensors"],
        "notes": [],
    }


def test_an_average_of_files(capsys):
    assert main(["average", "a.pt", "b.pt", "-o", "soup.pt", "--weights", "3", "1"]) == 0
    assert capsys.readouterr().out == (
        "soup.pt: 1 tensors averaged, 1 of the last checkpoint\n  0.75  a.pt\n  0.25  b.pt\n"
    )
    assert torch.load("soup.pt")["fc.weight"].unique().tolist() == [1.5]


def test_the_best_of_a_run_or_all_of_it_with_a_decay(capsys):
    best = ["--best", "2", "--metric", "acc", "--mode", "max"]
    assert main(["average", "run", *best, "-o", "soup", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["sources"] == [
        {"path": "run/step-00000001", "weight": 0.5},
        {"path": "run/step-00000002", "weight": 0.5},
    ]
    assert tk.load("soup")["weight"].tolist() == [[1.5, 1.5]]
    assert main(["average", "run", "--ema", "0.5", "-o", "ema"]) == 0
    assert tk.load("ema")["weight"].tolist() == [[1.25, 1.25]]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["convert", "a.pt", "b.pt"], 1, "torchkeep: b.pt: something is there already"),
        (["convert", "absent.pt", "c.pt"], 3, "absent.pt: "),
        (["convert", "a.pt", "c.pt", "--dtype", "int8"], 3, "'int8' is no dtype to cast to"),
        (["convert", "a.pt", "c.pt", "--to", "onnx"], 2, "invalid choice: 'onnx'"),
        (["convert", "a.pt", "nowhere/c.pt", "--entry", "x"], 3, "nothing in it is called 'x'"),
        (["average", "a.pt", "b.pt", "-o", "soup", "--weights", "1"], 2, "2 numbers are wanted, one per checkpoint"),
        (["average", "a.pt", "b.pt", "-o", "soup", "--ema", "2"], 2, "decay is a number from 0 to below 1"),
        (["average", "a.pt", "-o", "soup", "--best", "1"], 2, "choose among the checkpoints of one run folder"),
        (["average", "run", "-o", "soup", "--best", "1"], 2, "--best N, --metric NAME and --mode min|max go together"),
        (
            ["average", "run", "-o", "soup", "--best", "1", "--metric", "x", "--mode", "min"],
            3,
            "no checkpoint has the metric 'x'",
        ),
        (["average", "a.pt", "run/step-00000001", "-o", "soup"], 1, "the checkpoints are not of one network"),
        (["average", "a.pt"], 2, "the following arguments are required: -o/--output"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_user_can_get_wrong_is_a_message_and_an_exit_code(arguments, code, words, capsys):
    assert main(arguments) == code
    assert words in capsys.readouterr().err
