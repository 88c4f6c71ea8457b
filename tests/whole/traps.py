"""Classes that a hostile file would like to have objects of; nothing here may ever run."""

from __future__ import annotations

import enum

from torch import nn

RAN: list[str] = []


class Finalised:
    def __del__(self) -> None:
        RAN.append("__del__")


class OddKey:
    def __hash__(self) -> int:
        RAN.append("__hash__")
        return 0

    def __eq__(self, other: object) -> bool:
        RAN.append("__eq__")
        return True


class OddSet(set):
    pass


class Fixed(frozenset):
    pass


class OddDict(dict):
    pass


class OddPair:
    def __iter__(self) -> object:
        RAN.append("__iter__")
        return iter(("key", "value"))


class Choice(enum.Enum):
    ONE = 1


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.value = 1


def function(_: object = None) -> None:
    RAN.append("function")


instance = OddKey()
