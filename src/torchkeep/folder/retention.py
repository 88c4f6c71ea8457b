"""Which checkpoints of a run stay, and why: policies as values, decided without touching a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Candidate:
    """A committed checkpoint as retention sees it."""

    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one policy says of one checkpoint. `notable`: the reason matters even where another policy keeps it."""

    keep: bool
    reason: str
    notable: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a checkpoint stays: why it does, or every reason why it does not."""

    step: int
    keep: bool
    reasons: tuple[str, ...]


class RetentionPolicy:
    """What to keep of a run; ``a | b`` keeps what either keeps."""

    __slots__ = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that a checkpoint must have to be judged."""
        return ()

    def judge(self, checkpoints: Sequence[Candidate]) -> list[list[Verdict]]:
        """For each checkpoint, in order of rising steps, one verdict per policy."""
        raise NotImplementedError

    def __or__(self, other: RetentionPolicy) -> RetentionPolicy:
        """Keep what either keeps."""
        if not isinstance(other, RetentionPolicy):
            return NotImplemented
        return KeepAny((*_parts(self), *_parts(other)))


@dataclass(frozen=True, slots=True)
class KeepAny(RetentionPolicy):
    """Keep what any of some policies keeps; ``a | b`` makes it.

    Example:
        >>> KeepLast(3) | KeepBest(2, "val_acc", mode="max")
        KeepLast(3) | KeepBest(2, 'val_acc', mode='max')
    """

    policies: tuple[RetentionPolicy, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of all its policies, each once."""
        return tuple(dict.fromkeys(metric for policy in self.policies for metric in policy.metrics))

    def judge(self, checkpoints: Sequence[Candidate]) -> list[list[Verdict]]:
        """Every policy's verdicts, checkpoint by checkpoint."""
        judged = zip(*(policy.judge(checkpoints) for policy in self.policies), strict=True)
        return [[verdict for verdicts in each for verdict in verdicts] for each in judged]

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.policies))


def _parts(policy: RetentionPolicy) -> tuple[RetentionPolicy, ...]:
    return policy.policies if isinstance(policy, KeepAny) else (policy,)


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


@dataclass(frozen=True, slots=True)
class KeepLast(RetentionPolicy):
    """Keep the newest `n` by step.

    Raises:
        ValueError: `n` is not a positive integer.

    Example:
        >>> for decision in decide(KeepLast(1), [Candidate(100), Candidate(200)]):
        ...     print(decision)
        Decision(step=100, keep=False, reasons=('not the last',))
        Decision(step=200, keep=True, reasons=('the newest', 'the last'))
    """

    n: int

    def __post_init__(self) -> None:
        _check_positive("n", self.n)

    def judge(self, checkpoints: Sequence[Candidate]) -> list[list[Verdict]]:
        """Keep those at the end."""
        what = "the last" if self.n == 1 else f"in the last {self.n}"
        kept = len(checkpoints) - self.n
        return [[_verdict(what, keep=at >= kept)] for at in range(len(checkpoints))]

    def __repr__(self) -> str:
        return f"KeepLast({self.n})"


@dataclass(frozen=True, slots=True)
class KeepEvery(RetentionPolicy):
    """Keep every checkpoint after which the number of finished steps is a multiple of `steps`: 999, 1999, ... for 1000.

    Raises:
        ValueError: `steps` is not a positive integer.

    Example:
        >>> [
        ...     decision.step
        ...     for decision in decide(KeepEvery(1000), map(Candidate, range(499, 3500, 500)))
        ...     if decision.keep
        ... ]
        [999, 1999, 2999, 3499]
    """

    steps: int

    def __post_init__(self) -> None:
        _check_positive("steps", self.steps)

    def judge(self, checkpoints: Sequence[Candidate]) -> list[list[Verdict]]:
        """Keep multiples, counted like `EverySteps` counts: step 999 is the thousandth."""
        what = f"after a multiple of {self.steps} steps"
        return [[_verdict(what, keep=(checkpoint.step + 1) % self.steps == 0)] for checkpoint in checkpoints]

    def __repr__(self) -> str:
        return f"KeepEvery({self.steps})"


@dataclass(frozen=True, slots=True)
class KeepBest(RetentionPolicy):
    """Keep the best `n` by a metric; of equal ones the newer. One without the metric, or with NaN, is never best.

    Raises:
        ValueError: `n` is not a positive integer, or `mode` is neither ``"max"`` nor ``"min"``.

    Example:
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
        _check_positive("n", self.n)
        if self.mode not in ("max", "min"):
            raise ValueError(f"mode must be 'max' or 'min', not {self.mode!r}")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The one it ranks by."""
        return (self.metric,)

    def judge(self, checkpoints: Sequence[Candidate]) -> list[list[Verdict]]:
        """Keep the best of those that have the metric."""
        sign = 1 if self.mode == "max" else -1
        values = [checkpoint.metrics.get(self.metric, math.nan) for checkpoint in checkpoints]
        ranked = sorted((sign * value, at) for at, value in enumerate(values) if not math.isnan(value))
        best = {at for _, at in ranked[-self.n :]}
        what = f"the best by {self.metric}" if self.n == 1 else f"among the best {self.n} by {self.metric}"
        verdicts = []
        for at, (checkpoint, value) in enumerate(zip(checkpoints, values, strict=True)):
            if math.isnan(value):
                why = f"{self.metric} is NaN" if self.metric in checkpoint.metrics else f"has no {self.metric}"
                verdicts.append([Verdict(keep=False, reason=why, notable=True)])
            else:
                verdicts.append([_verdict(what, keep=at in best, detail=f": {value:g}" if at in best else "")])
        return verdicts

    def __repr__(self) -> str:
        return f"KeepBest({self.n}, {self.metric!r}, mode={self.mode!r})"


def _verdict(what: str, *, keep: bool, detail: str = "") -> Verdict:
    return Verdict(keep, what + detail if keep else f"not {what}")


def _check_positive(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} must be a positive integer, not {value!r}")


def decide(policy: RetentionPolicy, checkpoints: Sequence[Candidate]) -> tuple[Decision, ...]:
    """Decide on every checkpoint of a run, in order of rising steps; the newest is always kept.

    Example:
        >>> run = [Candidate(step, {"acc": acc}) for step, acc in ((1, 0.9), (2, 0.5), (3, 0.7))]
        >>> for decision in decide(KeepLast(1) | KeepBest(1, "acc", mode="max"), run):
        ...     print(decision.step, decision.keep, decision.reasons)
        1 True ('the best by acc: 0.9',)
        2 False ('not the last', 'not the best by acc')
        3 True ('the newest', 'the last')
    """
    ordered = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
    judged = policy.judge(ordered)
    return tuple(
        _decision(checkpoint.step, verdicts, newest=at == len(ordered) - 1)
        for at, (checkpoint, verdicts) in enumerate(zip(ordered, judged, strict=True))
    )


def _decision(step: int, verdicts: Sequence[Verdict], *, newest: bool) -> Decision:
    keep = newest or any(verdict.keep for verdict in verdicts)
    reasons = [verdict.reason for verdict in verdicts if verdict.keep or verdict.notable or not keep]
    return Decision(step, keep, ("the newest", *reasons) if newest else tuple(reasons))
