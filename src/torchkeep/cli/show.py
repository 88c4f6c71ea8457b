"""``torchkeep show``: what is in a checkpoint, without torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torchkeep.cli.console import Verbs, add_verb, say, say_json
from torchkeep.errors import NotFoundError, PlanError
from torchkeep.tensors import TensorSpec, format_bytes, tensors_of

if TYPE_CHECKING:
    from torchkeep.verbs.opening import Checkpoint


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "show",
        run,
        about="Show what is in a checkpoint of any format. Nothing in it is run, and torch is not needed.",
        examples=[
            "torchkeep show resnet50.pth",
            "torchkeep show runs/exp1/step-00001200",
            "torchkeep show last.ckpt --json",
        ],
    )
    parser.add_argument("path", metavar="PATH", help="a checkpoint: file or folder")
    parser.add_argument("--json", action="store_true", help="print every tensor, as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Open it, describe it."""
    from torchkeep.verbs.opening import open as open_checkpoint

    with open_checkpoint(arguments.path) as checkpoint:
        if arguments.json:
            say_json(describe(checkpoint))
        else:
            say("\n".join([str(checkpoint), "", *_facts(checkpoint)]))
    return 0


def describe(checkpoint: Checkpoint) -> dict[str, object]:
    """A checkpoint as plain values for JSON.

    Returns:
        Of the whole file ``format``, ``tensor_count``, ``parameter_count`` (elements of all floating-point tensors),
        ``total_bytes`` and ``tensors``; of the entry taken to be the weights ``weights``, or why there is none.
    """
    from torchkeep.tensors import is_floating

    tensors = tensors_of(checkpoint.tree)
    weights, note = _weights(checkpoint)
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "tensor_count": len(tensors),
        "parameter_count": sum(spec.numel for spec in tensors.values() if is_floating(spec.dtype)),
        "total_bytes": sum(spec.nbytes for spec in tensors.values()),
        "step": checkpoint.step,
        "metrics": checkpoint.metrics,
        "weights": weights,
        "weights_note": note,
        "tensors": [_tensor(name, spec) for name, spec in tensors.items()],
    }


def _tensor(name: str, spec: TensorSpec) -> dict[str, object]:
    values: dict[str, object] = {"name": name, "dtype": spec.dtype, "shape": list(spec.shape), "nbytes": spec.nbytes}
    return values if spec.device is None else {**values, "device": spec.device}


def _weights(checkpoint: Checkpoint) -> tuple[dict[str, object] | None, str | None]:
    """The entry taken to be the weights, or why there is none."""
    try:
        found = checkpoint.weights()
    except (NotFoundError, PlanError) as error:
        return None, "; ".join([error.what, *error.faults])
    counts = {"tensor_count": len(found), "parameter_count": found.parameter_count}
    return {"entry": found.entry, **counts, "others": list(found.others)}, None


def _facts(checkpoint: Checkpoint) -> list[str]:
    """Lines below the tree: the weights, dtypes, devices, step and metrics."""
    specs = list(tensors_of(checkpoint.tree).values())
    facts = {
        "weights": _weights_text(checkpoint),
        "dtypes": _totals([(spec.dtype, spec) for spec in specs]),
        "devices": _totals([(spec.device, spec) for spec in specs if spec.device not in {None, "cpu"}]),
        "step": "" if checkpoint.step is None else str(checkpoint.step),
        "metrics": ", ".join(f"{name} {value:.6g}" for name, value in checkpoint.metrics.items()),
    }
    return [f"{name}: {fact}" for name, fact in facts.items() if fact]


def _weights_text(checkpoint: Checkpoint) -> str:
    try:
        found = checkpoint.weights()
    except (NotFoundError, PlanError) as error:
        return "\n".join([error.what, *(f"  {fault}" for fault in error.faults)])
    counts = f"{_counted(len(found), 'tensor')}, {_counted(found.parameter_count, 'parameter')}"
    others = f"; could also be: {', '.join(found.others)}" if found.others else ""
    return f"{found.entry or 'the whole file'}, {counts}{others}"


def _totals(kinds: Sequence[tuple[str | None, TensorSpec]]) -> str:
    """How many tensors there are of each kind, and their bytes."""
    sizes: dict[str | None, list[int]] = {}
    for kind, spec in kinds:
        sizes.setdefault(kind, []).append(spec.nbytes)
    return ", ".join(f"{kind} ({_counted(len(of), 'tensor')}, {format_bytes(sum(of))})" for kind, of in sizes.items())


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
