"""Pickles of objects that nothing here imports: classes and functions by name, called or made when they are read."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any, BinaryIO

# The one in C imports what it names, and has no `save` to build on.
_PythonPickler: Any = pickle._Pickler  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class Name:
    """A class, function or constant that the pickle names."""

    module: str
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A value that is what a function returns."""

    function: Name
    args: tuple[object, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """An object that is made without a call of its class; `state` is a dict of its attributes or what it takes."""

    owner: Name
    state: object


class NamingPickler(_PythonPickler):  # type: ignore[misc]
    """Pickles by protocol 2, in which `Name`, `Call` and `Instance` stand for what they say.

    Example:
        >>> import io, pickle
        >>> stream = io.BytesIO()
        >>> NamingPickler(stream).dump([Call(Name("fractions", "Fraction"), (1, 3))])
        >>> pickle.loads(stream.getvalue())
        [Fraction(1, 3)]
    """

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream, protocol=2)
        self._names: dict[Name, Name] = {}

    def save(self, value: object, save_persistent_id: bool = True) -> None:  # noqa: FBT001, FBT002 - as pickle calls it
        """Write one value."""
        if isinstance(value, Name):
            self._save_name(self._names.setdefault(value, value))
        elif isinstance(value, Call):
            self.save(value.function)
            self.save(value.args)
            self.write(pickle.REDUCE)
        elif isinstance(value, Instance):
            self.save(value.owner)
            self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
            self.save(value.state)
            self.write(pickle.BUILD)
        else:
            super().save(value, save_persistent_id)

    def _save_name(self, name: Name) -> None:
        known = self.memo.get(id(name))
        if known is not None:
            self.write(self.get(known[0]))
            return
        self.write(pickle.GLOBAL + f"{name.module}\n{name.name}\n".encode("ascii"))
        self.memoize(name)
