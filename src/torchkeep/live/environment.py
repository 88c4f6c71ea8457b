"""Where a run computes, as far as it decides the last bits of what it computes; and what a difference means."""

from __future__ import annotations

import functools
import os
import platform
import sys
from collections.abc import Mapping

import torch

# What a difference in each fact means for a resume; in the order in which they are told.
_MEANINGS = {
    "torch": "kernels may compute in another order",
    "python": "orders of sets and hashes may differ",
    "numpy": "its generators and kernels may differ",
    "machine": "another instruction set rounds differently",
    "cpu_capability": "other vector kernels sum in another order",
    "threads": "sums are split differently, so last bits may differ",
    "devices": "another device computes in another order",
    "ranks": "batches and gradient sums are split differently",
    "deterministic_algorithms": "operations may give another result each time",
    "cudnn": "cuDNN may choose other algorithms",
    "tf32": "matrix products are rounded differently",
    "float32_matmul_precision": "matrix products are rounded differently",
    "default_dtype": "new tensors have another precision",
    "variables": "libraries may choose other algorithms",
}
_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONHASHSEED", "MKL_CBWR")


def capture_environment(rank_count: int = 1) -> dict[str, object]:
    """The facts as plain values."""
    facts: dict[str, object] = {
        "torch": torch.__version__,
        **_facts_for_good(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "devices": _devices(),
        "ranks": rank_count,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn": {
            "deterministic": bool(torch.backends.cudnn.deterministic),
            "benchmark": bool(torch.backends.cudnn.benchmark),
        },
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    if "numpy" in sys.modules:
        facts["numpy"] = sys.modules["numpy"].__version__
    return facts


@functools.cache
def _facts_for_good() -> dict[str, object]:
    return {"python": platform.python_version(), "machine": platform.machine()}


def _devices() -> list[str]:
    """CUDA devices, if CUDA is in use; asking must not initialise it."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return []
    return [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]


def differences(saved: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """Each fact that is not what it was, and what that means; a fact that one side does not know is left out.

    Example:
        >>> differences({"threads": 8, "torch": "2.13.0"}, {"threads": 2, "torch": "2.13.0"})
        ['threads: 8 then, 2 here: sums are split differently, so last bits may differ']
    """
    return [
        f"{fact}: {_shown(saved[fact])} then, {_shown(here[fact])} here: {meaning}"
        for fact, meaning in _MEANINGS.items()
        if fact in saved and fact in here and saved[fact] != here[fact]
    ]


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={each}" for name, each in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
