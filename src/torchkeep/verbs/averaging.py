"""`average`: one state dict of several checkpoints' weights, computed a piece at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torchkeep.errors import PlanError
from torchkeep.folder.parallel import default_threads
from torchkeep.folder.read import FolderSource
from torchkeep.planning.match import find_names
from torchkeep.tensors import Source, TensorSpec, is_floating
from torchkeep.verbs.arguments import threads_of
from torchkeep.verbs.contents import weights_in
from torchkeep.verbs.converting import MAX_SHARD_BYTES, Kind, PlannedConversion, target_of
from torchkeep.verbs.new_files import refuse_taken
from torchkeep.verbs.sources import open_source

if TYPE_CHECKING:
    from torchkeep.arithmetic.averaging import Averaging
    from torchkeep.arithmetic.ranges import Progress

_STATISTICS = ("running_mean", "running_var")
_MOST_FAULTS = 20


class Buffers(StrEnum):
    """What becomes of the running statistics of batch norms."""

    AVERAGE = "average"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class Averaged:
    """What an average was made of.

    Attributes:
        target: Where it is.
        files: The files that were made, or the folder.
        sources: The checkpoints, in the order that they were taken.
        weights: The weight of each; they add up to 1.
        averaged: Names of the tensors that were averaged.
        copied: Names of those that are the last checkpoint's: integers, and with ``buffers="last"`` running statistics.
        notes: What a person should know.
    """

    target: Path
    files: tuple[Path, ...]
    sources: tuple[Path, ...]
    weights: tuple[float, ...]
    averaged: tuple[str, ...]
    copied: tuple[str, ...]
    notes: tuple[str, ...]


def average(  # noqa: PLR0913 - each is a choice of its own
    checkpoints: Sequence[str | os.PathLike[str]],
    target: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    ema_decay: float | None = None,
    buffers: Literal["average", "last"] = "average",
    entry: str | None = None,
    to: Kind | None = None,
    io_threads: int | None = None,
    progress: Progress | None = None,
) -> Averaged:
    """Average the weights of checkpoints of any formats into one new state dict, without holding a tensor whole.

    Names are those of the last checkpoint; the wrappers that `load` sees through (``module.``) are no difference. Sums
    are taken in double precision and rounded once, so the result is what `torch.optim.swa_utils.AveragedModel`
    computes step by step, but for its roundings. Integers, as batch norms' counts, are the last checkpoint's. Averaged
    running statistics are an approximation: `torch.optim.swa_utils.update_bn` computes those of the averaged weights.

    Args:
        checkpoints: One or more, for example ``run.best("val_acc", mode="max", n=3)``.
        target: A new path; its name says the format, as for `convert`.
        weights: One number per checkpoint, none negative; they are scaled to add up to 1. By default all count alike.
        ema_decay: Instead, an exponential moving average with this decay over the checkpoints in the order of their
            steps (as given, where they have none), as ``get_ema_avg_fn(decay)`` computes it.
        buffers: ``"average"`` averages running statistics like all else (``AveragedModel(use_buffers=True)``);
            ``"last"`` takes the last checkpoint's (``use_buffers=False``).
        entry: Where in each the weights are, when it cannot be told.
        to: As for `convert`.
        io_threads: Threads that read and write; by default one per processor, at most 8.
        progress: Called with bytes done and bytes in all of the result.

    Raises:
        PlanError: Names or shapes of the checkpoints differ; every difference is named. Or weights cannot be told.
        TypeError: `checkpoints` is one path.
        ValueError: There is no checkpoint, both or wrong `weights` and `ema_decay`.
        ConflictError: Something is at the target.
        NotFoundError, FormatError, CorruptError, UnsafeError, LimitError: As for `open`. Nothing is left at the target.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> folder = tempfile.mkdtemp()
        >>> for step, value in enumerate([0.0, 1.0]):
        ...     torch.save({"w": torch.full((2,), value)}, f"{folder}/{step}.pt")
        >>> made = tk.average([f"{folder}/0.pt", f"{folder}/1.pt"], f"{folder}/soup", weights=[3, 1])
        >>> made.weights, tk.load(f"{folder}/soup")["w"]
        ((0.75, 0.25), tensor([0.2500, 0.2500]))
    """
    if isinstance(checkpoints, (str, os.PathLike)):
        raise TypeError(f"average takes a list of checkpoints, as [{os.fspath(checkpoints)!r}, ...], not one path")
    where = Path(target).expanduser()
    kind = target_of(where, to)
    refuse_taken(where)
    shares = _shares(len(checkpoints), weights, ema_decay)
    opened: list[Source] = []
    try:
        for path in checkpoints:
            opened.append(open_source(path))
        if ema_decay is not None:
            opened = _by_step(opened)
        averaging = _averaging(opened, shares, Buffers(buffers), entry)
        planned = PlannedConversion(averaging, where, kind, MAX_SHARD_BYTES, threads_of(io_threads, default_threads))
        planned.decide(None, None)
        done = planned.carry_out(progress)
    finally:
        for source in opened:
            source.close()
    names = averaging.tensors
    averaged = tuple(name for name in names if averaging.is_averaged(name))
    statistics = sum(name.endswith("running_var") for name in averaged)
    notes = [f"running statistics of {statistics:,} batch norms are averages: torch.optim.swa_utils.update_bn is exact"]
    return Averaged(
        target=where,
        files=done.files,
        sources=tuple(source.path for source in opened),
        weights=shares,
        averaged=averaged,
        copied=tuple(name for name in names if name not in set(averaged)),
        notes=(*(notes if statistics and len(opened) > 1 else ()), *done.losses, *done.notes),
    )


def _shares(count: int, weights: Sequence[float] | None, ema_decay: float | None) -> tuple[float, ...]:
    from torchkeep.arithmetic.averaging import ema_weights

    if not count:
        raise ValueError("average takes one or more checkpoints")
    if ema_decay is not None:
        if weights is not None:
            raise ValueError("average takes weights or ema_decay, not both")
        return ema_weights(count, ema_decay)
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    total = math.fsum(given)
    if len(given) != count or not all(weight >= 0 for weight in given) or not 0 < total < math.inf:
        raise ValueError(f"weights are {count} numbers, none negative and not all 0; not {list(weights or ())!r}")
    return tuple(weight / total for weight in given)


def _by_step(opened: list[Source]) -> list[Source]:
    """Sources in the order of their steps where all have one, else as they are."""
    steps = [source.record.step if isinstance(source, FolderSource) else None for source in opened]
    if any(step is None for step in steps):
        return opened
    return [source for _, source in sorted(zip(steps, opened, strict=True), key=lambda pair: pair[0] or 0)]


def _averaging(opened: Sequence[Source], shares: Sequence[float], buffers: Buffers, entry: str | None) -> Averaging:
    from torchkeep.arithmetic.averaging import Averaging

    sides = [weights_in(source, entry)[1] for source in opened]
    sides = [_named_as(sides[-1], side) for side in sides]
    _require_equal(opened, sides)
    specs = {name: [side[name] for side in sides] for name in sides[-1]}
    statistics = frozenset(name for name in specs if name.endswith(_STATISTICS))
    about = {"averaged_from": [source.path.name for source in opened], "weights": list(shares)}
    return Averaging(opened, shares, specs, statistics if buffers is Buffers.LAST else frozenset(), about)


def _named_as(last: Mapping[str, TensorSpec], side: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    """A state dict by the names that another has for the same tensors; what that has not keeps its own."""
    own = find_names({name: name for name in side}, last, ())
    taken = set(own.values())
    rest = {name: spec for name, spec in side.items() if name not in taken}
    return {name: side[of_side] for name, of_side in own.items()} | rest


def _go_together(one: str, other: str) -> bool:
    return one == other or (is_floating(one) and is_floating(other))


def _require_equal(opened: Sequence[Source], sides: Sequence[dict[str, TensorSpec]]) -> None:
    """Refuse checkpoints of different networks, with every difference."""
    faults = []
    for source, side in zip(opened[:-1], sides[:-1], strict=True):
        for name in {**sides[-1], **side}:
            here, last = side.get(name), sides[-1].get(name)
            if here is None or last is None:
                faults.append(f"{name}: only in {(opened[-1] if here is None else source).path}")
            elif here.shape != last.shape or not _go_together(here.dtype, last.dtype):
                faults.append(f"{name}: {here} in {source.path}, {last} in {opened[-1].path}")
    if faults:
        more = [f"and {len(faults) - _MOST_FAULTS:,} more"] if len(faults) > _MOST_FAULTS else []
        raise PlanError(
            f"the checkpoints are not of one network: {len(faults):,} differences",
            faults=[*faults[:_MOST_FAULTS], *more],
            remedy="average checkpoints of one run; torchkeep diff A B shows what differs",
        )
