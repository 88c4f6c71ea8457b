"""A plan as plain values, to be kept and checked against what the same load would do later."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torchkeep.errors import FormatError, PlanError
from torchkeep.planning.rows import Row
from torchkeep.planning.rule_code import parse_rule
from torchkeep.planning.rules import Rule
from torchkeep.tensors import TensorSpec

if TYPE_CHECKING:
    from torchkeep.planning.loadplan import LoadPlan

_Decisions: TypeAlias = dict[tuple[str, str, str], Mapping[str, Any]]

SCHEMA = 1
MAX_SHOWN = 20
_REMEDY = "it is what LoadPlan.to_json() gives, or torchkeep plan --json"


def plain_values(plan: LoadPlan) -> dict[str, object]:
    """The plan as values for JSON."""
    return {
        "schema": SCHEMA,
        "source": plan.source,
        "coverage": plan.coverage,
        "tensors": {"matched": plan.matched_count, "total": plan.model_count},
        "rules": [repr(rule) for rule in plan.rules],
        "rows": [_values_of(row) for row in plan.rows],
    }


def read_recorded(text: str) -> tuple[list[Rule], list[Mapping[str, Any]]]:
    """The rules and rows of a recorded plan.

    Raises:
        FormatError: It is no plan, or one that this version cannot read.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"a recorded plan is JSON, and this is none: {error}", remedy=_REMEDY) from error
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise FormatError(f"a recorded plan has schema {SCHEMA}, and this has not", remedy=_REMEDY)
    rules, rows = (_list_of(values.get(key), kind) for key, kind in (("rules", str), ("rows", dict)))
    if rules is None or rows is None:
        raise FormatError("a recorded plan has a list of rules and a list of rows, and this has not", remedy=_REMEDY)
    try:
        return [parse_rule(code) for code in rules], rows
    except ValueError as error:
        raise FormatError(f"a recorded plan has a rule that cannot be read: {error}", remedy=_REMEDY) from error


def refuse_differences(plan: LoadPlan, recorded: Sequence[Mapping[str, Any]]) -> None:
    """Return if a plan decides for every tensor what was recorded.

    Raises:
        PlanError: It does not; each tensor of which it decides otherwise is named.
    """
    now: _Decisions = {_identity(values): values for values in map(_values_of, plan.rows)}
    then: _Decisions = {_identity(values): values for values in recorded}
    now, then = _without_lone_entries(now, then)
    differing = [key for key in dict.fromkeys([*then, *now]) if _decision(now.get(key)) != _decision(then.get(key))]
    if not differing:
        return
    lost, new = _counts(then, beside=now), _counts(now, beside=then)
    faults = [
        *(f"entry {entry!r}: was {count:,} tensors   is not there" for entry, count in lost.items()),
        *(f"entry {entry!r}: was not there   is {count:,} tensors" for entry, count in new.items()),
        *(
            f"{f'{key[0]}: ' if key[0] else ''}{key[1]}   was {_told(then.get(key))}   is {_told(now.get(key))}"
            for key in differing
            if key[0] not in lost and key[0] not in new
        ),
    ]
    if len(faults) > MAX_SHOWN:
        faults[MAX_SHOWN - 1 :] = [f"... and {len(faults) - MAX_SHOWN + 1:,} more"]
    counted = f"{len(differing):,} of {len({*then, *now}):,} tensors differ"
    raise PlanError(
        f"the plan for {plan.source} is not the recorded one: {counted}",
        faults=faults,
        remedy="the checkpoint or the model changed: look at both, and record the plan anew if it is right",
    )


def _without_lone_entries(now: _Decisions, then: _Decisions) -> tuple[_Decisions, _Decisions]:
    """Both sides with one name for the entry where each has a single one: there is nothing to confuse it with."""
    if any(len({key[0] for key in side}) != 1 for side in (now, then)):
        return now, then
    now_entry = next(iter(now))[0]
    return now, {(now_entry, *key[1:]): values for key, values in then.items()}


def _counts(side: _Decisions, *, beside: _Decisions) -> Counter[str]:
    """The entries that the other side has not, with how many tensors each has."""
    return Counter(key[0] for key in side if key[0] not in {other[0] for other in beside})


def _list_of(values: object, kind: type) -> list[Any] | None:
    return values if isinstance(values, list) and all(isinstance(value, kind) for value in values) else None


def _identity(values: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(values.get("entry") or ""), str(values.get("name")), str(values.get("checkpoint_name"))


def _decision(values: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What must be equal. Reasons are for people, and another version may say them better."""
    return None if values is None else {key: values.get(key) for key in ("status", "changes", "checkpoint", "model")}


def _told(values: Mapping[str, Any] | None) -> str:
    """A decision in few words; it may come from a file that somebody wrote."""
    if values is None:
        return "not there"
    changes = values.get("changes")
    changed = f" ({', '.join(map(str, changes))})" if isinstance(changes, list) and changes else ""
    sides = [
        f"{spec.get('dtype')} {spec.get('shape')}"
        for s in ("checkpoint", "model")
        if isinstance(spec := values.get(s), dict)
    ]
    return f"{str(values.get('status')).replace('_', ' ')}{changed} {' -> '.join(dict.fromkeys(sides))}"


def _values_of(row: Row) -> dict[str, object]:
    return {
        "entry": row.entry,
        "name": row.name,
        "checkpoint_name": row.checkpoint_name,
        "status": row.status.value,
        "changes": [change.value for change in row.changes],
        "reason": row.reason,
        "checkpoint": _spec_values(row.checkpoint),
        "model": _spec_values(row.model),
    }


def _spec_values(spec: TensorSpec | None) -> dict[str, object] | None:
    return None if spec is None else {"dtype": spec.dtype, "shape": list(spec.shape)}
