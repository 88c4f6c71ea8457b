"""`prove`: run some steps, restore, run them again, and compare every bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torchkeep.errors import CheckpointError
from torchkeep.manager.scratch import first_difference, leaves_of, scratch
from torchkeep.manager.session import Session

TrainStep = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Proof:
    """Whether replayed steps were bit for bit the same; true if so.

    Attributes:
        steps: The steps that were replayed.
        compared: How many tensors, values and random states were compared after each.
        diverged_at: The step after which something differed; -1 if it did right after the restore; None if nothing did.
        state: The first state that differed, what steers a step before what follows from it.
        how: What differed in it.
        also: How many other states differed then.
        hints: State that exists and is not registered.
    """

    steps: tuple[int, ...]
    compared: int
    diverged_at: int | None = None
    state: str = ""
    how: str = ""
    also: int = 0
    hints: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether nothing differed."""
        return self.diverged_at is None

    def __bool__(self) -> bool:
        return self.is_exact

    def require(self) -> Proof:
        """This proof, if it is one.

        Raises:
            CheckpointError: Something differed; it is named.
        """
        if not self.is_exact:
            raise CheckpointError("a resume would not be exact", faults=str(self).splitlines())
        return self

    def __str__(self) -> str:
        count = f"{len(self.steps)} step{'' if len(self.steps) == 1 else 's'}"
        if self.diverged_at is None:
            return f"{count} replayed bit for bit: {self.compared:,} tensors, values and random states equal after each"
        when = "right after the restore" if self.diverged_at < 0 else f"after step {self.diverged_at}, replayed"
        others = f", and {self.also:,} more" if self.also else ""
        return "\n".join([f"diverged {when}: {self.state}: {self.how}{others}", *self.hints])


def prove(session: Session, train_step: TrainStep, count: int) -> Proof:
    """Run `count` steps, restore, run them again; see `CheckpointManager.prove`. All is put back at the end."""
    held, first = session.held, 0 if session.last_step is None else session.last_step + 1
    steps = tuple(range(first, first + count))
    with scratch(session) as saved:
        before = leaves_of(held)
        try:
            seen = [_run(train_step, step, held) for step in steps]
            saved.restore()
            diverged = _compare(steps, -1, before, leaves_of(held))
            for step, expected in zip(steps, seen, strict=True):
                if diverged is not None:
                    break
                diverged = _compare(steps, step, expected, _run(train_step, step, held))
        finally:
            saved.restore()
    return Proof(steps, len(seen[-1])) if diverged is None else diverged


def _run(train_step: TrainStep, step: int, held: Mapping[str, object]) -> dict[str, str]:
    result = train_step(step)
    return {**leaves_of(held), "what the step returned": _text_of(result)}


def _text_of(result: object) -> str:
    """What a step returned, as text that is equal only for equal bits."""
    if isinstance(result, Mapping):
        return json.dumps({str(name): _text_of(value) for name, value in result.items()})
    if isinstance(result, (list, tuple)):
        return json.dumps([_text_of(value) for value in result])
    if hasattr(result, "detach") and hasattr(result, "data_ptr"):
        return leaves_of({"result": result})["result"]
    return repr(result)


def _compare(steps: tuple[int, ...], step: int, before: Mapping[str, str], after: Mapping[str, str]) -> Proof | None:
    found = first_difference(before, after)
    if found is None:
        return None
    names = dict.fromkeys((*before, *after))
    also = sum(before.get(name) != after.get(name) for name in names) - 1
    return Proof(steps, len(names), step, *found, also)
