"""What is saved: the states of the benchmark, each a model and how it changes between two checkpoints."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from vision import import_torchvision


@dataclass
class State:
    """A model, its optimizer if it has one, and what a step of training does to them."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    change: Callable[[], None]

    def as_dict(self) -> dict[str, object]:
        """What people give to ``torch.save``."""
        held: dict[str, object] = {"model": self.model.state_dict()}
        return held if self.optimizer is None else {**held, "optimizer": self.optimizer.state_dict()}

    def objects(self) -> dict[str, object]:
        """What is given to a manager."""
        held: dict[str, object] = {"model": self.model}
        return held if self.optimizer is None else {**held, "optimizer": self.optimizer}

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


def linears(name: str, count: int, size: int) -> State:
    """A chain of equal layers without an optimizer."""
    model = nn.Sequential(*[nn.Linear(size, size, bias=False) for _ in range(count)])

    @torch.no_grad()
    def change() -> None:
        for parameter in model.parameters():
            parameter.add_(1e-3)

    return State(name, model, None, change)


def scraps(name: str, count: int, size: int) -> State:
    """Many small parameters in one module."""
    model = nn.ParameterList([torch.rand(size) for _ in range(count)])

    @torch.no_grad()
    def change() -> None:
        for parameter in model:
            parameter.add_(1e-3)

    return State(name, model, None, change)


def resnet(name: str, *, frozen: bool) -> State:
    """ResNet-50 with Adam; frozen but for its head, in evaluation mode, or wholly trained."""
    model = import_torchvision().resnet50(num_classes=1000)
    if frozen:
        model.requires_grad_(False).eval()
        model.fc.requires_grad_(True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-4)
    for parameter in trained:
        parameter.grad = torch.rand_like(parameter)

    @torch.no_grad()
    def change() -> None:
        optimizer.step()
        if not frozen:
            for buffer in model.buffers():
                buffer.add_(1)

    change()
    return State(name, model, optimizer, change)


def adapters(name: str) -> State:
    """A base that is frozen and small matrices beside each layer that train: about 1 % of the bytes."""
    layers = [nn.Linear(1024, 1024, bias=False).requires_grad_(False) for _ in range(60)]
    pairs = itertools.chain.from_iterable(
        (nn.Linear(1024, 5, bias=False), nn.Linear(5, 1024, bias=False)) for _ in layers
    )
    model = nn.ModuleDict({"base": nn.Sequential(*layers), "adapters": nn.ModuleList(pairs)})

    @torch.no_grad()
    def change() -> None:
        for parameter in model["adapters"].parameters():
            parameter.add_(1e-3)

    return State(name, model, None, change)
