"""Which checkpoints of a run stay, and why: what a policy is, how two join, and the decision on a whole run.

All of it is pure: nothing here touches a file. The policies themselves are in `keeping`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Candidate:
    """A committed checkpoint as retention sees it.

    Attributes:
        step: The step last finished.
        metrics: Numbers remembered with it.
        tags: Its tags.
        nonfinite: Whether parameters or optimizer state of it hold NaN or inf.
        files: Bytes of each of its files, by what tells it apart on the disk: one that two share has equal keys.
        has_optimizers: Whether it may still hold optimizer state.
    """

    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    nonfinite: bool = False
    files: Mapping[Hashable, int] = field(default_factory=dict)
    has_optimizers: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one policy says of one checkpoint.

    Attributes:
        keep: Whether it keeps it.
        reason: Why, or why not.
        notable: The reason matters even where another policy keeps it.
        drops_optimizers: It does not keep the optimizers of it.
    """

    keep: bool
    reason: str
    notable: bool = False
    drops_optimizers: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a checkpoint stays: why it does, or every reason why it does not; and whether its optimizers go."""

    step: int
    keep: bool
    reasons: tuple[str, ...]
    drops_optimizers: bool = False


class RetentionPolicy:
    """What to keep of a run; ``a | b`` keeps what either keeps, ``a & b`` what `b` keeps of what `a` keeps."""

    __slots__ = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that a checkpoint must have to be judged."""
        return ()

    def judge(self, checkpoints: Sequence[Candidate]) -> list[list[Verdict]]:
        """For each checkpoint, in order of rising steps, one verdict per policy."""
        raise NotImplementedError

    def most_bytes(self, each_bytes: int) -> int | None:
        """The most bytes that are kept at once of checkpoints that take so many each; None: it grows with the run."""
        raise NotImplementedError

    def __or__(self, other: RetentionPolicy) -> RetentionPolicy:
        """Keep what either keeps."""
        if not isinstance(other, RetentionPolicy):
            return NotImplemented
        return KeepAny((*_parts(self), *_parts(other)))

    def __and__(self, other: RetentionPolicy) -> RetentionPolicy:
        """Keep what the other keeps of what this one keeps."""
        if not isinstance(other, RetentionPolicy):
            return NotImplemented
        return KeepBoth(self, other)


@dataclass(frozen=True, slots=True)
class KeepAny(RetentionPolicy):
    """Keep what any of some policies keeps; ``a | b`` makes it.

    Example:
        >>> from torchkeep.policies import KeepBest, KeepLast
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

    def most_bytes(self, each_bytes: int) -> int | None:
        """The sum, as if no checkpoint were kept by two."""
        most = [policy.most_bytes(each_bytes) for policy in self.policies]
        return None if None in most else sum(each for each in most if each is not None)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.policies))


def _parts(policy: RetentionPolicy) -> tuple[RetentionPolicy, ...]:
    return policy.policies if isinstance(policy, KeepAny) else (policy,)


@dataclass(frozen=True, slots=True)
class KeepBoth(RetentionPolicy):
    """Keep what `second` keeps of what `first` keeps; ``a & b`` makes it.

    The newest, which always stays, counts for `second` even where `first` does not keep it.

    Example:
        >>> from torchkeep.policies import KeepEvery, KeepLast
        >>> both = KeepEvery(10) & KeepLast(2)
        >>> both, [each.step for each in decide(both, map(Candidate, range(4, 45, 5))) if each.keep]
        (KeepEvery(10) & KeepLast(2), [39, 44])
    """

    first: RetentionPolicy
    second: RetentionPolicy

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of both, each once."""
        return tuple(dict.fromkeys((*self.first.metrics, *self.second.metrics)))

    def judge(self, checkpoints: Sequence[Candidate]) -> list[list[Verdict]]:
        """The first one's verdicts where it does not keep; else the second one's, with the first one's reasons."""
        judged = self.first.judge(checkpoints)
        newest = len(checkpoints) - 1
        stay = [at for at, verdicts in enumerate(judged) if at == newest or any(each.keep for each in verdicts)]
        for at, seconds in zip(stay, self.second.judge([checkpoints[at] for at in stay]), strict=True):
            firsts = judged[at]
            if not any(each.keep for each in firsts):
                continue
            if any(each.keep for each in seconds):
                drops = _drops_optimizers(firsts) or _drops_optimizers(seconds)
                judged[at] = [replace(each, drops_optimizers=drops) for each in (*firsts, *seconds) if each.keep]
            else:
                judged[at] = seconds
        return judged

    def most_bytes(self, each_bytes: int) -> int | None:
        """The lesser."""
        most = [each.most_bytes(each_bytes) for each in (self.first, self.second)]
        return min((each for each in most if each is not None), default=None)

    def __repr__(self) -> str:
        return joined_by_and(self, repr)


def joined_by_and(both: KeepBoth, text_of: Callable[[RetentionPolicy], str]) -> str:
    """Both policies as text, in the parentheses that make of it the same again."""
    first, second = text_of(both.first), text_of(both.second)
    first = f"({first})" if isinstance(both.first, KeepAny) else first
    return f"{first} & " + (f"({second})" if isinstance(both.second, (KeepAny, KeepBoth)) else second)


def _drops_optimizers(verdicts: Sequence[Verdict]) -> bool:
    """Whether no policy that keeps a checkpoint keeps its optimizers."""
    return all(verdict.drops_optimizers for verdict in verdicts if verdict.keep)


def decide(policy: RetentionPolicy, checkpoints: Sequence[Candidate]) -> tuple[Decision, ...]:
    """Decide on every checkpoint of a run, in order of rising steps.

    The newest is always kept, and so is the newest that holds no NaN or inf; both keep their optimizers.

    Example:
        >>> from torchkeep.policies import KeepBest, KeepLast
        >>> run = [Candidate(step, {"acc": acc}) for step, acc in ((1, 0.9), (2, 0.5), (3, 0.7))]
        >>> for decision in decide(KeepLast(1) | KeepBest(1, "acc", mode="max"), run):
        ...     print(decision.step, decision.keep, decision.reasons)
        1 True ('the best by acc: 0.9',)
        2 False ('not the last', 'not the best by acc')
        3 True ('the newest', 'the last')
    """
    ordered = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
    judged = policy.judge(ordered)
    finite = [at for at, checkpoint in enumerate(ordered) if not checkpoint.nonfinite]
    always = {len(ordered) - 1: "the newest"}
    if finite:
        always.setdefault(finite[-1], "the newest without NaN or inf")
    return tuple(
        _decision(checkpoint.step, verdicts, always.get(at))
        for at, (checkpoint, verdicts) in enumerate(zip(ordered, judged, strict=True))
    )


def _decision(step: int, verdicts: Sequence[Verdict], always: str | None) -> Decision:
    keep = always is not None or any(verdict.keep for verdict in verdicts)
    reasons = [verdict.reason for verdict in verdicts if verdict.keep or verdict.notable or not keep]
    if always is not None:
        return Decision(step, keep, (always, *reasons))
    return Decision(step, keep, tuple(reasons), drops_optimizers=keep and _drops_optimizers(verdicts))
