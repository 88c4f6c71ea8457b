"""The layer that gives a classifier's logits: found by structure, replaced in place for another number of classes."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Sequence
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torchkeep.live.modules import unwrap

_Projection = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

_HEAD_NAMES = {"fc", "classifier", "head", "heads", "linear", "logits", "score"}  # last_linear and cls_classifier too
_COUNT_NAMES = ("num_classes", "num_labels", "n_classes", "out_features", "out_channels")
_MOST_CANDIDATES = 8


def replace_head(model: nn.Module, num_classes: int, *, at: str | None = None) -> tuple[str, ...]:
    """Give an image classifier a fresh head for another number of classes, in place.

    The head is the last Linear or 1x1 convolution: what timm's ``get_classifier`` gives, else the end of the child
    called ``fc``, ``classifier``, ``head`` or the like, else the end of the last child that has parameters. Auxiliary
    heads (a child whose name begins with ``aux``) with as many outputs are replaced too. Inputs, bias, device, dtype,
    memory format, hooks and training flag are those of the old layer, and attributes such as ``model.num_classes``
    follow. The old layer itself stays as it was.

    The new parameters train. They are initialised as torch initialises the layer's class, as after
    ``model.fc = nn.Linear(...)``: one rule for every architecture, not each one's own (a new torchvision ViT begins
    with a head of zeros, for one).

    Args:
        model: A classifier. DataParallel and ``torch.compile`` are seen through.
        num_classes: Outputs of the new head, at least 1.
        at: The name of the layer, or of a module that ends in it, where the head is not to be found; nothing else is
            replaced then.

    Returns:
        The names of the new parameters, in the model's order, for `freeze`, `unfreeze`, `param_groups` and `Skip`.

    Raises:
        ValueError: There is no head, or more than one; or it cannot be replaced: quantised, sharded, tied to another
            layer, parametrised, inside DistributedDataParallel. Nothing was changed.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1000))
        >>> heads = replace_head(model, 10)
        >>> heads
        ('3.weight', '3.bias')
        >>> model[3]
        Linear(in_features=4, out_features=10, bias=True)
    """
    num_classes = operator.index(num_classes)
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}: a head needs at least 1")
    _refuse_model(model)
    inner = unwrap(model)
    named = _named_head(inner, at) if at is not None else None
    paths = [named] if named is not None else _timm_heads(inner) or _conventional_heads(inner)
    old = {path: _replaceable(inner, path) for path, _ in inner.named_modules() if path in paths}
    fresh = {path: _resized(layer, num_classes) for path, layer in old.items()}  # all of them before any is put in
    for path, layer in fresh.items():
        parent, _, name = path.rpartition(".")
        setattr(inner.get_submodule(parent), name, layer)
        _follow_count(inner, parent, _outputs(old[path]), num_classes)
    return tuple(f"{path}.{name}" for path, layer in fresh.items() for name, _ in layer.named_parameters())


def _refuse_model(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ValueError("the gradients of a new head would not be synchronised: replace it, then wrap the model in DDP")
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{name or 'the model'} is TorchScript, whose layers are fixed: replace the head, then script")
        if callable(getattr(module, "weight", None)):  # A parameter is no callable; a packed weight is given by a call.
            raise ValueError(f"{name or 'the model'} is quantised: replace the head of the float model, then quantise it")


def _named_head(model: nn.Module, at: str) -> str:
    modules = dict(model.named_modules(remove_duplicate=False))
    if at not in modules:
        raise ValueError(f"no module is called {at!r}; {_candidates(model)}")
    path = _final_layer(modules[at], at)
    if path is None:
        raise ValueError(f"{at} does not end in a Linear or a 1x1 convolution; {_candidates(model)}")
    return path


def _timm_heads(model: nn.Module) -> list[str]:
    """The layers that a model names itself; none when it has no ``get_classifier``.

    ``reset_classifier`` is not called: some versions of it change the pooling, or make the layer on the CPU.
    """
    get_classifier = getattr(model, "get_classifier", None)
    if not callable(get_classifier):
        return []
    given = get_classifier()
    named = {id(module): path for path, module in model.named_modules()}
    heads = given if isinstance(given, Sequence | nn.ModuleList) and not isinstance(given, nn.Sequential) else [given]
    paths = [_final_layer(head, named[id(head)]) for head in heads if id(head) in named]
    found = [path for path in paths if path is not None]
    if not found or len(found) < len(heads):
        kinds = ", ".join(type(head).__name__ for head in heads)
        raise ValueError(
            f"get_classifier() of {type(model).__name__} gives no Linear or 1x1 convolution but {kinds}: "
            f"model.reset_classifier makes a head where there is none; {_candidates(model)}"
        )
    return found


def _conventional_heads(model: nn.Module) -> list[str]:
    """The head by the name of a child of the model, else the last child; and the auxiliary heads beside it."""
    prefix, owner = "", model
    while len(children := _with_parameters(owner)) == 1 and not _is_projection(next(iter(children.values()))):
        ((name, owner),) = children.items()  # a wrapper of somebody's own
        prefix += f"{name}."
    auxiliary = {name: child for name, child in children.items() if name.lower().startswith("aux")}
    ends = {name: _final_layer(child, name) for name, child in children.items() if name not in auxiliary}
    conventional = [name for name, end in ends.items() if end and name.lower().rpartition("_")[2] in _HEAD_NAMES]
    if len(conventional) > 1:
        raise _ambiguous(model, [f"{prefix}{ends[name]}" for name in conventional])
    chosen = conventional[0] if conventional else next(reversed(ends), None)
    end = ends[chosen] if chosen is not None else None
    if chosen is None or end is None:
        looked_at = f"its last child with parameters, {prefix}{chosen}, does not end in" if chosen else "it has no"
        raise ValueError(f"{type(model).__name__} has no head: {looked_at} a Linear or 1x1 convolution; {_candidates(model)}")
    beside = [other for name, other in ends.items() if other and name != chosen and _is_beside(owner, other, end)]
    if beside:
        raise _ambiguous(model, [f"{prefix}{path}" for path in (*beside, end)])
    count = _outputs(_layer(owner, end))
    ends_of_auxiliary = [_final_layer(child, name) for name, child in auxiliary.items()]
    return [f"{prefix}{path}" for path in (*ends_of_auxiliary, end) if path and _outputs(_layer(owner, path)) == count]


def _is_beside(owner: nn.Module, other: str, head: str) -> bool:
    """Whether a child of the owner works beside the head, on the same inputs or to the same outputs, not before it."""
    first, of_head = (_first_layer(owner, path) for path in (other, head))
    last, head_layer = _layer(owner, other), _layer(owner, head)
    feeds = _outputs(last) == _inputs(of_head)
    return not feeds and (_inputs(first) == _inputs(of_head) or _outputs(last) == _outputs(head_layer))


def _final_layer(module: nn.Module, path: str, *, in_own_class: bool = True) -> str | None:
    """The path of the projection that a module ends in, through Sequentials and at most one class of its own.

    A list says nothing about order, and in a class of its own inside another it is anybody's guess.
    """
    if _is_projection(module):
        return path
    if isinstance(module, nn.ModuleList | nn.ModuleDict) or not (in_own_class or isinstance(module, nn.Sequential)):
        return None
    children = _with_parameters(module)
    if not children:
        return None
    name, last = children.popitem()
    return _final_layer(last, f"{path}.{name}", in_own_class=in_own_class and isinstance(module, nn.Sequential))


def _first_layer(owner: nn.Module, path: str) -> _Projection:
    child = owner.get_submodule(path.partition(".")[0])
    return next(module for module in child.modules() if _is_projection(module))


def _layer(owner: nn.Module, path: str) -> _Projection:
    layer = owner.get_submodule(path)
    if not _is_projection(layer):
        raise TypeError(f"{path} is a {type(layer).__name__}")
    return layer


def _with_parameters(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in module.named_children() if next(child.parameters(), None) is not None}


def _is_projection(module: nn.Module) -> TypeGuard[_Projection]:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return set(module.kernel_size) == {1} and module.groups == 1
    return isinstance(module, nn.Linear)


def _inputs(layer: _Projection) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _outputs(layer: _Projection) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _replaceable(model: nn.Module, path: str) -> _Projection:
    """The layer at a path, when nothing hangs on it that a new one would lose."""
    layer = _layer(model, path)
    if not path:
        raise ValueError("the model is the head itself: make another layer in its place")
    held = dict([*layer.named_parameters(), *layer.named_buffers()])
    if others := sorted(held.keys() - {"weight", "bias"}):
        raise ValueError(
            f"{path} is no plain {type(layer).__name__}, it holds {', '.join(others)} (a weight norm or another "
            "parametrisation, or an adapter): remove that, replace the head, apply it again"
        )
    if any(is_lazy(tensor) for tensor in held.values()):
        raise ValueError(f"{path} has no shape yet: call the model once, then replace its head")
    if any(type(tensor) is not nn.Parameter or not tensor.is_floating_point() for tensor in held.values()):
        kind = f"{type(layer.weight).__name__} of {layer.weight.dtype}"
        raise ValueError(f"the weight of {path} is a {kind}: replace the head before quantising or sharding the model")
    own = {f"{path}.{name}": tensor for name, tensor in held.items()}
    tied = [
        name
        for name, tensor in model.named_parameters(remove_duplicate=False)
        if name not in own and any(tensor is mine for mine in own.values())
    ]
    if tied:
        raise ValueError(f"{path} is tied to {', '.join(tied)}: make them two parameters first, or replace both by hand")
    return layer


def _resized(layer: _Projection, num_classes: int) -> _Projection:
    """A copy with as many outputs and fresh parameters; tables of parameters and hooks are its own."""
    fresh = copy.copy(layer)
    tables = {name: copy.copy(value) for name, value in vars(layer).items() if isinstance(value, dict)}
    vars(fresh).update(tables)
    setattr(fresh, "out_features" if isinstance(fresh, nn.Linear) else "out_channels", num_classes)
    fresh.weight = nn.Parameter(_like_rows_of(layer.weight, num_classes))
    if layer.bias is not None:
        fresh.bias = nn.Parameter(layer.bias.new_empty(num_classes))
    fresh.reset_parameters()
    return fresh


def _like_rows_of(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """Empty memory of another number of rows; strides, and so the memory format, do not depend on that number."""
    shape = (rows, *weight.shape[1:])
    if weight.stride(0) != weight[0].numel():  # transposed
        return weight.new_empty(shape)
    return weight.new_empty_strided(shape, weight.stride())


def _follow_count(model: nn.Module, parent: str, old: int, new: int) -> None:
    """Set the attributes that say how many classes there are, where they said the old number."""
    parts = parent.split(".") if parent else []
    owners = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts) + 1)]
    for owner in (*owners, getattr(model, "config", None)):
        for name in _COUNT_NAMES:
            said = getattr(owner, name, None)
            if type(said) is int and said == old:
                setattr(owner, name, new)


def _ambiguous(model: nn.Module, paths: Sequence[str]) -> ValueError:
    shown = ", ".join(_shown(model, paths))
    return ValueError(f"{type(model).__name__} has more than one head: {shown}; {_how_to_name(paths[-1])}")


def _candidates(model: nn.Module) -> str:
    paths = [path for path, module in model.named_modules() if path and _is_projection(module)]
    if not paths:
        return "there is no Linear and no 1x1 convolution in the model"
    last = paths[-_MOST_CANDIDATES:]
    before = f"{len(paths) - len(last)} others, " if len(last) < len(paths) else ""
    return f"there are {before}{', '.join(_shown(model, last))}; {_how_to_name(last[-1])}"


def _shown(model: nn.Module, paths: Sequence[str]) -> Iterator[str]:
    for path in paths:
        layer = _layer(model, path)
        yield f"{path} ({_inputs(layer)} -> {_outputs(layer)})"


def _how_to_name(path: str) -> str:
    return f"name the one, as in replace_head(model, n, at={path!r})"
