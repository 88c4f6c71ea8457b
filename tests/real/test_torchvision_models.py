"""Every classification model of torchvision: saved, loaded, given another head, and loaded into that."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.planning import Pair, make_plan
from torchkeep.tensors import TensorSpec

HEADS = {
    "AuxLogits.fc fc": "inception_v3",
    "aux1.fc2 aux2.fc2 fc": "googlenet",
    "classifier": "densenet121 densenet161 densenet169 densenet201",
    "classifier.1": """
        efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
        efficientnet_b7 efficientnet_v2_l efficientnet_v2_m efficientnet_v2_s mnasnet0_5 mnasnet0_75 mnasnet1_0
        mnasnet1_3 mobilenet_v2 squeezenet1_0 squeezenet1_1""",
    "classifier.2": "convnext_base convnext_large convnext_small convnext_tiny",
    "classifier.3": "mobilenet_v3_large mobilenet_v3_small",
    "classifier.5": "maxvit_t",
    "classifier.6": "alexnet vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn",
    "fc": """
        regnet_x_16gf regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
        regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf
        regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d resnext50_32x4d
        shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 wide_resnet101_2 wide_resnet50_2""",
    "head": "swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t",
    "heads.head": "vit_b_16 vit_b_32 vit_h_14 vit_l_16 vit_l_32",
}
MODELS = {name: heads.split() for heads, names in HEADS.items() for name in names.split()}
OPTIONS = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}
# The large ones are narrowed, so that all of them together are 8 GB on the disk.
DTYPES = {40_000_000: torch.float32, 100_000_000: torch.bfloat16, 1_000_000_000: torch.float8_e4m3fn}


@pytest.fixture
def build(vision_models, monkeypatch):
    """Give a function that makes a model with its parameters on the meta device, and the names of its new head."""
    register = nn.Module.register_parameter

    def register_on_meta(module, name, parameter):
        register(module, name, parameter if parameter is None else nn.Parameter(parameter.detach().to("meta")))

    def build(name, new_classes=None):
        with monkeypatch.context() as patched:
            patched.setattr(nn.Module, "register_parameter", register_on_meta)
            model = vision_models.get_model(name, weights=None, **OPTIONS.get(name, {}))
        heads = tk.replace_head(model, new_classes) if new_classes else ()
        count = sum(parameter.numel() for parameter in model.parameters())
        return model.to(next(dtype for bound, dtype in DTYPES.items() if count < bound)), heads

    return build


@pytest.fixture
def checkpoint(tmp_path) -> Iterator[Path]:
    yield tmp_path / "ckpt"
    shutil.rmtree(tmp_path / "ckpt")


def allocate(model: nn.Module) -> nn.Module:
    """Put the parameters into memory, and zeros into everything."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.zeros_like(parameter, device="cpu"))
    for buffer in model.buffers():
        buffer.zero_()
    return model


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return torch.randint(0, 256, (9 * 2**20,), dtype=torch.uint8)


def beside_noise(model: nn.Module, noise: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield the bytes of the model's state in pieces, each with its name and as many bytes of noise, all others."""
    for place, (name, tensor) in enumerate(model.state_dict().items()):
        shift = place * 4099 % 2**20
        for piece in tensor.view(-1).view(torch.uint8).split(8 * 2**20):
            yield name, piece, noise[shift : shift + len(piece)]


def names_without_noise(model: nn.Module, noise: torch.Tensor) -> list[str]:
    return list(dict.fromkeys(name for name, here, there in beside_noise(model, noise) if not torch.equal(here, there)))


def test_the_table_has_every_classification_model(vision_models):
    assert sorted(MODELS) == sorted(vision_models.list_models(module=vision_models))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_whole_and_all_but_its_head_goes_into_another(build, noise, checkpoint, name):
    model, _ = build(name)
    for _, here, there in beside_noise(allocate(model), noise):
        here.copy_(there)
    tk.save(model, checkpoint)
    del model, here

    loaded, _ = build(name)
    assert tk.load(checkpoint, into=allocate(loaded)).fresh == ()
    assert names_without_noise(loaded, noise) == []
    del loaded

    other, heads = build(name, new_classes=7)
    assert tk.load(checkpoint, into=allocate(other), strict=False).fresh == heads
    assert names_without_noise(other, noise) == list(heads)

    plan = tk.plan(checkpoint, into=other, rules=[tk.Skip(*heads)])
    plan.check(strict=True)
    assert plan.fresh == heads


@pytest.mark.parametrize(("name", "heads"), MODELS.items())
def test_replace_head_makes_the_logits_those_of_the_new_classes(build, name, heads):
    model = build(name)[0].to(device="meta", dtype=torch.float32)
    before = dict(model.named_parameters())

    fresh = tk.replace_head(model, 7)

    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert [key for key, parameter in after.items() if parameter is not before[key]] == list(fresh)
    assert [key for key in fresh if key.endswith(".weight")] == [f"{head}.weight" for head in heads]
    size = 299 if name == "inception_v3" else 224
    outputs = model(torch.empty(2, 3, size, size, device="meta"))
    logits = outputs if isinstance(outputs, tuple) else [outputs]
    assert [tuple(each.shape) for each in logits] == [(2, 7)] * len(heads)
    assert getattr(model, "num_classes", 7) == 7


@pytest.mark.parametrize(
    ("old", "new", "by_name", "suggested"),
    [
        ("vgg16", "vgg16_bn", 12, 32),
        ("vgg16_bn", "vgg16", 12, 32),
        ("vgg11", "vgg13", 8, 22),
        ("squeezenet1_0", "squeezenet1_1", 30, 49),
        ("resnet18", "resnet34", 122, 122),
    ],
)
def test_suggestions_find_layers_whose_numbers_changed(vision_models, old, new, by_name, suggested):
    def specs(name):
        with torch.device("meta"):
            tensors = getattr(vision_models, name)().state_dict()
        return {each: TensorSpec(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for each, t in tensors.items()}

    plan = make_plan({"": Pair(specs(old), specs(new), "module", new)}, [], source=old)
    assert plan.matched_count == by_name
    assert plan.with_rules(*plan.suggest()).matched_count == suggested
