"""When to save and what to keep: frozen objects that compose with ``|`` (retention also with ``&``) and say why."""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

from torchkeep.folder.keeping import (
    KeepAll,
    KeepBest,
    KeepEvery,
    KeepLast,
    KeepTagged,
    KeepWithin,
    OptimizerInLast,
)
from torchkeep.folder.retention import Candidate, Decision, RetentionPolicy, decide

__all__ = [
    "Also",
    "AnyOf",
    "Candidate",
    "Decision",
    "EveryMinutes",
    "EverySteps",
    "KeepAll",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "KeepTagged",
    "KeepWithin",
    "Moment",
    "OnException",
    "OnPreemption",
    "OptimizerInLast",
    "RetentionPolicy",
    "SaveWhen",
    "Staging",
    "decide",
]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_GRACE_SECONDS = 30.0


class Also(enum.Flag):
    """What a manager keeps of its modules beside their state dicts, when asked.

    Attributes:
        GRADIENTS: Gradients that are there: for saves between two backward passes of one accumulation.
        NON_PERSISTENT_BUFFERS: Buffers that a state dict leaves out.

    Example:
        >>> Also.GRADIENTS | Also.NON_PERSISTENT_BUFFERS
        <Also.GRADIENTS|NON_PERSISTENT_BUFFERS: 3>
    """

    NOTHING = 0
    GRADIENTS = enum.auto()
    NON_PERSISTENT_BUFFERS = enum.auto()


@dataclass(frozen=True, slots=True)
class Moment:
    """When a policy is asked whether a save is due.

    Attributes:
        step: The index of the step that is finished.
        last_saved_step: That of the last save begun, or of the checkpoint resumed from.
        seconds_since_save: Seconds since then, or since the manager was made; by a clock that does not jump.
        signal: The number of a signal that asked the process to end, or None.
        exception: Whether the program is leaving the manager by an exception.
    """

    step: int
    last_saved_step: int | None = None
    seconds_since_save: float = 0.0
    signal: int | None = None
    exception: bool = False


class SaveWhen:
    """Decides after each step whether a save is due; ``a | b`` saves when either says so."""

    __slots__ = ()

    def is_due(self, moment: Moment) -> bool:
        """Whether to save now."""
        raise NotImplementedError

    @property
    def parts(self) -> tuple[SaveWhen, ...]:
        """The policies it is made of."""
        return (self,)

    def __or__(self, other: SaveWhen) -> AnyOf:
        _refuse_to_join(self, other)
        if not isinstance(other, SaveWhen):
            return NotImplemented
        return AnyOf((*self.parts, *other.parts))

    def __ror__(self, other: object) -> AnyOf:
        _refuse_to_join(self, other)
        return NotImplemented


def _refuse_to_join(when: SaveWhen, other: object) -> None:
    if isinstance(other, RetentionPolicy):
        raise TypeError(
            f"{when!r} says when to save and {other!r} what to keep: they do not join; "
            f"give each its own name: save_when={when!r}, retain={other!r}"
        )


@dataclass(frozen=True, slots=True)
class AnyOf(SaveWhen):
    """Save when any of several policies says so; what ``|`` between two makes."""

    policies: tuple[SaveWhen, ...]

    @property
    def parts(self) -> tuple[SaveWhen, ...]:
        """The policies themselves."""
        return self.policies

    def is_due(self, moment: Moment) -> bool:
        """Whether one of them is due."""
        return any(policy.is_due(moment) for policy in self.policies)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.policies))


class Staging(enum.Enum):
    """When a manager's save copies what changed.

    `AT_ONCE`: before `save` returns. `OVERLAPPED`: parameters and state of the optimizers in the state are copied
    during the next forward and backward, and what is frozen is compared then; ``optimizer.step`` waits for the rest;
    everything else at once. They must change by a step only: what moved before it after the first save is copied at
    once from then on, as a note says.
    """

    AT_ONCE = "at once"
    OVERLAPPED = "overlapped"


@dataclass(frozen=True, slots=True)
class EverySteps(SaveWhen):
    """Save when the number of finished steps is a multiple of `steps`: after the steps 499, 999, ... for 500.

    Args:
        steps: 1 or more.

    Raises:
        ValueError: `steps` is not a positive integer.

    Example:
        >>> [step for step in range(6) if EverySteps(2).is_due(Moment(step, last_saved_step=step - 1))]
        [1, 3, 5]
    """

    steps: int

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 1:
            raise ValueError(f"EverySteps takes a number of steps of 1 or more; not {self.steps!r}")

    def is_due(self, moment: Moment) -> bool:
        """Whether a multiple was reached since the last save, also when steps were left out or counting went back."""
        before = -1 if moment.last_saved_step is None else moment.last_saved_step
        before = moment.step - 1 if moment.step < before else before
        return (moment.step + 1) // self.steps > (before + 1) // self.steps


@dataclass(frozen=True, slots=True)
class EveryMinutes(SaveWhen):
    """Save at the first step that ends `minutes` or more after the last save began.

    Args:
        minutes: More than 0; fractions are fine.

    Raises:
        ValueError: `minutes` is not a positive number.

    Example:
        >>> (
        ...     EveryMinutes(10).is_due(Moment(7, seconds_since_save=599)),
        ...     EveryMinutes(0.5).is_due(Moment(7, seconds_since_save=30)),
        ... )
        (False, True)
    """

    minutes: float

    def __post_init__(self) -> None:
        if isinstance(self.minutes, bool) or not isinstance(self.minutes, (int, float)) or not self.minutes > 0:
            raise ValueError(f"EveryMinutes takes a number of minutes above 0; not {self.minutes!r}")

    def is_due(self, moment: Moment) -> bool:
        """Whether that time is over."""
        return moment.seconds_since_save >= self.minutes * 60


@dataclass(frozen=True, slots=True)
class OnPreemption(SaveWhen):
    """Save at the end of the step during which a signal asked the process to end; then end it.

    The manager's ``with`` block handles the signals: the first sets a flag and a deadline and nothing else.
    `after_step` then saves, waits for the commit, logs what it saved, and raises `torchkeep.errors.Preempted`, which
    exits with 128 + the signal's number. A second signal, three seconds or more after the first, ends the process at
    once: the last commit stays. `DataLoader` workers ignore the signals. When every rank of a group calls `after_step`,
    all of them save at the same step, whichever of them got the signal.

    Args:
        signals: Those that mean it.
        grace_seconds: How long the sender of the first waits before it kills; the log says how much of it was left.

    Raises:
        ValueError: A signal that cannot be handled, or a grace that is no positive number.

    Example:
        >>> OnPreemption().is_due(Moment(7, signal=15)), OnPreemption().is_due(Moment(7))
        (True, False)
        >>> OnPreemption(), OnPreemption(signals=(15,), grace_seconds=60)
        (OnPreemption(), OnPreemption(signals=(signal.SIGTERM,), grace_seconds=60))
    """

    signals: tuple[signal.Signals, ...] = _SIGNALS
    grace_seconds: float = _GRACE_SECONDS

    def __post_init__(self) -> None:
        numbers = tuple(signal.Signals(each) for each in self.signals)
        object.__setattr__(self, "signals", numbers)
        if not numbers or {signal.SIGKILL, signal.SIGSTOP} & set(numbers):
            raise ValueError(f"OnPreemption takes signals that a process can handle; not {self.signals!r}")
        if isinstance(self.grace_seconds, bool) or not self.grace_seconds > 0:
            raise ValueError(f"OnPreemption takes a grace of more than 0 seconds; not {self.grace_seconds!r}")

    def is_due(self, moment: Moment) -> bool:
        """Whether such a signal came."""
        return moment.signal is not None

    def __repr__(self) -> str:
        """What differs from the defaults, as code."""
        signals = "".join(f"signal.{each.name}, " for each in self.signals)
        parts = [f"signals=({signals.removesuffix(' ' if len(self.signals) == 1 else ', ')})"]
        parts = [] if self.signals == _SIGNALS else parts
        parts += [] if self.grace_seconds == _GRACE_SECONDS else [f"grace_seconds={self.grace_seconds!r}"]
        return f"OnPreemption({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class OnException(SaveWhen):
    """Save when the program leaves the manager's ``with`` block by an exception, if its last step is not saved yet.

    The step that failed may have changed part of the state, so a resume of such a checkpoint is not exact, and says so.

    Example:
        >>> OnException().is_due(Moment(7, exception=True)), OnException().is_due(Moment(7))
        (True, False)
    """

    def is_due(self, moment: Moment) -> bool:
        """Whether that happened."""
        return moment.exception
