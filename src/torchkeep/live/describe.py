"""From a live module to its description: every object a class by name and its attributes, tensors by reference."""

from __future__ import annotations

import enum
import functools
import io
import logging
import re
import types
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from torchkeep.errors import FormatError
from torchkeep.folder.leaf_nodes import Node
from torchkeep.folder.structure import MAX_OBJECTS, STRUCTURE
from torchkeep.folder.values import encode
from torchkeep.live.capture import Capture, Captured, Place
from torchkeep.live.class_sources import SourceReader, bases_of
from torchkeep.live.fingerprint import differences, outputs_of
from torchkeep.live.functions import known_name
from torchkeep.live.module_tables import (
    HOOK_KINDS,
    HOOK_TABLES,
    RECOMPUTED,
    TABLES,
    is_kept_hook,
    is_reserved,
)
from torchkeep.live.module_trees import tree_fault
from torchkeep.live.modules import class_path, unwrap
from torchkeep.live.packed import unpack
from torchkeep.live.plain_objects import attributes_of, base_of, fault_of_class, is_generated, is_value, items_of
from torchkeep.live.plain_objects import takes_items as has_items
from torchkeep.live.trust import find_again, find_method
from torchkeep.tensors import KeyPath, name_of

_TABLE = re.compile(rf"^(?:{'|'.join(TABLES)})\.")
_REMEDY = (
    "take it off before saving and put it on again after loading, define it at the top of a module, "
    "or keep the weights alone: save(model, path)"
)


@dataclass(frozen=True, slots=True)
class Description:
    """A live model as the member ``structure`` of an entry, and what was left out of it."""

    node: dict[str, Node]
    notes: tuple[str, ...]


def describe(root: nn.Module, capture: Capture, group: str, *, include_source: bool = False) -> Description:
    """Describe a module and everything in it.

    Args:
        root: The module; wrappers of DataParallel and torch.compile, here and inside, are left out.
        capture: What its tensors are added to, unless they are there already.
        group: The group for tensors that are in no state dict.
        include_source: Keep the text of each class too.

    Raises:
        FormatError: It lists every attribute that cannot be described, by name.
    """
    describing = _Describing(capture, group)
    describing.number(unwrap(root), "")
    describing.run()
    if describing.faults:
        count = len(describing.faults)
        raise FormatError(
            f"cannot save the whole model: {count} attribute{' has' if count == 1 else 's have'} no description",
            faults=describing.faults,
            remedy=_REMEDY,
        )
    reader = SourceReader()
    sources = {
        name: reader.source_of(cls, include_text=include_source).node()
        for cls in bases_of(describing.classes)
        if (name := find_again(cls)) is not None
    }
    hooks = [list(each) for each in describing.hooks]
    node: dict[str, Node] = {"objects": describing.objects, "sources": sources, "hooks": hooks}
    notes = [f"{at or 'the model'}: the {kind} hook {hook} was not stored" for at, kind, hook in describing.hooks]
    return Description(node, tuple(notes))


@dataclass(slots=True)
class _Describing:
    capture: Capture
    group: str
    objects: list[dict[str, Node]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    hooks: list[tuple[str, str, str]] = field(default_factory=list)
    classes: dict[type, None] = field(default_factory=dict)
    waiting: list[tuple[object, str]] = field(default_factory=list)
    # Numbers go by identity, so what has one is kept alive in `waiting`.
    numbers: dict[int, int] = field(default_factory=dict)
    tensors: dict[tuple[str, str], list[torch.Tensor]] = field(default_factory=dict)

    def run(self) -> None:
        """Describe everything that has a number, and what gets one on the way."""
        for index, (value, at) in enumerate(self.waiting):  # It grows while it is walked.
            self.objects.append(self.described(value, at))
            if index >= MAX_OBJECTS:
                raise FormatError(f"cannot save the whole model: more than {MAX_OBJECTS:,} objects")

    def number(self, value: object, at: str) -> int:
        """The number of an object in the table."""
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.waiting)
            self.waiting.append((value, at))
        return self.numbers[id(value)]

    def described(self, value: object, at: str) -> dict[str, Node]:
        """One row of the table; what has no description is noted as a fault."""
        cls = type(value)
        if isinstance(value, nn.Module) and parametrize.is_parametrized(value) and is_generated(cls):
            cls = cls.__mro__[1]
        self.classes[cls] = None
        node: dict[str, Node] = {"class": find_again(cls)}
        state = dict(self.module_state(value, at)) if isinstance(value, nn.Module) else attributes_of(value)
        reserved = [name for name in state if is_reserved(name)]
        self.faults += [f"{_join(at, name)}: a name that Python itself reads" for name in reserved]
        node["state"] = self.encoded({n: v for n, v in state.items() if n not in reserved}, at)
        if has_items(cls):
            node["items"] = self.encoded(list(items_of(value)), at)
        if is_value(cls):
            base: Any = base_of(cls)
            plain = list(value) if hasattr(cls, "_fields") else [base(value)]  # type: ignore[call-overload]
            node["args"] = self.encoded(plain, at)
        return node

    def encoded(self, value: object, at: str) -> Node:
        """A value as a node; its faults get the object's place in front."""
        try:
            return encode(value, functools.partial(self.leaf, at))
        except FormatError as error:
            self.faults += [_join(at, _TABLE.sub("", fault)) for fault in error.faults or (f": {error.what}",)]
            return None

    def module_state(self, module: nn.Module, at: str) -> Iterator[tuple[str, object]]:
        """A module's flag and tables, the hooks that are kept, and its other attributes, in that order."""
        own = vars(module)
        yield "training", own.get("training", True)
        for table in TABLES:
            yield table, dict(own.get(table, {}))
        if own.get("_non_persistent_buffers_set"):
            yield "_non_persistent_buffers_set", sorted(own["_non_persistent_buffers_set"])
        for table, kind in HOOK_KINDS.items():
            hooks = [HOOK_TABLES[table](hook) if table in HOOK_TABLES else hook for hook in own.get(table, {}).values()]
            kept = [hook for hook in hooks if table in HOOK_TABLES and is_kept_hook(hook)]
            self.hooks += [(at, kind, _hook_name(hook)) for hook in hooks if not any(hook is each for each in kept)]
            if kept:
                yield table, dict(enumerate(kept))
        for name, value in own.items():
            if name not in RECOMPUTED:
                yield name, value

    def leaf(self, at: str, path: KeyPath, value: object) -> Node | None:
        """The hook of `encode`: a node for whatever is more than a plain value or container."""
        if isinstance(value, torch.Tensor):
            return self.tensor(_join(at, name_of(path)), value)
        known = known_name(value)
        if known is not None:
            return {"$name": known}
        if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType, functools._lru_cache_wrapper)):  # noqa: SLF001 - it has no other name
            return {"$name": _name(value)}
        if isinstance(value, enum.Enum):
            if type(value).__members__.get(str(value.name)) is not value:
                raise FormatError(f"{value!r}, which is no single member")
            return {"$name": f"{_name(type(value))}.{value.name}"}
        if isinstance(value, torch.ScriptObject) and (parts := unpack(value)) is not None:
            return {"$torch.packed": self.part(at, path, parts)}
        if isinstance(value, logging.Logger):
            return {"$logger": value.name}
        if type(value) is functools.partial:
            inside = functools.partial(self.part, at, path)
            return {"$partial": [inside(value.func), list(map(inside, value.args)), inside(value.keywords)]}
        if isinstance(value, types.MethodType):
            return {"$method": [self.part(at, path, value.__self__), _method_name(value)]}
        plain = self.capture.plain_leaf(value, Place(self.group, (_join(at, name_of(path)),), "value"))
        if plain is not None or _is_encoded_by_itself(value):
            return plain
        inner = unwrap(value) if isinstance(value, nn.Module) else value
        self.check_class(inner)
        return {"$object": self.number(inner, _join(at, _tidy(path)))}

    def part(self, at: str, path: KeyPath, value: object) -> Node:
        """A node inside a node."""
        return encode(value, lambda inner, each: self.leaf(at, path + inner, each))

    def check_class(self, value: object) -> None:
        """Refuse what could not be rebuilt, before it gets a number."""
        cls = type(value)
        fault = fault_of_class(cls)
        if fault is not None:
            raise FormatError(fault)
        own = cls.__mro__[1] if is_generated(cls) else cls
        if find_again(own) is None:
            raise FormatError(f"an object of {_unfindable(own)}")

    def tensor(self, at: str, tensor: torch.Tensor) -> Node:
        """A reference to a tensor, with what a state dict does not keep: which object it is, strides, attributes."""
        node: dict[str, Any] = self.capture.tensor(Place(self.group, (at,), "whole"), tensor)  # type: ignore[assignment]
        if "$tensor" not in node:
            return node
        same = self.tensors.setdefault(tuple(node["$tensor"]), [])
        alias = next((number for number, each in enumerate(same) if each is tensor), len(same))
        if alias == len(same):
            same.append(tensor)
        if alias:
            node["alias"] = alias
        if is_rearranged(tensor):
            node["stride"] = list(tensor.stride())
        attributes = {name: value for name, value in vars(tensor).items() if not is_reserved(name)}
        if attributes:
            node["attributes"] = encode(attributes, functools.partial(self.leaf, at))
        return node


def is_rearranged(tensor: torch.Tensor) -> bool:
    """Whether a tensor is dense, in an order of its dimensions that is neither C order nor channels last."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_contiguous() or tensor.numel() == 0:
        return False
    if any(
        tensor.dim() == rank and tensor.is_contiguous(memory_format=order)
        for rank, order in ((4, torch.channels_last), (5, torch.channels_last_3d))
    ):
        return False
    return is_dense(tuple(tensor.shape), tensor.stride())


def is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether strides lay a shape out without gaps and without sharing."""
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True


def _is_encoded_by_itself(value: object) -> bool:
    """Whether `encode` has a node for it: the standard library's values, numpy's, containers of no class of its own."""
    module = type(value).__module__.partition(".")[0]
    return module in {"builtins", "collections", "datetime", "pathlib", "numpy", "argparse", "types"} and (
        not isinstance(value, (types.ModuleType, types.GeneratorType, io.IOBase))
    )


def _name(value: Any) -> str:  # noqa: ANN401 - a class or a function of any kind
    name = find_again(value)
    if name is None:
        raise FormatError(_unfindable(value))
    return name


def _unfindable(value: Any) -> str:  # noqa: ANN401 - as above
    path = f"{value.__module__}.{value.__qualname__}"
    what = "the class" if isinstance(value, type) else "the function"
    if getattr(value, "__name__", "") == "<lambda>":
        return f"a lambda ({path}), which has no name; make it a function at the top of a module"
    if "<locals>" in path:
        return f"{what} {path}, which is defined inside a function; define it at the top of a module"
    return f"{what} {path}, which is not found by that name"


def _method_name(method: types.MethodType) -> str:
    owner = method.__self__ if isinstance(method.__self__, type) else type(method.__self__)
    name = str(getattr(method.__func__, "__name__", ""))
    found = find_method(owner, name)
    if getattr(found, "__func__", found) is not method.__func__:
        raise FormatError(f"a bound method that {class_path(method.__self__)} does not have under its name {name!r}")
    return name


def _hook_name(hook: object) -> str:
    inner = getattr(hook, "hook", hook)
    name = getattr(inner, "__qualname__", None)
    return f"{inner.__module__}.{name}" if isinstance(name, str) else class_path(inner)


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at and name and not name.startswith(":") else at + name


def _tidy(path: KeyPath) -> str:
    """A module's path without the name of torch's table."""
    tables: tuple[Hashable, ...] = TABLES
    return name_of(path[1:] if path[:1] and path[0] in tables and len(path) > 1 else path)


def _refuse_endless(model: nn.Module) -> None:
    match tree_fault(model, lambda module: [each for each in module._modules.values() if each is not None]):  # noqa: SLF001 - children() leaves out what it has seen
        case fault, inner:
            at = next((name for name, each in model.named_modules() if each is inner), "") or "the model itself"
            remedy = "keep a reference to an outer module in a list: self.parent = [module]"
            raise FormatError(f"cannot save the whole model: {at} {fault.value}", remedy=remedy)


def capture_whole(
    model: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]] | None, *, include_source: bool
) -> tuple[Captured, tuple[str, ...]]:
    """A module as the entry ``model`` with its structure, and notes on what was left out.

    Args:
        model: The module.
        call: Example inputs, positional and by keyword, whose outputs are kept too; or None.
        include_source: Keep the text of each class.

    Raises:
        FormatError: It lists everything that cannot be described.
    """
    _refuse_endless(model)
    capture = Capture({"model": model})
    entry = capture.entry("model", model)
    capture.refuse_faults()
    description = describe(model, capture, "model-attributes", include_source=include_source)
    if call is not None:
        outputs = outputs_of(model, *call)
        faults = differences(outputs, outputs_of(model, *call), None)
        if faults:
            what = "the model gives other outputs when it is run again, so none of them can be checked later"
            raise FormatError(what, faults=faults, remedy="save it without example_inputs")
        leaf = functools.partial(capture.leaf, Place("model-fingerprint", (), "value"))
        parts = {"args": list(call[0]), "kwargs": call[1], "outputs": outputs}
        description.node["fingerprint"] = {name: encode(part, leaf) for name, part in parts.items()}
    entry = replace(entry, facts={**entry.facts, STRUCTURE: description.node})
    return Captured({"model": entry}, capture.groups, "model"), description.notes
