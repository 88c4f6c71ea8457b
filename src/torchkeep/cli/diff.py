"""``torchkeep diff``: what differs between two checkpoints, values included."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torchkeep.cli.console import Verbs, add_verb, say, say_json
from torchkeep.cli.plan import add_rules, recorded
from torchkeep.cli.progress import ProgressBar
from torchkeep.cli.tables import Column, say_table
from torchkeep.errors import PlanError
from torchkeep.tensors import TensorSpec

if TYPE_CHECKING:
    from torchkeep.arithmetic.comparison import TensorComparison
    from torchkeep.rules import Rule
    from torchkeep.verbs.diffing import Difference, TensorDifference

_LONGEST_VALUE = 60


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "diff",
        run,
        about="Compare two checkpoints of any formats: names, shapes, dtypes, values, everything else.",
        examples=[
            "torchkeep diff last.ckpt best.ckpt",
            "torchkeep diff runs/exp1/step-00001200            (with its parent)",
            "torchkeep diff old.pth new.safetensors --weights --rename backbone=encoder",
            "torchkeep diff old.pth tuned.pth --plan plan.json",
        ],
        notes="change is the norm of the difference over the norm of A. Exit code 1: they differ.",
    )
    parser.add_argument("first", metavar="A", help="a checkpoint of any format")
    parser.add_argument("second", metavar="B", nargs="?", help="another; without it, A is compared with its parent")
    parser.add_argument("--weights", action="store_true", help="compare the weights and nothing else")
    parser.add_argument(
        "--top", metavar="N", type=_count, default=10, help="how many of a kind are listed (10; 0: all)"
    )
    add_rules(parser, ("--rename", "--skip", "--only", "--rule"))
    parser.add_argument("--plan", metavar="FILE", help="apply the rules of a plan that torchkeep plan --json printed")
    parser.add_argument("--json", action="store_true", help="print every tensor, as JSON")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a number of 0 or more is wanted, not {text!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Compare, report; 1 when something differs."""
    from torchkeep.verbs.diffing import diff

    with ProgressBar("comparing") as bar:
        found = diff(
            arguments.first,
            arguments.second,
            rules=_rules(arguments),
            weights_only=arguments.weights,
            progress=bar,
        )
    if arguments.json:
        say_json(describe(found))
    else:
        report(found, arguments.top or sys.maxsize)
    return 0 if found.is_equal else PlanError.exit_code


def _rules(arguments: argparse.Namespace) -> list[Rule]:
    from torchkeep.planning.recorded import read_recorded

    if arguments.plan is None:
        return list(arguments.rules)
    return read_recorded(recorded(arguments.plan, arguments.rules, "--plan"))[0]


def describe(found: Difference) -> dict[str, object]:
    """A difference as plain values for JSON: every tensor, and the values that differ."""
    return {
        "first": str(found.first),
        "second": str(found.second),
        "equal": found.is_equal,
        "tensors": [_tensor(each) for each in found.tensors],
        "values": [
            {"name": each.name, "first": _value(each.first), "second": _value(each.second)} for each in found.values
        ],
        "value_count": found.value_count,
    }


def _tensor(each: TensorDifference) -> dict[str, object]:
    values: dict[str, object] = {
        "name": each.name,
        "first_name": each.first_name,
        "outcome": each.outcome.value,
        "in_weights": each.in_weights,
        "first": _spec(each.first),
        "second": _spec(each.second),
    }
    compared = each.comparison
    if compared is None:
        return values
    return {
        **values,
        "bit_equal": compared.is_bit_equal,
        "differing_count": compared.differing_count,
        "relative_change": compared.relative_change,
        "cosine": compared.cosine,
        "largest_step": compared.largest_step,
        "largest_at": compared.largest_at,
    }


def _spec(spec: TensorSpec | None) -> dict[str, object] | None:
    return None if spec is None else {"dtype": spec.dtype, "shape": list(spec.shape)}


def report(found: Difference, most: int) -> None:
    """Say what differs: a line of counts, the tensors by kind, the values."""
    from torchkeep.verbs.diffing import Outcome

    say(f"A: {found.first}\nB: {found.second}")
    say(_summary(found))
    alone: Sequence[tuple[Outcome, str, Callable[[TensorDifference], TensorSpec | None]]] = (
        (Outcome.ONLY_IN_FIRST, "only in A", lambda each: each.first),
        (Outcome.ONLY_IN_SECOND, "only in B", lambda each: each.second),
    )
    for outcome, title, spec_of in alone:
        rows = [[each.name, str(spec_of(each))] for each in found.of(outcome)]
        _listed([Column(title, "left", folds=True), Column("", "left")], rows, most)
    rows = [[each.name, str(each.first), str(each.second)] for each in found.of(Outcome.SHAPE_DIFFERS)]
    _listed([Column("shape differs", "left", folds=True), Column("A", "left"), Column("B", "left")], rows, most)
    rows = [[each.name, each.first_name] for each in found.of(Outcome.NAME_DIFFERS)]
    _listed([Column("name differs", "left", folds=True), Column("in A", "left", folds=True)], rows, most)
    same = [each for each in found.of(Outcome.DTYPE_DIFFERS) if each.comparison and each.comparison.is_equal]
    rows = [[each.name, _dtype(each.first), _dtype(each.second)] for each in same]
    _listed([Column("only dtype differs", "left", folds=True), Column("A", "left"), Column("B", "left")], rows, most)
    moved = found.movers(sys.maxsize)
    for title, of_weights in (("weights that differ", True), ("other tensors that differ", False)):
        rows = [
            _moved_row(each, each.comparison) for each in moved if each.comparison and each.in_weights is of_weights
        ]
        _listed((Column(title, "left", folds=True), *_MOVED), rows, most)
    rows = [[each.name, _value_text(each.first), _value_text(each.second)] for each in found.values]
    _listed(
        [
            Column("value differs", "left", folds=True),
            Column("A", folds=True, least=16),
            Column("B", folds=True, least=16),
        ],
        rows,
        most,
    )


_MOVED = (
    Column("dtype", "left", spare=3),
    Column("change"),
    Column("cosine", spare=1),
    Column("differing", spare=2),
    Column("largest", spare=4),
    Column("at", "left", spare=5),
)


def _moved_row(each: TensorDifference, compared: TensorComparison) -> list[str]:
    dtypes = list(dict.fromkeys([_dtype(each.first), _dtype(each.second)]))
    cosine = "-" if compared.cosine is None else f"{compared.cosine:.6f}"
    share = f"{compared.differing_count:,} of {compared.count:,}"
    at = "" if compared.largest_at is None else str(list(compared.largest_at))
    change, largest = f"{compared.relative_change:.3g}", f"{compared.largest_step:.3g}"
    return [each.name, " -> ".join(dtypes), change, cosine, share, largest, at]


def _summary(found: Difference) -> str:
    from torchkeep.verbs.diffing import Outcome

    words = {
        Outcome.EQUAL: "equal",
        Outcome.VALUES_DIFFER: "in values",
        Outcome.DTYPE_DIFFERS: "in dtype",
        Outcome.SHAPE_DIFFERS: "in shape",
        Outcome.NAME_DIFFERS: "in name",
        Outcome.ONLY_IN_FIRST: "only in A",
        Outcome.ONLY_IN_SECOND: "only in B",
        Outcome.SKIPPED: "skipped",
    }
    counts = {outcome: len(found.of(outcome)) for outcome in words}
    parts = [f"{count:,} {words[outcome]}" for outcome, count in counts.items() if count]
    if found.is_equal:
        parts.insert(0, "no difference")
    values = f"; {len(found.values):,} of {found.value_count:,} other values differ" if found.value_count else ""
    return f"{len(found.tensors):,} tensors: {', '.join(parts) or 'none'}{values}"


def _listed(columns: Sequence[Column], rows: list[list[str]], most: int) -> None:
    if not rows:
        return
    say("")
    say_table(columns, rows[:most])
    if len(rows) > most:
        say(f"... and {len(rows) - most:,} more; --top 0 lists all")


def _dtype(spec: TensorSpec | None) -> str:
    return "" if spec is None else spec.dtype


def _value_text(value: object) -> str:
    text = repr(value)
    if len(text) <= _LONGEST_VALUE:
        return text
    count = f" ({len(value):,} values)" if isinstance(value, list) else ""
    return f"{text[: _LONGEST_VALUE - 3 - len(count)]}...{count}"


def _value(value: object) -> object:
    if isinstance(value, list):
        return [_value(each) for each in value]
    return value if isinstance(value, (str, int, float, type(None))) else repr(value)[:1000]
