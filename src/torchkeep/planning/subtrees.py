"""Say many names in few words: whole subtrees, and the same place in numbered blocks."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torchkeep.planning.globs import exact_glob, is_bare, matches

_NUMBER = re.compile(r"(?<![^. ])\d+(?![^. ])")


@dataclass(frozen=True, slots=True)
class Subtree:
    """Some names, and the glob that means them and no name that was to be kept apart.

    Attributes:
        glob: As `Skip` takes it: ``"fc"`` or ``"layers.*.adapter.*"``.
        label: As people read it: ``"fc.*"``, or the full name when there is one.
        names: What it means, in order.
    """

    glob: str
    label: str
    names: tuple[str, ...]


def fold(names: Iterable[str], keep: Collection[str]) -> list[Subtree]:
    """The fewest subtrees that hold all of `names` and none of `keep`, in the order of their first names.

    The root itself is never a subtree: the top level stays readable.

    Example:
        >>> [found.label for found in fold(["a.x", "a.y", "b.0.w", "b.1.w", "c"], keep=["b.0.v", "b.1.v"])]
        ['a.*', 'b.*.w', 'c']
    """
    reserved = {".".join(name.split(".")[:cut]) for name in keep for cut in range(1, name.count(".") + 2)}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_highest_free(name, reserved)].append(name)
    subtrees = {prefix: _subtree(prefix, members, keep) for prefix, members in groups.items()}
    return _without_numbers(subtrees, keep)


def without_numbers(text: str) -> str:
    """Names with ``*`` for each segment that is a number.

    Example:
        >>> without_numbers("layers.0.conv1.weight")
        'layers.*.conv1.weight'
    """
    return _NUMBER.sub("*", text)


def _highest_free(name: str, reserved: Collection[str]) -> str:
    """The shortest beginning of the name, in whole segments and without wildcards, that nothing reserved has."""
    segments = name.split(".")
    for cut in range(1, len(segments)):
        prefix = ".".join(segments[:cut])
        if prefix and prefix not in reserved and is_bare(prefix):
            return prefix
    return name


def _subtree(prefix: str, members: list[str], keep: Collection[str]) -> Subtree:
    label = members[0] if len(members) == 1 else f"{prefix}.*"
    alone = members == [prefix]
    if is_bare(prefix) and not (alone and any(name.startswith(f"{prefix}.") for name in keep)):
        return Subtree(prefix, label, tuple(members))
    return Subtree(exact_glob(prefix), label, (prefix,))


def _without_numbers(subtrees: dict[str, Subtree], keep: Collection[str]) -> list[Subtree]:
    """Join subtrees that differ in numbers only, where the glob with ``*`` for them touches nothing else."""
    families: dict[str, list[str]] = defaultdict(list)
    for prefix, subtree in subtrees.items():
        if subtree.glob == prefix:
            pattern = without_numbers(prefix)
            families[pattern if subtree.names == (prefix,) else f"{pattern}.*"].append(prefix)
    joined: dict[str, Subtree] = {}
    for glob, prefixes in families.items():
        names = tuple(name for prefix in prefixes for name in subtrees[prefix].names)
        numbered = len(prefixes) > 1 and "*" in glob.removesuffix(".*")
        if numbered and all(matches(glob, name) for name in names) and not any(matches(glob, name) for name in keep):
            joined.update(dict.fromkeys(prefixes, Subtree(glob, glob, names)))
    return list(dict.fromkeys(joined.get(prefix, subtree) for prefix, subtree in subtrees.items()))
