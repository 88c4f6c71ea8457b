"""Placing planned tensors into live modules and mappings: in place, in parallel, or through a module's own loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList

from torchkeep.folder.parallel import in_parallel
from torchkeep.live.adapt import fitting, make_tensor
from torchkeep.live.build import Builder
from torchkeep.live.memory import spec_of, writing_to
from torchkeep.live.modules import CheckpointNames, loads_by_itself, materialise, named_modules, named_state, unwrap
from torchkeep.planning.recipes import Part, Recipe
from torchkeep.planning.rows import Row
from torchkeep.planning.rules import Casting
from torchkeep.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Placement:
    """One tensor of a plan on its way into one of a model.

    Attributes:
        name: The name there.
        recipe: What is read, and how the tensor is made of it.
        casting: What happens to values that the model's dtype does not have, where that may be.
        inverse: What a parametrization computes its tensor from, given the plain one that arrives.
    """

    name: str
    recipe: Recipe
    casting: Casting | None = None
    inverse: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def as_saved(self) -> TensorSpec | None:
        """The tensor of the file, where that is what arrives, at most in another dtype."""
        is_plain = self.casting is None and self.inverse is None
        return self.recipe.spec if is_plain and isinstance(self.recipe, Part) else None

    def put(self, target: torch.Tensor, builder: Builder) -> None:
        """Fill the memory of a live tensor; read straight into it, with others, where it is the tensor of the file."""
        saved = self.as_saved
        if saved is not None:
            builder.fill_later(saved, target)
            return
        with writing_to(target):
            target.copy_(self.value(target, builder).reshape(target.shape))

    def value(self, target: torch.Tensor, builder: Builder) -> torch.Tensor:
        """What arrives in a live tensor, on the CPU; the tensor itself is left as it is.

        Raises:
            ValueError: There are values that `casting` refuses.
        """
        if isinstance(self.recipe, Part):
            made = builder.read(self.recipe.spec)
        else:
            made = make_tensor(self.recipe, lambda part: builder.read(part.spec), target)
        made = made if self.inverse is None else self.inverse(made.to(target.dtype))
        return made if self.casting is None else fitting(made, target.dtype, self.casting)


def placements_of(rows: Sequence[Row], target: object) -> list[Placement]:
    """The placements of matched rows, those that may raise in front."""
    placements = []
    for row in rows:
        if row.recipe is not None:
            inverse = _inverse(target, row.name) if row.inverts_parametrization else None
            placements.append(Placement(row.name, row.recipe, row.casting, inverse))
    return sorted(placements, key=lambda placement: placement.inverse is None)


def _inverse(target: object, name: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What torch does to a plain tensor that is assigned to a parametrized one of this name."""
    if not isinstance(target, nn.Module):
        return None
    path = name.rpartition(".")[0]
    found = next((module for at, module in named_modules(target) if at == path), None)
    if not isinstance(found, ParametrizationList):
        return None

    def inverse(plain: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for parametrization in reversed(list(found)):
                plain = parametrization.right_inverse(plain)  # type: ignore[operator]  # torch cannot say so
        return plain

    return inverse


def lossy_casts(
    target: nn.Module | Mapping[str, torch.Tensor], placements: Sequence[Placement], builder: Builder, threads: int
) -> list[str]:
    """What the policies of casts refuse among the values that would arrive, a line for each tensor."""
    live = named_state(target) if isinstance(target, nn.Module) else target

    def fault(placement: Placement) -> str:
        tensor = live[placement.name]
        if isinstance(tensor, torch.Tensor):
            try:
                placement.value(tensor, builder)
            except ValueError as error:
                return f"{placement.name}: {error}"
        return ""

    narrowing = [each for each in placements if each.casting is not None]
    return list(filter(None, in_parallel(fault, narrowing, threads)))


def model_specs(state: Mapping[str, object]) -> dict[str, TensorSpec]:
    """The plain tensors of a state dict that can be filled, as a plan sees them; extra state is not among them."""
    tensors = {name: tensor for name, tensor in state.items() if is_plain(tensor) and not _is_lazy(tensor)}
    return {name: spec_of(tensor) for name, tensor in tensors.items() if not _is_folded(tensor)}


def not_plain(state: Mapping[str, object]) -> list[str]:
    """The names of everything else in a state dict."""
    return [name for name, value in state.items() if not is_plain(value) and not _is_lazy(value)]


def is_plain(tensor: object) -> TypeGuard[torch.Tensor]:
    """Whether a value of a state dict is a tensor that bytes can be placed in: neither sparse nor quantised."""
    return isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and not tensor.is_quantized


def unfit_memory(state: Mapping[str, object]) -> str:
    """Why nothing can be placed in a state dict: no shape yet, or elements that share memory; "" if it can."""
    lazy = [name for name, tensor in state.items() if _is_lazy(tensor)]
    if lazy:
        return f"{', '.join(lazy)}: not initialised yet; run the model once, then load"
    folded = [name for name, tensor in state.items() if is_plain(tensor) and _is_folded(tensor)]
    return f"{', '.join(folded)}: elements share memory, as expand() makes them; clone it, then load" if folded else ""


def tied_names(state: Mapping[str, object]) -> list[list[str]]:
    """Names under which a state dict holds one and the same memory."""
    found: dict[object, list[str]] = {}
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor) and is_plain(tensor) and not _is_lazy(tensor) and tensor.numel():
            found.setdefault(_memory(tensor), []).append(name)
    return [names for names in found.values() if len(names) > 1]


def _is_lazy(tensor: object) -> bool:
    return isinstance(tensor, (UninitializedParameter, UninitializedBuffer))


def _is_folded(tensor: torch.Tensor) -> bool:
    return torch._debug_has_internal_overlap(tensor) == 1  # noqa: SLF001 - torch's own question before it writes


def _memory(tensor: torch.Tensor) -> object:
    if tensor.is_meta:
        return id(tensor)
    return tensor.data_ptr(), str(tensor.device), tensor.dtype, tensor.shape, tensor.stride()


def place_in_mapping(
    target: Mapping[str, torch.Tensor], placements: Sequence[Placement], builder: Builder, threads: int
) -> None:
    """Fill the tensors of a mapping in place; those that share a storage one after the other, a tied one once."""
    distinct = {_memory(target[placement.name]): placement for placement in placements}
    by_storage: dict[int, list[Placement]] = {}
    for placement in distinct.values():
        tensor = target[placement.name]
        if placement.as_saved is not None:
            placement.put(tensor, builder)
        else:
            by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(placement)

    def fill(group: Sequence[Placement]) -> None:
        for placement in group:
            placement.put(target[placement.name], builder)

    in_parallel(fill, by_storage.values(), threads)


def place_in_module(
    module: nn.Module,
    placements: Sequence[Placement],
    extra_state: Mapping[str, object],
    builder: Builder,
    threads: int,
) -> list[Callable[[], object]]:
    """Fill a module's parameters and buffers in place; a module that overrides torch's loading loads by itself.

    Meta parameters and buffers are materialised on the builder's device, tied ones once.

    Returns:
        What puts its previous values back, where its own loader was called. When that raises, they are put back here.
    """
    if loads_by_itself(module) is not None or extra_state:
        return [_load_through(module, placements, extra_state, builder)]
    live = {name: tensor for name, tensor in named_state(module).items() if isinstance(tensor, torch.Tensor)}
    place_in_mapping(live, [each for each in placements if not live[each.name].is_meta], builder, threads)
    # Tied ones are one object: by identity each is made once.
    absent = {target: placement for placement in placements if (target := live[placement.name]).is_meta}
    materialise(module, {t: each.value(t, builder).to(builder.device, t.dtype) for t, each in absent.items()})
    return []


def _load_through(
    module: nn.Module, placements: Sequence[Placement], extra_state: Mapping[str, object], builder: Builder
) -> Callable[[], object]:
    inner = unwrap(module)
    state = inner.state_dict()
    before = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
    names = CheckpointNames(inner)
    live_name = {names(name): name for name in state}
    is_absent = any(isinstance(value, torch.Tensor) and value.is_meta for value in state.values())
    for placement in placements:
        target = state[live_name[placement.name]]
        value = placement.value(target, builder)
        state[live_name[placement.name]] = value.to(builder.device, target.dtype) if is_absent else value
    state.update({live_name.get(name, name): value for name, value in extra_state.items()})
    try:
        if is_absent:
            inner.load_state_dict(state, assign=True)
        else:  # overrides from before torch 2.1 do not know ``assign``
            inner.load_state_dict(state)
    except BaseException:
        with suppress(Exception):  # it may refuse its old state too: the first error is told
            inner.load_state_dict(before)
        raise
    return partial(inner.load_state_dict, before)
