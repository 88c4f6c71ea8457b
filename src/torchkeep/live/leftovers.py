"""What a module's state dict leaves out and an exact resume may need: gradients and non-persistent buffers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from torchkeep.live.modules import CheckpointNames, named_parameters


class Gradients:
    """The gradients of a module's parameters: those that are there.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> state = {name: grad.clone() for name, grad in Gradients(model).state_dict().items()}
        >>> model.zero_grad()
        >>> Gradients(model).load_state_dict(state)
        >>> model.weight.grad
        tensor([[1., 1.]])
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Each gradient by its parameter's name."""
        named = named_parameters(self._module)
        return {name: parameter.grad for name, parameter in named if parameter.grad is not None}

    def load_state_dict(self, state: Mapping[str, torch.Tensor], /) -> None:
        """Set them, and clear those that were not there.

        Raises:
            ValueError: A gradient of no parameter, or of another shape; nothing was set.
        """
        named = dict(named_parameters(self._module))
        faults = [name for name, grad in state.items() if name not in named or named[name].shape != grad.shape]
        if faults:
            raise ValueError(f"gradients that fit no parameter: {', '.join(faults)}")
        for name, parameter in named.items():
            grad = state.get(name)
            parameter.grad = None if grad is None else grad.to(parameter.device, copy=True)


class NonPersistentBuffers:
    """The buffers of a module that its state dict leaves out.

    Example:
        >>> model = nn.Module()
        >>> model.register_buffer("seen", torch.tensor(3), persistent=False)
        >>> NonPersistentBuffers(model).state_dict()
        {'seen': tensor(3)}
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Each by its name."""
        names = CheckpointNames(self._module)
        found = {}
        for at, child in self._module.named_modules():
            for key in sorted(child._non_persistent_buffers_set):  # noqa: SLF001 - torch has no public way to ask
                held = child._buffers.get(key)  # noqa: SLF001 - as above
                if held is not None:
                    found[names(f"{at}.{key}" if at else key)] = held
        return found

    def load_state_dict(self, state: Mapping[str, torch.Tensor], /) -> None:
        """Fill them in place.

        Raises:
            ValueError: One of them is not there, or of another shape; nothing was filled.
        """
        held = self.state_dict()
        faults = [name for name, value in state.items() if name not in held or held[name].shape != value.shape]
        if faults:
            raise ValueError(f"non-persistent buffers that do not fit: {', '.join(faults)}")
        with torch.no_grad():
            for name, value in state.items():
                held[name].copy_(value)
