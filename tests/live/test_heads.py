"""Where a classifier's head is, what a new one keeps of it, and what is refused rather than guessed."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torchkeep as tk
from torchkeep.live.modules import named_parameters


class Net(nn.Module):
    """Children in the order given, and none of the forward passes that would say more."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class Own(Net):
    """Another class of its own."""


class Timm(Net):
    def __init__(self, *heads: str, **children: nn.Module) -> None:
        super().__init__(**children)
        self.heads = heads

    def get_classifier(self):
        found = tuple(self.get_submodule(head) for head in self.heads)
        return found if len(found) > 1 else found[0]


class Config:
    """As transformers' configurations count their labels."""

    def __init__(self, count: int) -> None:
        self.id2label = dict.fromkeys(range(count), "")

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        self.__init__(count)


def body() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))


def normed(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(OrderedDict(bn=nn.BatchNorm1d(inputs), l=nn.Linear(inputs, outputs)))


def resnet(**more: nn.Module) -> Net:
    return Net(conv1=nn.Conv2d(3, 4, 7), layer4=body(), fc=nn.Linear(8, 5), **more)


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        (resnet(), "fc"),
        (resnet(neck=nn.ConvTranspose2d(8, 8, 3)), "fc"),
        (resnet(attention=Own(down=nn.Linear(8, 2), up=nn.Linear(2, 8))), "fc"),
        (resnet(AuxLogits=Own(conv=nn.Conv2d(8, 9, 1), fc=nn.Linear(9, 5))), "fc AuxLogits.fc"),
        (resnet(aux_task=nn.Linear(8, 2)), "fc"),
        (Net(body=body(), fclass=nn.Linear(8, 5)), "fclass"),
        (Net(last_linear=nn.Linear(8, 5), body=body()), "last_linear"),
        (Net(fc1=nn.Linear(8, 9), fc2=nn.Linear(9, 9), fc3=nn.Linear(9, 5)), "fc3"),
        (
            Net(body=body(), classifier=nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 5), nn.Softmax())),
            "classifier.2",
        ),
        (Net(body=body(), classifier=nn.Sequential(nn.Dropout(), nn.Conv3d(8, 5, 1), nn.ReLU())), "classifier.1"),
        (Net(body=body(), head=Own(norm=nn.LayerNorm(8), fc=nn.Linear(8, 5), flatten=nn.Flatten())), "head.fc"),
        (nn.Sequential(body(), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 5)), "4"),
        (nn.Sequential(nn.Identity(), nn.DataParallel(resnet(aux=nn.Linear(8, 5)))), "1.fc 1.aux"),
        (Timm("head.fc", head=Own(fc=nn.Linear(8, 5)), body=body(), fc=nn.Linear(8, 5)), "head.fc"),
        (Timm("a", "b", body=body(), a=nn.Linear(8, 5), b=nn.Linear(8, 5)), "a b"),
        (Timm("a", body=body(), a=nn.ModuleList([nn.Linear(8, 5), nn.Linear(9, 5)])), "a.0 a.1"),
        (Timm("a", body=body(), a=Own(norm=nn.BatchNorm1d(8), linear=nn.Linear(8, 5))), "a.linear"),
        # As VOLO has it, and RepViT.
        (
            Timm("head", body=body(), aux_head=nn.Linear(8, 5), norm=nn.LayerNorm(8), head=nn.Linear(8, 5)),
            "aux_head head",
        ),
        (Timm("head", body=body(), aux_task=nn.Linear(8, 2), head=nn.Linear(8, 5)), "head"),
        (
            Timm("head", body=body(), head=Own(drop=nn.Dropout(), head=normed(8, 5), head_dist=normed(8, 5))),
            "head.head.l head.head_dist.l",
        ),
        (Timm("head", body=body(), head=Own(fc1=nn.Linear(8, 9), fc2=nn.Linear(9, 5))), "head.fc2"),
    ],
    ids=str,
)
def test_the_head_is_found_and_only_it_is_new(model, heads):
    before = dict(named_parameters(model))

    names = tk.replace_head(model, 3)

    after = dict(named_parameters(model))
    assert list(after) == list(before)
    assert names == tuple(f"{head}.{name}" for head in heads.split() for name in ("weight", "bias"))
    assert tuple(name for name in after if after[name] is not before[name]) == names
    assert all(len(after[name]) == 3 for name in names)


TWO = nn.Linear(8, 5)
SAY_WHICH = r'; say which with replace_head\(model, n, at="its.name"\)$'


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (
            Net(body=body(), age=nn.Linear(8, 1), sex=nn.Linear(8, 2)),
            r"Net has more than one head: age \(8 -> 1\), sex \(8 -> 2\)",
        ),
        (resnet(fclass=nn.Linear(8, 3)), r"more than one head: fclass \(8 -> 3\), fc \(8 -> 5\)"),
        (resnet(classifier=nn.Linear(9, 3)), r"more than one head: fc \(8 -> 5\), classifier \(9 -> 3\)"),
        (
            Net(body=body(), classifier=Own(low=nn.Conv2d(4, 5, 1), high=nn.Conv2d(8, 5, 1))),
            r"more than one head: classifier.low \(4 -> 5\), classifier.high \(8 -> 5\)",
        ),
        (
            Net(
                body=body(), roi_heads=Own(box=Own(cls=nn.Linear(8, 5), bbox=nn.Linear(8, 20)), mask=nn.Conv2d(6, 5, 1))
            ),
            r"more than one head: roi_heads.box.cls \(8 -> 5\), roi_heads.mask \(6 -> 5\)",
        ),
        (Net(layers=nn.ModuleList([nn.Linear(8, 5), nn.Linear(8, 5)])), "more than one head: layers.0 .*, layers.1 "),
        (
            Net(body=body(), score=nn.Conv2d(8, 5, 3)),
            r"Net has no head: score ends in no Linear .*; all such layers: body.2",
        ),
        (Net(head=nn.Conv2d(8, 5, 3), proj=nn.Linear(8, 5)), "has no head: head ends in no Linear or 1x1 convolution"),
        (Net(body=body(), head=nn.ModuleList([nn.Linear(8, 5)])), "has no head: head ends in no Linear"),
        (Net(body=body(), group=nn.Conv2d(8, 8, 1, groups=2)), "has no head: group ends in no Linear"),
        (Net(body=body(), head=Own(a=Own(b=nn.Linear(8, 5)))), "has no head: head ends in .*body.2 .*, head.a.b "),
        (
            nn.Sequential(*[nn.Linear(4, 4) for _ in range(9)], nn.LSTM(4, 4)),
            r"the last of 9 such layers: 1 \(4 -> 4\), 2 ",
        ),
        (
            Timm("a", body=body(), a=nn.Identity()),
            r"get_classifier\(\) of Timm gives Identity, .*reset_classifier\(\) makes",
        ),
        (Timm("a", "b", a=nn.Linear(8, 5), b=nn.Identity()), r"gives Linear, Identity, and no Linear"),
    ],
    ids=str,
)
def test_what_is_no_clear_head_is_an_error_that_shows_the_candidates(model, text):
    before = dict(model.named_parameters())
    with pytest.raises(ValueError, match=text + ".*" + SAY_WHICH):
        tk.replace_head(model, 3)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


@pytest.mark.parametrize(
    "model", [nn.Linear(8, 5), nn.BatchNorm1d(3), nn.ReLU(), Net(), nn.Sequential(nn.LSTM(3, 3))], ids=str
)
def test_a_model_without_layers_to_choose_from_has_no_head(model):
    with pytest.raises(ValueError, match=r"has no head: (it has no children|0 ends in no).*; there is no .* in it"):
        tk.replace_head(model, 3)


def test_a_model_made_without_a_head_is_told_from_one_whose_head_is_not_found():
    model = Timm("head", body=body(), head=Own(drop=nn.Dropout(), fc=nn.Identity()))
    model.num_classes = 0
    with pytest.raises(ValueError, match=r"made without a head, .*: reset_classifier\(num_classes\) makes one$"):
        tk.replace_head(model, 3)


@pytest.mark.parametrize(
    ("at", "names"),
    [
        ("fclass", ("fclass.weight", "fclass.bias")),
        ("fc", ("fc.weight", "fc.bias")),
        ("layer4", ("layer4.2.weight", "layer4.2.bias")),
    ],
)
def test_at_says_which_layer_and_no_other_is_replaced(at, names):
    model = resnet(fclass=nn.Linear(8, 3), aux=nn.Linear(8, 5))
    before = dict(model.named_parameters())
    assert tk.replace_head(model, 7, at=at) == names
    assert tuple(name for name, parameter in model.named_parameters() if parameter is not before[name]) == names


def test_at_takes_names_as_freeze_does_without_those_of_wrappers():
    model = Net(a=nn.DataParallel(resnet()), b=nn.Linear(8, 5))
    assert tk.replace_head(model, 3, at="a") == ("a.fc.weight", "a.fc.bias")
    assert tk.replace_head(model, 4, at="a.fc") == tk.unfreeze(model, "a.fc")
    assert model.a.module.fc.out_features == 4


@pytest.mark.parametrize(
    ("at", "text"),
    [
        ("fclas", "no module in the model is called 'fclas'; all such layers: layer4.2 "),
        ("", "no module in the model is called ''"),
        ("conv1", "conv1 ends in no Linear or 1x1 convolution; all such layers: layer4.2 "),
    ],
)
def test_at_must_name_a_layer_that_can_be_a_head(at, text):
    with pytest.raises(ValueError, match=text):
        tk.replace_head(resnet(), 7, at=at)


def test_at_names_one_layer_where_a_module_ends_in_two_alike():
    model = Net(body=body(), head=Own(head=normed(8, 5), head_dist=normed(8, 5)))
    with pytest.raises(
        ValueError, match=r"more than one head: head.head.l \(8 -> 5\), head.head_dist.l \(8 -> 5\); say"
    ):
        tk.replace_head(model, 3, at="head")
    assert tk.replace_head(model, 3, at="head.head") == ("head.head.l.weight", "head.head.l.bias")


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(resnet(), {nn.Linear}, dtype=torch.qint8)


def old_weight_norm() -> nn.Module:
    model = resnet()
    nn.utils.spectral_norm(model.fc)
    return model


def tied_weight() -> nn.Module:
    model = Net(embed=nn.Linear(5, 8), body=body(), fc=nn.Linear(8, 5))
    model.embed.bias = nn.Parameter(torch.zeros(5))
    model.fc.bias = model.embed.bias
    return model


def narrow() -> nn.Module:
    model = resnet()
    model.fc.to(torch.float8_e4m3fn)
    return model


def sharded() -> nn.Module:
    class Shard(nn.Parameter):
        pass

    model = resnet()
    model.fc.weight = Shard(torch.zeros(5, 8))
    return model


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (quantised, "fc is quantised: replace the head of the float model, then quantise it"),
        (lambda: torch.jit.trace(nn.Linear(2, 2), torch.zeros(2)), "the model is TorchScript, whose layers are fixed"),
        (
            lambda: Net(body=body(), fc=parametrizations.spectral_norm(nn.Linear(8, 5))),
            "fc is no plain .*it holds parametr",
        ),
        (
            lambda: Net(body=body(), fc=parametrizations.weight_norm(nn.Linear(8, 5))),
            "remove that, replace the head, apply",
        ),
        (old_weight_norm, "fc is no plain Linear, it holds weight_orig, weight_u, weight_v"),
        (tied_weight, "fc is tied to embed.bias: make them two parameters first"),
        (lambda: Net(body=body(), a=TWO, fc=TWO), "a is tied to fc.weight, fc.bias: make"),
        (lambda: Net(body=body(), fc=nn.LazyLinear(5)), "fc has no shape yet: call the model once"),
        (
            narrow,
            "the weight of fc is a Parameter of torch.float8_e4m3fn: replace the head before quantising or sharding",
        ),
        (sharded, "the weight of fc is a Shard of torch.float32"),
        (lambda: resnet(aux=parametrizations.spectral_norm(nn.Linear(8, 5))), "aux is no plain"),
    ],
)
def test_a_head_that_a_new_one_cannot_stand_for_is_refused_and_nothing_is_changed(model, text):
    model = model()
    parameters, modules = list(model.parameters()), list(model.modules())
    with pytest.raises(ValueError, match=text):
        tk.replace_head(model, 3)
    assert list(model.modules()) == modules
    assert all(now is before for now, before in zip(model.parameters(), parameters, strict=True))


def test_a_model_in_ddp_is_refused_for_its_gradients_would_go_unsynchronised():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r"the model is in DistributedDataParallel, .*: replace it, then wrap"):
            tk.replace_head(nn.parallel.DistributedDataParallel(resnet()), 3)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("count", "error", "text"),
    [
        (0, ValueError, "num_classes is 0: a head needs at least 1"),
        (-1, ValueError, "num_classes is -1"),
        (3.0, TypeError, "num_classes is an integer; not 3.0 of type float"),
        (True, TypeError, "num_classes is an integer; not True of type bool"),
        ("3", TypeError, "num_classes is an integer; not '3' of type str"),
    ],
)
def test_a_head_needs_at_least_one_class(count, error, text):
    with pytest.raises(error, match=text):
        tk.replace_head(resnet(), count)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda model: nn.DataParallel(torch.compile(model))])
def test_wrappers_are_seen_through(wrap):
    model = resnet()
    model.config = Config(5)
    assert tk.replace_head(wrap(model), 3) == ("fc.weight", "fc.bias")
    assert (model.fc.out_features, model.config.num_labels) == (3, 3)


class Scaled(nn.Linear):
    """A Linear with something of its own."""

    scale = 2.0


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(8, 5, bias=False),
        nn.Linear(8, 5, dtype=torch.bfloat16),
        nn.Linear(8, 5, dtype=torch.float64, device="meta"),
        nn.Conv2d(8, 5, 1, stride=2, padding=1, padding_mode="circular"),
        nn.Conv2d(8, 5, 1).to(memory_format=torch.channels_last),
        nn.Linear(8, 5).eval(),
        nn.Linear(8, 5).requires_grad_(False),
        Scaled(8, 5),
    ],
    ids=["no bias", "bfloat16", "meta", "convolution", "channels last", "evaluation", "frozen", "subclass"],
)
def test_the_new_head_is_like_the_old_but_for_its_rows_and_the_old_stays_as_it_was(layer):
    layer.note = "kept"
    model = Net(body=body(), fc=layer)
    description, tensors = repr(layer), {name: tensor.clone() for name, tensor in layer.named_parameters()}

    tk.replace_head(model, 7)

    assert model.fc is not layer
    assert repr(model.fc) == description.replace("=5", "=7").replace("(8, 5", "(8, 7")
    assert (type(model.fc), model.fc.training, model.fc.note) == (type(layer), layer.training, "kept")
    for name, new in model.fc.named_parameters():
        old = layer.get_parameter(name)
        assert (new.dtype, new.device, new.stride()) == (old.dtype, old.device, old.stride())
        assert new.shape == (7, *old.shape[1:])
        assert new.requires_grad
        assert old.is_meta or torch.equal(old, tensors[name])
    assert repr(layer) == description
    assert len(list(layer.parameters())) == len(tensors)


def test_a_transposed_weight_gives_a_contiguous_one():
    model = resnet()
    model.fc.weight = nn.Parameter(torch.zeros(8, 5).t())
    tk.replace_head(model, 3)
    assert model.fc.weight.is_contiguous()


def test_hooks_stay_and_later_ones_are_of_one_layer_only():
    model, seen = resnet(), []
    old = model.fc
    old.register_forward_hook(lambda *_: seen.append("first"))
    tk.replace_head(model, 3)
    old.register_forward_hook(lambda *_: seen.append("second"))
    model.fc(torch.zeros(1, 8))
    assert seen == ["first"]


@pytest.mark.parametrize("layer", [nn.Linear(8, 3), nn.Conv2d(8, 3, 1), nn.Linear(8, 3, bias=False)], ids=str)
def test_the_values_are_those_of_a_layer_made_by_hand(layer):
    kind = type(layer)
    model = Net(body=body(), fc=kind(8, 5, *layer.weight.shape[2:3], bias=layer.bias is not None))
    torch.manual_seed(3)
    by_hand = kind(8, 3, *layer.weight.shape[2:3], bias=layer.bias is not None)

    torch.manual_seed(3)
    tk.replace_head(model, 3)

    assert len(list(by_hand.parameters())) == 1 + (layer.bias is not None)
    for name, parameter in by_hand.named_parameters():
        assert torch.equal(parameter, model.fc.get_parameter(name))


def test_attributes_that_say_how_many_classes_there_are_follow():
    model = Net(body=body(), head=Own(fc=nn.Linear(8, 5)))
    model.num_classes, model.depth, model.head.out_features, model.config = 5, 5, 5, Config(5)
    model.num_labels = 9  # says something else

    tk.replace_head(model, 7)

    assert (model.num_classes, model.depth, model.num_labels) == (7, 5, 9)
    assert (model.head.out_features, len(model.config.id2label)) == (7, 7)


def test_its_names_go_into_skip_freeze_and_parameter_groups(tmp_path):
    tk.save(resnet(), tmp_path / "ckpt")
    model = resnet()
    heads = tk.replace_head(model, 3)

    assert tk.load(tmp_path / "ckpt", into=model, rules=[tk.Skip(*heads)]).fresh == heads
    tk.freeze(model, "*")
    assert tk.unfreeze(model, *heads) == heads
    assert len(tk.trainable(model)) == 2
    groups = tk.param_groups(model, {"*": {"lr": 0.1}} | {head: {"lr": 1.0} for head in heads})
    assert [group["lr"] for group in groups] == [1.0, 1.0]
