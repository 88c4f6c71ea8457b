"""The rules of a load, for ``rules=[...]``: each says what, and on which tensors."""

from torchkeep.planning.rules import Cast, Only, Rename, Rule, Skip

__all__ = ["Cast", "Only", "Rename", "Rule", "Skip"]
