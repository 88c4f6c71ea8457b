"""What a caller may ask of a load: rename, skip, take only some, cast. Frozen values whose repr pastes back as code."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Self, TypeAlias

__all__ = ["Cast", "Only", "Rename", "Rule", "Skip", "exact_glob", "is_bare", "matches"]

_WILDCARD = re.compile(r"[*?\[]")


def matches(glob: str, name: str) -> bool:
    """Whether a glob means a tensor's name; case counts.

    ``*`` crosses dots, ``?`` is one character, ``[...]`` one of a set. A glob without any of these means the name
    itself or everything below it.

    Example:
        >>> matches("fc", "fc.weight"), matches("fc", "fc2.weight"), matches("*.bias", "layer1.0.bias")
        (True, False, True)
    """
    if not is_bare(glob):
        return fnmatchcase(name, glob)
    return name == glob or name.startswith(f"{glob}.")


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
class Rename:
    r"""Rename checkpoint tensors: ``Rename(regex, replacement)`` as ``re.sub`` does, or ``Rename({old: new})`` exactly.

    Renames act in the order of the rules, each on what the one before made of the names. The names of a mapping are
    exchanged all at once, so ``{"a": "b", "b": "a"}`` swaps two.

    Args:
        pattern: A regular expression, or a mapping of whole names.
        replacement: What the expression's matches become; ``\1`` and ``\g<name>`` work. Not with a mapping.
        entry: Act on this entry only.

    Raises:
        ValueError: The expression or its replacement does not compile.
        TypeError: Something is not a string, or the replacement is absent or one too many.

    Example:
        >>> Rename(r"^backbone\.", "").apply("backbone.conv1.weight")
        'conv1.weight'
    """

    pattern: str | None
    replacement: str | None
    names: tuple[tuple[str, str], ...]
    entry: str | None
    _new_names: Mapping[str, str] = field(compare=False)

    def __init__(
        self, pattern: str | Mapping[str, str], replacement: str | None = None, *, entry: str | None = None
    ) -> None:
        if isinstance(pattern, Mapping):
            if replacement is not None:
                raise TypeError("Rename takes a mapping of names alone, or a pattern and a replacement")
            _require_strings("Rename", *pattern.keys(), *pattern.values(), entry=entry)
            regex, new_names = None, dict(pattern)
        else:
            if replacement is None:
                raise TypeError("Rename needs a replacement: Rename(pattern, replacement), or Rename({old: new})")
            _require_strings("Rename", pattern, replacement, entry=entry)
            _require_compiles(pattern, replacement)
            regex, new_names = pattern, {}
        object.__setattr__(self, "pattern", regex)
        object.__setattr__(self, "replacement", replacement)
        object.__setattr__(self, "names", tuple(new_names.items()))
        object.__setattr__(self, "entry", entry)
        object.__setattr__(self, "_new_names", new_names)

    def apply(self, name: str) -> str:
        """The name after this rule."""
        if self.pattern is None or self.replacement is None:
            return self._new_names.get(name, name)
        return re.sub(self.pattern, self.replacement, name)

    def acts_on(self, entry: str) -> bool:
        """Whether this rule is meant for an entry."""
        return self.entry is None or self.entry == entry

    def idle(self, names: Collection[str]) -> tuple[Rename, ...]:
        """The parts of this rule that mean none of the names it acts on."""
        if self.pattern is None:
            return tuple(Rename({old: new}, entry=self.entry) for old, new in self.names if old not in names)
        return () if any(self.apply(name) != name for name in names) else (self,)

    def __repr__(self) -> str:
        if self.pattern is None or self.replacement is None:
            inside = "{" + ", ".join(f"{_quoted(old)}: {_quoted(new)}" for old, new in self.names) + "}"
        else:
            inside = f"{_quoted(self.pattern)}, {_quoted(self.replacement)}"
        return f"Rename({inside}{_entry_text(self.entry)})"


@dataclass(frozen=True, init=False, repr=False)
class _Globs:
    """Globs on resulting names, and the entry they are limited to."""

    globs: tuple[str, ...]
    entry: str | None

    def __init__(self, *globs: str, entry: str | None = None) -> None:
        _require_strings(type(self).__name__, *globs, entry=entry)
        if not globs and not isinstance(self, Cast):
            raise ValueError(f'{type(self).__name__} needs at least one glob, for example {type(self).__name__}("fc")')
        object.__setattr__(self, "globs", globs)
        object.__setattr__(self, "entry", entry)

    def matches(self, name: str) -> bool:
        """Whether any glob means the name."""
        return any(matches(glob, name) for glob in self.globs)

    def acts_on(self, entry: str) -> bool:
        """Whether this rule is meant for an entry."""
        return self.entry is None or self.entry == entry

    def idle(self, names: Collection[str]) -> tuple[Self, ...]:
        """The parts of this rule that mean none of the names it acts on."""
        alone = (type(self)(glob, entry=self.entry) for glob in self.globs)
        return tuple(rule for rule in alone if not any(rule.matches(name) for name in names))

    def __repr__(self) -> str:
        inside = ", ".join(_quoted(glob) for glob in self.globs) + _entry_text(self.entry)
        return f"{type(self).__name__}({inside.removeprefix(', ')})"


class Skip(_Globs):
    """Leave these tensors alone, on whichever side they exist.

    Args:
        globs: What to leave out, by resulting name (see `matches`).
        entry: Act on this entry only.

    Raises:
        ValueError: No glob was given.
        TypeError: Something is not a string.

    Example:
        >>> Skip("fc", "*.num_batches_tracked").matches("fc.weight")
        True
    """


class Only(_Globs):
    """Leave everything but these tensors alone, on whichever side they exist.

    Args:
        globs: What to take, by resulting name (see `matches`).
        entry: Act on this entry only.

    Raises:
        ValueError: No glob was given.
        TypeError: Something is not a string.

    Example:
        >>> Only("backbone")
        Only("backbone")
    """


class Cast(_Globs):
    """Let these tensors take the model's dtype where that can change values, float32 to float16 for example.

    Args:
        globs: Which tensors, by resulting name (see `matches`); all without any.
        entry: Act on this entry only.

    Raises:
        TypeError: Something is not a string.

    Example:
        >>> Cast().matches("fc.weight"), Cast("backbone", entry="model")
        (True, Cast("backbone", entry="model"))
    """

    def matches(self, name: str) -> bool:
        """Whether any glob means the name, or there is none."""
        return not self.globs or super().matches(name)


Rule: TypeAlias = Rename | Skip | Only | Cast


def _require_strings(rule: str, *values: object, entry: object) -> None:
    for value in values:
        if not isinstance(value, str):
            what = f"{rule} takes strings, one argument each"
            raise TypeError(f"{what}; not {value!r} of type {type(value).__name__}")
    if entry is not None and not isinstance(entry, str):
        raise TypeError(f"{rule}(entry=...) takes the name of one entry; not {entry!r}")


def _require_compiles(pattern: str, replacement: str) -> None:
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"Rename: the pattern {_quoted(pattern)} is no regular expression: {error}") from error
    try:
        # A template is compiled, and its groups looked up, before the first match is sought.
        compiled.sub(replacement, "")
    except (re.error, IndexError) as error:
        raise ValueError(
            f"Rename: the replacement {_quoted(replacement)} does not go with {_quoted(pattern)}: {error}"
        ) from error


def _quoted(text: str) -> str:
    if "\\" in text and '"' not in text and not text.endswith("\\") and text.isprintable():
        return f'r"{text}"'
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _entry_text(entry: str | None) -> str:
    return "" if entry is None else f", entry={_quoted(entry)}"
