"""What all verbs share: how a verb is added, and how text and JSON reach the streams."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO, TypeAlias

from torchkeep.tensors import printable

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - it has no public name

SCHEMA = 1


class UsageError(Exception):
    """The command cannot mean anything as it was given."""

    exit_code = 2


def add_verb(
    verbs: Verbs,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    about: str,
    examples: Iterable[str],
    notes: str = "",
) -> argparse.ArgumentParser:
    """Add a verb with its help; its arguments are added to what is returned."""
    lines = ["examples:", *(f"  {example}" for example in examples), *(["", notes] if notes else [])]
    parser = verbs.add_parser(
        name,
        help=about[0].lower() + about[1:].partition(".")[0],
        description=about,
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, error=parser.error)
    return parser


def say(text: str) -> None:
    """Print data to stdout."""
    for line in text.split("\n"):
        write(printable(line), sys.stdout)


def tell(text: str) -> None:
    """Print a message to stderr."""
    for line in text.split("\n"):
        write(printable(line), sys.stderr)


def write(line: str, stream: TextIO) -> None:
    """Write a line that steers the terminal only where that is meant; what the encoding has not is escaped."""
    encoding = stream.encoding or "utf-8"
    stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def say_json(values: Mapping[str, object]) -> None:
    """Print an object as JSON with its schema first; a number that JSON cannot write is null."""
    say(json.dumps({"schema": SCHEMA, **_json_values(values)}, indent=1, allow_nan=False))


def has_colour(stream: TextIO) -> bool:
    """Whether colours are wanted: a terminal, and no NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _json_values(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    if isinstance(value, Mapping):
        return {str(key): _json_values(inside) for key, inside in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_values(inside) for inside in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
