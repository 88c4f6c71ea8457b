"""Placing planned tensors into live modules and mappings: in place, in parallel, or through a module's own loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from torchkeep.folder.parallel import in_parallel
from torchkeep.live.build import Builder
from torchkeep.live.memory import spec_of
from torchkeep.live.modules import CheckpointNames, loads_by_itself, materialise, named_state, unwrap
from torchkeep.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Placement:
    """One tensor of a plan on its way into one of a model: the name there, and what to read."""

    name: str
    spec: TensorSpec


def model_specs(target: nn.Module | Mapping[str, torch.Tensor]) -> dict[str, TensorSpec]:
    """The tensors of a module or mapping as a plan sees them; extra state that is no tensor is not among them."""
    state = named_state(target) if isinstance(target, nn.Module) else target
    return {name: spec_of(tensor) for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def place_in_mapping(
    target: Mapping[str, torch.Tensor], placements: Sequence[Placement], builder: Builder, threads: int
) -> None:
    """Fill the tensors of a mapping in place."""
    in_parallel(lambda placement: builder.fill(placement.spec, target[placement.name]), placements, threads)


def place_in_module(
    module: nn.Module,
    placements: Sequence[Placement],
    extra_state: Mapping[str, object],
    builder: Builder,
    threads: int,
) -> None:
    """Fill a module's parameters and buffers in place; a module that overrides torch's loading loads by itself.

    Meta parameters and buffers are materialised on the builder's device, tied ones once. When a module's own loader
    raises, its previous values are put back.
    """
    if loads_by_itself(module) is not None:
        _load_through(module, placements, extra_state, builder)
        return
    live = {name: tensor for name, tensor in named_state(module).items() if isinstance(tensor, torch.Tensor)}
    here = [placement for placement in placements if not live[placement.name].is_meta]
    in_parallel(lambda placement: builder.fill(placement.spec, live[placement.name]), here, threads)
    # Tied ones are one object: by identity each is made once.
    absent = {id(target): (target, p.spec) for p in placements if (target := live[p.name]).is_meta}
    for target, spec in absent.values():
        materialise(module, target, builder.read(spec).to(builder.device, target.dtype))


def _load_through(
    module: nn.Module, placements: Sequence[Placement], extra_state: Mapping[str, object], builder: Builder
) -> None:
    inner = unwrap(module)
    state = inner.state_dict()
    before = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in state.items()}
    names = CheckpointNames(inner)
    live_name = {names(name): name for name in state}
    state.update({live_name[placement.name]: builder.read(placement.spec) for placement in placements})
    state.update({live_name.get(name, name): value for name, value in extra_state.items()})
    try:
        inner.load_state_dict(state)
    except BaseException:
        inner.load_state_dict(before)
        raise
