"""A plan as text: the report that people read before a load, and the error when it does not fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING

from torchkeep.errors import PlanError
from torchkeep.planning.match import arrange
from torchkeep.planning.recipes import steps
from torchkeep.planning.regrouping import Fuse, Split
from torchkeep.planning.rows import DIFFERENCES, Change, Row, Status
from torchkeep.planning.subtrees import Subtree, fold
from torchkeep.tensors import TensorSpec, format_bytes

if TYPE_CHECKING:
    from torchkeep.planning.loadplan import LoadPlan

MAX_ERROR_LINES = 20
MAX_SECTION_LINES = 12
LONGEST_REASON = 40
LOAD_CALL = "load(..., "
LEAST_SHARE_MEANT = 0.02
NAMES_IN_HINT = 3
_MODEL, _CHECKPOINT = attrgetter("model"), attrgetter("checkpoint")
MAX_HINT_WIDTH = 100
MAX_HINT_CHARACTERS = 1_500


def summary(plan: LoadPlan) -> str:
    """One line: where from, where to, how much."""
    counted = f"{plan.matched_count:,} of {plan.model_count:,} tensors matched"
    return f"{plan.source} -> {_targets(plan)}: {counted}, {percent(plan.coverage)} of the model's elements"


@dataclass(frozen=True, slots=True)
class Report:
    """A plan as text before it is laid out: the lines at the top, a list of cells for each row, the lines below."""

    head: tuple[str, ...]
    rows: tuple[list[str], ...]
    tail: tuple[str, ...]


def render(plan: LoadPlan) -> str:
    """The whole plan as text, as wide as its names."""
    report = report_of(plan)
    return "\n".join([*report.head, *_aligned(report.rows), *report.tail])


def report_of(plan: LoadPlan) -> Report:
    """The whole plan: differences first, then what changes on the way, then what simply loads."""
    counted = f"{plan.matched_count:,} of {plan.model_count:,} tensors matched"
    lines = [f"{plan.source} -> {_targets(plan)}"]
    if any(pair.counts for pair in plan.pairs.values()):
        lines.append(f"  {counted}, {percent(plan.coverage)} of the model's elements")
    for entry, pair in plan.pairs.items():
        label = f"{entry}: " if entry else ""
        if not pair.counts:
            rows = [row for row in plan.rows if row.entry == entry and row.model is not None]
            matched = sum(row.status is Status.MATCHED for row in rows)
            lines.append(f"  {label}state of {matched:,} of {len(rows):,} parameters matched")
        if pair.origin and pair.origin != entry:
            lines.append(f"  {label}taken from {pair.origin}")
        lines.extend([f"  {label}{pair.note}"] if pair.note else [])
        lines.extend(f"  {label}{fault}" for own, fault in plan.mismatches if own == entry)
    lines.extend(f"  collision: {collision}" for collision in plan.collisions)
    if left := plan.left_alone:
        lines.append(f"  nothing would be loaded{_into(left)}: the rules leave everything alone")
    sections = [
        *(_section(plan, status, _difference_cells) for status in DIFFERENCES),
        _section(plan, Status.SKIPPED, _skipped_cells),
        list(_change_cells(plan)),
        _section(plan, Status.MATCHED, _matched_cells),
    ]
    listed = [cells for section in sections for cells in _at_most(section, MAX_SECTION_LINES)]
    return Report(tuple(lines), tuple(listed), tuple(f"  {text}" for text in idle_texts(plan)))


def idle_texts(plan: LoadPlan) -> Iterator[str]:
    """What of the rules did nothing, a line each; of one that joins or divides, why."""
    for rule in plan.idle_rules:
        why = ""
        if isinstance(rule, (Fuse, Split)):
            before = plan.rules[: plan.rules.index(rule)]
            offered = (arrange(p.checkpoint, before, entry) for entry, p in plan.pairs.items() if rule.acts_on(entry))
            why = next(filter(None, map(rule.idle_reason, offered)), "")
        yield f"{rule!r} did nothing: {why}" if why else f"{rule!r} matched nothing"


def does_not_fit(plan: LoadPlan, *, strict: bool, call: str) -> PlanError:
    """The error that names every difference; not strict, only those that no choice but a `Cast` accepts."""
    statuses = DIFFERENCES if strict else (Status.DTYPE_DIFFERS,)
    cells = [line for status in statuses for line in _section(plan, status, _error_cells)]
    count = sum(row.status in statuses for row in plan.rows)
    total = sum(row.status is not Status.SKIPPED for row in plan.rows)
    what = f"{count:,} of {total:,} tensors do not fit"
    return _refusal(plan, what, _aligned(_at_most(cells, MAX_ERROR_LINES)), call)


def reaches_nothing(plan: LoadPlan) -> PlanError:
    """The error that a load would leave models as they are, since rules leave everything of them alone."""
    left = plan.left_alone
    firsts = _firsts(name for entry in left for name in plan.pairs[entry].model)
    what = f"nothing would be loaded{_into(left)}, the rules leave everything alone"
    return PlanError(
        f"cannot load {plan.source} into {_targets(plan)}: {what}",
        faults=list(idle_texts(plan)),
        remedy=f"skip less; the model's names are {firsts}",
    )


def _into(entries: Sequence[str]) -> str:
    return f" into {', '.join(entries)}" if any(entries) else ""


def _firsts(names: Iterable[str]) -> str:
    """The first of some names, as people read them."""
    firsts = list(islice(names, NAMES_IN_HINT + 1))
    return ", ".join([*firsts[:NAMES_IN_HINT], *(["..."] if len(firsts) > NAMES_IN_HINT else [])]) or "none"


def too_little(plan: LoadPlan, found: str, required: float) -> PlanError:
    """The error that a load would reach too little."""
    cells = [line for status in DIFFERENCES for line in _section(plan, status, _error_cells)]
    what = f"only {found} found a place, {percent(required)} is required"
    return _refusal(plan, what, _aligned(_at_most(cells, MAX_ERROR_LINES)))


def does_not_go_together(plan: LoadPlan) -> PlanError:
    """The error that an entry is not for its object as a whole."""
    faults = [f"{entry or plan.pairs[entry].target}: {fault}" for entry, fault in plan.mismatches]
    remedy = (
        "leave it out of `into`; or strict=False takes what of the state can go together, and starts the rest fresh"
    )
    return PlanError(f"cannot load {plan.source} into {_targets(plan)}", faults=faults, remedy=remedy)


def collides(plan: LoadPlan) -> PlanError:
    """The error that several tensors would get one name."""
    count = len(plan.collisions)
    what = "1 name is claimed more than once" if count == 1 else f"{count:,} names are claimed more than once"
    return _refusal(plan, what, [f"  {text}" for text in plan.collisions])


def percent(share: float) -> str:
    """A share as people read it, never rounded up: 100 % is all.

    Example:
        >>> percent(0.99996), percent(1.0), percent(0.9941)
        ('99.9 %', '100 %', '99.4 %')
    """
    return "100 %" if share >= 1 else f"{int(share * 1000 + 1e-9) / 10:.1f} %"


def _refusal(plan: LoadPlan, what: str, lines: Iterable[str], call: str = LOAD_CALL) -> PlanError:
    return PlanError(
        f"cannot load {plan.source} into {_targets(plan)}: {what}",
        faults=[*(line.removeprefix("  ") for line in lines), *idle_texts(plan)],
        remedy=_hint(plan, call),
    )


def _hint(plan: LoadPlan, call: str) -> str:
    rules = plan.suggest()
    if any(row.refusal for row in plan.rows) or any(isinstance(rule, (Fuse, Split)) for rule in plan.idle_rules):
        return "mend the rules that could not act, or leave them out"
    if plan.model_count and (fits := _share_that_fits(plan.with_rules(*rules))) < LEAST_SHARE_MEANT:
        found = f"{percent(fits)} of it" if fits else "nothing in it"
        pairs = [pair for pair in plan.pairs.values() if pair.counts]
        saved, wanted = (_firsts(n for pair in pairs for n in side(pair)) for side in (_CHECKPOINT, _MODEL))
        asked = "is this the checkpoint, and the entry of it, that was meant?"
        return f"{found} fits: {asked}\n    its names are {saved}\n    the model's are {wanted}"
    if not rules:
        return "skip less, or ask for less coverage"
    close = ")" if call else ""
    line = f"{call}rules=[{', '.join(map(repr, rules))}]{close}"
    if len(line) <= MAX_HINT_WIDTH:
        return line
    if len(line) > MAX_HINT_CHARACTERS:
        return f"print(plan.suggest()) gives {len(rules)} rules that would make it fit"
    return "\n".join([f"{call}rules=[", *(f"      {rule!r}," for rule in rules), f"  ]{close}"])


def _share_that_fits(plan: LoadPlan) -> float:
    """The share, by elements, of the models or of what is offered to them, whichever is larger, that is matched."""
    rows = [row for row in plan.rows if plan.pairs[row.entry].counts]
    matched = [row for row in rows if row.status is Status.MATCHED]
    shares = []
    for side in (_MODEL, _CHECKPOINT):
        total, found = (sum(spec.numel for row in some if (spec := side(row)) is not None) for some in (rows, matched))
        shares.append(found / total if total else float(bool(matched)))
    return max(shares)


def _targets(plan: LoadPlan) -> str:
    return ", ".join(dict.fromkeys(pair.target for pair in plan.pairs.values())) or "nothing"


def _section(
    plan: LoadPlan, status: Status, cells_of: Callable[[LoadPlan, Subtree, Sequence[Row]], list[str]]
) -> list[list[str]]:
    """Lines of cells for all rows of one status: a shape that differs is said for each, the rest by subtree."""
    section: list[list[str]] = []
    for entry in plan.pairs:
        rows = [row for row in plan.rows if row.entry == entry and row.status is status]
        others = {row.name for row in plan.rows if row.entry == entry} - {row.name for row in rows}
        by_name: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_name[row.name].append(row)
        singly = status is Status.SHAPE_DIFFERS and len(rows) <= MAX_SECTION_LINES
        subtrees = [Subtree(name, name, (name,)) for name in by_name] if singly else fold(by_name, others)
        for subtree in subtrees:
            members = [row for name in subtree.names for row in by_name[name]]
            label, *rest = cells_of(plan, subtree, members)
            prefix = f"{entry}: " if entry and len(plan.pairs) > 1 else ""
            section.append([label, prefix + subtree.label, *rest])
    return section


def _error_cells(plan: LoadPlan, subtree: Subtree, rows: Sequence[Row]) -> list[str]:
    del plan
    sides = {_sides(row) for row in rows}
    if len(sides) == 1 and (both := sides.pop()) is not None:
        cells = [_count(rows)] if len(rows) > 1 else []
        refusals = {row.refusal for row in rows} - {""}
        cells += [refusals.pop()] if len(refusals) == 1 else []
        return [_label(rows[0].status), f"checkpoint {both[0]}", f"model {both[1]}", *cells]
    return [_label(rows[0].status), _amount(subtree, rows)]


def _difference_cells(plan: LoadPlan, subtree: Subtree, rows: Sequence[Row]) -> list[str]:
    sides = {_sides(row) for row in rows}
    if len(sides) == 1 and (both := sides.pop()) is not None:
        counted = f", {_count(rows)}" if len(rows) > 1 else ""
        refusals = {row.refusal for row in rows}
        why = f": {refusals.pop()}" if len(refusals) == 1 and refusals != {""} else ""
        return [_label(rows[0].status), f"{both[0]} -> {both[1]}{counted}", _consequence(plan, rows) + why]
    return [_label(rows[0].status), _amount(subtree, rows), _consequence(plan, rows)]


def _skipped_cells(plan: LoadPlan, subtree: Subtree, rows: Sequence[Row]) -> list[str]:
    why = {row.reason.partition(": ")[2] for row in rows}
    said = f": {text}" if len(why) == 1 and len(text := why.pop()) <= LONGEST_REASON else ""
    return ["skipped", _amount(subtree, rows), _consequence(plan, rows) + said]


def _matched_cells(plan: LoadPlan, subtree: Subtree, rows: Sequence[Row]) -> list[str]:
    del plan
    return ["matched", _amount(subtree, rows)]


def _change_cells(plan: LoadPlan) -> Iterator[list[str]]:
    """What happens to matched tensors on the way, alike changes in one line."""
    renamed: dict[tuple[str, str], list[Row]] = defaultdict(list)
    others: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in plan.rows:
        if Change.RENAMED in row.changes and row.checkpoint_name is not None:
            renamed[_differing_beginnings(row.checkpoint_name, row.name)].append(row)
        if Change.CAST in row.changes and row.checkpoint is not None and row.model is not None:
            others["cast", f"{row.checkpoint.dtype} -> {row.model.dtype}"].append(row)
        if Change.ADAPTED in row.changes and row.recipe is not None:
            others["adapted", "; ".join(steps(row.recipe)) or "one element -> scalar"].append(row)
    for (old, new), rows in renamed.items():
        alone = len(rows) == 1
        name = f"{rows[0].checkpoint_name} -> {rows[0].name}" if alone else f"{old}* -> {new}*"
        yield ["renamed", name, _count(rows)]
    for (label, step), rows in others.items():
        yield [label, rows[0].name if len(rows) == 1 else step, step if len(rows) == 1 else _count(rows)]


def _differing_beginnings(old: str, new: str) -> tuple[str, str]:
    """Two names without the segments that both end in, and with ``*`` for numbers if they have the same."""
    left, right = old.split("."), new.split(".")
    if [part for part in left if part.isdecimal()] == [part for part in right if part.isdecimal()]:
        left, right = (["*" if part.isdecimal() else part for part in parts] for parts in (left, right))
    while left and right and left[-1] == right[-1]:
        left.pop()
        right.pop()
    return "".join(f"{segment}." for segment in left), "".join(f"{segment}." for segment in right)


def _sides(row: Row) -> tuple[str, str] | None:
    """What differs in two tensors that belong together, as text; None when there is only one."""
    if row.checkpoint is None or row.model is None:
        return None
    if row.status is Status.DTYPE_DIFFERS:
        return row.checkpoint.dtype, row.model.dtype
    return str(row.checkpoint.shape), str(row.model.shape)


def _consequence(plan: LoadPlan, rows: Sequence[Row]) -> str:
    if all(row.model is None for row in rows):
        return "not loaded"
    said = plan.pairs[rows[0].entry].unloaded
    return (
        said.replace("stays at its initial value", "stay at initial values").replace("starts", "start")
        if len(rows) > 1
        else said
    )


def _amount(subtree: Subtree, rows: Sequence[Row]) -> str:
    specs = [spec for row in rows if (spec := row.model or row.checkpoint) is not None]
    if subtree.label == rows[0].name and len(rows) == 1:
        return _spec_text(specs[0]) if specs else ""
    return f"{_count(rows)}, {format_bytes(sum(spec.nbytes for spec in specs))}"


def _spec_text(spec: TensorSpec) -> str:
    return f"{spec.dtype} {spec.shape}"


def _count(rows: Sequence[Row]) -> str:
    return f"{len(rows):,} tensor{'s' if len(rows) != 1 else ''}"


def _label(status: Status) -> str:
    return status.value.replace("_", " ")


def _at_most(lines: Sequence[list[str]], limit: int) -> list[list[str]]:
    if len(lines) <= limit:
        return list(lines)
    return [*lines[: limit - 1], [lines[limit - 1][0], f"... and {len(lines) - limit + 1:,} more like these"]]


def _aligned(lines: Sequence[list[str]]) -> list[str]:
    """Cells in columns of equal width, three spaces apart, indented by two."""
    widths: dict[int, int] = defaultdict(int)
    for cells in lines:
        for column, cell in enumerate(cells[:-1]):
            widths[column] = max(widths[column], len(cell))
    return [
        "  " + "   ".join(cell.ljust(widths[column]) for column, cell in enumerate(cells)).rstrip() for cells in lines
    ]
