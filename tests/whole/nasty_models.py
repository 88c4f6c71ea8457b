"""Models that a description has to get right, each a function that makes one, with what it is called with."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import logging
import pathlib
from typing import NamedTuple, Self

import torch
from torch import nn
from torch.ao import quantization
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune

import torchkeep as tk


class Norm(enum.Enum):
    BATCH = "batch"
    LAYER = 2


class Mode(enum.IntFlag):
    A = 1
    B = 2


@dataclasses.dataclass
class Options:
    width: int = 4
    rates: list[float] = dataclasses.field(default_factory=list)
    norm: Norm = Norm.LAYER
    scale: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    at: tuple[int, ...] = (1, 2)


class Pair(NamedTuple):
    first: object
    second: object


class Registry(dict):
    pass


class Ordered(collections.OrderedDict):
    pass


class Stack(list):
    pass


class Label(str):
    __slots__ = ()


class Keeper:
    """A helper object that knows the module it helps."""

    __slots__ = ("__dict__", "module", "table")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.table = {0: "zero", (1, 2): None}
        self.extra = [module]

    def double(self, values: torch.Tensor) -> torch.Tensor:
        return values * 2


def halved(values: torch.Tensor, by: float = 2.0) -> torch.Tensor:
    return values / by


class Holder(nn.Module):
    """Every kind of attribute that has a description."""

    registry = Registry

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.act = torch.relu
        self.gelu = functional.gelu
        self.halved = functools.partial(halved, by=4.0)
        self.norm_class = functools.partial(nn.LayerNorm, eps=1e-3)
        self.keeper = Keeper(self)
        self.method = self.keeper.double
        self.own = self.scaled
        self.built = Holder.static
        self.norm, self.mode = Norm.BATCH, Mode.A | Mode.B if False else Mode.A
        self.options = Options(rates=[0.1, float("inf")], scale=torch.arange(4.0))
        self.shared = [self.options, self.options]
        self.frozen = Frozen()
        self.pair = Pair(self.options, Pair(1, None))
        self.entries = Registry(b=1, a=torch.ones(2))
        self.ordered = Ordered([(3, "c"), (1, "a")])
        self.ordered.note = "kept"
        self.stack = Stack([self.linear, 2])
        self.label = Label("name")
        self.beside = {"twin": [self.linear]}  # Not registered, and the same object.
        self.counts = collections.Counter("aab")
        self.by_class = {nn.Linear: "linear", Norm.BATCH: 1}
        self.sizes = torch.Size([1, 2])
        self.kinds = (torch.bfloat16, torch.device("cpu"), torch.channels_last, torch.strided)
        self.path, self.log = pathlib.PurePosixPath("a/b"), logging.getLogger("torchkeep.tests")
        self.nothing, self.text, self.many = None, "$text", {"$a": 1, "b": {2, 3}, "c": range(3)}
        self.missing = nn.Module()
        self.register_parameter("empty", None)
        self.register_module("absent", None)
        self.view = self.linear.weight[:2]

    @staticmethod
    def static(values: torch.Tensor) -> torch.Tensor:
        return values + 1

    def scaled(self, values: torch.Tensor) -> torch.Tensor:
        return values * self.options.scale

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        hidden = self.gelu(self.act(self.linear(values)))
        return self.built(self.own(self.method(self.halved(hidden)))) + self.stack[0](values) + len(self.shared)


class LoRA(nn.Module):
    """A linear layer with a low-rank addition, its base frozen."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.randn(base.out_features, rank))
        self.scaling = 2.0 / rank

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.base(values) + values @ self.lora_A.T @ self.lora_B.T * self.scaling


class Tied(nn.Module):
    """An embedding that is the head as well, twice, and a buffer that is an attribute too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight
        self.again = self.head
        self.alias = nn.Parameter(self.embed.weight.detach())  # Another parameter on the same memory.
        self.register_buffer("mask", torch.tensor([1.0, 0.5, 0.25, 0.0]), persistent=False)
        self.plain = self.mask

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.again(self.embed(words) * self.mask + self.plain) + (self.alias @ self.alias.T)[0]


class Containers(nn.Module):
    """Everything torch has to hold modules and parameters in."""

    def __init__(self) -> None:
        super().__init__()
        self.modules_by_name = nn.ModuleDict({"a.b".replace(".", "_"): nn.Linear(4, 4), "none": nn.Identity()})
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Tanh()])
        self.parameters_in_order = nn.ParameterList([torch.ones(4), nn.Parameter(torch.full((4,), 2.0))])
        self.parameters_by_name = nn.ParameterDict({"x": torch.ones(4)})
        self.buffer = nn.Buffer(torch.full((4,), 3.0), persistent=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        for layer in (*self.layers, *self.modules_by_name.values()):
            values = layer(values)
        return values * self.parameters_by_name["x"] * sum(self.parameters_in_order) * self.buffer


class Mixed(nn.Module):
    """A dtype for every part, and memory in odd orders."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Linear(4, 4).to(torch.bfloat16)
        self.high = nn.Linear(4, 4).double()
        self.turned = nn.Parameter(torch.randn(4, 6).t())
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.register_buffer("whole", torch.arange(4))
        self.register_buffer("flags", torch.tensor([True, False, True, True]))
        self.register_buffer("small", torch.ones(4).to(torch.float8_e4m3fn), persistent=False)
        self.register_buffer("sparse", torch.eye(4).to_sparse())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values = self.conv(images).mean((2, 3))
        values = self.low(values.bfloat16()).double() + self.high(values.double()) * self.flags + self.whole
        return (
            (self.turned.double() @ values.T).float()
            + (self.sparse @ values.float().T).sum()
            + self.small.float().sum()
        )


class Symmetric(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.triu() + values.triu(1).transpose(-1, -2)


class Armed(nn.Module):
    """A module and a helper that say so when any code of their class runs, once they are armed."""

    is_armed = False

    def __new__(cls, *args: object) -> Self:
        cls.alarm("__new__")
        return super().__new__(cls)

    def __init__(self, size: int) -> None:
        self.alarm("__init__")
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.helper = ArmedHelper()

    @classmethod
    def alarm(cls, what: str) -> None:
        if Armed.is_armed:
            raise AssertionError(f"{what} was called")

    def __setattr__(self, name: str, value: object) -> None:
        self.alarm("__setattr__")
        super().__setattr__(name, value)

    def __setstate__(self, state: object) -> None:
        self.alarm("__setstate__")
        super().__setstate__(state)

    def __getattr__(self, name: str) -> object:
        self.alarm("__getattr__")
        return super().__getattr__(name)

    def __hash__(self) -> int:
        self.alarm("__hash__")
        return super().__hash__()


class ArmedHelper:
    def __init__(self) -> None:
        Armed.alarm("__init__")
        self.held = 3

    @property
    def value(self) -> int:
        return self.held

    @value.setter
    def value(self, value: int) -> None:
        Armed.alarm("a property")
        self.held = value

    def __reduce__(self) -> object:
        Armed.alarm("__reduce__")
        return super().__reduce__()

    def __init_subclass__(cls) -> None:
        Armed.alarm("__init_subclass__")


def lazily() -> nn.Module:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(5))
    model(torch.ones(2, 3, 6, 6))
    return model


def converted(*layers: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """Layers as eager quantisation makes them for use."""
    model = nn.Sequential(quantization.QuantStub(), *layers, quantization.DeQuantStub()).eval()
    model.qconfig = quantization.default_qconfig
    prepared = quantization.prepare(model)
    prepared(inputs)
    return quantization.convert(prepared)


def quantised() -> nn.Module:
    per_channel = nn.Sequential(
        nn.Conv2d(3, 4, 3, groups=1, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3, stride=2)
    )
    return converted(per_channel, nn.Flatten(), nn.Linear(676, 3), inputs=IMAGES)


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[0], "weight", 0.25)
    prune.ln_structured(model[2], "weight", 0.5, n=2, dim=0)
    return model


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    tk.freeze(model, "0", "1", batch_norm=True)
    model[3].eval()
    return model


def parametrized() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv1d(1, 1, 3))
    parametrizations.orthogonal(model[0])
    parametrizations.spectral_norm(model[1])
    parametrize.register_parametrization(model[2], "weight", Symmetric())
    parametrizations.weight_norm(model[2], "bias")
    parametrizations.weight_norm(model[3])
    return nn.Sequential(model[0], model[1], model[2], nn.Unflatten(1, (1, 4)), model[3])


VECTORS = torch.linspace(-1, 1, 8).reshape(2, 4)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 36).reshape(2, 3, 6, 6)
WORDS = torch.tensor([[1, 2, 3], [4, 5, 8]])
STEPS = torch.linspace(-1, 1, 24).reshape(3, 2, 4)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, activation=functional.gelu, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def weight_normed() -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.utils.weight_norm(nn.Linear(4, 2), dim=None))


# They have no parameters to train.
QUANTISED = {
    "quantised layers": (quantised, IMAGES),
    "a quantised convolution of one dimension": (lambda: converted(nn.Conv1d(6, 2, 3), inputs=IMAGES[0]), IMAGES[0]),
    "a quantised convolution of three dimensions": (
        lambda: converted(nn.Conv3d(1, 2, 2), inputs=torch.ones(1, 1, 3, 3, 3)),
        torch.linspace(0, 1, 27).reshape(1, 1, 3, 3, 3),
    ),
    "linear layers quantised as they run": (
        lambda: quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), {nn.Linear}),
        VECTORS,
    ),
    "linear layers in half precision": (
        lambda: quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, dtype=torch.float16),
        VECTORS,
    ),
}
MODELS = {
    "every kind of attribute": (Holder, VECTORS),
    "low-rank additions to a frozen base": (
        lambda: nn.Sequential(LoRA(nn.Linear(4, 8), 2), LoRA(nn.Linear(8, 2), 1)),
        VECTORS,
    ),
    "tied embeddings": (Tied, WORDS),
    "containers of modules and parameters": (Containers, VECTORS),
    "mixed dtypes and memory formats": (Mixed, IMAGES),
    "weight norm by hook": (weight_normed, VECTORS),
    "spectral norm by hook": (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.ReLU()), VECTORS),
    "parametrisations": (parametrized, VECTORS),
    "pruning": (pruned, VECTORS),
    "lazy modules after their first forward": (lazily, IMAGES),
    "frozen layers and a part in evaluation mode": (frozen, IMAGES),
    "recurrent layers": (lambda: nn.LSTM(4, 3, num_layers=2, bidirectional=True, proj_size=2), STEPS),
    "a transformer": (encoder, STEPS),
    "attention": (lambda: nn.TransformerDecoderLayer(4, 2, 8), (STEPS, STEPS)),
    "an eval-mode network": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4)).eval(), VECTORS),
}
