"""How one tensor of a model is made from tensors of a file: frozen values that know the shape they give.

A recipe is a tree with `Part`, a tensor of the file, at its leaves. Planning builds it from specs alone; ``live.adapt``
carries it out. Recipes say what a person should know about them in `steps`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from torchkeep.tensors import TensorSpec

Shape: TypeAlias = tuple[int, ...]


class Fill(StrEnum):
    """Where values come from that the checkpoint does not have.

    INITIAL: the model's own initial values stay. MEAN: the mean of all rows that the checkpoint has. ZERO: zeros.
    REPEAT: for input channels, the old ones again from the first, scaled so that the sum over channels is kept.
    """

    INITIAL = "initial"
    MEAN = "mean"
    ZERO = "zero"
    REPEAT = "repeat"


class Sampling(StrEnum):
    """How a grid is sampled anew, as torch's ``interpolate`` calls it; LINEAR is for a sequence without a grid."""

    BICUBIC = "bicubic"
    BILINEAR = "bilinear"
    NEAREST = "nearest"
    LINEAR = "linear"


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of the file as it is."""

    name: str
    spec: TensorSpec

    @property
    def shape(self) -> Shape:
        """Its shape."""
        return self.spec.shape


@dataclass(frozen=True, slots=True)
class Joined:
    """Several along one dimension: all of the first, all of the second, ..., or so in each of `blocks` equal blocks."""

    parts: tuple[Recipe, ...]
    dim: int
    blocks: int = 1

    @property
    def shape(self) -> Shape:
        """The shape of the first, the sizes along `dim` added up."""
        whole = list(self.parts[0].shape)
        whole[self.dim] = sum(part.shape[self.dim] for part in self.parts)
        return tuple(whole)


@dataclass(frozen=True, slots=True)
class Cut:
    """A range along one dimension, the same range in each of `blocks` equal blocks."""

    whole: Recipe
    dim: int
    start: int
    end: int
    blocks: int = 1

    @property
    def shape(self) -> Shape:
        """The shape of the whole, with the size of the range times the blocks along `dim`."""
        cut = list(self.whole.shape)
        cut[self.dim] = (self.end - self.start) * self.blocks
        return tuple(cut)


@dataclass(frozen=True, slots=True)
class Permuted:
    """Dimensions in another order, as ``torch.permute`` takes it."""

    of: Recipe
    order: tuple[int, ...]

    @property
    def shape(self) -> Shape:
        """The sizes in that order."""
        return tuple(self.of.shape[dim] for dim in self.order)


@dataclass(frozen=True, slots=True)
class Rows:
    """Slices along a dimension put at new places of a tensor that is otherwise filled.

    Attributes:
        of: Where they come from.
        dim: 0 for rows, 1 for input channels.
        taken: Indices in `of`.
        placed: Where each goes, as many.
        size: Along `dim`, of what is made.
        fill: What the other places get.
    """

    of: Recipe
    dim: int
    taken: tuple[int, ...]
    placed: tuple[int, ...]
    size: int
    fill: Fill

    @property
    def shape(self) -> Shape:
        """The shape of `of` with `size` along `dim`."""
        made = list(self.of.shape)
        made[self.dim] = self.size
        return tuple(made)


@dataclass(frozen=True, slots=True)
class Channels:
    """Input channels of a convolution, cycled and scaled by old / new; all of them summed where one is left.

    This keeps what a layer gives for an image that is grey in all channels; timm does the same.
    """

    of: Recipe
    size: int

    @property
    def shape(self) -> Shape:
        """The shape of `of` with `size` input channels."""
        return (self.of.shape[0], self.size, *self.of.shape[2:])


@dataclass(frozen=True, slots=True)
class Resampled:
    """A grid of positions sampled anew.

    Attributes:
        of: Where it comes from.
        dims: The dimension that runs over all positions, or the two that are the grid itself.
        kept: Positions before the grid that are no part of it, such as a class token.
        old_grid: Height and width, or the length, without what is kept.
        new_grid: The same of what is made.
        sampling: How.
    """

    of: Recipe
    dims: tuple[int, ...]
    kept: int
    old_grid: tuple[int, ...]
    new_grid: tuple[int, ...]
    sampling: Sampling

    @property
    def shape(self) -> Shape:
        """The shape of `of` with the new grid."""
        made = list(self.of.shape)
        if len(self.dims) == len(self.new_grid):
            for dim, size in zip(self.dims, self.new_grid, strict=True):
                made[dim] = size + self.kept
        else:
            made[self.dims[0]] = self.new_grid[0] * self.new_grid[1] + self.kept
        return tuple(made)


Recipe: TypeAlias = Part | Joined | Cut | Permuted | Rows | Channels | Resampled


def inside(recipe: Recipe) -> tuple[Recipe, ...]:
    """What a recipe is made of, one level down."""
    match recipe:
        case Part():
            return ()
        case Joined():
            return recipe.parts
        case Cut():
            return (recipe.whole,)
        case _:
            return (recipe.of,)


def parts_of(recipe: Recipe) -> tuple[Part, ...]:
    """The tensors of the file that a recipe needs, in order, each once."""
    if isinstance(recipe, Part):
        return (recipe,)
    return tuple(dict.fromkeys(part for each in inside(recipe) for part in parts_of(each)))


def dtype_of(recipe: Recipe) -> str:
    """The dtype of what a recipe gives: that of its parts."""
    return parts_of(recipe)[0].spec.dtype


def spec_of(recipe: Recipe) -> TensorSpec:
    """What a recipe gives, as a spec; the part's own where it is nothing else."""
    return recipe.spec if isinstance(recipe, Part) else TensorSpec(dtype_of(recipe), recipe.shape)


def needs_initial(recipe: Recipe) -> bool:
    """Whether values of the model stay in what a recipe gives."""
    own = isinstance(recipe, Rows) and recipe.fill is Fill.INITIAL and len(recipe.placed) < recipe.size
    return own or any(needs_initial(each) for each in inside(recipe))


def arriving_elements(recipe: Recipe) -> int:
    """How many elements of what a recipe gives come from the file."""
    spec = spec_of(recipe)
    if isinstance(recipe, Rows) and needs_initial(recipe):
        return spec.numel // recipe.size * len(recipe.placed)
    return spec.numel


def steps(recipe: Recipe) -> Iterator[str]:
    """What is done, innermost first, in few words."""
    for each in inside(recipe)[:1]:
        yield from steps(each)
    match recipe:
        case Joined():
            blocks = f" in {recipe.blocks} blocks" if recipe.blocks > 1 else ""
            yield f"{len(recipe.parts)} tensors joined along dimension {recipe.dim}{blocks}"
        case Cut():
            blocks = f" of each of {recipe.blocks} blocks" if recipe.blocks > 1 else ""
            size = recipe.whole.shape[recipe.dim] // recipe.blocks
            yield f"{recipe.start} to {recipe.end} of {size} along dimension {recipe.dim}{blocks}"
        case Permuted():
            yield "transposed" if recipe.order == (1, 0) else f"dimensions in the order {recipe.order}"
        case Rows():
            yield _said_of_rows(recipe)
        case Channels():
            how = "summed" if recipe.size == 1 else "repeated and scaled"
            yield f"{recipe.of.shape[1]} input channels to {recipe.size}, {how}"
        case Resampled():
            kept = f", the first {recipe.kept} kept" if recipe.kept else ""
            grids = (" x ".join(map(str, grid)) for grid in (recipe.old_grid, recipe.new_grid))
            yield f"{' to '.join(grids)} positions, {recipe.sampling.value}{kept}"
        case Part():
            pass


def _said_of_rows(rows: Rows) -> str:
    noun = "rows" if rows.dim == 0 else "input channels"
    said = f"{len(rows.placed):,} of {rows.size:,} {noun} from {rows.of.shape[rows.dim]:,}"
    if len(rows.placed) == rows.size:
        return said
    rest = {Fill.INITIAL: "stay at initial values", Fill.MEAN: "are the mean", Fill.ZERO: "are zero"}
    return f"{said}, the others {rest[rows.fill]}"
