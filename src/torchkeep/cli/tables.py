"""Tables that fit the terminal: 80 columns where its width is not known, wider where it is."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torchkeep.cli.console import has_colour, write
from torchkeep.tensors import printable

_GAP = 2
_BOLD, _PLAIN = "\x1b[1m", "\x1b[0m"
_BREAKS = re.compile(r"(?<=[./ ])")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: What stands above it.
        align: To which side its cells stand.
        folds: Whether its cells go on in further lines where the table is too wide.
        least: The width that a column which folds keeps.
        spare: Columns that may be left out for want of width have a number: the highest goes first. 0 always stays.
    """

    title: str
    align: Literal["left", "right"] = "right"
    folds: bool = False
    least: int = 32
    spare: int = 0


def terminal_width() -> int:
    """Columns of the terminal: ``COLUMNS`` where it is set, 80 where nothing says."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int, indent: str = "") -> str:
    """Rows in columns, two spaces apart, no line wider than `width` as long as the columns that stay can be.

    Example:
        >>> print(table([Column("name", "left", folds=True), Column("size")], [["a.b", "3 MB"]], 80))
        name  size
        a.b   3 MB
    """
    kept, widths = _fit(columns, rows, width - len(indent))
    cells = [[column.title for column in columns], *rows]
    lines: list[str] = []
    for row in cells:
        folded = [_fold(printable(row[at]), widths[at]) if columns[at].folds else [printable(row[at])] for at in kept]
        for line in range(max(map(len, folded), default=0)):
            parts = [texts[line] if line < len(texts) else "" for texts in folded]
            placed = [
                part.rjust(widths[at]) if columns[at].align == "right" else part.ljust(widths[at])
                for part, at in zip(parts, kept, strict=True)
            ]
            lines.append(indent + (" " * _GAP).join(placed).rstrip())
    return "\n".join(lines)


def say_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Print a table to stdout; on a terminal with colours its titles are bold."""
    title, *lines = table(columns, rows, terminal_width(), indent).split("\n")
    write(f"{_BOLD}{title}{_PLAIN}" if has_colour(sys.stdout) else title, sys.stdout)
    for line in lines:
        write(line, sys.stdout)


def _fit(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> tuple[list[int], dict[int, int]]:
    """Which columns stay, and how wide each is."""
    natural = {
        at: max(len(column.title), *(len(printable(row[at])) for row in rows), 0) for at, column in enumerate(columns)
    }
    kept = [at for at, column in enumerate(columns) if any(row[at] for row in rows) or not column.spare]
    while True:
        folding = [at for at in kept if columns[at].folds]
        least = sum(min(natural[at], columns[at].least) if at in folding else natural[at] for at in kept)
        spare = max(kept, key=lambda at: columns[at].spare, default=None)
        if least + _GAP * (len(kept) - 1) <= width or spare is None or not columns[spare].spare:
            break
        kept.remove(spare)
    widths = {at: natural[at] for at in kept}
    over = sum(widths.values()) + _GAP * (len(kept) - 1) - width
    for at in sorted(folding, key=lambda at: -natural[at]):
        cut = max(0, min(over, widths[at] - columns[at].least))
        widths[at], over = widths[at] - cut, over - cut
    return kept, widths


def _fold(text: str, width: int) -> list[str]:
    """A text in lines of at most `width`, cut behind dots, slashes and spaces where that can be."""
    lines = [""]
    for part in _parts(text, width):
        if len(lines[-1]) + len(part) <= width:
            lines[-1] += part
        else:
            lines.append(part)
    return [line.rstrip() for line in lines]


def _parts(text: str, width: int) -> Iterator[str]:
    for part in _BREAKS.split(text):
        yield from (part[at : at + width] for at in range(0, len(part), width))
