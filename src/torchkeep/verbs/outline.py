"""A checkpoint's tree as text that fits a screen: dotted names as levels, repeated levels folded, sizes summed."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from torchkeep.tensors import Described, TensorSpec, format_bytes, tensors_of, unused_name, walk
from torchkeep.tensors import printable as printable

MAX_LINES = 38
MAX_CHILDREN = 20
MAX_UNFOLDED = 8
MAX_VALUES = 1000  # More of them in one mapping are counted, not told.
MAX_TEXT_LENGTH = 60
MAX_LABEL_LENGTH = 80
# Bounds of the recursion below: containers entered, and levels made of one dotted name.
MAX_NESTED = 16
MAX_SEGMENTS = 12
_MAX_INTEGER_BITS = 256
_MAX_ELEMENTS = 20
_GROUPS = ("_parameters", "_buffers", "_modules")  # Where a module keeps what its state dict has.


def outline(title: str, tree: object, most_lines: int = MAX_LINES) -> str:
    """A tree as lines: levels with tensors are opened first, from the top, as long as they fit in so many lines.

    Raises:
        LimitError: As for `walk`.

    Example:
        >>> print(outline("w", {"fc.weight": TensorSpec("float32", (2, 3)), "epoch": 4}))
        w: 1 tensor, 24 bytes
        ├─ fc.weight  float32 (2, 3)
        └─ epoch  4
    """
    tensors_of(tree)  # Only a tree that this survives may be entered by recursion.
    root = _level(tree, 0)
    if root.text and not root.children:
        root = _level({"": tree}, 0)
    rows = _rows(root)
    left = most_lines - 1 - len(rows)
    for with_tensors in (True, False):
        left = _open(rows, left, with_tensors=with_tensors)
    about = root.about() if root.tensor_count else f"no tensors, {_counted(root.value_count, 'value')}"
    return "\n".join([f"{printable(title)}: {about}", *_lines(rows, "")])


@dataclass(slots=True)
class _Level:
    """One level of the tree: what is under it by label, or what it is."""

    text: str = ""
    children: dict[str, _Level] | None = None
    tensor_count: int = 0
    value_count: int = 0
    total_bytes: int = 0

    def place(self, key: object, child: _Level) -> None:
        """Put a level under this one: a dotted key is one level per segment."""
        level = self
        *above, last = _segments(key)
        for segment in above:
            level.count(child)
            level = level.opened().setdefault(segment, _Level())
        level.count(child)
        siblings = level.opened()
        siblings[unused_name(last, siblings)] = child

    def form(self, *, exact: bool) -> Hashable:
        """Equal for levels of equal names and dtypes; exact ones are equal in shapes and values as well."""
        inside = tuple((label, child.form(exact=exact)) for label, child in (self.children or {}).items())
        is_value = not self.tensor_count and not inside
        return (self.text if exact else "value" if is_value else self.text.partition(" ")[0], inside)

    def about(self) -> str:
        """What is said of it beside its label."""
        if self.text and not self.children:
            return self.text
        if self.tensor_count:
            held = _sizes(self.tensor_count, self.total_bytes)
        else:
            held = _counted(self.value_count, "value") if self.value_count else "empty"
        return f"{self.text}, {held}" if self.text else held

    def count(self, child: _Level) -> None:
        """Add what a level holds that is put under this one."""
        self.tensor_count += child.tensor_count
        self.value_count += child.value_count
        self.total_bytes += child.total_bytes

    def opened(self) -> dict[str, _Level]:
        """Its children, to put one more among them."""
        if self.children is None:
            self.children = {}
        return self.children


@dataclass(slots=True)
class _Row:
    """One line of the outline, and the lines below it once it is opened."""

    label: str
    about: str
    level: _Level | None = None
    below: list[_Row] = field(default_factory=list)


def _segments(key: object) -> list[str]:
    if not isinstance(key, str):
        return [value_text(key)]
    segments = key.split(".", MAX_SEGMENTS)
    return segments if all(segments) else [key]


def _level(node: object, nested: int) -> _Level:
    items = _items(node, nested)
    if items is None:
        return _leaf(node)
    level = _Level(text=_class_name(node))
    for key, value in items:
        level.place(key, _level(value, nested + 1))
    return level


def _items(node: object, nested: int) -> Collection[tuple[object, object]] | None:
    """What a node holds by key; None for what is shown as a value."""
    if nested > MAX_NESTED or _is_value(node, nested):
        return None
    if isinstance(node, Mapping):
        only_values = len(node) > MAX_VALUES and all(_is_value(value, nested) for value in node.values())
        return None if only_values else node.items()
    if isinstance(node, (list, tuple)):
        return list(enumerate(node))
    return list(_described_items(node)) if isinstance(node, Described) else None


def _is_value(node: object, nested: int) -> bool:
    """Whether neither a tensor nor a name is inside."""
    if isinstance(node, (list, tuple)):
        return nested <= MAX_NESTED and all(_is_value(each, nested + 1) for each in node)
    return not isinstance(node, (Mapping, Described, TensorSpec))


def _described_items(node: Described) -> Iterator[tuple[object, object]]:
    """The attributes of an object that was not built; of a module what its state dict would have, and public ones."""
    state = node.state
    if isinstance(state, Mapping) and _is_module(node.class_path, state):
        groups = [group for key in _GROUPS if isinstance(group := state.get(key), Mapping)]
        yield from ((name, value) for group in groups for name, value in group.items() if value is not None)
        rest = {key: value for key, value in state.items() if key not in _GROUPS}
        yield from ((key, value) for key, value in rest.items() if not str(key).startswith("_") or tensors_of(value))
    elif isinstance(state, Mapping):
        yield from state.items()
    elif state is not None:
        yield "state", state
    yield from ((f"arg{index}", value) for index, value in enumerate(node.args))
    yield from node.kwargs.items()
    yield from ((f"item{index}", value) for index, value in enumerate(node.items))


def _is_module(class_path: str, state: Mapping[object, object]) -> bool:
    return class_path.startswith("__torch__.") or all(isinstance(state.get(key), Mapping) for key in _GROUPS)


def _class_name(node: object) -> str:
    return printable(node.class_path.rpartition(".")[2]) if isinstance(node, Described) else ""


def _leaf(node: object) -> _Level:
    if isinstance(node, TensorSpec):
        device = f" {printable(node.device)}" if node.device and node.device != "cpu" else ""
        return _Level(_cut(f"{node}{device}"), tensor_count=1, total_bytes=node.nbytes)
    if isinstance(node, (Mapping, Described)) or not _is_value(node, 0):
        specs = list(tensors_of(node).values())
        values = sum(1 for _ in walk(node)) - len(specs)
        return _Level(_class_name(node), {}, len(specs), values, sum(spec.nbytes for spec in specs))
    return _Level(_cut(printable(value_text(node))), value_count=1)


def value_text(value: object, nested: int = 0) -> str:
    """The beginning of a value's repr, at a cost that does not depend on its size."""
    if isinstance(value, (str, bytes)):
        return repr(value[: MAX_TEXT_LENGTH + 1])
    if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
        return f"an integer of {value.bit_length():,} bits"
    if type(value) in {list, tuple, set, frozenset} and isinstance(value, Collection):
        if nested > 2 or not value:  # noqa: PLR2004 - deeper than a line can show
            return "[...]" if value else repr(value)
        first = [value_text(each, nested + 1) for each, _ in zip(value, range(_MAX_ELEMENTS), strict=False)]
        brackets = {list: "[]", tuple: "()"}.get(type(value), "{}")
        rest = ", ..." if len(value) > len(first) else "," if (brackets, len(first)) == ("()", 1) else ""
        return f"{brackets[0]}{', '.join(first)}{rest}{brackets[1]}"
    return repr(value)


def _cut(text: str, most: int = MAX_TEXT_LENGTH) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _rows(level: _Level) -> list[_Row]:
    """One row per child; equal neighbours are one, and in a long list also those that differ in shapes only."""
    runs = _runs(level, exact=True)
    if len(runs) > MAX_UNFOLDED:
        runs = _runs(level, exact=False)
    if len(runs) <= MAX_CHILDREN:
        return [_row(run) for run in runs]
    hidden = [child for run in runs[MAX_CHILDREN - 1 :] for _, child in run]
    tensors = sum(child.tensor_count for child in hidden)
    about = f", {_sizes(tensors, sum(child.total_bytes for child in hidden))}" if tensors else ""
    return [*map(_row, runs[: MAX_CHILDREN - 1]), _Row(f"... {len(hidden):,} more{about}", "")]


def _runs(level: _Level, *, exact: bool) -> list[list[tuple[str, _Level]]]:
    """Children in order; those with successive numbers for labels and the same form are one run."""
    runs: list[list[tuple[str, _Level]]] = []
    last: Hashable = None
    for label, child in (level.children or {}).items():
        number = _number(label)
        form = None if number is None else (child.form(exact=exact or not child.tensor_count))
        if number is not None and runs and form == last and runs[-1][-1][0] == str(number - 1):
            runs[-1].append((label, child))
        else:
            runs.append([(label, child)])
        last = form
    return runs


def _number(label: str) -> int | None:
    is_number = label.isascii() and label.isdecimal() and (label[0] != "0" or label == "0")
    return int(label) if is_number and len(label) < MAX_LABEL_LENGTH else None


def _row(run: list[tuple[str, _Level]]) -> _Row:
    label, level = run[0]
    if len(run) > 1:
        label = f"{label} ... {run[-1][0]}"
        if len({child.form(exact=True) for _, child in run}) == 1:
            return _Row(label, f"({len(run)} alike, each {level.about()})", level)
        sizes = _sizes(sum(child.tensor_count for _, child in run), sum(child.total_bytes for _, child in run))
        return _Row(label, f"({len(run)} with equal names, {sizes})")
    while level.children is not None and len(level.children) == 1 and not level.text:
        only = next(iter(level.children))
        label, level = f"{label}.{only}", level.children[only]
    return _Row(_cut(printable(label), MAX_LABEL_LENGTH) or "''", level.about(), level)


def _open(rows: list[_Row], left: int, *, with_tensors: bool) -> int:
    """Open rows from the top down while lines are left; returns how many are."""
    while rows:
        deeper: list[_Row] = []
        for row in rows:
            if row.level is not None and not row.below and bool(row.level.tensor_count) == with_tensors:
                below = _rows(row.level)
                row.below = below if len(below) <= left else []
                left -= len(row.below)
            deeper += row.below
        rows = deeper
    return left


def _lines(rows: list[_Row], indent: str) -> Iterator[str]:
    for index, row in enumerate(rows):
        is_last = index == len(rows) - 1
        yield f"{indent}{'└─' if is_last else '├─'} {row.label}  {row.about}".rstrip()
        yield from _lines(row.below, indent + ("   " if is_last else "│  "))


def _sizes(tensors: int, total_bytes: int) -> str:
    return f"{_counted(tensors, 'tensor')}, {format_bytes(total_bytes)}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
