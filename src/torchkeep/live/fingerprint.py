"""What a model gives for example inputs: computed the same way at the save and at a check."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from torchkeep.errors import FormatError
from torchkeep.tensors import KeyPath, name_of

SEED = 0


def as_call(example_inputs: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a tuple is the first, a mapping of names the second, all else one argument."""
    if isinstance(example_inputs, tuple):
        return example_inputs, {}
    if isinstance(example_inputs, Mapping) and all(isinstance(name, str) for name in example_inputs):
        return (), dict(example_inputs)
    return (example_inputs,), {}


def outputs_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors in a model's output, by their path in it.

    The model runs in evaluation mode, without gradients, from a fixed seed, on copies of the inputs; its flags and the
    random state are put back.

    Raises:
        FormatError: There is no tensor in the output.
    """
    flags = {module: module.training for module in model.modules()}
    try:
        return tensors_given_by(model.eval(), args, kwargs)
    finally:
        for module, training in flags.items():
            module.training = training


def tensors_given_by(
    call: Callable[..., object], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """As `outputs_of`, of anything that can be called as it is."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(SEED)
        output = call(*_copied(args), **_copied(dict(kwargs)))
    found = {name_of(path) or "output": tensor.detach() for path, tensor in _tensors_in(output, ())}
    if not found:
        raise FormatError(f"the model gives a {type(output).__name__} without tensors, of which nothing can be kept")
    return found


def differences(then: Mapping[str, Any], now: Mapping[str, torch.Tensor], tolerance: float | None) -> list[str]:
    """Where outputs differ: absent, of another dtype or shape, or further apart than the tolerance.

    Args:
        then: Outputs at the save.
        now: Outputs of today.
        tolerance: Absolute and relative; None for what torch.testing takes for the dtype (1e-5 for float32).
    """
    faults = [f"{name}: only in the checkpoint" for name in then if name not in now]
    faults += [f"{name}: only in what the model gives now" for name in now if name not in then]
    for name, expected in then.items():
        if name not in now:
            continue
        try:
            torch.testing.assert_close(now[name], expected, rtol=tolerance, atol=tolerance, equal_nan=True)
        except AssertionError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            faults.append(f"{name}: {' '.join(lines)}")
    return faults


def _copied(value: Any) -> Any:  # noqa: ANN401 - whatever a model takes
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) in {list, tuple}:
        return type(value)(map(_copied, value))
    return {key: _copied(each) for key, each in value.items()} if type(value) is dict else value


def _tensors_in(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, torch.Tensor]]:  # noqa: ANN401 - as above
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _tensors_in(each, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from _tensors_in(each, (*path, index))
    elif dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            yield from _tensors_in(getattr(value, each.name), (*path, each.name))
