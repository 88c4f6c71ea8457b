"""Nodes of enum members, dataclasses and named tuples: recognised at save, rebuilt at load without running their code.

A class that a file names is used only if its module is already imported, the name leads to it through plain
dictionaries, and it is genuinely of the sort that the node says. No import, no constructor, no property is called.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections.abc import Mapping
from types import MemberDescriptorType, ModuleType

from torchkeep.tensors import Described


def class_reference(cls: type) -> str:
    """``"module:Class"``.

    Raises:
        ValueError: The class cannot be found again by that name.
    """
    reference = f"{cls.__module__}:{cls.__qualname__}"
    if find_class(reference) is not cls:
        where = "inside a function" if "<locals>" in cls.__qualname__ else f"where {reference!r} does not lead to it"
        raise ValueError(f"{cls}, a class defined {where}; define it at the top of a module")
    return reference


def find_class(reference: str) -> type | None:
    """The class of a reference ``"module:Outer.Class"``, if it is there without importing or running anything."""
    module_name, _, qualname = reference.partition(":")
    found: object = sys.modules.get(module_name)
    if not issubclass(type(found), ModuleType):
        return None
    names = object.__getattribute__(found, "__dict__")
    for part in qualname.split("."):
        found = names.get(part)
        if not issubclass(type(found), type):
            return None
        names = type.__getattribute__(found, "__dict__")
    return found  # type: ignore[return-value]


def is_named_tuple(cls: type) -> bool:
    """Whether a class is a tuple with named fields, from `collections` or `typing`."""
    fields = getattr(cls, "_fields", None)
    return issubclass(cls, tuple) and type(fields) is tuple and all(type(field) is str for field in fields)


def is_plain_dataclass(cls: type) -> bool:
    """Whether a class is a dataclass whose objects are their fields: plainly made, no property in a field's place."""
    if not dataclasses.is_dataclass(cls) or cls.__new__ is not object.__new__:
        return False
    return not getattr(cls, "__abstractmethods__", ()) and not any(
        _runs_code(cls, field.name) for field in dataclasses.fields(cls)
    )


def _runs_code(cls: type, name: str) -> bool:
    held = next((base.__dict__[name] for base in cls.__mro__ if name in base.__dict__), None)
    return hasattr(type(held), "__set__") and type(held) is not MemberDescriptorType


def fields_of(value: object) -> dict[str, object]:
    """The fields of a dataclass object or a named tuple, in order.

    Raises:
        ValueError: It has a field without a value, or attributes beyond its fields, which would be lost.
    """
    if isinstance(value, tuple):
        names: tuple[str, ...] = type(value)._fields  # type: ignore[attr-defined]
        found = dict(zip(names, value, strict=True))
    else:
        names = tuple(field.name for field in dataclasses.fields(value))  # type: ignore[arg-type]
        found = {name: object.__getattribute__(value, name) for name in names if hasattr(value, name)}
    unset = [name for name in names if name not in found]
    extra = [name for name in getattr(value, "__dict__", ()) if name not in found]
    if unset or extra:
        why = f"no value in the field {unset[0]!r}" if unset else f"the attribute {extra[0]!r} beyond its fields"
        raise ValueError(f"{type(value)} has {why}")
    return found


def rebuild_enum(reference: str, member: str, value: object) -> object:
    """The member of an imported enum, else a description."""
    cls = find_class(reference)
    if cls is not None and issubclass(cls, enum.Enum) and member in cls.__members__:
        return cls.__members__[member]
    return Described(reference.replace(":", "."), state={"name": member, "value": value})


def rebuild_dataclass(reference: str, fields: Mapping[str, object]) -> object:
    """An object of an imported dataclass that has exactly these fields, else a description."""
    cls = find_class(reference)
    if cls is None or not is_plain_dataclass(cls) or {field.name for field in dataclasses.fields(cls)} != set(fields):
        return Described(reference.replace(":", "."), state=dict(fields))
    rebuilt: object = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(rebuilt, name, value)
    return rebuilt


def rebuild_named_tuple(reference: str, fields: Mapping[str, object]) -> object:
    """An object of an imported named tuple that has exactly these fields, else a description."""
    cls = find_class(reference)
    if cls is None or not is_named_tuple(cls) or set(cls._fields) != set(fields):  # type: ignore[attr-defined]
        return Described(reference.replace(":", "."), state=dict(fields))
    return tuple.__new__(cls, [fields[name] for name in cls._fields])  # type: ignore[attr-defined]
