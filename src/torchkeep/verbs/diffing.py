"""`diff`: what differs between two checkpoints of any formats: names, shapes, dtypes, values, and everything else."""

from __future__ import annotations

import math
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from torchkeep.errors import FormatError, NotFoundError, PlanError
from torchkeep.folder.parallel import default_threads
from torchkeep.folder.read import FolderSource
from torchkeep.folder.runs import list_run, metrics_of
from torchkeep.planning.loadplan import make_plan
from torchkeep.planning.recipes import Part
from torchkeep.planning.rows import Change, Pair, Row, Status
from torchkeep.planning.rules import Rule
from torchkeep.tensors import Described, Source, TensorSpec, name_of, walk
from torchkeep.verbs.alignment import Named, align
from torchkeep.verbs.arguments import threads_of
from torchkeep.verbs.sources import open_source

if TYPE_CHECKING:
    from torchkeep.arithmetic.comparison import TensorComparison
    from torchkeep.arithmetic.ranges import Progress


class Outcome(StrEnum):
    """What was found about a tensor."""

    EQUAL = "equal"
    VALUES_DIFFER = "values_differ"
    DTYPE_DIFFERS = "dtype_differs"
    SHAPE_DIFFERS = "shape_differs"
    NAME_DIFFERS = "name_differs"
    ONLY_IN_FIRST = "only_in_first"
    ONLY_IN_SECOND = "only_in_second"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor of either checkpoint, or of both.

    Attributes:
        name: The name that it is compared under: the second one's, or the first one's after the rules.
        outcome: The first that is true of it: shape, dtype, values, name.
        first: What the first holds; None where it has none.
        second: What the second holds; None where it has none.
        first_name: Its name in the first, where a rule or a wrapper changed it; else `name`.
        comparison: How far apart the values are; None where they cannot be compared.
        in_weights: Whether it belongs to the weights of either.
    """

    name: str
    outcome: Outcome
    first: TensorSpec | None
    second: TensorSpec | None
    first_name: str
    comparison: TensorComparison | None = None
    in_weights: bool = False

    @property
    def is_difference(self) -> bool:
        """Whether the two checkpoints differ in it."""
        return self.outcome not in {Outcome.EQUAL, Outcome.SKIPPED}


@dataclass(frozen=True, slots=True)
class ValueDifference:
    """A value that is no tensor and differs; what one side has not is ``ABSENT``."""

    name: str
    first: object
    second: object


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two checkpoints; true when something does.

    Attributes:
        first: The path of the first.
        second: The path of the second.
        tensors: Every tensor of both, the second's order first.
        values: The other values that differ.
        value_count: How many values that are no tensors were compared.
    """

    first: Path
    second: Path
    tensors: tuple[TensorDifference, ...]
    values: tuple[ValueDifference, ...]
    value_count: int

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs."""
        return not self.values and not any(each.is_difference for each in self.tensors)

    def __bool__(self) -> bool:
        return not self.is_equal

    def of(self, outcome: Outcome) -> tuple[TensorDifference, ...]:
        """The tensors of one outcome."""
        return tuple(each for each in self.tensors if each.outcome is outcome)

    def movers(self, count: int = 10) -> tuple[TensorDifference, ...]:
        """The tensors whose values moved most, relative to their norm: weights before all else, the farthest first."""
        moved = [each for each in self.tensors if each.comparison is not None and not each.comparison.is_equal]
        return tuple(sorted(moved, key=lambda each: (not each.in_weights, -_relative_change(each)))[:count])

    def __repr__(self) -> str:
        counts = [f"{len(self.of(outcome))} {outcome.value}" for outcome in Outcome if self.of(outcome)]
        return f"<Difference of {str(self.first)!r} and {str(self.second)!r}: {', '.join(counts)}>"


def _relative_change(difference: TensorDifference) -> float:
    return 0.0 if difference.comparison is None else difference.comparison.relative_change


def diff(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str] | None = None,
    *,
    rules: Sequence[Rule] = (),
    weights_only: bool = False,
    io_threads: int | None = None,
    progress: Progress | None = None,
) -> Difference:
    """Compare two checkpoints of any formats: names, shapes, dtypes, every value, hyper-parameters, scalars.

    Tensors are read in pieces, so memory does not grow with them. Weights that stand at different places are found and
    compared by their own names; wrapper prefixes as of DataParallel are seen through, and said.

    Args:
        first: A checkpoint of any format.
        second: Another. None to compare a checkpoint of a run with its parent, the one that its save began from.
        rules: What a plan takes, applied to the first before anything is compared: `Rename` acts on its names, `Skip`
            and `Only` on both sides, rules that adapt tensors make them with torch.
        weights_only: Compare the weights and nothing else.
        io_threads: Threads that read and compare; by default one per processor, at most 8.
        progress: Called with bytes done and bytes in all.

    Raises:
        NotFoundError, FormatError, CorruptError, UnsafeError, LimitError: As for `open`.
        PlanError: The rules give two tensors one name.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> folder = tempfile.mkdtemp()
        >>> torch.save({"w": torch.zeros(4), "epoch": 1}, f"{folder}/a.pt")
        >>> torch.save({"w": torch.ones(4), "epoch": 2}, f"{folder}/b.pt")
        >>> found = tk.diff(f"{folder}/a.pt", f"{folder}/b.pt")
        >>> found.is_equal, found.movers()[0].name, found.values[0].name
        (False, 'w', 'epoch')
    """
    if second is None:
        first, second = parent_of(Path(first)), first
    one = open_source(first)
    try:
        other = open_source(second)
        try:
            threads = threads_of(io_threads, default_threads)
            return difference_of(one, other, rules, weights_only=weights_only, threads=threads, progress=progress)
        finally:
            other.close()
    finally:
        one.close()


def parent_of(path: Path) -> Path:
    """The checkpoint in the same run that a checkpoint's save began from.

    Raises:
        FormatError: It is no torchkeep checkpoint, or the first of its run.
        NotFoundError: The parent is not there any more.
    """
    source = open_source(path)
    source.close()
    if not isinstance(source, FolderSource) or not path.is_dir():
        raise FormatError("only a folder of torchkeep has a parent", where=path, remedy="name two checkpoints")
    parent = source.record.provenance.get("parent")
    if parent is None:
        raise FormatError("it is the first of its run and has no parent", where=path, remedy="name two checkpoints")
    for each in list_run(path.resolve().parent).checkpoints:
        if each.summary.id == parent:
            return path.parent / each.path.name
    raise NotFoundError("its parent is not in the run any more", where=path, remedy="name two checkpoints")


def difference_of(
    first: Source,
    second: Source,
    rules: Sequence[Rule] = (),
    *,
    weights_only: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> Difference:
    """Compare two opened checkpoints; see `diff`."""
    from torchkeep.arithmetic.comparison import TensorComparison, compare

    one, other = align(first, second, weights_only=weights_only)
    pair = Pair(one.tensors, other.tensors, "tensors", str(second.path))
    plan = make_plan({"": pair}, rules, source=str(first.path))
    if plan.collisions:
        raise PlanError("the rules give several tensors one name", faults=plan.collisions, remedy="rename fewer")
    rows = [row for row in plan.rows if row.status in {Status.MATCHED, Status.DTYPE_DIFFERS}]
    adapted = {row.name: row for row in rows if row.recipe is not None and not isinstance(row.recipe, Part)}
    comparable = {
        row.name: (row.checkpoint, row.model)
        for row in rows
        if row.checkpoint is not None
        and row.model is not None
        and row.name not in adapted
        and row.checkpoint.shape == row.model.shape
    }
    same = {name for name, (a, b) in comparable.items() if _are_same_bytes(first, a, second, b)}
    to_read = {name: specs for name, specs in comparable.items() if name not in same}
    compared = compare(first, second, to_read, threads, progress)
    compared |= {name: TensorComparison(True, specs[0].numel) for name, specs in comparable.items() if name in same}
    compared |= {name: _compare_adapted(first, second, row, threads) for name, row in adapted.items()}
    weights = one.weights | other.weights
    tensors = tuple(_tensor_difference(row, compared.get(row.name), weights) for row in plan.rows)
    if weights_only:
        return Difference(first.path, second.path, tensors, (), 0)
    facts = _with_facts(one, first, second), _with_facts(other, second, first)
    return Difference(
        first.path, second.path, tensors, tuple(_value_differences(*facts)), len({**facts[0], **facts[1]})
    )


def _compare_adapted(first: Source, second: Source, row: Row, threads: int) -> TensorComparison:
    """Compare what rules make of tensors of the first with one of the second; torch makes it, in memory."""
    from torchkeep.arithmetic.comparison import compare
    from torchkeep.live.adapt import make_tensor
    from torchkeep.live.build import Builder
    from torchkeep.live.held import HeldTensor

    if row.recipe is None or row.model is None:
        raise ValueError(f"{row.name} is not adapted")
    build, initial = Builder(first), Builder(second).read(row.model)
    made = HeldTensor(make_tensor(row.recipe, lambda part: build.read(part.spec), initial), first.path)
    return compare(made, second, {row.name: (made.spec, row.model)}, threads)[row.name]


def _are_same_bytes(first: Source, one: TensorSpec, second: Source, other: TensorSpec) -> bool:
    """Whether two tensors are one place of one file, as in shards that checkpoints share."""
    if not isinstance(first, FolderSource) or not isinstance(second, FolderSource) or one.dtype != other.dtype:
        return False
    return first.place_of(one) == second.place_of(other)


def _tensor_difference(row: Row, comparison: TensorComparison | None, weights: frozenset[str]) -> TensorDifference:
    first_name = row.checkpoint_name or row.name
    in_weights = row.name in weights or first_name in weights
    outcome = _outcome(row, comparison)
    return TensorDifference(row.name, outcome, row.checkpoint, row.model, first_name, comparison, in_weights)


def _outcome(row: Row, comparison: TensorComparison | None) -> Outcome:
    if row.status is Status.SKIPPED:
        return Outcome.SKIPPED
    if row.checkpoint is None:
        return Outcome.ONLY_IN_SECOND
    if row.model is None:
        return Outcome.ONLY_IN_FIRST
    if comparison is None:
        return Outcome.SHAPE_DIFFERS
    if row.checkpoint.dtype != row.model.dtype:
        return Outcome.DTYPE_DIFFERS
    if not comparison.is_bit_equal:
        return Outcome.VALUES_DIFFER
    # A name that a rule changed was meant to.
    by_wrapper = Change.RENAMED in row.changes and "wrapper segments" in row.reason
    return Outcome.NAME_DIFFERS if by_wrapper else Outcome.EQUAL


def _with_facts(named: Named, source: Source, other: Source) -> dict[str, object]:
    """The values of a checkpoint, and where both are of torchkeep the step and the metrics of its record."""
    if not isinstance(source, FolderSource) or not isinstance(other, FolderSource):
        return dict(named.values)
    facts: dict[str, object] = {"(step)": source.record.step}
    facts |= {f"(metric) {name}": value for name, value in metrics_of(source.record).items()}
    return {**facts, **named.values}


def _value_differences(first: Mapping[str, object], second: Mapping[str, object]) -> Iterator[ValueDifference]:
    for name in {**second, **first}:
        one, other = first.get(name, ABSENT), second.get(name, ABSENT)
        if not is_same_value(one, other):
            yield ValueDifference(name, one, other)


def _leaves(node: object) -> list[object]:
    """Every path of a value, and the leaf there."""
    return [each for path, leaf in walk(node) for each in (name_of(path), leaf)]


def is_same_value(one: object, other: object) -> bool:
    """Whether two leaves of trees say the same: NaN is itself, and what is of unknown classes is as it is described.

    Example:
        >>> is_same_value(float("nan"), float("nan")), is_same_value(True, 1), is_same_value(1, 1.0)
        (True, False, True)
    """
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same_value, one, other))
    if isinstance(one, Described) and isinstance(other, Described):
        return one.class_path == other.class_path and is_same_value(_leaves(one), _leaves(other))
    if isinstance(one, Namespace) and isinstance(other, Namespace):
        return is_same_value(_leaves(vars(one)), _leaves(vars(other)))
    try:
        return bool(one == other)
    except (ValueError, TypeError):
        # numpy arrays answer element by element.
        import numpy as np

        return bool(np.array_equal(np.asarray(one), np.asarray(other)))
