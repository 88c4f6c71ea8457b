"""What is saved: the states of the benchmark, each a model and how it changes between two checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import nn

from vision import import_torchvision


@dataclass
class State:
    """A model, its optimizer if it has one, and what a step of training does to them.

    Attributes:
        change: Changes what a step changes, without the time that a forward and a backward take.
        train: A whole step on a small batch; None where there is no loop.
    """

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    change: Callable[[], None]
    train: Callable[[], None] | None = None
    slots: dict[torch.Tensor, dict[str, object]] = field(init=False)

    def __post_init__(self) -> None:
        self.slots = {key: dict(value) for key, value in self.optimizer.state.items()} if self.optimizer else {}

    def as_dict(self) -> dict[str, object]:
        """What people give to ``torch.save``."""
        held: dict[str, object] = {"model": self.model.state_dict()}
        return held if self.optimizer is None else {**held, "optimizer": self.optimizer.state_dict()}

    def objects(self) -> dict[str, object]:
        """What is given to a manager."""
        held: dict[str, object] = {"model": self.model}
        return held if self.optimizer is None else {**held, "optimizer": self.optimizer}

    def rebind(self) -> None:
        """Give the optimizer its own tensors again: torch lets it keep those of the last load, in a mapped file even."""
        if self.optimizer is not None:
            self.optimizer.state.update({key: dict(value) for key, value in self.slots.items()})

    @cached_property
    def twin(self) -> nn.Module:
        """The model without memory, for loads that replace its tensors."""
        empty: dict[int, torch.Tensor] = {id(each): each.to("meta") for each in self.model.buffers()}
        empty |= {
            id(each): nn.Parameter(each.detach().to("meta"), each.requires_grad) for each in self.model.parameters()
        }
        return copy.deepcopy(self.model, empty)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor under a flat name, for tools that take only those."""
        found = dict(self.model.state_dict())
        for index, each in enumerate(self.optimizer.state.values() if self.optimizer else ()):
            found |= {f"optimizer.{index}.{key}": value for key, value in each.items()}
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def title(self) -> str:
        return f"{self.name}: {self.nbytes / 1e6:,.1f} MB in {len(self.tensors):,} tensors"

    def least_bytes(self, checkpoints: int) -> int:
        """What so many checkpoints take at least: what is frozen once, what trains and its two moments each time."""
        trained = sum(each.nbytes for each in self.model.parameters() if each.requires_grad)
        return sum(each.nbytes for each in self.model.state_dict().values()) - trained + checkpoints * 3 * trained


def linears(name: str, count: int, size: int) -> State:
    """A chain of equal layers without an optimizer."""
    return untrained(name, nn.Sequential(*[nn.Linear(size, size, bias=False) for _ in range(count)]))


def scraps(name: str, count: int, size: int) -> State:
    """Many small parameters in one module."""
    return untrained(name, nn.ParameterList([torch.rand(size) for _ in range(count)]))


def untrained(name: str, model: nn.Module) -> State:
    @torch.no_grad()
    def change() -> None:
        for parameter in model.parameters():
            parameter.add_(1e-3)

    return State(name, model, None, change)


def resnet(name: str, *, frozen: bool) -> State:
    """ResNet-50 with Adam; frozen but for its head, in evaluation mode, or wholly trained."""
    model = import_torchvision().resnet50(num_classes=1000)
    if frozen:
        model.requires_grad_(False).eval()
        model.fc.requires_grad_(True)
    images, labels = torch.rand(4, 3, 64, 64), torch.arange(4)
    return with_adam(
        name,
        model,
        () if frozen else tuple(model.buffers()),
        lambda: nn.functional.cross_entropy(model(images), labels),
    )


class Adapted(nn.Module):
    """A layer that is frozen, and two small matrices beside it that train."""

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(size, size, bias=False).requires_grad_(False)
        self.down, self.up = nn.Linear(size, rank, bias=False), nn.Linear(rank, size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.base(x) + self.up(self.down(x))


def adapters(name: str, count: int, size: int, rank: int) -> State:
    """A base that is frozen, adapters beside each layer, and Adam for those."""
    model = nn.Sequential(*[Adapted(size, rank) for _ in range(count)])
    inputs = torch.rand(16, size)
    return with_adam(name, model, (), lambda: model(inputs).square().mean())


def with_adam(
    name: str, model: nn.Module, buffers: tuple[torch.Tensor, ...], loss: Callable[[], torch.Tensor]
) -> State:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-4)
    for parameter in trained:
        parameter.grad = torch.rand_like(parameter)

    @torch.no_grad()
    def change() -> None:
        optimizer.step()
        for buffer in buffers:
            buffer.add_(1)

    def train() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    change()
    return State(name, model, optimizer, change, train)


STATES: Mapping[str, Callable[[], State]] = {
    "a": partial(linears, "(a) fp32", 160, 1280),
    "b": partial(resnet, "(b) ResNet-50 with Adam, everything changes", frozen=False),
    "c": partial(resnet, "(c) the same, backbone frozen", frozen=True),
    "d": partial(scraps, "(d) small tensors", 10_000, 64),
    "e": partial(adapters, "(e) a base and adapters with Adam, 1 % changes", 60, 1024, 2),
}
