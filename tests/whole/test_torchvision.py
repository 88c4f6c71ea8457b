"""Every model that torchvision lists: saved whole, rebuilt in a fresh process, equal in every tree and tensor.

Those that are small or in the campaign run too, and their outputs are bit-equal. Detection needs torchvision's
compiled operators, which do not load beside a CPU build of torch; its trees and tensors are compared.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from tests.whole.fresh_process import digest_of_model, rebuilt_elsewhere
from torch import nn

import torchkeep as tk

TRUST = ("torchvision", "torch.ao")
DETECTION = ("rcnn", "retinanet", "fcos", "ssd")
# Classes whose constructors would download weights, or initialise for minutes.
OPTIONS = {
    "deeplab": {"weights_backbone": None},
    "fcn_": {"weights_backbone": None},
    "lraspp": {"weights_backbone": None},
    **{part: {"weights_backbone": None} for part in DETECTION},
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}
SIZES = {"vit_": (3, 224, 224), "maxvit": (3, 224, 224), "inception": (3, 96, 96), "googlenet": (3, 96, 96)}
VIDEOS = {"mvit": (3, 16, 224, 224), "s3d": (3, 16, 224, 224), "swin3d": (3, 4, 64, 64), "mc3": (3, 4, 64, 64),
          "r3d": (3, 4, 64, 64), "r2plus1d": (3, 4, 64, 64)}  # fmt: skip
LARGE_PARAMETERS = 300_000_000
SMALL_PARAMETERS = 6_000_000
SHARES = 4


@pytest.fixture
def build(vision_models, monkeypatch):
    """Give a function that makes a model with its parameters on the meta device."""
    register = nn.Module.register_parameter

    def register_on_meta(module, name, parameter):
        if parameter is not None:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    def build(name):
        options = {key: value for part, each in OPTIONS.items() if part in name for key, value in each.items()}
        if name.startswith("quantized"):
            options.pop("init_weights", None)
        with monkeypatch.context() as patched:
            if name != "ssdlite320_mobilenet_v3_large":  # It runs a part of itself to learn its sizes.
                patched.setattr(nn.Module, "register_parameter", register_on_meta)
            return vision_models.get_model(name, weights=None, **options)

    return build


def fill(model: nn.Module, noise: torch.Tensor, *, whole: bool) -> nn.Module:
    """Put small numbers into every parameter; of a model that will not run, only into a few elements of each."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                shape = parameter.shape if whole else (min(parameter.numel(), 3),)
                values = torch.empty(shape, dtype=parameter.dtype)
                flat = values.view(-1)
                for begin in range(0, len(flat), len(noise)):
                    flat[begin : begin + len(noise)] = noise[: len(flat) - begin]
                module._parameters[name] = nn.Parameter(values, parameter.requires_grad)
    return model


def inputs_of(name: str) -> object:
    torch.manual_seed(0)
    if name.startswith("raft"):
        return torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)
    shape = next((shape for part, shape in {**VIDEOS, **SIZES}.items() if part in name), (3, 64, 64))
    return torch.rand(1, *shape)


@pytest.mark.campaign
@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_every_model_comes_back_in_a_fresh_process(share, build, vision_models, tmp_path, campaign):
    names = vision_models.list_models()[share::SHARES]
    noise = torch.randn(1 << 20) * 0.02
    digests, ran = {}, []
    for name in names:
        model = build(name)
        count = sum(parameter.numel() for parameter in model.parameters())
        can_run = not any(part in name for part in DETECTION) and not name.startswith("ssd")
        runs = can_run and (campaign.is_full or (count < SMALL_PARAMETERS and not name.startswith("raft")))
        if count > LARGE_PARAMETERS:
            model = model.to(torch.bfloat16)
        fill(model, noise, whole=runs or campaign.is_full)
        inputs = inputs_of(name)
        inputs = inputs.to(torch.bfloat16) if count > LARGE_PARAMETERS else inputs
        saved = tk.save_whole(model, tmp_path / name, example_inputs=inputs if runs else None)
        assert saved.notes == ()
        digests[name] = digest_of_model(model)
        ran += [name] if runs else []
    found = rebuilt_elsewhere(tmp_path, "torchvision", *TRUST)
    shutil.rmtree(tmp_path)  # Gigabytes.
    assert {name: error for name, (_, error) in found.items() if error} == {}
    assert {name: digest for name, (digest, _) in found.items()} == digests
    campaign.report("torchvision models", models=len(names), with_equal_outputs=len(ran))


def test_there_are_121_of_them(vision_models):
    assert len(vision_models.list_models()) == 121
