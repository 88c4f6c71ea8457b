"""What torch keeps in a module's ``__dict__``: tables, hooks, and what is computed again rather than stored."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import _WrappedHook
from torch.utils.hooks import RemovableHandle

TABLES = ("_parameters", "_buffers", "_modules")
# Table of hooks -> what a person calls them. Those that run when a model is called come first.
HOOK_KINDS: Mapping[str, str] = {
    "_forward_hooks": "forward",
    "_forward_pre_hooks": "forward pre",
    "_backward_hooks": "backward",
    "_backward_pre_hooks": "backward pre",
    "_state_dict_hooks": "state dict",
    "_state_dict_pre_hooks": "state dict pre",
    "_load_state_dict_pre_hooks": "loading",
    "_load_state_dict_post_hooks": "after loading",
}
RUNNING_KINDS = ("forward", "forward pre", "backward", "backward pre")


def _inner(hook: object) -> object:
    return hook.hook if isinstance(hook, _WrappedHook) and not hook.with_module else hook


# Tables whose hooks can be kept -> what is in the table for a hook.
HOOK_TABLES: Mapping[str, Callable[[object], object]] = {
    "_forward_pre_hooks": lambda hook: hook,
    "_state_dict_hooks": lambda hook: hook,
    "_load_state_dict_pre_hooks": _inner,
}
KEPT_HOOKS = (
    *("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm", "torch.nn.utils.prune"),
    "torchkeep.live.modules",
)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# torch.compile's result, and an RNN's weak references, are made anew.
RECOMPUTED = _OF_EVERY_MODULE | {"_compiled_call_impl", "_flat_weight_refs"}


# What torch's own modules set now and did not always, with what they did before.
_ADDED: Mapping[type, Mapping[str, object]] = {
    nn.modules.conv._ConvNd: {"padding_mode": "zeros"},  # noqa: SLF001 - the base of all convolutions
    nn.RNNBase: {"proj_size": 0},
    nn.GELU: {"approximate": "none"},
    nn.Softmax: {"dim": None},
    nn.Softmin: {"dim": None},
    nn.LogSoftmax: {"dim": None},
    nn.Upsample: {"recompute_scale_factor": None},
    nn.MultiheadAttention: {"_qkv_same_embed_dim": True, "batch_first": False},
    nn.TransformerEncoderLayer: {"norm_first": False, "activation": functional.relu, "activation_relu_or_gelu": 0},
    nn.TransformerDecoderLayer: {"norm_first": False, "activation": functional.relu},
    nn.CrossEntropyLoss: {"label_smoothing": 0.0},
}


def added_by_torch(cls: type, state: Mapping[str, Any]) -> dict[str, object]:
    """Attributes that a module pickled by an old torch lacks, as torch itself fills them in."""
    found = {name: value for each, values in _ADDED.items() if issubclass(cls, each) for name, value in values.items()}
    if issubclass(cls, nn.modules.conv._ConvNd) and isinstance(state.get("padding"), tuple):  # noqa: SLF001 - as above
        found["_reversed_padding_repeated_twice"] = [each for each in reversed(state["padding"]) for _ in range(2)]
    return {name: value for name, value in found.items() if name not in state}


def is_kept_hook(hook: object) -> bool:
    """Whether a hook is part of how torch's own weight norm, spectral norm or pruning computes, or of `freeze`."""
    return type(hook).__module__ in KEPT_HOOKS


def is_reserved(name: str) -> bool:
    """Whether an attribute's name is one that Python, or copying and pickling, reads from objects."""
    return name.startswith("__") and name.endswith("__")


def fresh_tables() -> dict[str, object]:
    """A module's ``__dict__`` as this torch makes it, with everything empty."""
    return vars(nn.Module())


def put_hooks(tables: Mapping[str, object], table: str, hooks: Mapping[object, object]) -> None:
    """Put kept hooks into a module's table, under numbers that no handle of this process has."""
    place = tables[table]
    for hook in hooks.values():
        if not is_kept_hook(hook):
            raise TypeError(f"{table}: {type(hook).__name__} is no hook that is kept")
        number = RemovableHandle(place).id
        place[number] = _WrappedHook(hook) if table == "_load_state_dict_pre_hooks" else hook  # type: ignore[index, arg-type]


def finish(module: nn.Module) -> None:
    """Make what torch computes from a module's tables: properties of parametrisations, an RNN's references."""
    if isinstance(module, nn.RNNBase):
        own, parameters = vars(module), vars(module)["_parameters"]
        own["_flat_weights"] = [parameters.get(name) for name in own["_flat_weights_names"]]
        own["_flat_weight_refs"] = [None if each is None else weakref.ref(each) for each in own["_flat_weights"]]
    parametrizations = vars(module)["_modules"].get("parametrizations")
    if isinstance(parametrizations, nn.ModuleDict):
        names = list(vars(parametrizations)["_modules"])
        if bad := [name for name in names if not name.isidentifier() or is_reserved(name) or hasattr(nn.Module, name)]:
            raise TypeError(f"parametrizations: {bad[0]!r} cannot be the name of a tensor")
        torch.nn.utils.parametrize._inject_new_class(module)  # noqa: SLF001 - torch's own way, which its public one calls
        for name in names:
            torch.nn.utils.parametrize._inject_property(module, name)  # noqa: SLF001 - as above
