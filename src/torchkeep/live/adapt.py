"""Carry out the recipes of a plan: tensors joined, cut, transposed, resampled, and optimizer moments with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.nn import functional

from torchkeep.live.memory import dtype_name
from torchkeep.planning.recipes import (
    Channels,
    Cut,
    Fill,
    Joined,
    Part,
    Permuted,
    Recipe,
    Resampled,
    Rows,
    Sampling,
)
from torchkeep.planning.rules import Casting
from torchkeep.planning.widening import widens

Read: TypeAlias = Callable[[Part], torch.Tensor]


def make_tensor(recipe: Recipe, read: Read, initial: torch.Tensor) -> torch.Tensor:
    """What a recipe gives.

    Args:
        recipe: What to make.
        read: Gives a tensor of the file.
        initial: The model's tensor, of which rows may stay; it is not changed. Without values on the meta device.

    Returns:
        A tensor of the recipe's shape, on the CPU; of its parts' dtype, or float32 where values were computed.
    """
    return _Weights(read, None if initial.is_meta else initial.detach().cpu()).make(recipe)


def make_moment(recipe: Recipe, read: Read) -> torch.Tensor:
    """What a moment of an optimizer becomes when its parameter becomes what a recipe gives.

    Elements that move take their moments with them, and new ones begin at zero, as all do. Where a parameter's values
    are computed from several, its moments are their weighted mean with weights that are not negative: a gradient does
    not grow with the parameter, and a second moment stays one.
    """
    return _Moments(read, None).make(recipe)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Evaluates a recipe from the leaves up."""

    read: Read
    initial: torch.Tensor | None

    def make(self, recipe: Recipe) -> torch.Tensor:
        """What the recipe gives."""
        match recipe:
            case Part():
                return self.read(recipe)
            case Joined():
                return _join([self.make(part) for part in recipe.parts], recipe.dim, recipe.blocks)
            case Cut():
                whole = _in_blocks(self.make(recipe.whole), recipe.dim, recipe.blocks)
                cut = whole.narrow(recipe.dim + 1, recipe.start, recipe.end - recipe.start)
                return cut.flatten(recipe.dim, recipe.dim + 1)
            case Permuted():
                return self.make(recipe.of).permute(recipe.order)
            case Rows():
                return self.rows(recipe, self.make(recipe.of))
            case Channels():
                return self.channels(recipe, self.make(recipe.of))
            case Resampled():
                return self.resampled(recipe, self.make(recipe.of))

    def rows(self, recipe: Rows, old: torch.Tensor) -> torch.Tensor:
        """Rows at their places, the others filled."""
        made = self.filled(recipe, old)
        places, taken = torch.tensor(recipe.placed), torch.tensor(recipe.taken)
        moved = _as_integers(old.to(made.dtype)).index_select(recipe.dim, taken)
        _as_integers(made).index_copy_(recipe.dim, places, moved)
        return made

    def filled(self, recipe: Rows, old: torch.Tensor) -> torch.Tensor:
        """What is there before the rows are put in their places."""
        if recipe.fill is Fill.MEAN:
            mean = _computable(old).mean(recipe.dim, keepdim=True)
            return mean.expand(recipe.shape).to(old.dtype, copy=True, memory_format=torch.contiguous_format)
        if recipe.fill is Fill.INITIAL and self.initial is not None and len(recipe.placed) < recipe.size:
            return self.initial.to(_holding_both(old.dtype, self.initial.dtype), copy=True)
        return torch.zeros(recipe.shape, dtype=old.dtype)

    def channels(self, recipe: Channels, old: torch.Tensor) -> torch.Tensor:
        """Input channels repeated and scaled, or all of them summed."""
        values = _computable(old)
        if recipe.size == 1:
            return values.sum(1, keepdim=True)
        return _cycled(values, recipe.size) * (old.shape[1] / recipe.size)

    def resampled(self, recipe: Resampled, old: torch.Tensor) -> torch.Tensor:
        """Positions at another grid."""
        return _resample(_computable(old), recipe, recipe.sampling)


class _Moments(_Weights):
    """The same for moments: what is new begins at zero, and means are weighted with nothing negative."""

    __slots__ = ()

    def filled(self, recipe: Rows, old: torch.Tensor) -> torch.Tensor:
        """Zeros."""
        return torch.zeros(recipe.shape, dtype=old.dtype)

    def channels(self, recipe: Channels, old: torch.Tensor) -> torch.Tensor:
        """Input channels repeated, or their mean."""
        return _computable(old).mean(1, keepdim=True) if recipe.size == 1 else _cycled(old, recipe.size)

    def resampled(self, recipe: Resampled, old: torch.Tensor) -> torch.Tensor:
        """Positions at another grid; the lobes of a cubic would make a second moment negative."""
        cubic = recipe.sampling is Sampling.BICUBIC
        return _resample(_computable(old), recipe, Sampling.BILINEAR if cubic else recipe.sampling)


def _join(parts: list[torch.Tensor], dim: int, blocks: int) -> torch.Tensor:
    return torch.cat([_in_blocks(part, dim, blocks) for part in parts], dim + 1).flatten(dim, dim + 1)


def _in_blocks(whole: torch.Tensor, dim: int, blocks: int) -> torch.Tensor:
    """A dimension as two: the block, and the place in it."""
    return whole.reshape(*whole.shape[:dim], blocks, whole.shape[dim] // blocks, *whole.shape[dim + 1 :])


def _cycled(old: torch.Tensor, size: int) -> torch.Tensor:
    return old.index_select(1, torch.arange(size) % old.shape[1])


def _resample(old: torch.Tensor, recipe: Resampled, sampling: Sampling) -> torch.Tensor:
    grid_dims = tuple(range(-len(recipe.dims), 0))
    last = old.movedim(recipe.dims, grid_dims)
    kept, rest = last[..., : recipe.kept], last[..., recipe.kept :]
    shape = last.shape[: -len(recipe.dims)]
    smooth = sampling in {Sampling.BICUBIC, Sampling.BILINEAR}
    sampled = functional.interpolate(
        rest.reshape(1, -1, *recipe.old_grid),
        recipe.new_grid,
        mode=sampling.value,
        align_corners=False if smooth or sampling is Sampling.LINEAR else None,
        antialias=smooth,
    )
    if len(recipe.dims) == len(recipe.new_grid) and not recipe.kept:
        return sampled.reshape(*shape, *recipe.new_grid).movedim(grid_dims, recipe.dims)
    return torch.cat([kept, sampled.reshape(*shape, -1)], -1).movedim(grid_dims, recipe.dims)


def _computable(values: torch.Tensor) -> torch.Tensor:
    """Values in a dtype that has arithmetic."""
    return values if values.dtype is torch.float64 else values.float()


def _as_integers(values: torch.Tensor) -> torch.Tensor:
    """The same memory as integers of the same width: every dtype of that width can be indexed so."""
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(values.element_size())
    return values if width is None else values.view(width)


def _holding_both(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """A dtype that has every value of both, or as good as that."""
    for wide, narrow in ((one, other), (other, one)):
        if widens(dtype_name(narrow), dtype_name(wide)):
            return wide
    return torch.float64 if torch.float64 in {one, other} else torch.float32


def fitting(values: torch.Tensor, dtype: torch.dtype, casting: Casting) -> torch.Tensor:
    """Values in a dtype that does not have all of them.

    Raises:
        ValueError: There are values that `casting` refuses; says how many, which is the first, and where it is.
    """
    if values.is_complex() and dtype.is_complex:
        parts = fitting(torch.view_as_real(values), dtype.to_real(), casting)
        return torch.view_as_complex(parts)
    if values.is_complex():
        _refuse(values.imag != 0, values, "have an imaginary part")
        values = values.real
    exact = values.double() if values.is_floating_point() or values.dtype is torch.uint64 else values.long()
    low, high = _range(dtype)
    is_whole = not dtype.is_floating_point
    if is_whole and exact.is_floating_point():
        _refuse(exact.isnan(), values, f"are no numbers, which {dtype_name(dtype)} does not have")
        rounded = exact.round()
    else:
        rounded = exact
    beyond = (rounded < low) | (rounded > high)
    if casting is Casting.SATURATE:
        return rounded.clamp(low, high).to(dtype)
    if not is_whole and not torch.isfinite(torch.tensor(torch.inf).to(dtype).float()):
        beyond &= exact.isfinite() if exact.is_floating_point() else True
    _refuse(beyond, values, f"are beyond what {dtype_name(dtype)} has")
    made = rounded.to(dtype)
    if casting is Casting.EXACT:
        back = made.to(exact.dtype)
        _refuse((back != exact) & ~(back.isnan() & exact.isnan()), values, f"are not in {dtype_name(dtype)}")
    return made


def _range(dtype: torch.dtype) -> tuple[float, float]:
    if dtype is torch.bool:
        return 0, 1
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return limits.min, limits.max


def _refuse(wrong: torch.Tensor, values: torch.Tensor, why: str) -> None:
    count = int(wrong.sum())
    if count:
        first = tuple(wrong.nonzero()[0].tolist())
        at = f", the first at {first}: {values[first].item()}"
        raise ValueError(f"{count:,} of {values.numel():,} values {why}{at}")
