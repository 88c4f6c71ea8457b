"""The layer that gives a classifier's logits: found by structure, replaced in place for another number of classes."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import SupportsIndex, TypeGuard, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torchkeep.live.modules import CheckpointNames, require_module, unwrap

_Projection = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d

_HEAD_NAMES = {"fc", "classifier", "head", "heads", "linear", "logits", "score"}  # last_linear and cls_classifier too
_COUNT_NAMES = ("num_classes", "num_labels", "n_classes", "out_features", "out_channels")
_MOST_CANDIDATES = 8
_KINDS = "Linear or 1x1 convolution"
_SAY_WHICH = 'say which with replace_head(model, n, at="its.name")'


def replace_head(model: nn.Module, num_classes: int, *, at: str | None = None) -> tuple[str, ...]:
    """Give an image classifier a fresh head for another number of classes, in place.

    The head is the last Linear or 1x1 convolution: what timm's ``get_classifier`` gives, else the end of the child
    called ``fc``, ``classifier``, ``head`` or the like, else the end of the last child that has parameters. Auxiliary
    heads (a child whose name begins with ``aux``) with as many outputs are replaced too, and so are all layers of equal
    shape in what ``get_classifier`` gives, as where one of them is for distillation. Inputs, bias, device, dtype,
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
        TypeError: `model` is no module, or `num_classes` no integer.
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
    require_module("replace_head", model)
    if isinstance(num_classes, bool) or not isinstance(num_classes, SupportsIndex):
        raise TypeError(f"num_classes is an integer; not {num_classes!r} of type {type(num_classes).__name__}")
    num_classes = operator.index(num_classes)
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}: a head needs at least 1")
    _refuse_model(model)
    inner = unwrap(model)
    paths = _heads(inner) if at is None else [_named_head(inner, at)]
    old = {path: _replaceable(inner, path) for path, _ in inner.named_modules(remove_duplicate=False) if path in paths}
    fresh = {path: _resized(layer, num_classes) for path, layer in old.items()}  # all of them before any is put in
    for path, layer in fresh.items():
        parent, _, name = path.rpartition(".")
        setattr(inner.get_submodule(parent), name, layer)
        _follow_count(inner, parent, _outputs(old[path]), num_classes)
    names = CheckpointNames(inner)
    return tuple(names(f"{path}.{name}") for path, layer in fresh.items() for name, _ in layer.named_parameters())


def _refuse_model(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = name or "the model"
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ValueError(f"{where} is in DistributedDataParallel, which knows no new head: replace it, then wrap")
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{where} is TorchScript, whose layers are fixed: replace the head, then script the model")
        if callable(getattr(type(module), "weight", None)):  # Packed weights are given by a method.
            raise ValueError(f"{where} is quantised: replace the head of the float model, then quantise it")


def _named_head(model: nn.Module, at: str) -> str:
    names = CheckpointNames(model)
    called = {
        path: module for path, module in model.named_modules(remove_duplicate=False) if path and names(path) == at
    }
    if not called:
        raise ValueError(f"no module in the model is called {at!r}; {_candidates(model)}")
    path, module = called.popitem()  # of a wrapper and what it wraps, the latter
    end = _final_layer(module, path)
    if end is None:
        raise ValueError(f"{at} ends in no {_KINDS}; {_candidates(model)}")
    if twins := _twins(model, path, end):
        raise _ambiguous(model, [*twins, end])
    return end


def _heads(model: nn.Module) -> list[str]:
    path, owner = "", model
    while not hasattr(owner, "get_classifier") and len(children := _with_parameters(owner, path)) == 1:
        ((inner_path, inner),) = children.items()
        if _is_projection(inner):
            break
        path, owner = inner_path, inner  # a wrapper of somebody's own
    return _heads_it_names(model, owner, path) if hasattr(owner, "get_classifier") else _heads_by_place(model, path)


def _heads_it_names(model: nn.Module, owner: nn.Module, path: str) -> list[str]:
    """The layers that ``get_classifier`` gives, and auxiliary heads beside them.

    ``reset_classifier`` is not called: some versions of it change the pooling, or make the layer on the CPU.
    """
    given = owner.get_classifier()  # type: ignore[operator]
    heads = given if isinstance(given, list | tuple | nn.ModuleList) else [given]
    names = {id(module): path for path, module in model.named_modules()}
    paths = [_final_layer(head, names[id(head)]) if id(head) in names else None for head in heads]
    found = [path for path in paths if path is not None]
    if len(found) < max(len(heads), 1) and getattr(owner, "num_classes", None) == 0:
        raise ValueError(
            f"{type(owner).__name__} was made without a head, for its features: reset_classifier(num_classes) makes one"
        )
    if len(found) < max(len(heads), 1):
        kinds = ", ".join(type(head).__name__ for head in heads) or "nothing"
        raise ValueError(
            f"get_classifier() of {type(owner).__name__} gives {kinds}, and no {_KINDS}; reset_classifier() makes a "
            f"head where there is none; {_candidates(model)}"
        )
    auxiliary = _auxiliary(model, path, _outputs(_layer(model, found[0])))
    twins = (_twins(model, names[id(head)], end) for head, end in zip(heads, found, strict=True))
    return [*auxiliary, *found, *(path for paths in twins for path in paths)]


def _auxiliary(model: nn.Module, owner: str, outputs: int) -> list[str]:
    """The ends, with so many outputs, of the children that are auxiliary heads by their names."""
    children = _with_parameters(model.get_submodule(owner), owner).items()
    ends = (_final_layer(child, path) for path, child in children if _is_auxiliary(path))
    return [end for end in ends if end is not None and _outputs(_layer(model, end)) == outputs]


def _is_auxiliary(path: str) -> bool:
    return path.rpartition(".")[2].lower().startswith("aux")


def _twins(model: nn.Module, within: str, end: str) -> list[str]:
    """Layers of a module that work beside the one it ends in: of its shape, where that cannot follow upon itself."""
    head = _layer(model, end)
    shape = _inputs(head), _outputs(head)
    layers = model.get_submodule(within).named_modules(prefix=within)
    twins = [
        path
        for path, layer in layers
        if layer is not head and _is_projection(layer) and (_inputs(layer), _outputs(layer)) == shape
    ]
    if twins and shape[0] == shape[1]:
        raise _ambiguous(model, [*twins, end])
    return twins


def _heads_by_place(model: nn.Module, path: str) -> list[str]:
    """The head by the name of a child of the module at a path, else its last child; and auxiliary heads beside it."""
    children = _with_parameters(model.get_submodule(path), path).items()
    ends = {
        child_path: _final_layer(child, child_path) for child_path, child in children if not _is_auxiliary(child_path)
    }
    called = [child for child in ends if child.lower().replace("_", ".").rpartition(".")[2] in _HEAD_NAMES]
    for chosen in called or [next(reversed(ends), path)]:
        if ends.get(chosen) is None:
            where = CheckpointNames(model)(chosen)
            why = f"{where} ends in no {_KINDS}" if where else "it has no children with parameters"
            raise ValueError(f"{type(model).__name__} has no head: {why}; {_candidates(model)}")
    heads = {child: end for child, end in ends.items() if end}
    if len(called) > 1:
        raise _ambiguous(model, [heads[child] for child in called])
    head = heads[chosen]
    if rivals := _rivals(model, path, chosen, heads):
        raise _ambiguous(model, [*rivals, head])
    return [*_auxiliary(model, path, _outputs(_layer(model, head))), head]


def _rivals(model: nn.Module, owner: str, chosen: str, ends: Mapping[str, str]) -> list[str]:
    """Layers that work beside the head, not before it: on the same inputs, or to as many outputs.

    Asked of the ends of the owner's other children, and of all layers of the head's own child. In Sequentials layers
    come one after the other, whatever their sizes.
    """
    head = _layer(model, ends[chosen])
    reads = _inputs(_first_layer(model, chosen))
    rivals = []
    if not isinstance(model.get_submodule(owner), nn.Sequential):
        for child, end in ends.items():
            writes = _outputs(_layer(model, end))
            on_the_same = _inputs(_first_layer(model, child)) == reads
            if child != chosen and writes != reads and (on_the_same or writes == _outputs(head)):
                rivals.append(end)
    if not isinstance(model.get_submodule(chosen), nn.Sequential) and _inputs(head) != _outputs(head):
        for path, layer in model.get_submodule(chosen).named_modules(prefix=chosen):
            if layer is not head and _is_projection(layer) and _outputs(layer) == _outputs(head):
                rivals.append(path)
    return rivals


def _final_layer(module: nn.Module, path: str, *, in_own_class: bool = True) -> str | None:
    """The path of the projection that a module ends in, through Sequentials and at most one class of its own.

    A list says nothing about order, and in a class of its own inside another it is anybody's guess.
    """
    if _is_projection(module):
        return path
    if isinstance(module, nn.ModuleList | nn.ModuleDict) or not (in_own_class or isinstance(module, nn.Sequential)):
        return None
    children = _with_parameters(module, path)
    if not children:
        return None
    last_path, last = children.popitem()
    return _final_layer(last, last_path, in_own_class=in_own_class and isinstance(module, nn.Sequential))


def _first_layer(model: nn.Module, path: str) -> _Projection:
    return next(module for module in model.get_submodule(path).modules() if _is_projection(module))


def _layer(model: nn.Module, path: str) -> _Projection:
    return cast("_Projection", model.get_submodule(path))


def _with_parameters(module: nn.Module, path: str) -> dict[str, nn.Module]:
    """The children that have parameters, in order, by their paths."""
    prefix = f"{path}." if path else ""
    children = module.named_children()
    return {f"{prefix}{name}": child for name, child in children if next(child.parameters(), None) is not None}


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
    held = dict([*layer.named_parameters(), *layer.named_buffers()])
    if others := sorted(held.keys() - {"weight", "bias"}):
        raise ValueError(
            f"{path} is no plain {type(layer).__name__}, it holds {', '.join(others)} (a weight norm or another "
            "parametrisation, or an adapter): remove that, replace the head, apply it again"
        )
    if any(is_lazy(tensor) for tensor in held.values()):
        raise ValueError(f"{path} has no shape yet: call the model once, then replace its head")
    plain = [type(tensor) is nn.Parameter and tensor.dtype.is_floating_point for tensor in held.values()]
    if not all(plain) or layer.weight.dtype.itemsize == 1:  # torch initialises no float8 either
        kind = f"{type(layer.weight).__name__} of {layer.weight.dtype}"
        raise ValueError(f"the weight of {path} is a {kind}: replace the head before quantising or sharding the model")
    own = {f"{path}.{name}": tensor for name, tensor in held.items()}
    tied = [
        name
        for name, tensor in model.named_parameters(remove_duplicate=False)
        if name not in own and any(tensor is mine for mine in own.values())
    ]
    if tied:
        raise ValueError(
            f"{path} is tied to {', '.join(tied)}: make them two parameters first, or replace both by hand"
        )
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
    return ValueError(f"{type(model).__name__} has more than one head: {shown}; {_SAY_WHICH}")


def _candidates(model: nn.Module) -> str:
    paths = [path for path, module in model.named_modules() if path and _is_projection(module)]
    if not paths:
        return f"there is no {_KINDS} in it"
    count = f"the last of {len(paths)}" if len(paths) > _MOST_CANDIDATES else "all"
    return f"{count} such layers: {', '.join(_shown(model, paths[-_MOST_CANDIDATES:]))}; {_SAY_WHICH}"


def _shown(model: nn.Module, paths: Sequence[str]) -> Iterator[str]:
    names = CheckpointNames(model)
    for path in paths:
        layer = _layer(model, path)
        yield f"{names(path)} ({_inputs(layer)} -> {_outputs(layer)})"
