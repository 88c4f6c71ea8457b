"""When to save and what to keep: frozen objects that compose with ``|`` and say why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torchkeep.folder.retention import (
    Candidate,
    Decision,
    KeepAll,
    KeepBest,
    KeepEvery,
    KeepLast,
    RetentionPolicy,
    decide,
)

__all__ = [
    "AnyOf",
    "Candidate",
    "Decision",
    "EverySteps",
    "KeepAll",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "RetentionPolicy",
    "SaveWhen",
    "decide",
]


class SaveWhen(Protocol):
    """Decides after each step whether a save is due."""

    def is_due(self, step: int, last_saved_step: int | None) -> bool:
        """Whether to save now that a step is finished."""


@dataclass(frozen=True, slots=True)
class EverySteps:
    """Save when the number of finished steps is a multiple of `steps`: after the steps 499, 999, ... for 500.

    Args:
        steps: 1 or more.

    Raises:
        ValueError: `steps` is not a positive integer.

    Example:
        >>> EverySteps(2).is_due(1, None), EverySteps(2).is_due(2, 1), EverySteps(2).is_due(3, 1)
        (True, False, True)
    """

    steps: int

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 1:
            raise ValueError(f"EverySteps takes a number of steps of 1 or more; not {self.steps!r}")

    def is_due(self, step: int, last_saved_step: int | None) -> bool:
        """Whether a multiple of `steps` was reached since the last save, also when steps were left out."""
        before = -1 if last_saved_step is None else last_saved_step
        return (step + 1) // self.steps > (before + 1) // self.steps

    def __or__(self, other: SaveWhen) -> AnyOf:
        return AnyOf((self, other))


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Save when any of several policies says so; what ``|`` between two makes."""

    policies: tuple[SaveWhen, ...]

    def is_due(self, step: int, last_saved_step: int | None) -> bool:
        """Whether one of them is due."""
        return any(policy.is_due(step, last_saved_step) for policy in self.policies)

    def __or__(self, other: SaveWhen) -> AnyOf:
        return AnyOf((*self.policies, other))
