"""The same tests at two sizes: small in every run of the tests, full under ``--campaign``, which writes what it met.

A test takes the fixture `campaign`, asks it for sizes and tells it figures. A module whose tests do so is one section
of `docs/reliability.md`: its docstring is the text, its figures are the table. A run replaces the sections that it ran.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "reliability.md"
HEAD = """# Reliability, measured

What `make campaign` did to torchkeep and what came of it; nobody edits the sections below. Every test behind them also
runs in `make test`, smaller. Each section says what was done in the words of the test that did it.
"""
PROPERTY = "reliability"


@dataclass(frozen=True)
class Campaign:
    """How much a test should do, and where it says what it did."""

    is_full: bool
    properties: list[tuple[str, object]]

    def size(self, small: int, full: int) -> int:
        """One of two sizes."""
        return full if self.is_full else small

    def report(self, what: str, **figures: object) -> None:
        """Add a row to this module's table; numbers of rows that are otherwise equal are summed."""
        self.properties.append((PROPERTY, json.dumps({"what": what, **figures})))


@dataclass
class Section:
    """What the tests of one module reported."""

    file: str
    seconds: float
    rows: list[dict[str, object]]


def merged(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Rows with the same texts as one, their numbers summed."""
    kept: dict[tuple[object, ...], dict[str, object]] = {}
    for row in rows:
        texts = tuple((key, None if isinstance(value, int) else value) for key, value in row.items())
        before = kept.setdefault(texts, dict.fromkeys(row, 0))
        for key, value in row.items():
            before[key] = before[key] + value if isinstance(value, int) else value
    return list(kept.values())


def table(rows: list[dict[str, object]]) -> str:
    """Rows as a Markdown table; a column per figure, in the order in which they come."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---" if c == "what" else "---:" for c in columns]]
    lines += [[_cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("| what |", "| |", 1) for line in lines)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def text_of(section: Section) -> str:
    """One section of the document."""
    docstring = ast.get_docstring(ast.parse((ROOT / section.file).read_text(encoding="utf-8"))) or ""
    first, _, rest = docstring.partition("\n\n")
    place = f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, torch {version('torch')}"
    return "\n\n".join(
        [
            f"## `{section.file}`",
            first,
            *([rest] if rest else []),
            table(merged(section.rows)),
            f"{section.seconds:,.0f} seconds of tests on {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}, {place}.",
        ]
    )


def write_document(sections: Mapping[str, Section]) -> None:
    """Replace the sections that were run."""
    text = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    found = {
        part[0]: part[1] for part in re.findall(r"^(?=## `(.+?)`$)(.+?)(?=^## `|\Z)", text, re.DOTALL | re.MULTILINE)
    }
    found |= {file: text_of(section) for file, section in sections.items()}
    DOCUMENT.write_text(
        "\n\n".join([HEAD.strip(), *(found[file].strip() for file in sorted(found))]) + "\n", encoding="utf-8"
    )


class Collector:
    """Listens, in the process that controls the run, to what tests report."""

    def __init__(self) -> None:
        self.sections: dict[str, Section] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        rows = [json.loads(str(value)) for name, value in report.user_properties if name == PROPERTY]
        if report.when != "call" or not rows:
            return
        section = self.sections.setdefault(report.location[0], Section(report.location[0], 0, []))
        section.rows += rows
        section.seconds += report.duration

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus == 0:
            write_document(self.sections)
        else:
            sys.stderr.write(f"\n{DOCUMENT.name} was not written: a test failed\n")
