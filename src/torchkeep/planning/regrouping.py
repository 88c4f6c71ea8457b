"""Rules that join several tensors of a checkpoint into one, or divide one: q, k and v beside qkv."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torchkeep.planning.globs import entry_text, literal, quoted, require_strings
from torchkeep.planning.recipes import Cut, Joined, Recipe, dtype_of


@dataclass(frozen=True, slots=True)
class Offer:
    """A tensor that the checkpoint offers.

    Attributes:
        name: Under what name, after the rules so far.
        source: Its name in the file; of several, joined by ``" + "``.
        recipe: What it is, or is made of; None when its shape is unknown.
    """

    name: str
    source: str
    recipe: Recipe | None


@dataclass(frozen=True, init=False, repr=False)
class Fuse:
    """Join tensors whose names differ in one place into one: query, key and value into the model's qkv.

    Acts in its place among the renames: those before make the names that it sees, those after see what it makes. Where
    one of the parts is absent, or they do not go together, all stay as they are.

    Args:
        parts: What stands in the names, one or more whole segments each, in the order in which they are joined.
        whole: What stands there instead in the model's names.
        dim: The dimension along which they are joined. -1, the last, is for weights that are stored transposed.
        blocks: In how many equal blocks they alternate; the number of heads where each head's q, k and v are together.
        entry: Act on this entry only.

    Raises:
        ValueError: Fewer than two parts, one of them twice, or `blocks` is less than one.
        TypeError: A name is no string.

    Example:
        >>> Fuse(["q_proj", "k_proj", "v_proj"], "qkv")
        Fuse(["q_proj", "k_proj", "v_proj"], "qkv")
    """

    parts: tuple[str, ...]
    whole: str
    dim: int
    blocks: int
    entry: str | None

    def __init__(
        self, parts: Sequence[str], whole: str, *, dim: int = 0, blocks: int = 1, entry: str | None = None
    ) -> None:
        _require_names("Fuse", parts, whole, dim, blocks, entry)
        _set(self, parts=tuple(parts), whole=whole, dim=dim, blocks=blocks, entry=entry)

    def regroup(self, offers: Sequence[Offer]) -> list[Offer]:
        """The offers with those that belong together as one, at the place of the first."""
        by_name = {offer.name: offer for offer in offers}
        joined: dict[str, Offer] = {}
        gone: set[str] = set()
        for offer in offers:
            for before, after in _places(offer.name, self.parts[0]):
                names = [f"{before}{part}{after}" for part in self.parts]
                if gone.isdisjoint(names) and all(name in by_name for name in names):
                    together = [by_name[name] for name in names]
                    recipe = self._join([each.recipe for each in together if each.recipe is not None])
                    if recipe is not None:
                        source = " + ".join(each.source for each in together)
                        joined[offer.name] = Offer(f"{before}{self.whole}{after}", source, recipe)
                        gone.update(names)
        return [joined.get(o.name, o) for o in offers if o.name in joined or o.name not in gone]

    def idle_reason(self, offers: Sequence[Offer]) -> str:
        """Why it joins nothing, of the first name that it means; "" when it means none."""
        names = {offer.name for offer in offers}
        for offer in offers:
            for before, after in _places(offer.name, self.parts[0]):
                wanted = [f"{before}{part}{after}" for part in self.parts]
                absent = [name for name in wanted if name not in names]
                if absent:
                    return f"{offer.name} has no {' and no '.join(absent)} beside it"
                return f"the shapes or dtypes of {' and '.join(wanted)} do not go together"
        return ""

    def _join(self, recipes: list[Recipe]) -> Recipe | None:
        if len(recipes) < len(self.parts):
            return None
        rank = len(recipes[0].shape)
        dim = self.dim + rank * (self.dim < 0)
        kinds = {(dtype_of(recipe), len(recipe.shape)) for recipe in recipes}
        if not 0 <= dim < rank or len(kinds) > 1:
            return None
        besides = {recipe.shape[:dim] + recipe.shape[dim + 1 :] for recipe in recipes}
        divisible = all(recipe.shape[dim] % self.blocks == 0 for recipe in recipes if len(recipe.shape) > dim)
        return Joined(tuple(recipes), dim, self.blocks) if len(besides) == 1 and divisible else None

    def acts_on(self, entry: str) -> bool:
        """Whether this rule is meant for an entry."""
        return self.entry is None or self.entry == entry

    def __repr__(self) -> str:
        listed = f"[{', '.join(map(quoted, self.parts))}]"
        return f"Fuse({listed}, {quoted(self.whole)}{_options(self.dim, self.blocks)}{entry_text(self.entry)})"


@dataclass(frozen=True, init=False, repr=False)
class Split:
    """Divide one tensor into several whose names differ in one place: the checkpoint's qkv into query, key and value.

    Acts in its place among the renames: those before make the names that it sees, those after see what it makes. A
    tensor that cannot be divided so stays as it is.

    Args:
        whole: What stands in the checkpoint's names, one or more whole segments.
        parts: What stands there instead in the model's names, in the order in which they lie.
        ratios: Their sizes relative to one another; all are equal by default. ``(4, 1, 1)`` is for grouped queries.
        dim: The dimension that is divided. -1, the last, is for weights that are stored transposed.
        blocks: In how many equal blocks they alternate; the number of heads where each head's q, k and v are together.
        entry: Act on this entry only.

    Raises:
        ValueError: Fewer than two parts, one of them twice, not a positive ratio for each, or `blocks` less than one.
        TypeError: A name is no string.

    Example:
        >>> Split("qkv", ["q", "k", "v"], ratios=(4, 1, 1))
        Split("qkv", ["q", "k", "v"], ratios=(4, 1, 1))
    """

    whole: str
    parts: tuple[str, ...]
    ratios: tuple[int, ...]
    dim: int
    blocks: int
    entry: str | None

    def __init__(
        self,
        whole: str,
        parts: Sequence[str],
        *,
        ratios: Sequence[int] | None = None,
        dim: int = 0,
        blocks: int = 1,
        entry: str | None = None,
    ) -> None:
        _require_names("Split", parts, whole, dim, blocks, entry)
        sizes = (1,) * len(parts) if ratios is None else tuple(ratios)
        if len(sizes) != len(parts) or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"Split(ratios=...) is a positive integer for each of {len(parts)} parts; not {ratios!r}")
        _set(self, whole=whole, parts=tuple(parts), ratios=sizes, dim=dim, blocks=blocks, entry=entry)

    def regroup(self, offers: Sequence[Offer]) -> list[Offer]:
        """The offers with each that is meant as its parts."""
        made: list[Offer] = []
        for offer in offers:
            place = next(_places(offer.name, self.whole), None)
            cuts = [] if place is None else list(self._cut(offer.recipe))
            if place is None or not cuts:
                made.append(offer)
            else:
                named = zip(self.parts, cuts, strict=True)
                made += [Offer(f"{place[0]}{part}{place[1]}", offer.source, cut) for part, cut in named]
        return made

    def idle_reason(self, offers: Sequence[Offer]) -> str:
        """Why it divides nothing, of the first name that it means; "" when it means none."""
        meant = next((offer for offer in offers if any(_places(offer.name, self.whole))), None)
        if meant is None:
            return ""
        shape = "unknown shape" if meant.recipe is None else f"shape {meant.recipe.shape}"
        return f"{meant.name} of {shape} cannot be divided so"

    def _cut(self, recipe: Recipe | None) -> Iterator[Recipe]:
        if recipe is None:
            return
        rank = len(recipe.shape)
        dim = self.dim + rank * (self.dim < 0)
        if not 0 <= dim < rank or recipe.shape[dim] % (self.blocks * sum(self.ratios)):
            return
        unit = recipe.shape[dim] // (self.blocks * sum(self.ratios))
        start = 0
        for ratio in self.ratios:
            yield Cut(recipe, dim, start, start + ratio * unit, self.blocks)
            start += ratio * unit

    def acts_on(self, entry: str) -> bool:
        """Whether this rule is meant for an entry."""
        return self.entry is None or self.entry == entry

    def __repr__(self) -> str:
        listed = f"[{', '.join(map(quoted, self.parts))}]"
        ratios = f", ratios={literal(self.ratios)}" if set(self.ratios) != {1} else ""
        return f"Split({quoted(self.whole)}, {listed}{ratios}{_options(self.dim, self.blocks)}{entry_text(self.entry)})"


Regrouping: TypeAlias = Fuse | Split


def _places(name: str, segments: str) -> Iterator[tuple[str, str]]:
    """Where whole segments stand in a name: what is before them, and what is after."""
    for found in re.finditer(rf"(?<![^.])(?={re.escape(segments)}(?![^.]))", name):
        yield name[: found.start()], name[found.start() + len(segments) :]


def _set(rule: Fuse | Split, **fields: object) -> None:
    for name, value in fields.items():
        object.__setattr__(rule, name, value)


def _require_names(
    rule: str, parts: Collection[str], whole: object, dim: object, blocks: object, entry: object
) -> None:
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        raise TypeError(f'{rule} takes a list of parts, as ["q", "k", "v"]; not {parts!r}')
    require_strings(rule, *parts, whole, entry=entry)
    if len(set(parts)) < max(len(parts), 2) or not all(parts) or not whole:
        raise ValueError(f"{rule} takes two or more parts, each a name of its own; not {list(parts)!r}")
    if type(dim) is not int:
        raise TypeError(f"{rule}(dim=...) is an integer; not {dim!r}")
    if type(blocks) is not int or blocks < 1:
        raise ValueError(f"{rule}(blocks=...) is an integer of 1 or more; not {blocks!r}")


def _options(dim: int, blocks: int) -> str:
    return (f", dim={dim}" if dim else "") + (f", blocks={blocks}" if blocks != 1 else "")
