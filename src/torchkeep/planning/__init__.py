"""Decide what a load will do: maps of `TensorSpec` and rules in, a frozen `LoadPlan` out. No files, no torch."""

from torchkeep.planning.loadplan import Executor, LoadPlan, make_plan
from torchkeep.planning.rows import Change, Pair, Row, Status
from torchkeep.planning.weights import Weights, find_weights

__all__ = ["Change", "Executor", "LoadPlan", "Pair", "Row", "Status", "Weights", "find_weights", "make_plan"]
