"""The state of the global random generators: Python's, numpy's, torch's on the CPU and on every CUDA device in use."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from typing import Any

import torch


def capture_rng() -> dict[str, object]:
    """The states as plain values; ``numpy`` only if it is imported, ``cuda`` only if it is initialised."""
    state: dict[str, object] = {"python": random.getstate(), "torch": torch.get_rng_state().numpy().tobytes()}
    if "numpy" in sys.modules:
        import numpy as np

        state["numpy"] = np.random.get_state(legacy=False)  # noqa: NPY002 - the global generator is what users seed
    if "cuda" in _devices_in_use():
        state["cuda"] = [each.numpy().tobytes() for each in torch.cuda.get_rng_state_all()]
    return state


def _devices_in_use() -> set[str]:
    # torch gives the generators of all devices only once CUDA has been initialised, and asking must not initialise it.
    initialized = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    return {"cuda"} if initialized else set()


def restore_rng(state: Mapping[str, Any]) -> None:
    """Set the generators to what `capture_rng` gave; CUDA devices that are not here are left out."""
    if "python" in state:
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
    if "numpy" in state:
        import numpy as np

        saved = state["numpy"]
        if saved["bit_generator"] == "MT19937":
            np.random.set_state(saved)  # noqa: NPY002 - as above
        else:
            getattr(np.random, "get_bit_generator")().state = saved  # noqa: B009 - numpy does not declare it
    if "torch" in state:
        torch.set_rng_state(_tensor(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        for device, each in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(_tensor(each), device)


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
