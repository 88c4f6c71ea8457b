"""Copying what optimizers change during the next forward and backward, and holding each `step` until it is copied.

Nothing proves that a tensor stays as it is until its optimizer steps: version counters do not see fused kernels,
``.data`` or numpy. So the first save copies everything at once, and at each optimizer's next step the live tensors are
compared with those copies. What moved in between is copied at once from then on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import partial

import torch

from torchkeep.folder.draft import Groups, Name
from torchkeep.folder.parallel import Latch


class Overlap:
    """What may be copied late, and the hooks that hold the steps of optimizers meanwhile.

    Args:
        state: What a manager was given; optimizers in it are held.

    Attributes:
        notes: Why something is copied at once all the same.
    """

    def __init__(self, state: Mapping[str, object]) -> None:
        self.notes: list[str] = []
        self._process = os.getpid()
        self._moved: set[Name] = set()
        self._unmoved: set[Name] = set()
        self._staying: AbstractSet[Name] | None = None  # what was found to be among these last
        self._is_copied = Latch()
        self._is_copied.set()
        self._compared: dict[str, list[tuple[Name, torch.Tensor, torch.Tensor]]] = {}
        self._held: dict[str, torch.optim.Optimizer] = {}
        self._held |= {name: value for name, value in state.items() if isinstance(value, torch.optim.Optimizer)}
        self._let_go_of_unheld()
        if not self._held and not self.notes:
            self.notes.append("nothing is overlapped: no optimizer is in the state")
        self._hooks = [
            each.register_step_pre_hook(partial(self._before_step, name)) for name, each in self._held.items()
        ]

    def late_names(self, groups: Groups) -> set[Name]:
        """The tensors that only a held optimizer's step changes, as far as is known."""
        self._let_go_of_unheld()
        return {name for names in self._names(groups).values() for name in names} - self._moved

    @property
    def is_holding(self) -> bool:
        """Whether there is an optimizer whose steps can be held."""
        return bool(self._held)

    def is_still_held(self) -> bool:
        """Whether every optimizer that was held when copies began can be."""
        return not any(map(_why_not_held, self._held.values()))

    def _let_go_of_unheld(self) -> None:
        for name, why in [(name, _why_not_held(each)) for name, each in self._held.items()]:
            if why:
                self.notes.append(f"{name} is not overlapped: {why}")
                del self._held[name]

    def are_known_to_stay(self, names: AbstractSet[Name]) -> bool:
        """Whether each of some tensors was compared, and had not moved before its optimizer's step.

        May be asked in the background while a step compares: what moves there was not among the unmoved before.
        """
        if names is not self._staying:
            self._staying = names if names and names <= self._unmoved else None
        return self._staying is not None

    def _names(self, groups: Groups) -> dict[str, list[Name]]:
        """By optimizer, the tensors of a draft that lie where its parameters and state do."""
        owner: dict[int, str] = {}
        for name, optimizer in self._held.items():
            held = [p for group in list(optimizer.param_groups) for p in group["params"]]
            # Lists made at once: the training may be adding to both while this is looked at in the background.
            states = [list(each.values()) for each in list(optimizer.state.values())]
            held += [value for each in states for value in each if isinstance(value, torch.Tensor)]
            owner |= {t.data_ptr(): name for t in held if t.numel() and not t.is_inference()}
        found: dict[str, list[Name]] = {name: [] for name in self._held}
        for group, tensors in groups.items():
            for name, draft in tensors.items():
                if isinstance(draft.source, torch.Tensor) and draft.source.data_ptr() in owner and draft.is_divisible:
                    found[owner[draft.source.data_ptr()]].append((group, name))
        return found

    def compare_later(self, groups: Groups, copies: Mapping[Name, torch.Tensor]) -> None:
        """After a save that copied at once: compare at the next steps what is not known yet."""
        for optimizer, names in self._names(groups).items():
            pairs = [(n, groups[n[0]][n[1]].source, copies[n]) for n in names if n in copies and n not in self._unmoved]
            self._compared[optimizer] = [(n, s, c) for n, s, c in pairs if isinstance(s, torch.Tensor)]

    def forget_copies(self) -> None:
        """Compare nothing that is not compared yet: the copies are about to be overwritten."""
        self._compared.clear()

    def begin(self) -> None:
        """Hold steps from now on."""
        self._is_copied = Latch()

    def end(self) -> None:
        """Let steps go on."""
        self._is_copied.set()

    @property
    def is_copied(self) -> Latch:
        """Set once the copies of the save that began last are made."""
        return self._is_copied

    def distrust(self, names: set[Name]) -> None:
        """Copy some tensors at once from now on."""
        self._moved |= names
        self._unmoved -= names
        self._staying = None

    def _before_step(self, optimizer: str, *_: object) -> None:
        if os.getpid() != self._process:  # forked: nobody copies here
            return
        self._is_copied.wait()
        moved = set()
        for name, source, copy in self._compared.pop(optimizer, ()):
            if torch.equal(source, copy):
                self._unmoved.add(name)
            else:
                moved.add(name)
        if moved:
            self.distrust(moved)
            what = f"{len(moved)} tensors of {optimizer} changed before its step, {'.'.join(min(moved))} among them"
            self.notes.append(f"{what}: they are copied at once from now on")

    def close(self) -> None:
        """Hold no step any more."""
        self.end()
        while self._hooks:  # removed before they are forgotten: an interrupt leaves none on an optimizer
            self._hooks[-1].remove()
            self._hooks.pop()


def _why_not_held(optimizer: torch.optim.Optimizer) -> str | None:
    """Why an optimizer's step is no moment that can be waited for; None when it is."""
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return f"{type(optimizer).__name__} takes no hooks, since it does not call Optimizer.__init__"
    if any(group.get("capturable") for group in optimizer.param_groups):
        return "capturable=True is for CUDA graphs, which step without being asked"
    for group in optimizer.param_groups:
        if any(getattr(p, "_post_accumulate_grad_hooks", None) for p in group["params"]):
            return "its parameters have hooks that step in the backward"
    return None
