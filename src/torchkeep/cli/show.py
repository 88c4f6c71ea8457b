"""``torchkeep show``: what is in a checkpoint, without torch."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torchkeep.cli.console import Verbs, add_verb, say, say_json, tell
from torchkeep.cli.tables import Column, say_table, table, terminal_width
from torchkeep.errors import NotFoundError, PlanError
from torchkeep.tensors import TensorSpec, format_bytes, tensors_of

if TYPE_CHECKING:
    from torchkeep.arithmetic.statistics import TensorStatistics
    from torchkeep.verbs.opening import Checkpoint
    from torchkeep.verbs.recognising import Entry

_MOST_TIES = 5
_SCREEN, _LEAST_LINES = 45, 25  # the most lines in all, and the fewest for the tree


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
            "torchkeep show last.ckpt --stats",
            "torchkeep show last.ckpt --json",
        ],
        notes="What the file itself says is certain; what its form suggests is marked as inferred.",
    )
    parser.add_argument("path", metavar="PATH", help="a checkpoint: file or folder")
    parser.add_argument(
        "--stats", action="store_true", help="read every tensor: least, greatest, mean, spread, zeros, NaN and inf"
    )
    parser.add_argument("--json", action="store_true", help="print every tensor, as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Open it, describe it."""
    from torchkeep.verbs.opening import open as open_checkpoint

    with open_checkpoint(arguments.path) as checkpoint:
        statistics = _statistics(checkpoint) if arguments.stats else None
        if arguments.json:
            say_json(describe(checkpoint, statistics))
        elif statistics is not None:
            _say_statistics(checkpoint, statistics)
        else:
            _say_outline(checkpoint)
    return 0


def describe(checkpoint: Checkpoint, statistics: Mapping[str, TensorStatistics] | None = None) -> dict[str, object]:
    """A checkpoint as plain values for JSON; docs/json.md says what each is."""
    from torchkeep.tensors import is_floating
    from torchkeep.verbs.recognising import producer_of, recognise, ties_of, version_of

    tensors = tensors_of(checkpoint.tree)
    weights, note = _weights(checkpoint)
    producer = producer_of(checkpoint.source)
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "format_version": version_of(checkpoint.source),
        "producer": {"name": producer.name, "certain": producer.is_certain, "why": producer.why},
        "tensor_count": len(tensors),
        "parameter_count": sum(spec.numel for spec in tensors.values() if is_floating(spec.dtype)),
        "total_bytes": sum(spec.nbytes for spec in tensors.values()),
        "step": checkpoint.step,
        "metrics": checkpoint.metrics,
        "weights": weights,
        "weights_note": note,
        "entries": [_entry(entry) for entry in recognise(checkpoint.source)],
        "tied": ties_of(checkpoint.tree),
        "tensors": [
            _tensor(name, spec) | ({} if statistics is None else {"statistics": _numbers(statistics.get(name))})
            for name, spec in tensors.items()
        ],
    }


def _tensor(name: str, spec: TensorSpec) -> dict[str, object]:
    values: dict[str, object] = {"name": name, "dtype": spec.dtype, "shape": list(spec.shape), "nbytes": spec.nbytes}
    return values if spec.device is None else {**values, "device": spec.device}


def _entry(entry: Entry) -> dict[str, object]:
    return {
        "entry": entry.name,
        "part": entry.part.value,
        "certain": entry.is_certain,
        "why": entry.why,
        "tensor_count": entry.tensor_count,
        "total_bytes": entry.total_bytes,
        "value_count": entry.value_count,
    }


def _numbers(found: TensorStatistics | None) -> dict[str, object] | None:
    if found is None:
        return None
    return {
        "minimum": found.minimum,
        "maximum": found.maximum,
        "mean": found.mean,
        "std": found.std,
        "zero_count": found.zero_count,
        "nan_count": found.nan_count,
        "inf_count": found.inf_count,
        "first_nan": found.first_nan,
        "first_inf": found.first_inf,
    }


def _statistics(checkpoint: Checkpoint) -> dict[str, TensorStatistics]:
    from torchkeep.arithmetic.statistics import statistics_of
    from torchkeep.cli.progress import ProgressBar
    from torchkeep.folder.parallel import default_threads

    with ProgressBar("reading") as bar:
        return statistics_of(checkpoint.source, tensors_of(checkpoint.tree), default_threads(), bar)


def _weights(checkpoint: Checkpoint) -> tuple[dict[str, object] | None, str | None]:
    """The entry taken to be the weights, or why there is none."""
    try:
        found = checkpoint.weights()
    except (NotFoundError, PlanError) as error:
        return None, "; ".join([error.what, *error.faults])
    counts = {"tensor_count": len(found), "parameter_count": found.parameter_count}
    return {"entry": found.entry, **counts, "others": list(found.others)}, None


def _say_outline(checkpoint: Checkpoint) -> None:
    """The tree, the entries and what each is, and what is known of the whole: about a screen."""
    from torchkeep.verbs.outline import outline

    width = terminal_width()
    facts = [line for fact in _facts(checkpoint) for line in fact.split("\n")]
    below = ["", *_entries(checkpoint, width)]
    for line in facts:
        below += textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False)
    tree = outline(f"{checkpoint.path} ({checkpoint.format})", checkpoint.tree, max(_LEAST_LINES, _SCREEN - len(below)))
    say("\n".join(line if len(line) <= width else f"{line[: width - 3]}..." for line in tree.split("\n")))
    say("\n".join(below))


def _entries(checkpoint: Checkpoint, width: int) -> list[str]:
    """The entries by what they are; nothing where the whole is one state dict."""
    from torchkeep.verbs.recognising import recognise

    entries = recognise(checkpoint.source)
    if len(entries) == 1 and not entries[0].path:
        return []
    kinds: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        known = f"{'certain' if entry.is_certain else 'inferred'}: {entry.why}"
        kinds.setdefault((entry.part.value, known), []).append(entry.name)
    rows = [[part, ", ".join(names), known] for (part, known), names in kinds.items()]
    if not rows:
        return []
    columns = (
        Column("part", "left"),
        Column("entries", "left", folds=True, least=20),
        Column("how that is known", "left", folds=True, least=20),
    )
    return [*table(columns, rows, width).split("\n"), ""]


def _facts(checkpoint: Checkpoint) -> list[str]:
    """Lines below the tree: the weights, dtypes, devices, ties, who wrote it, step and metrics."""
    from torchkeep.verbs.recognising import producer_of, ties_of, version_of

    specs = list(tensors_of(checkpoint.tree).values())
    producer, version = producer_of(checkpoint.source), version_of(checkpoint.source)
    ties = [" = ".join(names) for names in ties_of(checkpoint.tree)]
    more = [f"and {len(ties) - _MOST_TIES:,} more"] if len(ties) > _MOST_TIES else []
    facts = {
        "weights": _weights_text(checkpoint),
        "dtypes": _totals([(spec.dtype, spec) for spec in specs]),
        "devices": _totals([(spec.device, spec) for spec in specs if spec.device not in {None, "cpu"}]),
        "tied": "; ".join([*ties[:_MOST_TIES], *more]),
        "format": f"{checkpoint.format}{f' version {version}' if version else ''}",
        "written by": f"{producer.name} ({'certain' if producer.is_certain else 'inferred'}: {producer.why})",
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


def _say_statistics(checkpoint: Checkpoint, statistics: Mapping[str, TensorStatistics]) -> None:
    """A row per tensor, and what is not finite again below."""
    tensors = tensors_of(checkpoint.tree)
    if not tensors:
        say("no tensors")
        return
    rows = [_statistics_row(name, spec, statistics.get(name)) for name, spec in tensors.items()]
    columns = (
        Column("tensor", "left", folds=True, least=24),
        Column("dtype", "left", spare=3),
        Column("shape", "left", spare=5),
        Column("min"),
        Column("max"),
        Column("mean", spare=1),
        Column("std"),
        Column("zeros", spare=2),
        Column("NaN"),
        Column("inf"),
    )
    say_table(columns, rows)
    odd = {name: found for name, found in statistics.items() if not found.is_finite}
    for name, found in odd.items():
        where = [
            f"{count:,} {kind}, the first at {list(at)}"
            for count, kind, at in (
                (found.nan_count, "NaN", found.first_nan),
                (found.inf_count, "inf", found.first_inf),
            )
            if at is not None
        ]
        say(f"{name}: {'; '.join(where)}")
    if not odd:
        say("every value is finite")
    unread = [name for name in tensors if name not in statistics]
    if unread:
        tell(f"not computed, values of less than a byte: {', '.join(unread[:5])}")


def _statistics_row(name: str, spec: TensorSpec, found: TensorStatistics | None) -> list[str]:
    shape = str(list(spec.shape))
    if found is None:
        return [name, spec.dtype, shape, *[""] * 7]
    numbers = [_number(each) for each in (found.minimum, found.maximum, found.mean, found.std)]
    zeros = f"{found.zero_count / found.count:.1%}" if found.count else ""
    return [name, spec.dtype, shape, *numbers, zeros, *(f"{each:,}" for each in (found.nan_count, found.inf_count))]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
