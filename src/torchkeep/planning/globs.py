"""Globs on tensor names, and what every rule made of them has: an entry it is limited to, a repr that pastes back."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import ClassVar, Self, TypeVar

Mode = TypeVar("Mode", bound=StrEnum)

_WILDCARD = re.compile(r"[*?\[]")


def matches(glob: str, name: str) -> bool:
    """Whether a glob means a tensor's name; case counts.

    ``*`` crosses dots, ``?`` is one character, ``[...]`` one of a set. A glob without any of these means the name
    itself or everything below it; the empty one means the empty name alone.

    Example:
        >>> matches("fc", "fc.weight"), matches("fc", "fc2.weight"), matches("*.bias", "layer1.0.bias")
        (True, False, True)
    """
    if not is_bare(glob):
        return fnmatchcase(name, glob)
    return name == glob or (glob != "" and name.startswith(f"{glob}."))


def is_bare(glob: str) -> bool:
    """Whether a glob has no wildcard, so that it means a name and what is below it."""
    return _WILDCARD.search(glob) is None


def exact_glob(name: str) -> str:
    """The glob that means this name, and neither its subtree nor what its wildcard characters would.

    Example:
        >>> exact_glob("a[0]"), exact_glob("fc")
        ('a[[]0]', 'f[c]')
    """
    escaped = _WILDCARD.sub(r"[\g<0>]", name)
    return escaped if escaped != name else re.sub(r"[^!](?=!*$)", r"[\g<0>]", name)


@dataclass(frozen=True, init=False, repr=False)
class Globs:
    """Globs on resulting names, and the entry they are limited to."""

    globs: tuple[str, ...]
    entry: str | None
    NEEDS_GLOBS: ClassVar[bool] = True

    def __init__(self, *globs: str, entry: str | None = None) -> None:
        self._set(globs, entry)

    def _set(self, globs: tuple[str, ...], entry: str | None, **options: object) -> None:
        """Check and set all fields; `options` are those of a subclass."""
        rule = type(self).__name__
        require_strings(rule, *globs, entry=entry)
        if not globs and self.NEEDS_GLOBS:
            raise ValueError(f'{rule} needs at least one glob, for example {rule}("fc")')
        for name, value in {"globs": globs, "entry": entry, **options}.items():
            object.__setattr__(self, name, value)

    def matches(self, name: str) -> bool:
        """Whether any glob means the name."""
        return any(matches(glob, name) for glob in self.globs)

    def acts_on(self, entry: str) -> bool:
        """Whether this rule is meant for an entry."""
        return self.entry is None or self.entry == entry

    def idle(self, names: Collection[str]) -> tuple[Self, ...]:
        """The parts of this rule that mean none of the names it acts on."""
        alone = (self.with_globs(glob) for glob in self.globs)
        return tuple(rule for rule in alone if not any(rule.matches(name) for name in names))

    def with_globs(self, *globs: str) -> Self:
        """The same rule for other tensors."""
        made = object.__new__(type(self))
        for each in fields(self):
            object.__setattr__(made, each.name, globs if each.name == "globs" else getattr(self, each.name))
        return made

    def _leading(self) -> Iterator[str]:
        """The code of what stands before the globs."""
        return iter(())

    def __repr__(self) -> str:
        hidden = {"globs", "entry"}
        options = (each for each in fields(self) if each.name not in hidden and each.kw_only)
        shown = [
            f"{each.name}={literal(value)}" for each in options if (value := getattr(self, each.name)) != each.default
        ]
        entry = [] if self.entry is None else [f"entry={quoted(self.entry)}"]
        return f"{type(self).__name__}({', '.join([*self._leading(), *map(quoted, self.globs), *shown, *entry])})"


def require_strings(rule: str, *values: object, entry: object) -> None:
    """Raise a TypeError that shows what a rule was given in place of strings."""
    for value in values:
        if not isinstance(value, str):
            what = f"{rule} takes strings, one argument each"
            raise TypeError(f"{what}; not {value!r} of type {type(value).__name__}")
    if entry is not None and not isinstance(entry, str):
        raise TypeError(f"{rule}(entry=...) takes the name of one entry; not {entry!r}")


def mode_of(rule: str, option: str, value: object, modes: tuple[Mode, ...]) -> Mode:
    """The mode that a string or a member means, of those that a rule has.

    Raises:
        ValueError: It is none of them; they are listed.
    """
    for mode in modes:
        if value == mode.value:
            return mode
    raise ValueError(f"{rule}({option}=...) is one of {', '.join(quoted(mode.value) for mode in modes)}; not {value!r}")


def literal(value: object) -> str:
    """The code of an option's value."""
    if isinstance(value, str):
        return quoted(str(value))
    return f"({', '.join(map(literal, value))}{',' * (len(value) == 1)})" if isinstance(value, tuple) else repr(value)


def quoted(text: str) -> str:
    """The code of a string: a raw one where backslashes make it the better read."""
    if "\\" in text and '"' not in text and not text.endswith("\\") and text.isprintable():
        return f'r"{text}"'
    return json.dumps(text, ensure_ascii=not text.isprintable())


def entry_text(entry: str | None) -> str:
    """The code of a rule's limit to an entry, to be put after other arguments."""
    return "" if entry is None else f", entry={quoted(entry)}"
