"""torchkeep: the checkpoint keeper for PyTorch.

    save(obj, path), load(path, into=...), open(path), plan(path, into=...), verify(path), checkpoints(run)
    Rename, Skip, Only, Cast              what a load may do about differing names, tensors and dtypes
    replace_head, freeze, unfreeze, trainable, param_groups
    save_whole(model, path), load_whole(path, trust=[...]), export(model, example_inputs, path)
    CheckpointManager with EverySteps, OnPreemption, KeepLast, KeepBest, KeepEvery; prune(run, policy)

Rarer rules, policies and errors are in `torchkeep.rules`, `torchkeep.policies` and `torchkeep.errors`.
Importing torchkeep imports no torch; neither do the verbs that only look.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchkeep.errors import CheckpointError as CheckpointError
    from torchkeep.errors import PlanError as PlanError
    from torchkeep.live.freeze import freeze as freeze
    from torchkeep.live.freeze import param_groups as param_groups
    from torchkeep.live.freeze import trainable as trainable
    from torchkeep.live.freeze import unfreeze as unfreeze
    from torchkeep.live.heads import replace_head as replace_head
    from torchkeep.manager import CheckpointManager as CheckpointManager
    from torchkeep.policies import EverySteps as EverySteps
    from torchkeep.policies import KeepBest as KeepBest
    from torchkeep.policies import KeepEvery as KeepEvery
    from torchkeep.policies import KeepLast as KeepLast
    from torchkeep.policies import OnPreemption as OnPreemption
    from torchkeep.rules import Cast as Cast
    from torchkeep.rules import Only as Only
    from torchkeep.rules import Rename as Rename
    from torchkeep.rules import Skip as Skip
    from torchkeep.verbs.averaging import average as average
    from torchkeep.verbs.converting import convert as convert
    from torchkeep.verbs.diffing import diff as diff
    from torchkeep.verbs.exporting import export as export
    from torchkeep.verbs.listing import checkpoints as checkpoints
    from torchkeep.verbs.loading import load as load
    from torchkeep.verbs.loading import plan as plan
    from torchkeep.verbs.opening import open as open  # noqa: A004 - the verb people expect, used as tk.open
    from torchkeep.verbs.pruning import prune as prune
    from torchkeep.verbs.saving import save as save
    from torchkeep.verbs.verifying import verify as verify
    from torchkeep.verbs.whole import load_whole as load_whole
    from torchkeep.verbs.whole import save_whole as save_whole

__version__ = "0.1.0"

# Where each public name lives; it is imported when it is first asked for.
_HOMES = {
    "Cast": "rules",
    "CheckpointError": "errors",
    "CheckpointManager": "manager",
    "EverySteps": "policies",
    "KeepBest": "policies",
    "KeepEvery": "policies",
    "KeepLast": "policies",
    "OnPreemption": "policies",
    "Only": "rules",
    "PlanError": "errors",
    "Rename": "rules",
    "Skip": "rules",
    "average": "verbs.averaging",
    "checkpoints": "verbs.listing",
    "convert": "verbs.converting",
    "diff": "verbs.diffing",
    "export": "verbs.exporting",
    "freeze": "live.freeze",
    "load": "verbs.loading",
    "load_whole": "verbs.whole",
    "open": "verbs.opening",
    "param_groups": "live.freeze",
    "plan": "verbs.loading",
    "prune": "verbs.pruning",
    "replace_head": "live.heads",
    "save": "verbs.saving",
    "save_whole": "verbs.whole",
    "trainable": "live.freeze",
    "unfreeze": "live.freeze",
    "verify": "verbs.verifying",
}

__all__ = [  # noqa: PLE0604 - the names are the keys
    *_HOMES,
]


def __getattr__(name: str) -> object:
    if name in {"errors", "policies", "rules"}:
        return importlib.import_module(f"torchkeep.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'torchkeep' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"torchkeep.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_HOMES, "errors", "policies", "rules"])
