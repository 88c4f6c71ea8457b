"""State that exists beside a manager's and is not in it, found from what is known: no name is guessed.

Each finding follows from an object that is alive and refers to one that is registered, or from an epoch that has begun.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

_KINDS: tuple[Any, ...] = (LRScheduler, ReduceLROnPlateau, torch.optim.Optimizer, torch.amp.GradScaler, AveragedModel)
_UNLINKED = (torch.amp.GradScaler, AveragedModel)  # they refer to nothing of the training that they are of
_NESTED = ("_schedulers", "schedulers")
_registered_beside: WeakKeyDictionary[Any, WeakSet[Any]] = WeakKeyDictionary()  # of what is unlinked: modules


def unregistered(state: Mapping[str, object]) -> list[str]:
    """What is not in a state and an exact resume would need, one line each.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
        >>> unregistered({"model": model, "optimizer": optimizer})
        ["the StepLR of 'optimizer' is not in this checkpoint"]
    """
    modules = WeakSet(value for value in state.values() if isinstance(value, nn.Module))
    _registered_beside.update((value, modules) for value in state.values() if isinstance(value, _UNLINKED))
    if _findings(state):
        gc.collect()  # what only waits to be collected is not there
    return list(dict.fromkeys(_findings(state)))


def _findings(state: Mapping[str, object]) -> list[str]:
    names = {id(value): name for name, value in state.items()}
    registered = {id(each) for value in state.values() for each in _with_nested(value)}
    found = list(_parameters_of_no_module(state))
    for each in _alive((*_KINDS, DataLoader, _BaseDataLoaderIter)):
        if id(each) not in registered and not _is_of_another_training(each, registered):
            found += _finding(each, names, state)
    return found


def _is_of_another_training(each: object, registered: set[int]) -> bool:
    """Whether it was in another state before, and in that was no module of this one."""
    beside = _registered_beside.get(each) if isinstance(each, _UNLINKED) else None
    return beside is not None and registered.isdisjoint(map(id, beside))


def _alive(kinds: tuple[Any, ...]) -> list[Any]:
    # An object refers to its class. Not gc.get_objects: a tuple that another thread is just filling is among them, and
    # filling it ends in a SystemError when anybody else holds it.
    wanted = {each for kind in kinds for each in _with_subclasses(kind)}
    return [each for each in gc.get_referrers(*wanted) if type(each) in wanted]


def _with_subclasses(kind: Any) -> Iterator[Any]:  # noqa: ANN401 - a class
    yield kind
    for each in type.__subclasses__(kind):
        yield from _with_subclasses(each)


def _with_nested(value: object) -> Iterator[object]:
    """An object and the schedulers inside it."""
    yield value
    for attribute in _NESTED:
        inside = getattr(value, attribute, None) if isinstance(value, (LRScheduler, ReduceLROnPlateau)) else None
        if isinstance(inside, Iterable):
            for each in inside:
                yield from _with_nested(each)


def _finding(each: Any, names: Mapping[int, str], state: Mapping[str, object]) -> list[str]:  # noqa: ANN401 - of four kinds
    kind = type(each).__name__
    if isinstance(each, (LRScheduler, ReduceLROnPlateau)):
        owner = names.get(id(getattr(each, "optimizer", None)))
        return [f"the {kind} of {owner!r} is not in this checkpoint"] if owner is not None else []
    if isinstance(each, torch.optim.Optimizer):
        others = (value for value in state.values() if isinstance(value, torch.optim.Optimizer))
        if any(other.param_groups is each.param_groups for other in others):
            return []  # one of the two is around the other, and has its state
        owner = next((name for name, value in state.items() if _trains(each, value)), None)
        return [f"the {kind} that trains {owner!r} is not in this checkpoint"] if owner is not None else []
    if isinstance(each, torch.amp.GradScaler):
        has_one = any(isinstance(value, torch.amp.GradScaler) for value in state.values())
        in_use = not has_one and each._scale is not None  # noqa: SLF001 - None until it has scaled
        return ["a GradScaler is in use and is not in this checkpoint"] if in_use else []
    if isinstance(each, AveragedModel):
        owner = next((name for name, value in state.items() if _are_alike(value, each.module)), None)
        return [f"the {kind} of a model like {owner!r} is not in this checkpoint"] if owner is not None else []
    if isinstance(each, DataLoader):
        return [f"a {kind} is not in this checkpoint"] if hasattr(each, "state_dict") else []
    if isinstance(each, _BaseDataLoaderIter) and _is_plain(each):
        try:
            batches = len(each)
        except (TypeError, NotImplementedError):
            return []
        if 0 < each._num_yielded < batches:  # noqa: SLF001 - torch's own count of what was taken
            taken = f"batch {each._num_yielded} of {batches}"  # noqa: SLF001 - as above
            return [f"a DataLoader is at {taken} of its epoch, and its position is not in this checkpoint"]
    return []


def _is_plain(iterator: _BaseDataLoaderIter) -> bool:
    """Whether nobody counts what is taken: not torchdata's, and not one whose batches are ours."""
    from torchkeep.live.loaders import Batches

    counted = isinstance(iterator._index_sampler, Batches)  # noqa: SLF001 - what it was made with
    return type(iterator).__module__.startswith("torch.utils.data") and not counted


def _trains(optimizer: torch.optim.Optimizer, value: object) -> bool:
    if not isinstance(value, nn.Module):
        return False
    own = {id(parameter) for parameter in value.parameters()}
    return any(id(each) in own for group in optimizer.param_groups for each in group["params"])


def _are_alike(value: object, module: nn.Module) -> bool:
    """Whether a value is a module of the same class with parameters of the same shapes."""
    if type(value) is not type(module) or not isinstance(value, nn.Module):
        return False
    return [each.shape for each in value.parameters()] == [each.shape for each in module.parameters()]


def _parameters_of_no_module(state: Mapping[str, object]) -> Iterator[str]:
    """Optimizers that are registered while what they train is not."""
    held = {id(p) for value in state.values() if isinstance(value, nn.Module) for p in value.parameters()}
    held |= {id(value) for value in state.values() if isinstance(value, torch.Tensor)}
    for name, value in state.items():
        if isinstance(value, torch.optim.Optimizer):
            absent = sum(id(each) not in held for group in value.param_groups for each in group["params"])
            if absent:
                yield f"{absent} of the parameters that {name!r} trains are in no module of this checkpoint"
