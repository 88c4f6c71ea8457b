"""Whether what trains is still finite: parameters and optimizer state without NaN and inf, buffers without NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from torchkeep.folder.draft import DraftTensor, Name
from torchkeep.folder.record import Entry
from torchkeep.live.modules import named_parameters
from torchkeep.tensors import TensorSpec

_PIECE_ELEMENTS = 1 << 15  # torch parallelises from here on, which would take the processors from the training


def watched(entry: Entry | None, value: object, group: Mapping[str, DraftTensor]) -> dict[str, bool]:
    """The tensors of a group that NaN makes useless, in order; true where inf does too.

    A buffer may hold inf for good: the mask of an attention does.

    Args:
        entry: What the group is of; None for tensors that are of none.
        value: The same, alive.
        group: Its tensors.
    """
    if entry is None or entry.kind not in {"module", "optimizer"}:
        return {}
    parameters = {name for name, _ in named_parameters(value)} if isinstance(value, nn.Module) else set()
    is_optimizer = entry.kind == "optimizer"
    return {name: is_optimizer or name in parameters for name, tensor in group.items() if is_floating(tensor.spec)}


def is_floating(spec: TensorSpec) -> bool:
    """Whether a tensor can hold NaN."""
    dtype = getattr(torch, spec.dtype, None)
    return isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex) and spec.nbytes > 0


def nonfinite(
    names: Iterable[tuple[Name, bool]], read: Callable[[Name], tuple[TensorSpec, memoryview]]
) -> dict[Name, str]:
    """Which of some tensors hold what they must not: ``"NaN"`` or ``"inf"`` by name, in the order given.

    Args:
        names: Each name, and whether inf counts.
        read: Gives a tensor's spec and bytes.
    """
    found = {}
    for name, inf_counts in names:
        spec, data = read(name)
        fault = _fault_of(torch.frombuffer(data, dtype=getattr(torch, spec.dtype)))
        if fault == "NaN" or (fault == "inf" and inf_counts):
            found[name] = fault
    return found


def _fault_of(flat: torch.Tensor) -> str | None:
    """``"NaN"`` if there is one, else ``"inf"`` if there is one. A finite sum has finite terms, at memory speed."""
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten()
    worst = None
    for piece in torch.split(flat, _PIECE_ELEMENTS):
        values = piece if piece.dtype in {torch.float32, torch.float64} else piece.to(torch.float32)
        if math.isfinite(values.sum().item()):
            continue
        if bool(values.isnan().any()):
            return "NaN"
        if bool(values.isinf().any()):
            worst = "inf"
    return worst
