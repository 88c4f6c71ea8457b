"""The command line: one module per verb, each parses, calls and renders.

Data goes to stdout, messages to stderr. Exit codes: 0 ok, 1 difference or failed check, 2 usage, 3 not found or
unsupported, 4 corrupt or unsafe, 130 interrupted, 141 the reader of a pipe went away.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from torchkeep.cli.console import UsageError, say, tell
from torchkeep.errors import CheckpointError, NotFoundError

_EXIT_CODES = """exit codes:
  0 ok   1 difference or failed check   2 usage   3 not found or unsupported   4 corrupt or unsafe   130 interrupted
"""
VERBS = ("show", "ls", "plan", "diff", "verify", "convert", "average", "prune", "tag", "view", "completion")
_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; what a user can get wrong is a message, never a traceback.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Example:
        >>> import torchkeep
        >>> main(["--version"])
        torchkeep ...
        0
    """
    _open_streams()
    try:
        given = sys.argv[1:] if argv is None else list(argv)
        parser = make_parser(given[0] if given else None)
        if not given:
            parser.print_help(sys.stderr)
            return UsageError.exit_code
        arguments, unknown = parser.parse_known_args(given)
        if unknown:
            arguments.error(f"unrecognized arguments: {' '.join(unknown)}")
    except SystemExit as asked:  # argparse has printed help, the version, or what is wrong.
        return asked.code if isinstance(asked.code, int) else UsageError.exit_code
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except (CheckpointError, UsageError) as error:
        tell(f"torchkeep: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        tell("torchkeep: interrupted")
        return _INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return _BROKEN_PIPE
    except OSError as error:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        tell(f"torchkeep: {where}{error.strerror or error}")
        return NotFoundError.exit_code
    return code


def make_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The parser of all verbs; of one alone, whose modules are then all that is imported, where that is known."""
    parser = argparse.ArgumentParser(
        prog="torchkeep",
        description="Look into, compare, convert, verify and keep PyTorch checkpoints of any format. None is run.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name in [verb] if verb in VERBS else VERBS:
        importlib.import_module(f"torchkeep.cli.{name}").add_to(verbs)
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:  # noqa: A002 - argparse's name
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from torchkeep import __version__

        say(f"{parser.prog} {__version__}")
        parser.exit()


def _open_streams() -> None:
    """Whoever closed a stream wants nothing of it; and no file of ours may get its number."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends


def _forget_stdout() -> None:
    """Let the flush at exit go nowhere: nobody reads any more."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return
