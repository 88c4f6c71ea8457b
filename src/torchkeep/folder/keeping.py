"""The policies of retention; how they join and what is decided is in `retention`."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torchkeep.folder.retention import Candidate, RetentionPolicy, Verdict
from torchkeep.folder.tags import tags_from
from torchkeep.tensors import format_bytes


@dataclass(frozen=True, slots=True)
class KeepAll(RetentionPolicy):
    """Keep every checkpoint.

    Example:
        >>> KeepAll()
        KeepAll()
    """

    def judge(self, checkpoints: Sequence[Candidate]) -> list[list[Verdict]]:
        """Keep, always."""
        return [[Verdict(keep=True, reason="all are kept")] for _ in checkpoints]

    def most_bytes(self, each_bytes: int) -> int | None:  # noqa: ARG002 - whatever it is
        """It grows with the run."""
        return None


@dataclass(frozen=True, slots=True)
class KeepLast(RetentionPolicy):
    """Keep the newest `n` by step.

    Raises:
        ValueError: `n` is not a positive integer.

    Example:
        >>> from torchkeep.policies import decide
        >>> for decision in decide(KeepLast(1), [Candidate(100), Candidate(200)]):
        ...     print(decision.step, decision.keep, decision.reasons)
        100 False ('not the last',)
        200 True ('the newest', 'the last')
    """

    n: int

    def __post_init__(self) -> None:
        _refuse(*_positive("KeepLast", "n", self.n))

    def judge(self, checkpoints: Sequence[Candidate]) -> list[list[Verdict]]:
        """Keep those at the end."""
        what = "the last" if self.n == 1 else f"in the last {self.n}"
        kept = len(checkpoints) - self.n
        return [[_verdict(what, keep=at >= kept)] for at in range(len(checkpoints))]

    def most_bytes(self, each_bytes: int) -> int | None:
        """That of `n`."""
        return self.n * each_bytes

    def __repr__(self) -> str:
        return f"KeepLast({self.n})"


@dataclass(frozen=True, slots=True)
class KeepEvery(RetentionPolicy):
    """Keep every checkpoint after which the number of finished steps is a multiple of `steps`: 999, 1999, ... for 1000.

    Raises:
        ValueError: `steps` is not a positive integer.

    Example:
        >>> from torchkeep.policies import decide
        >>> [
        ...     decision.step
        ...     for decision in decide(KeepEvery(1000), map(Candidate, range(499, 3500, 500)))
        ...     if decision.keep
        ... ]
        [999, 1999, 2999, 3499]
    """

    steps: int

    def __post_init__(self) -> None:
        _refuse(*_positive("KeepEvery", "steps", self.steps))

    def judge(self, checkpoints: Sequence[Candidate]) -> list[list[Verdict]]:
        """Keep multiples, counted like `EverySteps` counts: step 999 is the thousandth."""
        what = f"after a multiple of {self.steps} steps"
        return [[_verdict(what, keep=(checkpoint.step + 1) % self.steps == 0)] for checkpoint in checkpoints]

    def most_bytes(self, each_bytes: int) -> int | None:  # noqa: ARG002 - whatever it is
        """It grows with the run."""
        return None

    def __repr__(self) -> str:
        return f"KeepEvery({self.steps})"


@dataclass(frozen=True, slots=True)
class KeepBest(RetentionPolicy):
    """Keep the best `n` by a metric; of equal ones the newer. Join several with ``|`` for several metrics.

    One without the metric, with NaN for it, or with NaN or inf in its parameters, is never best.

    Raises:
        ValueError: `n` is not a positive integer, `metric` no name, or `mode` neither ``"max"`` nor ``"min"``.

    Example:
        >>> from torchkeep.policies import decide
        >>> run = [Candidate(1, {"loss": 0.5}), Candidate(2, {"loss": 0.3}), Candidate(3, {})]
        >>> for decision in decide(KeepBest(1, "loss", mode="min"), run):
        ...     print(decision.step, decision.keep, decision.reasons)
        1 False ('not the best by loss',)
        2 True ('the best by loss: 0.3',)
        3 True ('the newest', 'has no loss')
    """

    n: int
    metric: str
    mode: Literal["max", "min"] = field(kw_only=True)

    def __post_init__(self) -> None:
        faults = list(_positive("KeepBest", "n", self.n))
        if not isinstance(self.metric, str) or not self.metric:
            faults.append(f"KeepBest: metric must be the name of a metric, not {self.metric!r}")
        if self.mode not in ("max", "min"):
            faults.append(f"KeepBest: mode must be 'max' or 'min', not {self.mode!r}")
        _refuse(*faults)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The one it ranks by."""
        return (self.metric,)

    def judge(self, checkpoints: Sequence[Candidate]) -> list[list[Verdict]]:
        """Keep the best of those that have the metric and are finite."""
        sign = 1 if self.mode == "max" else -1
        values = [checkpoint.metrics.get(self.metric, math.nan) for checkpoint in checkpoints]
        faults = [_fault(each, self.metric) for each in checkpoints]
        ranked = sorted(
            (sign * value, at) for at, (value, fault) in enumerate(zip(values, faults, strict=True)) if not fault
        )
        best = {at for _, at in ranked[-self.n :]}
        what = f"the best by {self.metric}" if self.n == 1 else f"among the best {self.n} by {self.metric}"
        return [
            [Verdict(keep=False, reason=fault, notable=True)]
            if fault
            else [_verdict(what, keep=at in best, detail=f": {value:g}" if at in best else "")]
            for at, (value, fault) in enumerate(zip(values, faults, strict=True))
        ]

    def most_bytes(self, each_bytes: int) -> int | None:
        """That of `n`, and of the newest, which is kept besides."""
        return (self.n + 1) * each_bytes

    def __repr__(self) -> str:
        return f"KeepBest({self.n}, {self.metric!r}, mode={self.mode!r})"


def _fault(checkpoint: Candidate, metric: str) -> str | None:
    """Why a checkpoint cannot be the best by a metric."""
    if metric not in checkpoint.metrics:
        return f"has no {metric}"
    if math.isnan(checkpoint.metrics[metric]):
        return f"{metric} is NaN"
    return "holds NaN or inf" if checkpoint.nonfinite else None


@dataclass(frozen=True, slots=True)
class KeepTagged(RetentionPolicy):
    """Keep what has one of some tags; without names, whatever has a tag.

    Raises:
        ValueError: One cannot be a tag: it is empty, or holds a slash or what does not print.

    Example:
        >>> from torchkeep.policies import decide
        >>> run = [Candidate(1, tags=("paper",)), Candidate(2), Candidate(3)]
        >>> [(each.step, each.keep, each.reasons) for each in decide(KeepTagged(), run)][:2]
        [(1, True, ('tagged paper',)), (2, False, ('not tagged',))]
    """

    tags: tuple[str, ...]

    def __init__(self, *tags: str) -> None:
        object.__setattr__(self, "tags", tags_from(tags))

    def judge(self, checkpoints: Sequence[Candidate]) -> list[list[Verdict]]:
        """Keep those that have one."""
        what = f"tagged {' or '.join(self.tags)}".rstrip()
        judged = []
        for checkpoint in checkpoints:
            having = [tag for tag in checkpoint.tags if not self.tags or tag in self.tags]
            reason = f"tagged {', '.join(having)}" if having else f"not {what}"
            judged.append([Verdict(keep=bool(having), reason=reason)])
        return judged

    def most_bytes(self, each_bytes: int) -> int | None:  # noqa: ARG002 - whatever it is
        """Nothing by itself: tags are given by hand."""
        return 0

    def __repr__(self) -> str:
        return f"KeepTagged({', '.join(map(repr, self.tags))})"


@dataclass(frozen=True, slots=True)
class KeepWithin(RetentionPolicy):
    """Keep as many as fit into so many bytes, the sparser the older they are.

    While they take more, the one goes whose neighbours are closest for its age: the least of (next step - previous
    step) / (newest step - its step); the oldest goes last. What that leaves is spread over the whole run in growing
    distances. Bytes that checkpoints share count once, and one whose removal would free nothing goes only when no other
    is left.

    Raises:
        ValueError: `size_bytes` is not a positive integer.

    Example:
        >>> from torchkeep.policies import decide
        >>> run = [Candidate(step, files={step: 10}) for step in range(0, 1600, 100)]
        >>> [each.step for each in decide(KeepWithin(60), run) if each.keep]
        [0, 800, 1200, 1300, 1400, 1500]
    """

    size_bytes: int

    def __post_init__(self) -> None:
        _refuse(*_positive("KeepWithin", "size_bytes", self.size_bytes, ", as 20 * 10**9"))

    def judge(self, checkpoints: Sequence[Candidate]) -> list[list[Verdict]]:
        """Keep what is left."""
        kept = self._kept(checkpoints)
        what = f"what fits into {format_bytes(self.size_bytes)}"
        reasons = {True: f"within {what}", False: f"over {what}"}
        return [[Verdict(keep=at in kept, reason=reasons[at in kept])] for at in range(len(checkpoints))]

    def _kept(self, checkpoints: Sequence[Candidate]) -> list[int]:
        kept = list(range(len(checkpoints)))
        holders: dict[Hashable, int] = {}
        sizes: dict[Hashable, int] = {}
        for checkpoint in checkpoints:
            for file, size in checkpoint.files.items():
                holders[file] = holders.get(file, 0) + 1
                sizes[file] = size
        total = sum(sizes.values())
        while total > self.size_bytes and len(kept) > 1:
            freed = {at: sum(n for file, n in checkpoints[at].files.items() if holders[file] == 1) for at in kept[:-1]}
            most = max(freed.values())
            _, goes = min(
                (_distance_for_age([checkpoints[each].step for each in kept], place), at)
                for place, at in enumerate(kept[:-1])
                if freed[at] or not most
            )
            total -= freed[goes]
            kept.remove(goes)
            for file in checkpoints[goes].files:
                holders[file] -= 1
        return kept

    def most_bytes(self, each_bytes: int) -> int | None:
        """Its size, or one checkpoint if that is more."""
        return max(self.size_bytes, each_bytes)

    def __repr__(self) -> str:
        return f"KeepWithin({self.size_bytes})"


def _distance_for_age(steps: Sequence[int], place: int) -> float:
    """How far apart the neighbours of a checkpoint are, over how long before the newest it was."""
    if place == 0:
        return math.inf
    return (steps[place + 1] - steps[place - 1]) / (steps[-1] - steps[place])


@dataclass(frozen=True, slots=True)
class OptimizerInLast(RetentionPolicy):
    """Keep every checkpoint, but optimizers only in the newest `n`; older ones keep their weights.

    It keeps all, so it thins what another policy keeps: ``KeepLast(20) & OptimizerInLast(2)``.

    Raises:
        ValueError: `n` is not a positive integer.

    Example:
        >>> from torchkeep.policies import KeepLast, decide
        >>> run = [Candidate(step) for step in range(4)]
        >>> [(each.step, each.drops_optimizers) for each in decide(KeepLast(3) & OptimizerInLast(2), run) if each.keep]
        [(1, True), (2, False), (3, False)]
    """

    n: int

    def __post_init__(self) -> None:
        _refuse(*_positive("OptimizerInLast", "n", self.n))

    def judge(self, checkpoints: Sequence[Candidate]) -> list[list[Verdict]]:
        """Keep all, those before the last `n` without their optimizers."""
        whole = len(checkpoints) - self.n
        what = "the last" if self.n == 1 else f"in the last {self.n}"
        drop = Verdict(keep=True, reason=f"without optimizer: not {what}", drops_optimizers=True)
        keep = Verdict(keep=True, reason="all are kept")
        return [[drop if at < whole and each.has_optimizers else keep] for at, each in enumerate(checkpoints)]

    def most_bytes(self, each_bytes: int) -> int | None:  # noqa: ARG002 - whatever it is
        """It grows with the run."""
        return None

    def __repr__(self) -> str:
        return f"OptimizerInLast({self.n})"


def _verdict(what: str, *, keep: bool, detail: str = "") -> Verdict:
    return Verdict(keep, what + detail if keep else f"not {what}")


def _positive(policy: str, name: str, value: object, hint: str = "") -> Iterator[str]:
    """What is wrong with a number of a policy that has to be an integer of 1 or more."""
    if type(value) is not int or value < 1:
        yield f"{policy}: {name} must be a positive integer{hint}, not {value!r}"


def _refuse(*faults: str) -> None:
    if faults:
        raise ValueError("\n".join(faults))


KINDS: Mapping[str, Callable[..., RetentionPolicy]] = {
    each.__name__: each for each in (KeepAll, KeepBest, KeepEvery, KeepLast, KeepTagged, KeepWithin, OptimizerInLast)
}
