"""Decide what a load will do: maps of `TensorSpec` and rules in, a frozen `LoadPlan` out. No files, no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchkeep.planning.loadplan import Executor, LoadPlan, make_plan
    from torchkeep.planning.rows import Change, Pair, Row, Status
    from torchkeep.planning.weights import Weights, find_weights

__all__ = ["Change", "Executor", "LoadPlan", "Pair", "Row", "Status", "Weights", "find_weights", "make_plan"]

# Imported when first asked for: who only looks for the weights of a file needs no plan.
_HOMES = {
    **dict.fromkeys(("Executor", "LoadPlan", "make_plan"), "loadplan"),
    **dict.fromkeys(("Change", "Pair", "Row", "Status"), "rows"),
    **dict.fromkeys(("Weights", "find_weights"), "weights"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
