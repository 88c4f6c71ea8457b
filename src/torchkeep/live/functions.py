"""torch's functions of tensors, and its constants, by name: what a description may hold without being trusted."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping

import torch
from torch.nn import functional

# They reach a file, memory or another process; everything else in the tables computes tensors from tensors.
_NOT_ARITHMETIC = frozenset(("from_file", "frombuffer", "from_numpy", "asarray", "as_tensor"))
_BUILTINS: tuple[types.ModuleType, ...] = tuple(
    getattr(torch._C, name)  # noqa: SLF001 - where pickles name them
    for name in ("_nn", "_special", "_fft", "_linalg")
)
_CONSTANTS = (torch.memory_format, torch.layout, torch.qscheme)
_PLAIN_CLASSES = (
    *(int, float, str, bool, list, dict, tuple, set, frozenset, bytes, complex, types.NoneType),
    *(torch.Tensor, torch.device, torch.dtype, torch.Size),
)


@functools.cache
def known_values() -> Mapping[str, object]:
    """Functions of tensors, constants and plain classes by dotted name; the first name of a value is its own.

    Example:
        >>> known_values()["torch.relu"] is torch.relu, "torch.load" in known_values()
        (True, False)
    """
    found: dict[str, object] = {}
    for module in (functional, torch, torch.special, torch.fft, torch.linalg, torch.functional):
        found |= {f"{module.__name__}.{name}": value for name, value in _functions_of(module)}
    for builtins in _BUILTINS:
        found |= {f"{builtins.__name__}.{name}": value for name, value in _functions_of(builtins)}
    operations = dict(_functions_of(torch))
    found |= {f"torch._C._VariableFunctionsClass.{name}": value for name, value in operations.items()}
    found |= {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, _CONSTANTS)}
    found |= {f"{each.__module__}.{each.__qualname__}": each for each in _PLAIN_CLASSES}
    return found


def _functions_of(module: types.ModuleType) -> Iterator[tuple[str, object]]:
    for name, value in vars(module).items():
        if name.startswith("_") or name in _NOT_ARITHMETIC:
            continue
        if isinstance(value, types.BuiltinFunctionType):
            is_operation = getattr(torch._C._VariableFunctions, value.__name__, None) is value  # noqa: SLF001 - torch's own table
            if is_operation or value.__self__ in _BUILTINS:
                yield name, value
        elif isinstance(value, types.FunctionType) and value.__module__ == module.__name__ and module is not torch:
            yield name, value


@functools.cache
def _names() -> Mapping[int, str]:
    names: dict[int, str] = {}
    for name, value in known_values().items():
        names.setdefault(id(value), name)
    return names


def known_name(value: object) -> str | None:
    """The ``"module:name"`` of a value in the table, or None."""
    name = _names().get(id(value))
    return None if name is None else ":".join(name.rsplit(".", 1))
