"""What a caller may ask of a load: rename, skip, take only some, cast. Frozen values whose repr pastes back as code."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, TypeAlias

from torchkeep.planning.adaptations import Adaptation
from torchkeep.planning.globs import Globs, entry_text, mode_of, quoted, require_strings
from torchkeep.planning.regrouping import Regrouping


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
            require_strings("Rename", *pattern.keys(), *pattern.values(), entry=entry)
            regex, new_names = None, dict(pattern)
        else:
            if replacement is None:
                raise TypeError("Rename needs a replacement: Rename(pattern, replacement), or Rename({old: new})")
            require_strings("Rename", pattern, replacement, entry=entry)
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
            inside = "{" + ", ".join(f"{quoted(old)}: {quoted(new)}" for old, new in self.names) + "}"
        else:
            inside = f"{quoted(self.pattern)}, {quoted(self.replacement)}"
        return f"Rename({inside}{entry_text(self.entry)})"


class Skip(Globs):
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


class Only(Globs):
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


class Casting(StrEnum):
    """What a `Cast` does to values that the model's dtype does not have.

    ROUND: the nearest value; one beyond the largest finite value is an error that names the tensor. EXACT: any value
    that would change is such an error. SATURATE: the nearest value, and the largest finite one for what is beyond it.
    """

    ROUND = "round"
    EXACT = "exact"
    SATURATE = "saturate"


@dataclass(frozen=True, init=False, repr=False)
class Cast(Globs):
    """Let these tensors take the model's dtype where that can change values, float32 to float16 for example.

    Args:
        globs: Which tensors, by resulting name (see `matches`); all without any.
        policy: What becomes of values that the dtype does not have, as `Casting` says: ``"round"``, ``"exact"`` or
            ``"saturate"``. What it refuses is found before anything is touched.
        entry: Act on this entry only.

    Raises:
        TypeError: Something is not a string.
        ValueError: There is no such policy.

    Example:
        >>> Cast().matches("fc.weight"), Cast("backbone", policy="exact", entry="model")
        (True, Cast("backbone", policy="exact", entry="model"))
    """

    policy: Casting = field(default=Casting.ROUND, kw_only=True)
    NEEDS_GLOBS: ClassVar[bool] = False

    def __init__(self, *globs: str, policy: Casting | str = Casting.ROUND, entry: str | None = None) -> None:
        self._set(globs, entry, policy=mode_of("Cast", "policy", policy, tuple(Casting)))

    def matches(self, name: str) -> bool:
        """Whether any glob means the name, or there is none."""
        return not self.globs or super().matches(name)


Rule: TypeAlias = Rename | Skip | Only | Cast | Regrouping | Adaptation


def _require_compiles(pattern: str, replacement: str) -> None:
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"Rename: the pattern {quoted(pattern)} is no regular expression: {error}") from error
    try:
        # A template is compiled, and its groups looked up, before the first match is sought.
        compiled.sub(replacement, "")
    except (re.error, IndexError) as error:
        raise ValueError(
            f"Rename: the replacement {quoted(replacement)} does not go with {quoted(pattern)}: {error}"
        ) from error
