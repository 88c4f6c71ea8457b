"""From a description to a live module, by our own code alone: nothing of the classes in it is called.

docs/design, "Whole models", has the steps; each refuses everything it can before the next begins.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import logging
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from torchkeep.errors import CorruptError, LimitError, PlanError, UnsafeError
from torchkeep.live import plain_objects
from torchkeep.live.build import MAKERS, MEMORY_FORMATS, Builder
from torchkeep.live.describe import is_dense
from torchkeep.live.functions import known_values
from torchkeep.live.module_tables import (
    HOOK_TABLES,
    TABLES,
    added_by_torch,
    finish,
    fresh_tables,
    is_reserved,
    put_hooks,
)
from torchkeep.live.module_trees import MAX_MODULE_LEVELS, TreeFault, tree_fault
from torchkeep.live.trust import Trust, find_method, resolve_all
from torchkeep.live.wanted import Wanted, attributes_in, is_module_state, kept_hooks, survey
from torchkeep.tensors import Described, Enclosing, Named, TensorSpec, printable

_CALLABLES = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)
MAX_CONTAINER_LEVELS = 100


class Rebuilding:
    """A description whose names are resolved and whose shape is checked; nothing has been made yet.

    Args:
        root: The description of the model.
        trust: Which names are admitted.
        builder: What reads tensors.

    Raises:
        UnsafeError: It wants a name that is not admitted, a call, or an object that would run code.
        PlanError: A name is not found in the code of today, or is another kind of thing now.
        LimitError: It is nested deeper, or has more objects, than any model.
        CorruptError: A module's table holds what torch does not put there.

    Attributes:
        wanted: Everything in the description.
        classes: The class of each object, by identity of its description.
    """

    def __init__(self, root: Described, trust: Trust, builder: Builder) -> None:
        self.root = root
        self.where = builder.source.path
        self.wanted: Wanted = survey(root, self.where)
        self._builder = builder
        if id(root) not in self.wanted.places:
            raise CorruptError(f"what is described as the model is a {printable(root.class_path)}", where=self.where)
        self._found = resolve_all(self.wanted.names, trust, self.where)
        self.classes: dict[int, type] = {}
        self._check_objects()
        self._check_modules()
        self._made: dict[int, object] = {}
        self._memory: dict[object, torch.Tensor] = {}

    def build(self) -> nn.Module:
        """Make the module; the bytes of its tensors should have been checked before.

        Raises:
            CorruptError: An attribute does not fit its class, or a tensor's bytes are damaged.
            UnsafeError: A key of a dict would run code.
        """
        for node in self.wanted.objects:
            cls = self.classes[id(node)]
            if not issubclass(cls, enum.Enum) and not plain_objects.is_value(cls):
                self._made[id(node)] = plain_objects.make_empty(cls)
        for node in self.wanted.objects:
            place = self.wanted.places[id(node)] or "the model itself"
            try:
                self._fill(node, self._value(node, 0))
            except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
                raise CorruptError(f"{place} cannot be made: {error}", where=self.where) from error
        for node in reversed(self.wanted.objects):
            made = self._made.get(id(node))
            if isinstance(made, nn.Module):
                try:
                    finish(made)
                except (TypeError, ValueError, KeyError, AttributeError, AssertionError) as error:
                    place = self.wanted.places[id(node)] or "the model itself"
                    raise CorruptError(f"{place} cannot be made: {error}", where=self.where) from error
        model = self._made[id(self.root)]
        if not isinstance(model, nn.Module):
            raise CorruptError("what is described is no module", where=self.where)
        return model

    def _check_objects(self) -> None:
        unsafe: list[str] = []
        changed: list[str] = []
        for node in self.wanted.objects:
            place = self.wanted.places[id(node)] or "the model itself"
            found = self._found[node.class_path]
            if not isinstance(found, type):
                unsafe.append(f"{place}: a call of {node.class_path}")
                continue
            self.classes[id(node)] = found
            if issubclass(found, enum.Enum):
                continue
            fault = plain_objects.fault_of_class(found) or _fault_of_state(node, found)
            if fault is not None:
                unsafe.append(f"{place}: {fault}")
            elif node.args and not plain_objects.is_value(found):
                unsafe.append(f"{place}: a call of {node.class_path} with {len(node.args)} arguments")
            elif node.items and not plain_objects.takes_items(found):
                changed.append(f"{place}: {node.class_path} held items and is no container now")
            if issubclass(found, nn.Module) and not is_module_state(node.state):
                changed.append(f"{place}: {node.class_path} is a module now, and was none")
        if unsafe:
            raise UnsafeError(
                "the file wants more than a model is made of; nothing was called",
                where=self.where,
                faults=unsafe,
                remedy="load its weights alone: load(path, into=model)",
            )
        if changed:
            raise PlanError("classes are of another kind now", where=self.where, faults=changed)
        if not issubclass(self.classes[id(self.root)], nn.Module):
            raise PlanError(f"{self.root.class_path} is no module", where=self.where)

    def _check_modules(self) -> None:
        """Tables hold what torch expects, and the module tree has an end that Python's stack reaches."""
        faults: list[str] = []
        for node in self._modules():
            at = self.wanted.places[id(node)] or "the model itself"
            for table in TABLES:
                held = self._state_of(node).get(table)
                if not isinstance(held, Mapping):
                    faults.append(f"{at}: {table} is no table")
                    continue
                allowed = self._is_module if table == "_modules" else _is_tensor
                faults += [
                    f"{at}: {table} holds {name!r}, which is no {'module' if table == '_modules' else 'tensor'}"
                    for name, each in held.items()
                    if not isinstance(name, str) or not (each is None or allowed(each))
                ]
        if faults:
            raise CorruptError("the description of the model is damaged", where=self.where, faults=faults[:20])
        match tree_fault(self.root, self._inside):
            case TreeFault.CYCLE, inner:
                at = self.wanted.places[id(inner)] or "the model itself"
                raise LimitError(f"the model contains itself: a module inside {at} is {at}", where=self.where)
            case TreeFault.DEPTH, _:
                raise LimitError(f"modules are nested deeper than {MAX_MODULE_LEVELS}", where=self.where)

    def _modules(self) -> Iterable[Described]:
        return (node for node in self.wanted.objects if issubclass(self.classes[id(node)], nn.Module))

    @staticmethod
    def _state_of(node: Described) -> Mapping[str, Any]:
        return node.state if isinstance(node.state, Mapping) else {}

    def _inside(self, node: Described) -> list[Any]:
        children = self._state_of(node)["_modules"].values()
        return [each.outer if isinstance(each, Enclosing) else each for each in children if each is not None]

    def _is_module(self, node: object) -> bool:
        node = node.outer if isinstance(node, Enclosing) else node
        return isinstance(node, Described) and issubclass(self.classes.get(id(node), object), nn.Module)

    def _fill(self, node: Described, made: object) -> None:
        state = self._state_of(node)
        if isinstance(made, nn.Module):
            tables = fresh_tables()
            tables["training"] = bool(state.get("training", True))
            for table in TABLES:
                tables[table].update({name: self._value(each, 0) for name, each in state[table].items()})  # type: ignore[attr-defined]
            tables["_non_persistent_buffers_set"] = {str(n) for n in state.get("_non_persistent_buffers_set", ())}
            for table in HOOK_TABLES:
                kept = kept_hooks(state.get(table) or {})
                put_hooks(tables, table, {key: self._value(hook, 0) for key, hook in kept.items()})
            vars(made).update(tables)
            vars(made).update(added_by_torch(type(made), state))
            state = attributes_in(state)
        if not isinstance(made, enum.Enum):
            plain_objects.set_attributes(made, {name: self._value(each, 0) for name, each in state.items()})
            if plain_objects.takes_items(type(made)):
                plain_objects.fill(made, [self._item(made, each) for each in node.items])

    def _item(self, holder: object, node: object) -> object:
        value = self._value(node, 0)
        if isinstance(holder, set):
            self._check_key(value)
        elif isinstance(holder, dict) and type(value) in (list, tuple) and value:
            self._check_key(value[0])
        return value

    def _check_key(self, key: object) -> None:
        if not plain_objects.hashes_plainly(key):
            raise UnsafeError(
                f"a key is an object of {type(key).__module__}.{type(key).__qualname__}, whose hash is code of its own",
                where=self.where,
            )

    def _value(self, node: object, level: int) -> Any:  # noqa: ANN401 - whatever was saved
        if level > MAX_CONTAINER_LEVELS:
            raise LimitError(f"values are nested deeper than {MAX_CONTAINER_LEVELS}", where=self.where)
        if isinstance(node, TensorSpec):
            return self._tensor(node)
        if isinstance(node, Enclosing):
            return self._made[id(node.outer)]
        if isinstance(node, Described):
            return self._described(node, level)
        return self._container(node, lambda each: self._value(each, level + 1))

    def _container(self, node: object, value: Callable[[object], Any]) -> object:
        if isinstance(node, dict):
            made = node.__class__.__new__(node.__class__)
            if isinstance(made, Mapping) and hasattr(node, "default_factory"):
                made.default_factory = node.default_factory  # type: ignore[attr-defined]
            for key, each in node.items():
                live = key if isinstance(key, (str, int)) else value(key)
                self._check_key(live)
                made[live] = value(each)
            return made
        if isinstance(node, deque):
            return deque(map(value, node), node.maxlen)
        if type(node) in {list, tuple, set, frozenset}:
            items = [value(each) for each in node]  # type: ignore[attr-defined]
            if type(node) in {set, frozenset}:
                for item in items:
                    self._check_key(item)
            return type(node)(items)  # type: ignore[call-arg]
        if isinstance(node, SimpleNamespace) or type(node).__module__ == "argparse":
            copy = object.__new__(type(node)) if type(node).__module__ == "argparse" else SimpleNamespace()
            self._check_names(vars(node))
            vars(copy).update({name: value(each) for name, each in vars(node).items()})
            return copy
        return node

    def _described(self, node: Described, level: int) -> Any:  # noqa: ANN401 - as above
        if id(node) in self._made:
            return self._made[id(node)]
        made = self._make(node, level + 1)
        self._made[id(node)] = made
        return made

    def _make(self, node: Described, level: int) -> Any:  # noqa: ANN401 - as above
        path = node.class_path
        if path in MAKERS:
            return self._builder.value(node)
        if isinstance(node, Named):
            return self._found[path]
        if path == "torch.Tensor":
            return self._tensor_with_state(node)
        if path == "torch.nn.parameter.Parameter":
            return nn.Parameter(self._value(node.args[0], level), requires_grad=bool(node.args[1]))
        if path == "torch.serialization._get_layout":
            return self._found_layout(str(node.args[0]))
        if path == "logging.getLogger":
            return self._logger(node)
        if path == "functools.partial":
            return self._partial(node, level)
        if path == "builtins.getattr":
            return self._method(node, level)
        cls = self.classes[id(node)]
        args = tuple(self._value(each, level) for each in node.args)
        if issubclass(cls, enum.Enum):
            return self._member(cls, node, args)
        if plain_objects.base_of(cls) is frozenset:
            for item in args[0]:
                self._check_key(item)
        return plain_objects.make_with_value(cls, args)

    def _check_names(self, names: Iterable[object]) -> None:
        for name in names:
            if not isinstance(name, str) or is_reserved(name):
                raise UnsafeError(f"an attribute {name!r}, which Python itself reads", where=self.where)

    def _logger(self, node: Described) -> logging.Logger:
        if len(node.args) != 1 or not isinstance(node.args[0], str):
            raise CorruptError("a logger is not described by its name", where=self.where)
        return logging.getLogger(node.args[0])

    def _partial(self, node: Described, level: int) -> object:
        match node.state:
            case (function, tuple() as args, kwargs, _) if kwargs is None or isinstance(kwargs, dict):
                pass
            case _:
                raise CorruptError("a functools.partial is not described as one", where=self.where)
        callee = self._value(function, level)
        if not isinstance(callee, _CALLABLES):
            raise UnsafeError(f"a partial of a {type(callee).__name__}, not of a function", where=self.where)
        return functools.partial(callee, *self._value(args, level), **self._value(kwargs or {}, level))

    def _method(self, node: Described, level: int) -> object:
        owner, name = (self._value(each, level) for each in node.args)
        cls = owner if isinstance(owner, type) else type(owner)
        found = find_method(cls, name) if isinstance(name, str) else None
        if found is None or str(name).startswith("__"):
            raise UnsafeError(f"{name!r} is no method of {cls.__module__}.{cls.__qualname__}", where=self.where)
        if isinstance(found, classmethod):
            return types.MethodType(found.__func__, cls)
        if isinstance(owner, type):
            raise UnsafeError(f"{name!r} of {cls.__module__}.{cls.__qualname__} is bound to nothing", where=self.where)
        return types.MethodType(found, owner)  # type: ignore[arg-type]

    def _member(self, cls: type[enum.Enum], node: Described, values: tuple[object, ...]) -> object:
        # By what is there: Enum(value) would run _missing_, and == would run the value's code.
        if not all(map(plain_objects.hashes_plainly, values)):
            raise UnsafeError(f"a member of {node.class_path} by a value with code of its own", where=self.where)
        members = [member for member in cls.__members__.values() if (member._value_,) == values]
        if not members:
            raise PlanError(f"{node.class_path} has no member of value {values!r} any more", where=self.where)
        return members[0]

    def _found_layout(self, name: str) -> object:
        layout = known_values().get(name)
        if not isinstance(layout, torch.layout):
            raise CorruptError(f"{name!r} is no layout", where=self.where)
        return layout

    def _tensor(self, spec: TensorSpec, stride: tuple[int, ...] | None = None) -> torch.Tensor:
        """The tensor of a spec: one for each spec, on one memory for all of one key."""
        made = self._made.get(id(spec))
        if not isinstance(made, torch.Tensor):
            memory = self._memory.get(spec.key)
            if memory is None:
                memory = _laid_out(self._builder.read(spec).to(self._builder.device), spec, stride)
                self._memory[spec.key] = memory
            made = nn.Parameter(memory.detach(), spec.requires_grad) if spec.parameter else memory.detach()
            if spec.requires_grad and not spec.parameter:
                made.requires_grad_()
            self._made[id(spec)] = made
        return made

    def _tensor_with_state(self, node: Described) -> torch.Tensor:
        spec, state = node.args[0], self._state_of(node)
        stride = state.get("stride")
        if not isinstance(spec, TensorSpec):
            raise CorruptError("a tensor is not described as one", where=self.where)
        if stride is not None:
            stride = tuple(each if type(each) is int else -1 for each in stride)
            if len(stride) != len(spec.shape) or not is_dense(spec.shape, stride):
                raise CorruptError(f"a tensor of shape {spec.shape} has the strides {stride}", where=self.where)
        tensor = self._tensor(spec, stride)
        attributes = state.get("attributes", {})
        if not isinstance(attributes, Mapping):
            raise CorruptError("the attributes of a tensor are no mapping", where=self.where)
        self._check_names(attributes)
        vars(tensor).update({str(name): self._value(each, 0) for name, each in attributes.items()})
        return tensor


def _fault_of_state(node: Described, cls: type) -> str | None:
    """Give a dataclass with slots its fields by name, which pickle keeps in order; anything else is a fault."""
    if isinstance(node.state, list):
        names = [each.name for each in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
        if len(names) != len(node.state):
            return f"an object of {node.class_path} whose state is no mapping of attributes"
        object.__setattr__(node, "state", dict(zip(names, node.state, strict=True)))
    return None


def _is_tensor(node: object) -> bool:
    return isinstance(node, TensorSpec) or (
        isinstance(node, Described)
        and node.class_path in {"torch.Tensor", "torch.quantized", "torch.sparse", "torch.nn.parameter.Parameter"}
    )


def _laid_out(tensor: torch.Tensor, spec: TensorSpec, stride: tuple[int, ...] | None) -> torch.Tensor:
    if stride is not None:
        return torch.empty_strided(spec.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    return tensor.contiguous(memory_format=MEMORY_FORMATS.get(spec.memory_format, torch.contiguous_format))
