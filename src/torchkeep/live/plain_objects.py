"""Objects taken apart and put together without their code: attributes, slots, items; no constructor, no property."""

from __future__ import annotations

import io
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: most classes made in C do not have it.
_IS_ABSTRACT = 1 << 20  # Py_TPFLAGS_IS_ABSTRACT
# What an object may be on top of, most special first; those after the bar are made with their value.
_FILLED_LATER: tuple[type, ...] = (OrderedDict, dict, list, set)
_MADE_WITH_VALUE: tuple[type, ...] = (tuple, frozenset, str, int, float, bytes)


def base_of(cls: type) -> type | None:
    """What objects of a class are made on top of: ``object``, a container or a plain value; None for a class in C."""
    native = next(each for each in cls.__mro__ if not each.__flags__ & _HEAP_TYPE)
    return native if native in (object, *_FILLED_LATER, *_MADE_WITH_VALUE) else None


def takes_items(cls: type) -> bool:
    """Whether objects of a class are a dict, list or set of their own, to be filled once they are there."""
    return base_of(cls) in _FILLED_LATER


def is_value(cls: type) -> bool:
    """Whether objects of a class are a plain value or a tuple, which has to be known when they are made."""
    return base_of(cls) in _MADE_WITH_VALUE


def fault_of_class(cls: type) -> str | None:
    """Why objects of a class can be neither described nor rebuilt; None if they can."""
    if issubclass(cls, torch.jit.ScriptModule):
        return "a TorchScript module; torch.jit.save keeps it"
    if issubclass(cls, torch.fx.GraphModule):
        return "a torch.fx graph, whose forward is generated code; export() keeps it"
    if issubclass(cls, io.IOBase):
        return "an open file"
    if issubclass(cls, (types.ModuleType, types.GeneratorType)):
        return f"a {cls.__name__}"
    if base_of(cls) is None:
        return f"an object of {_path(cls)}, which is made in C"
    if any("__del__" in vars(each) for each in cls.__mro__):
        return f"an object of {_path(cls)}, whose __del__ would run on what a file says"
    if cls.__flags__ & _IS_ABSTRACT:
        return f"an object of {_path(cls)}, which is abstract"
    try:
        if not is_value(cls):
            make_empty(cls)
    except TypeError:  # Python itself knows best which classes are more than a dict of attributes.
        return f"an object of {_path(cls)}, which is made in C"
    return None


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def is_generated(cls: type) -> bool:
    """Whether torch made the class for a parametrised module, on top of the module's own."""
    return (
        issubclass(cls, nn.Module)
        and cls.__name__ == f"Parametrized{cls.__mro__[1].__name__}"
        and (cls.__module__ == "torch.nn.utils.parametrize")
    )


def slots_of(cls: type) -> dict[str, Any]:
    """The slots of a class and its bases by name."""
    return {
        name: member
        for each in reversed(cls.__mro__)
        for name, member in vars(each).items()
        if type(member) is types.MemberDescriptorType and each.__flags__ & _HEAP_TYPE
    }


def attributes_of(value: object) -> dict[str, object]:
    """The attributes that an object itself holds: of its ``__dict__``, and of its slots those that are set."""
    found = dict(_own_dict(value) or {})
    for name, member in slots_of(type(value)).items():
        try:
            found[name] = member.__get__(value, type(value))
        except AttributeError:
            continue
    return found


def set_attributes(target: object, attributes: Mapping[str, object]) -> None:
    """Put attributes into an object's own ``__dict__`` and slots.

    Raises:
        TypeError: It has no place for one of them.
    """
    slots, own = slots_of(type(target)), _own_dict(target)
    for name, value in attributes.items():
        if name in slots:
            slots[name].__set__(target, value)
        elif own is None:
            raise TypeError(f"{_path(type(target))} has no attribute {name!r} any more, nor room for it")
        else:
            own[name] = value


def _own_dict(value: object) -> dict[str, object] | None:
    # Through the descriptor that Python made for the class: a property of that name is never asked.
    for each in type(value).__mro__:
        found = vars(each).get("__dict__")
        if type(found) is types.GetSetDescriptorType:
            return found.__get__(value)  # type: ignore[no-any-return]
    return None


def make_empty(cls: type) -> object:
    """A new object of a class, with nothing in it; none of the class's code is called."""
    base: Any = base_of(cls)
    if base not in (object, *_FILLED_LATER):
        raise TypeError(f"{_path(cls)} cannot be made empty")
    return base.__new__(cls)


def make_with_value(cls: type, args: tuple[object, ...]) -> object:
    """A new object of a class that is a plain value or a tuple; none of the class's code is called.

    Args:
        cls: The class.
        args: The fields of a named tuple; else the one value that it is on top of.
    """
    base: Any = base_of(cls)
    if base is tuple and hasattr(cls, "_fields"):
        return tuple.__new__(cls, args)
    (value,) = args
    is_alike = type(value) is base or (base in (tuple, frozenset) and type(value) in (list, tuple, set, frozenset))
    if base not in _MADE_WITH_VALUE or not is_alike:
        raise TypeError(f"{_path(cls)} is not made of a {type(value).__name__}")
    return base.__new__(cls, value)


def fill(target: object, items: Sequence[Any]) -> None:
    """Put items into a dict, list or set of a class of its own; those of a dict are pairs."""
    if isinstance(target, dict) and not all(type(each) in (list, tuple) and len(each) == 2 for each in items):  # noqa: PLR2004 - a key and a value
        raise TypeError("an item of a dict is no pair")
    if isinstance(target, OrderedDict):
        for key, value in items:
            OrderedDict.__setitem__(target, key, value)  # It keeps an order of its own, which dict's would not tell.
    elif isinstance(target, dict):
        for key, value in items:
            dict.__setitem__(target, key, value)
    elif isinstance(target, list):
        list.extend(target, items)
    elif isinstance(target, set):
        set.update(target, items)


def items_of(value: object) -> Iterator[object]:
    """What a dict, list or set of a class of its own holds; pairs for a dict."""
    if isinstance(value, dict):
        return iter([[key, dict.__getitem__(value, key)] for key in dict.__iter__(value)])
    if isinstance(value, list):
        return list.__iter__(value)
    return set.__iter__(value) if isinstance(value, set) else iter(())


def hashes_plainly(key: object) -> bool:
    """Whether using a value as a key runs no code of a class that a file chose."""
    if type(key) in {tuple, frozenset}:
        return all(map(hashes_plainly, key))  # type: ignore[call-overload]
    kind = type(key)
    own_hash, own_equality = (_found(kind, name) for name in ("__hash__", "__eq__"))
    return isinstance(key, torch.Tensor) or not any(
        isinstance(each, types.FunctionType) and each.__module__ != "enum" for each in (own_hash, own_equality)
    )


def _found(cls: type, name: str) -> object:
    return next(vars(each)[name] for each in cls.__mro__ if name in vars(each))
