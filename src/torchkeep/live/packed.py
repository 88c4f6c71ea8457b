"""The packed weights of torch's quantised layers, which live in C: taken apart into tensors, and packed again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_PREFIX = "__torch__.torch.classes.quantized."
_CONVOLUTIONS = {"Conv2dPackedParamsBase": 2, "Conv3dPackedParamsBase": 3}
_LINEAR = "LinearPackedParamsBase"
_LARGEST_SIZE = 1 << 20
_GEOMETRY = ("stride", "padding", "output_padding", "dilation")


def unpack(packed: torch.ScriptObject) -> dict[str, object] | None:
    """Weight, bias and geometry of packed weights; None for an object of another kind."""
    kind = packed._type().qualified_name().removeprefix(_PREFIX)  # noqa: SLF001 - it has no public name
    operations = torch.ops.quantized
    if kind == _LINEAR:
        weight, bias = operations.linear_unpack(packed)
        return {"kind": kind, "weight": weight, "bias": bias}
    if kind not in _CONVOLUTIONS:
        return None
    name = f"conv{_CONVOLUTIONS[kind]}d"
    weight, bias = getattr(operations, f"{name}_unpack")(packed)
    geometry = {each: list(getattr(operations, f"{name}_{each}")(packed)) for each in _GEOMETRY}
    flags = {each: int(getattr(operations, f"{name}_{each}")(packed)) for each in ("groups", "transpose")}
    return {"kind": kind, "weight": weight, "bias": bias, **geometry, **flags}


def pack(parts: Mapping[str, Any]) -> torch.ScriptObject:
    """Pack what `unpack` gave.

    Raises:
        TypeError, ValueError, KeyError, RuntimeError: The parts are not those of packed weights.
    """
    kind, weight, bias = parts["kind"], parts["weight"], parts["bias"]
    if not isinstance(weight, torch.Tensor) or not (bias is None or isinstance(bias, torch.Tensor)):
        raise TypeError("packed weights are made of a tensor and a bias")
    operations = torch.ops.quantized
    if kind == _LINEAR:
        # Weights in half precision are unpacked as float32.
        pack_linear = operations.linear_prepack if weight.is_quantized else operations.linear_prepack_fp16
        return pack_linear(weight, bias)  # type: ignore[no-any-return]
    rank, groups = _CONVOLUTIONS[kind], parts["groups"]
    geometry = {name: _sizes(parts[name], rank, least=int(name in {"stride", "dilation"})) for name in _GEOMETRY}
    # The operators divide by these before they look at them.
    if not weight.is_quantized or weight.dim() != rank + 2 or type(groups) is not int or not 0 < groups <= len(weight):
        raise ValueError(f"{kind} of a weight of shape {tuple(weight.shape)} in {groups!r} groups")
    before, after = (geometry["stride"], geometry["padding"]), (geometry["dilation"], groups)
    if parts["transpose"]:
        transposed = getattr(operations, f"conv_transpose{rank}d_prepack")
        return transposed(weight, bias, *before, geometry["output_padding"], *after)  # type: ignore[no-any-return]
    return getattr(operations, f"conv{rank}d_prepack")(weight, bias, *before, *after)  # type: ignore[no-any-return]


def _sizes(value: object, rank: int, least: int) -> list[int]:
    if not isinstance(value, list) or len(value) != rank:
        raise ValueError(f"{rank} sizes wanted, found {value!r}")
    if not all(type(each) is int and least <= each <= _LARGEST_SIZE for each in value):
        raise ValueError(f"sizes from {least} wanted, found {value!r}")
    return value
