"""The rules of a load, for ``rules=[...]``: each says what, and on which tensors.

    Rename, Skip, Only                                     names: what is called what, and what is left alone
    Fuse, Split                                            several tensors as one, and one as several
    Cast                                                   another dtype, where that can change values
    Transpose, InputChannels, MapRows, ResizeRows, ResizePositions      another shape

Their order counts: `Rename`, `Fuse` and `Split` act one after the other on the checkpoint's names; all others on the
names that these make, and those that change a shape one after the other.
"""

from torchkeep.planning.adaptations import InputChannels, MapRows, ResizePositions, ResizeRows, Transpose
from torchkeep.planning.recipes import Fill, Sampling
from torchkeep.planning.regrouping import Fuse, Split
from torchkeep.planning.rule_code import parse_rule
from torchkeep.planning.rules import Cast, Casting, Only, Rename, Rule, Skip

__all__ = [
    "Cast",
    "Casting",
    "Fill",
    "Fuse",
    "InputChannels",
    "MapRows",
    "Only",
    "Rename",
    "ResizePositions",
    "ResizeRows",
    "Rule",
    "Sampling",
    "Skip",
    "Split",
    "Transpose",
    "parse_rule",
]
