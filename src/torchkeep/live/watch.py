"""Whether modules and optimizers are built as they were: the same tensors in the same tables and memory, and flags.

All is compared in a few passes over many objects, in C. The training has other memory in the processor's caches when a
save begins: each object looked at costs, and those that Python would make for the comparison cost again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import nn

from torchkeep.live.capture import PLAIN_CLASSES

_Answers: TypeAlias = tuple[Callable[[Any], Any], Sequence[Any]]

_values = operator.methodcaller("values")
_dtype = operator.attrgetter("dtype")
_requires_grad = operator.attrgetter("requires_grad")
# Of every module: what a state dict is made of, and the mode that is recorded beside it.
_OF_A_MODULE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")


@dataclass(frozen=True, slots=True)
class Parts:
    """What there is to watch of some objects.

    Attributes:
        tables: Keep their keys and values, in order.
        collections: Keep their elements, in order.
        answers: Functions, and the objects for each of which they give the same object as before.
        tensors: Stay where they lie, with their shapes, strides and dtypes.
    """

    tables: list[Mapping[Any, object]] = field(default_factory=list)
    collections: list[Collection[object]] = field(default_factory=list)
    answers: list[_Answers] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)

    def add(self, other: Parts) -> None:
        """Watch those of another too."""
        self.tables.extend(other.tables)
        self.collections.extend(other.collections)
        self.answers.extend(other.answers)
        self.tensors.extend(other.tensors)


class Watch:
    """Compares parts with what they were when this was made.

    Args:
        parts: What to compare.
    """

    def __init__(self, parts: Parts) -> None:
        self._sized = [*parts.tables, *parts.collections]
        self._sizes = list(map(len, self._sized))
        # What is empty is known by its size.
        self._tables = [each for each in parts.tables if each]
        self._collections = [each for each in parts.collections if each]
        self._answers: list[_Answers] = [*parts.answers, (_dtype, parts.tensors)]
        self._objects = list(self._objects_now())
        self._filled = [each for each in parts.tensors if each.numel()]
        self._addresses = list(map(torch.Tensor.data_ptr, self._filled))
        self._aliases = [each.detach() for each in self._filled]
        self._empty = [each for each in parts.tensors if not each.numel()]
        self._shapes = list(map(_shape, self._empty))

    def holds(self) -> bool:
        """Whether all of it is as it was."""
        return (
            list(map(len, self._sized)) == self._sizes  # so that what is compared below is as long as it was
            and list(map(torch.Tensor.data_ptr, self._filled)) == self._addresses
            and all(map(operator.is_, self._objects_now(), self._objects))
            and all(map(torch.Tensor.is_set_to, self._filled, self._aliases))
            and list(map(_shape, self._empty)) == self._shapes
        )

    def _objects_now(self) -> Iterator[object]:
        return chain(
            chain.from_iterable(self._tables),
            chain.from_iterable(map(_values, self._tables)),
            chain.from_iterable(self._collections),
            *(map(answer, owners) for answer, owners in self._answers),
        )


def _own_state_dict(owner: object) -> object:
    return vars(owner).get("state_dict")


def _shape(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.device


def parts_of_module(module: nn.Module) -> Parts | None:
    """What to watch of a module whose state dict is its parameters and buffers and nothing else; None for others."""
    children = list(module.modules())
    if not all(_is_plain(child) for child in children):
        return None
    tensors = [value for value in module.state_dict(keep_vars=True).values() if isinstance(value, torch.Tensor)]
    if not all(_is_strided(tensor) for tensor in tensors):
        return None
    parts = Parts(tensors=tensors)
    for child in children:
        parts.tables.extend((child._parameters, child._buffers, child._modules))  # noqa: SLF001 - what a state dict is made of
        parts.tables.extend((child._forward_pre_hooks, *_hooks(child)))  # noqa: SLF001 - the first may be a recorded mode
        parts.collections.append(child._non_persistent_buffers_set)  # noqa: SLF001 - as above
    parts.answers.append((_own_state_dict, [module]))
    parts.answers.extend((operator.attrgetter(name), children) for name in _OF_A_MODULE)
    parts.answers.append((_requires_grad, [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]))
    return parts


def _is_strided(tensor: torch.Tensor) -> bool:
    return type(tensor) in PLAIN_CLASSES and tensor.layout is torch.strided and not tensor.is_quantized


def _hooks(child: nn.Module) -> tuple[Any, Any]:
    return child._state_dict_hooks, child._state_dict_pre_hooks  # noqa: SLF001 - hooks have no public list


def _is_plain(child: nn.Module) -> bool:
    kind = type(child)
    overrides = (
        kind.state_dict is not nn.Module.state_dict
        or kind._save_to_state_dict is not nn.Module._save_to_state_dict  # noqa: SLF001 - torch has no public way to ask
        or kind.get_extra_state is not nn.Module.get_extra_state
    )
    return not overrides and not any(_hooks(child))


def parts_of_optimizer(optimizer: torch.optim.Optimizer) -> Parts | None:
    """What to watch of an optimizer that keeps nothing but tensors for each parameter; None for others."""
    if type(optimizer).state_dict is not torch.optim.Optimizer.state_dict:
        return None
    pre_hooks = optimizer._optimizer_state_dict_pre_hooks  # noqa: SLF001 - hooks have no public list
    hooks = (pre_hooks, optimizer._optimizer_state_dict_post_hooks)  # noqa: SLF001 - as above
    inner = list(optimizer.state.values())
    if any(hooks) or not all(isinstance(each, dict) for each in inner):
        return None
    tensors = [value for each in inner for value in each.values()]
    if not all(isinstance(value, torch.Tensor) and _is_strided(value) for value in tensors):
        return None
    groups = list(optimizer.param_groups)
    answers: list[_Answers] = [
        (_own_state_dict, [optimizer]),
        (operator.attrgetter("state"), [optimizer]),  # `load_state_dict` makes both anew
        (operator.attrgetter("param_groups"), [optimizer]),
        (operator.itemgetter("params"), groups),
        (_requires_grad, tensors),
    ]
    return Parts(
        tables=[*hooks, optimizer.state, *inner],
        collections=[optimizer.param_groups, *(group["params"] for group in groups)],
        answers=answers,
        tensors=tensors,
    )
