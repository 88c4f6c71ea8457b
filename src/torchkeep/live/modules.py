"""Names of a module's state, the same whether it is wrapped or not, and what else of it a checkpoint records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

_STANDARD_LOADERS = {nn.Module._load_from_state_dict, nn.modules.batchnorm._NormBase._load_from_state_dict}  # noqa: SLF001 - torch has no public way to ask


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile, however they are nested."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(inner := module.__dict__.get("_modules", {}).get("_orig_mod"), nn.Module):
            module = inner
        else:
            return module


def named_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters with the names they have in a checkpoint; a tied one once for each of its names."""
    return unwrap(module).named_parameters(remove_duplicate=False)


def named_state(module: nn.Module) -> Mapping[str, object]:
    """The module's state dict with the live tensors themselves, names as in a checkpoint."""
    state: Mapping[str, object] = unwrap(module).state_dict(keep_vars=True)
    return state


def module_facts(module: nn.Module) -> dict[str, object]:
    """What is recorded beside the tensors: class, parameters that do not train, submodules in evaluation mode."""
    inner = unwrap(module)
    return {
        "class": class_path(inner),
        "frozen": [name for name, parameter in inner.named_parameters() if not parameter.requires_grad],
        "eval": [name for name, child in inner.named_modules() if not child.training],
    }


def class_path(value: object) -> str:
    """The importable path of an object's class."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def loads_by_itself(module: nn.Module) -> str | None:
    """Why a module must load through its own ``load_state_dict``: the first part that overrides it, or None.

    Batch norm's override only fills in a counter that old files do not have, so it does not count.
    """
    inner = unwrap(module)
    if type(inner).load_state_dict is not nn.Module.load_state_dict:
        return f"{type(inner).__name__} overrides load_state_dict"
    for name, child in inner.named_modules():
        at = name or type(inner).__name__
        if type(child)._load_from_state_dict not in _STANDARD_LOADERS:  # noqa: SLF001 - see above
            return f"{at} overrides _load_from_state_dict"
        if type(child).set_extra_state is not nn.Module.set_extra_state:
            return f"{at} has extra state"
        if child._load_state_dict_pre_hooks or child._load_state_dict_post_hooks:  # noqa: SLF001 - see above
            return f"{at} has hooks on loading"
    return None


def place_parameter(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put a tensor where a meta parameter or buffer was, in every place that held the same one."""
    inner = unwrap(module)
    parameters = dict(inner.named_parameters(remove_duplicate=False))
    old = parameters[name] if name in parameters else inner.get_buffer(name)
    new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    for child in inner.modules():
        tables: tuple[dict[str, Any], ...] = (child._parameters, child._buffers)  # noqa: SLF001 - no public way by identity
        for table in tables:
            table.update({key: new for key, held in table.items() if held is old})


def optional_names(module: nn.Module) -> frozenset[str]:
    """Names that files of old torch versions do not have and torch itself does without: batch norm's step counters."""
    return frozenset(
        f"{name}.num_batches_tracked" if name else "num_batches_tracked"
        for name, child in unwrap(module).named_modules()
        if isinstance(child, nn.modules.batchnorm._NormBase)  # noqa: SLF001 - the base of all batch norms
    )
