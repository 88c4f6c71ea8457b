"""Names of a module's state, the same whether it is wrapped or not, and what else of it a checkpoint records."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

_STANDARD_LOADERS = {nn.Module._load_from_state_dict, nn.modules.batchnorm._NormBase._load_from_state_dict}  # noqa: SLF001 - torch has no public way to ask
_STANDARD_SAVERS = (nn.Module.state_dict, nn.Module._save_to_state_dict)  # noqa: SLF001 - as above

_SHARDED = "_fsdp_wrapped_module"
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", _SHARDED)


def require_module(verb: str, model: object) -> None:
    """Raise a TypeError that shows what a verb was given in place of a module."""
    if not isinstance(model, nn.Module):
        made = ", which is a class: make a module of it first" if isinstance(model, type) else ""
        raise TypeError(f"{verb} takes a module; not {model!r} of type {type(model).__name__}{made}")


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel, torch.compile and activation checkpointing, all nested.

    FullyShardedDataParallel stays: only through it are its parameters whole.
    """
    while (attribute := _inner_attribute(module)) not in {None, _SHARDED}:
        module = getattr(module, str(attribute))
    return module


def _inner_attribute(module: nn.Module) -> str | None:
    """The attribute in which a wrapper keeps the module that it wraps; None for every other module."""
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "module"
    children = module.__dict__.get("_modules")
    if not isinstance(children, dict):  # of TorchScript
        return None
    return next((name for name in _WRAPPED if isinstance(children.get(name), nn.Module)), None)


class CheckpointNames:
    """The names of a module's parts as a checkpoint has them: without what wrappers anywhere inside it add.

    The wrappers are found by walking the live module, so a child that is genuinely called ``module`` keeps its name.
    """

    def __init__(self, module: nn.Module) -> None:
        self._added = {
            f"{name}.{attribute}" if name else attribute
            for name, child in module.named_modules(remove_duplicate=False)
            if (attribute := _inner_attribute(child)) is not None
        }

    def __call__(self, name: str) -> str:
        """The name in a checkpoint for a name in the live module."""
        if not self._added:
            return name
        kept, at = [], ""
        for part in name.split("."):
            at = f"{at}.{part}" if at else part
            if at not in self._added:
                kept.append(part)
        return ".".join(kept)


def named_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters with the names they have in a checkpoint; a tied one once for each of its names."""
    names = CheckpointNames(module)
    return ((names(name), parameter) for name, parameter in module.named_parameters(remove_duplicate=False))


def named_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Submodules with the names their parameters have in a checkpoint; a wrapper and what it wraps have the same."""
    names = CheckpointNames(module)
    return ((names(name), child) for name, child in module.named_modules())


def named_state(module: nn.Module) -> Mapping[str, object]:
    """The module's state dict with the live tensors themselves, names as in a checkpoint."""
    names = CheckpointNames(module)
    state = module.state_dict(keep_vars=True)
    renamed = OrderedDict((names(name), value) for name, value in state.items())
    metadata = getattr(state, "_metadata", None)
    if isinstance(metadata, Mapping):
        # Of a wrapper and what it wraps, the latter comes later and is the one to keep.
        vars(renamed)["_metadata"] = OrderedDict((names(name), value) for name, value in metadata.items())
    return renamed


class StandStill:
    """A forward pre-hook that keeps a batch norm in evaluation mode, whatever ``model.train()`` says."""

    def __call__(self, module: nn.Module, _inputs: object) -> None:
        """Before each forward pass."""
        module.training = False


def stands_still(module: nn.Module) -> bool:
    """Whether a batch norm is kept in evaluation mode."""
    return any(isinstance(hook, StandStill) for hook in module._forward_pre_hooks.values())  # noqa: SLF001 - hooks have no public list


def module_facts(module: nn.Module) -> dict[str, object]:
    """What is recorded beside the tensors: class, parameters that do not train, submodules in evaluation mode."""
    return {
        "class": class_path(unwrap(module)),
        "frozen": [name for name, parameter in named_parameters(module) if not parameter.requires_grad],
        "eval": list(
            dict.fromkeys(name for name, child in named_modules(module) if not child.training or stands_still(child))
        ),
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
    return _copies_state(inner)


def _copies_state(module: nn.Module) -> str | None:
    """Which part's state dict holds tensors that are not the module's own memory, so that filling them is lost."""
    own = next((name or type(module).__name__ for name, child in module.named_modules() if _makes_state(child)), None)
    if own is None:
        return None
    held = [*module.parameters(), *module.buffers()]
    objects = {id(tensor) for tensor in held}
    state = module.state_dict(keep_vars=True).values()
    others = [value for value in state if isinstance(value, torch.Tensor) and id(value) not in objects]
    memory = {storage_of(tensor) for tensor in held} if others else set()
    return f"{own} makes copies in its state_dict" if any(storage_of(each) not in memory for each in others) else None


def _makes_state(child: nn.Module) -> bool:
    kind = type(child)
    is_overridden = (kind.state_dict, kind._save_to_state_dict) != _STANDARD_SAVERS  # noqa: SLF001 - torch has no public way to ask
    return is_overridden or bool(child._state_dict_hooks)  # noqa: SLF001 - as above


def storage_of(tensor: torch.Tensor) -> int:
    """What is equal for tensors that share memory; of one that has none, what is its own."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, ValueError, NotImplementedError):
        return id(tensor)


def materialise(module: nn.Module, values: Mapping[torch.Tensor, torch.Tensor]) -> None:
    """Put tensors where meta parameters or buffers were, each in every place that held the same one."""
    made = {id(old): _in_place_of(old, value) for old, value in values.items()}
    for child in module.modules():
        tables: tuple[dict[str, Any], ...] = (child._parameters, child._buffers)  # noqa: SLF001 - no public way by identity
        for table in tables:
            table.update({key: made[id(held)] for key, held in table.items() if id(held) in made})


def _in_place_of(old: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value


def counters(module: nn.Module) -> dict[str, str]:
    """Batch norm's step counters, which files of old torch versions do not have and torch itself does without."""
    return {
        f"{name}.num_batches_tracked" if name else "num_batches_tracked": "saved without it, and the model does without"
        for name, child in named_modules(module)
        if isinstance(child, nn.modules.batchnorm._NormBase)  # noqa: SLF001 - the base of all batch norms
    }
