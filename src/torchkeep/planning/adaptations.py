"""Rules that change a tensor on its way: transpose, new input channels, rows by label, more rows, other positions.

Each acts on tensors whose resulting names its globs mean, after the renames, and says in the plan what it does. What a
moment of an optimizer becomes follows from what its parameter becomes (see ``live.adapt``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import ClassVar, TypeAlias

from torchkeep.planning.globs import Globs, literal, mode_of
from torchkeep.planning.recipes import Channels, Fill, Permuted, Recipe, Resampled, Rows, Sampling, dtype_of
from torchkeep.tensors import TensorSpec, is_floating

MAX_KEPT = 8


class DoesNotFitError(ValueError):
    """An adaptation cannot make what the model wants of this tensor; the reason is for the plan."""


@dataclass(frozen=True, init=False, repr=False)
class Transpose(Globs):
    """Transpose matrices, or put the dimensions of other tensors in another order.

    For weights of GPT-2's ``Conv1D``, or of TensorFlow and Flax: ``order=(3, 2, 0, 1)`` makes a convolution of theirs
    one of torch's. Acts on every tensor of that rank under the globs; a bias beside a matrix is left as it is.

    Args:
        globs: Which tensors, by resulting name.
        order: For each dimension that is made, the one it comes from. By default two are exchanged.
        entry: Act on this entry only.

    Raises:
        ValueError: No glob was given, or `order` is no permutation.
        TypeError: `order` is no sequence.

    Example:
        >>> Transpose("*.c_attn.weight"), Transpose("conv", order=(3, 2, 0, 1)).order
        (Transpose("*.c_attn.weight"), (3, 2, 0, 1))
    """

    order: tuple[int, ...] = field(default=(1, 0), kw_only=True)

    def __init__(self, *globs: str, order: Sequence[int] = (1, 0), entry: str | None = None) -> None:
        if not isinstance(order, Sequence):
            raise TypeError(f"Transpose(order=...) is a sequence of dimensions, as (3, 2, 0, 1); not {order!r}")
        if set(order) != set(range(len(order))):
            raise ValueError(f"Transpose(order=...) is a permutation of dimensions, as (3, 2, 0, 1); not {order!r}")
        self._set(globs, entry, order=tuple(order))

    def adapt(self, recipe: Recipe, wanted: TensorSpec) -> Recipe:
        """The tensor with its dimensions in that order; itself if it has another number of them."""
        del wanted
        return Permuted(recipe, self.order) if len(recipe.shape) == len(self.order) else recipe


@dataclass(frozen=True, init=False, repr=False)
class InputChannels(Globs):
    """Make a convolution's weights fit another number of input channels: three to one for grey images, or to four.

    Args:
        globs: Which convolutions, by resulting name.
        fill: ``"repeat"`` cycles the channels and scales them so that an image grey in all channels gives what it gave;
            with one channel left it is their sum. ``"initial"`` and ``"zero"`` keep the first channels as they are, and
            give the others the model's initial values, or zeros.
        entry: Act on this entry only.

    Raises:
        ValueError: No glob was given, or there is no such `fill`.

    Example:
        >>> InputChannels("conv1")
        InputChannels("conv1")
    """

    fill: Fill = field(default=Fill.REPEAT, kw_only=True)

    def __init__(self, *globs: str, fill: Fill | str = Fill.REPEAT, entry: str | None = None) -> None:
        modes = (Fill.REPEAT, Fill.INITIAL, Fill.ZERO)
        self._set(globs, entry, fill=mode_of("InputChannels", "fill", fill, modes))

    def adapt(self, recipe: Recipe, wanted: TensorSpec) -> Recipe:
        """The weights with as many input channels as the model has."""
        old, new = recipe.shape, wanted.shape
        if old == new or len(old) not in _CONVOLUTION_RANKS:
            return recipe
        _require_equal_but(recipe, wanted, 1)
        if self.fill is Fill.REPEAT:
            _require_floating(recipe)
            if not old[1]:
                raise DoesNotFitError("it has no input channels to repeat")
            return Channels(recipe, new[1])
        kept = tuple(range(min(old[1], new[1])))
        return Rows(recipe, 1, kept, kept, new[1], self.fill)


_CONVOLUTION_RANKS = (3, 4, 5)


@dataclass(frozen=True, init=False, repr=False)
class MapRows(Globs):
    """Give each class of a head the row that it had: rows go by label, classes that are new keep the model's values.

    Args:
        old_labels: The classes of the checkpoint, in the order of its rows.
        new_labels: Those of the model. A class that is only in the old ones is left out.
        globs: Which tensors, by resulting name. Without any: all whose number of rows differs in just this way.
        fill: What rows of new classes get: ``"initial"``, ``"mean"`` or ``"zero"``.
        entry: Act on this entry only.

    Raises:
        ValueError: A label occurs twice; none is in both; or both have the same number and no glob says what is meant.
        TypeError: Labels are no sequences of strings or integers; those of numpy are.

    Example:
        >>> MapRows(["cat", "dog"], ["dog", "owl", "cat"], "fc").rows
        ((1, 0), (0, 2))
    """

    old_labels: tuple[str | int, ...] = ()
    new_labels: tuple[str | int, ...] = ()
    fill: Fill = field(default=Fill.INITIAL, kw_only=True)
    NEEDS_GLOBS: ClassVar[bool] = False

    def __init__(
        self,
        old_labels: Sequence[str | int],
        new_labels: Sequence[str | int],
        *globs: str,
        fill: Fill | str = Fill.INITIAL,
        entry: str | None = None,
    ) -> None:
        old_labels, new_labels = _labels(old_labels), _labels(new_labels)
        if not set(old_labels) & set(new_labels):
            raise ValueError("MapRows: no label is in both lists, so no row would arrive; Skip() the head instead")
        if not globs and len(old_labels) == len(new_labels):
            raise ValueError('MapRows: both lists are as long, so name the head: MapRows(old, new, "fc")')
        mode = mode_of("MapRows", "fill", fill, (Fill.INITIAL, Fill.MEAN, Fill.ZERO))
        self._set(globs, entry, old_labels=old_labels, new_labels=new_labels, fill=mode)

    @property
    def rows(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Rows of the checkpoint, and the rows of the model that they become, in the model's order."""
        at = {label: row for row, label in enumerate(self.old_labels)}
        shared = [(at[label], row) for row, label in enumerate(self.new_labels) if label in at]
        return tuple(old for old, _ in shared), tuple(new for _, new in shared)

    def matches(self, name: str) -> bool:
        """Whether any glob means the name, or there is none."""
        return not self.globs or super().matches(name)

    def adapt(self, recipe: Recipe, wanted: TensorSpec) -> Recipe:
        """The rows at their new places."""
        sizes = (len(self.old_labels), len(self.new_labels))
        if not self.globs and (recipe.shape[:1] + wanted.shape[:1] != sizes or recipe.shape[1:] != wanted.shape[1:]):
            return recipe
        _require_equal_but(recipe, wanted, 0)
        if (recipe.shape[0], wanted.shape[0]) != sizes:
            raise DoesNotFitError(
                f"{sizes[0]} old and {sizes[1]} new labels for {recipe.shape[0]} and {wanted.shape[0]} rows"
            )
        if self.fill is Fill.MEAN:
            _require_floating(recipe)
        taken, placed = self.rows
        if taken == placed == tuple(range(recipe.shape[0])) and len(placed) == wanted.shape[0]:
            return recipe
        return Rows(recipe, 0, taken, placed, wanted.shape[0], self.fill)

    def _leading(self) -> Iterator[str]:
        return (f"[{', '.join(map(literal, labels))}]" for labels in (self.old_labels, self.new_labels))


def _labels(given: object) -> tuple[str | int, ...]:
    """Labels as plain strings and integers, also of a one-dimensional array."""
    is_array = hasattr(given, "tolist") and getattr(given, "ndim", None) == 1
    if not is_array and (not isinstance(given, Sequence) or isinstance(given, (str, bytes))):
        raise TypeError(f"MapRows takes two lists of labels, in the order of the rows; not {given!r}")
    listed = list(given)  # type: ignore[call-overload]
    wrong = [label for label in listed if not isinstance(label, (str, Integral))]
    if wrong:
        raise TypeError(f"MapRows: labels are strings or integers; not {wrong[0]!r} of type {type(wrong[0]).__name__}")
    labels = tuple(str(label) if isinstance(label, str) else int(label) for label in listed)
    twice = [str(label) for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise ValueError(f"MapRows: {', '.join(map(repr, twice[:5]))} occurs more than once in a list of labels")
    return labels


@dataclass(frozen=True, init=False, repr=False)
class ResizeRows(Globs):
    """Let embeddings and output layers have more or fewer rows, as when a vocabulary grew: the first ones are the same.

    Args:
        globs: Which tensors, by resulting name.
        fill: What additional rows get: ``"initial"``, ``"mean"`` or ``"zero"``.
        entry: Act on this entry only.

    Raises:
        ValueError: No glob was given, or there is no such `fill`.

    Example:
        >>> ResizeRows("wte", "lm_head", fill="mean")
        ResizeRows("wte", "lm_head", fill="mean")
    """

    fill: Fill = field(default=Fill.INITIAL, kw_only=True)

    def __init__(self, *globs: str, fill: Fill | str = Fill.INITIAL, entry: str | None = None) -> None:
        self._set(globs, entry, fill=mode_of("ResizeRows", "fill", fill, (Fill.INITIAL, Fill.MEAN, Fill.ZERO)))

    def adapt(self, recipe: Recipe, wanted: TensorSpec) -> Recipe:
        """The first rows, as many as both have, and the rest filled."""
        if recipe.shape == wanted.shape:
            return recipe
        _require_equal_but(recipe, wanted, 0)
        if self.fill is Fill.MEAN:
            _require_floating(recipe)
        kept = tuple(range(min(recipe.shape[0], wanted.shape[0])))
        return Rows(recipe, 0, kept, kept, wanted.shape[0], self.fill)


@dataclass(frozen=True, init=False, repr=False)
class ResizePositions(Globs):
    """Interpolate position embeddings to another number of positions, as for larger images or longer texts.

    Knows ``(positions, width)`` and ``(1, positions, width)`` with the positions of a square grid behind a few tokens
    such as the class token, relative tables of Swin, and grids that are dimensions of their own. Like timm, it
    interpolates in float32 and smooths where the grid shrinks.

    Args:
        globs: Which tensors, by resulting name.
        sampling: ``"bicubic"``, ``"bilinear"`` or ``"nearest"`` for grids; ``"linear"`` for texts.
        kept: How many positions before the grid are kept as they are. By default the fewest that leave squares.
        old_grid: Height and width of the checkpoint's grid, where it is no square.
        new_grid: Height and width of the model's.
        entry: Act on this entry only.

    Raises:
        ValueError: No glob was given, there is no such `sampling`, or a grid is not two sizes.

    Example:
        >>> ResizePositions("pos_embed"), ResizePositions("wpe", sampling="linear").kept
        (ResizePositions("pos_embed"), None)
    """

    sampling: Sampling = field(default=Sampling.BICUBIC, kw_only=True)
    kept: int | None = field(default=None, kw_only=True)
    old_grid: tuple[int, ...] | None = field(default=None, kw_only=True)
    new_grid: tuple[int, ...] | None = field(default=None, kw_only=True)

    def __init__(
        self,
        *globs: str,
        sampling: Sampling | str = Sampling.BICUBIC,
        kept: int | None = None,
        old_grid: Sequence[int] | None = None,
        new_grid: Sequence[int] | None = None,
        entry: str | None = None,
    ) -> None:
        for name, grid in (("old_grid", old_grid), ("new_grid", new_grid)):
            if grid is not None and not _is_grid(grid):
                raise ValueError(f"ResizePositions({name}=...) is a height and a width, as (14, 14); not {grid!r}")
        if kept is not None and (type(kept) is not int or kept < 0):
            raise ValueError(f"ResizePositions(kept=...) is a number of positions; not {kept!r}")
        self._set(
            globs,
            entry,
            sampling=mode_of("ResizePositions", "sampling", sampling, tuple(Sampling)),
            kept=kept,
            old_grid=None if old_grid is None else tuple(old_grid),
            new_grid=None if new_grid is None else tuple(new_grid),
        )

    def adapt(self, recipe: Recipe, wanted: TensorSpec) -> Recipe:
        """The positions sampled at the model's grid."""
        old, new = recipe.shape, wanted.shape
        if old == new:
            return recipe
        _require_floating(recipe)
        differing = tuple(dim for dim in range(len(old)) if len(old) == len(new) and old[dim] != new[dim])
        if not all(old) or not all(new):
            raise DoesNotFitError("there are no positions")
        if self.sampling is Sampling.LINEAR and len(differing) == 1:
            kept = self.kept or 0
            (dim,) = differing
            if min(old[dim], new[dim]) <= kept:
                raise DoesNotFitError(f"{kept} positions are kept, and there are no others")
            return Resampled(recipe, differing, kept, (old[dim] - kept,), (new[dim] - kept,), self.sampling)
        if self.sampling is Sampling.LINEAR:
            raise DoesNotFitError('more than the number of positions differs; "linear" is for one dimension')
        if len(differing) == _GRID_RANK and len(old) > _GRID_RANK and not self.kept:
            old_grid, new_grid = (tuple(shape[dim] for dim in differing) for shape in (old, new))
            return Resampled(recipe, differing, 0, old_grid, new_grid, self.sampling)
        if len(differing) != 1:
            raise DoesNotFitError("more than the number of positions differs")
        return self._on_grid(recipe, differing[0], old[differing[0]], new[differing[0]])

    def _on_grid(self, recipe: Recipe, dim: int, old: int, new: int) -> Recipe:
        choices = range(MAX_KEPT + 1) if self.kept is None else [self.kept]
        for kept in choices:
            old_grid, new_grid = _grid(old - kept, self.old_grid), _grid(new - kept, self.new_grid)
            if old_grid is not None and new_grid is not None:
                return Resampled(recipe, (dim,), kept, old_grid, new_grid, self.sampling)
        raise DoesNotFitError(
            f"{old} and {new} positions are no squares behind a few others: "
            'say old_grid=(height, width) and new_grid, or sampling="linear" for texts'
        )


_GRID_RANK = 2


def _is_grid(grid: object) -> bool:
    return (
        isinstance(grid, Sequence) and len(grid) == _GRID_RANK and all(type(size) is int and size > 0 for size in grid)
    )


def _grid(count: int, given: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Height and width of so many positions: as given, else a square; None if they are not."""
    if given is not None:
        return given if math.prod(given) == count else None
    side = math.isqrt(max(count, 0))
    return (side, side) if side and side * side == count else None


Adaptation: TypeAlias = Transpose | InputChannels | MapRows | ResizeRows | ResizePositions
ADAPTATIONS = (Transpose, InputChannels, MapRows, ResizeRows, ResizePositions)


def _require_equal_but(recipe: Recipe, wanted: TensorSpec, dim: int) -> None:
    """Refuse shapes that differ in more than one given dimension."""
    old, new = recipe.shape, wanted.shape
    if len(old) != len(new) or len(old) <= dim or old[:dim] + old[dim + 1 :] != new[:dim] + new[dim + 1 :]:
        raise DoesNotFitError(f"{old} and {new} differ in more than dimension {dim}")


def _require_floating(recipe: Recipe) -> None:
    if not is_floating(dtype_of(recipe)):
        raise DoesNotFitError(f"{dtype_of(recipe)} has no means of values")
