"""The nouns of a plan: what is laid side by side, and what becomes of each tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter
from typing import Literal, TypeAlias

from torchkeep.planning.recipes import Part, Recipe, arriving_elements, parts_of
from torchkeep.planning.rules import Casting
from torchkeep.tensors import TensorSpec

# What a parametrization calls the tensor that it computes from, or the two of them.
PARAMETRIZED = re.compile(r"(?<![^.])parametrizations\.([^.]+)\.original([01]?)(?![^.])")
Kind: TypeAlias = Literal["module", "optimizer", "tensors"]


class Status(StrEnum):
    """What becomes of a tensor."""

    MATCHED = "matched"
    SKIPPED = "skipped"
    ONLY_IN_MODEL = "only_in_model"
    ONLY_IN_CHECKPOINT = "only_in_checkpoint"
    SHAPE_DIFFERS = "shape_differs"
    DTYPE_DIFFERS = "dtype_differs"


class Change(StrEnum):
    """How a matched tensor arrives other than as it was saved."""

    RENAMED = "renamed"
    CAST = "cast"
    ADAPTED = "adapted"


DIFFERENCES = (Status.SHAPE_DIFFERS, Status.ONLY_IN_MODEL, Status.ONLY_IN_CHECKPOINT, Status.DTYPE_DIFFERS)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sides to be matched: one entry of a checkpoint, and the object it should go into.

    Attributes:
        checkpoint: Name to spec, in order. None where the shape is unknown; it fits anything.
        model: Name to spec, in order.
        kind: For ``"optimizer"`` the names are parameters', dtypes are not compared and nothing counts as coverage.
        target: The class that people know the object by: ``"GPT"``.
        origin: The path of the entry in the checkpoint: ``"model.state_dict"``, or "" for the whole of it.
        note: One more line for the report.
        optional: Names that one side may have alone, each with the reason: they are skipped then, and no difference.
        mismatch: Why the two do not go together as a whole, whatever their names; a strict load refuses it.
        tied: Groups of names under which the model has one and the same tensor.
        content: Gives what is equal for tensors of the checkpoint whose values are.
        extra: Names of what the checkpoint has beside plain tensors: extra state, sparse and quantised ones.
        model_extra: The same of the model.
    """

    checkpoint: Mapping[str, TensorSpec | None]
    model: Mapping[str, TensorSpec]
    kind: Kind
    target: str
    origin: str = ""
    note: str = ""
    optional: Mapping[str, str] = field(default_factory=dict)
    mismatch: str = ""
    tied: tuple[tuple[str, ...], ...] = ()
    content: Callable[[TensorSpec], Hashable] = attrgetter("key")
    extra: tuple[str, ...] = ()
    model_extra: tuple[str, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether its tensors count towards coverage."""
        return self.kind != "optimizer"

    @property
    def unloaded(self) -> str:
        """What happens to something in the model that gets nothing."""
        return "starts without optimizer state" if self.kind == "optimizer" else "stays at its initial value"


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor of the plan. Every name of either side is in one row; that of a tensor that is divided, in several.

    Attributes:
        entry: The key of its `Pair`.
        name: The model's name, or the checkpoint's after the rules when it exists only there.
        checkpoint_name: The name in the file, several joined by ``" + "``; None when it exists only in the model.
        status: What becomes of it.
        changes: How it arrives other than as saved.
        checkpoint: What the file offers under that name; None when absent or unknown.
        model: What the model has; None when absent.
        reason: Why, and what happens.
        resulting_name: The checkpoint's name after the rules; None when it exists only in the model.
        recipe: How what arrives is made from tensors of the file; None when nothing arrives or its shape is unknown.
        casting: What happens to values that the model's dtype does not have, where that may be.
        refusal: Why rules that were meant to make it fit cannot; "" when none was.
    """

    entry: str
    name: str
    checkpoint_name: str | None
    status: Status
    changes: tuple[Change, ...]
    checkpoint: TensorSpec | None
    model: TensorSpec | None
    reason: str
    resulting_name: str | None = None
    recipe: Recipe | None = None
    casting: Casting | None = None
    refusal: str = ""

    @property
    def differs(self) -> bool:
        """Whether a strict load refuses because of it."""
        return self.status in DIFFERENCES

    @property
    def inverts_parametrization(self) -> bool:
        """Whether a plain tensor arrives where the model computes its own from another one."""
        found = PARAMETRIZED.search(self.name)
        plain = self.resulting_name is not None and PARAMETRIZED.search(self.resulting_name) is None
        return found is not None and not found[2] and plain

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tensors of the file that are needed for it."""
        return () if self.recipe is None else parts_of(self.recipe)

    @property
    def arriving_elements(self) -> int:
        """How many elements of the model's tensor come from the file."""
        if self.status is not Status.MATCHED or self.model is None:
            return 0
        return self.model.numel if self.recipe is None else arriving_elements(self.recipe)
