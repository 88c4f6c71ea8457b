"""Random generators of their own, as things with a state: torch's, numpy's and Python's."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any

import torch


def is_generator(value: object) -> bool:
    """Whether a value is a random generator whose state can be taken and set."""
    if isinstance(value, (torch.Generator, random.Random)):
        return True
    if "numpy" not in sys.modules:
        return False
    import numpy as np

    return isinstance(value, (np.random.Generator, np.random.RandomState))


class GeneratorState:
    """A random generator as something with ``state_dict`` and ``load_state_dict``.

    Example:
        >>> generator = torch.Generator().manual_seed(3)
        >>> state = GeneratorState(generator).state_dict()
        >>> first = torch.rand(2, generator=generator)
        >>> GeneratorState(generator).load_state_dict(state)
        >>> bool((torch.rand(2, generator=generator) == first).all())
        True
    """

    def __init__(self, generator: Any) -> None:  # noqa: ANN401 - one of four classes that share no base
        self._generator = generator

    def state_dict(self) -> dict[str, object]:
        """The state as plain values, and whose it is."""
        generator = self._generator
        if isinstance(generator, torch.Generator):
            state: object = generator.get_state().numpy().tobytes()
        elif isinstance(generator, random.Random):
            state = generator.getstate()
        elif hasattr(generator, "bit_generator"):
            state = generator.bit_generator.state
        else:
            state = generator.get_state(legacy=False)
        return {"kind": self._kind, "state": state}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Set the generator.

        Raises:
            ValueError: The state is that of another kind of generator.
        """
        if state["kind"] != self._kind:
            raise ValueError(f"the state is that of a {state['kind']} generator, and this one is of {self._kind}")
        generator, value = self._generator, state["state"]
        if isinstance(generator, torch.Generator):
            generator.set_state(torch.frombuffer(bytearray(value), dtype=torch.uint8))
        elif isinstance(generator, random.Random):
            version, internal, gauss = value
            generator.setstate((version, tuple(internal), gauss))
        elif hasattr(generator, "bit_generator"):
            generator.bit_generator.state = value
        else:
            generator.set_state(value)

    @property
    def _kind(self) -> str:
        if isinstance(self._generator, torch.Generator):
            return f"torch {self._generator.device.type}"
        if isinstance(self._generator, random.Random):
            return "Python"
        inner = getattr(self._generator, "bit_generator", self._generator)
        return f"numpy {type(inner).__name__}"
