"""``torchkeep plan``: what a load into a model would do."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Collection, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from torchkeep.cli.console import UsageError, Verbs, add_verb, has_colour, say, say_json, tell, write
from torchkeep.cli.tables import Column, table, terminal_width
from torchkeep.errors import CheckpointError, FormatError, NotFoundError, PlanError, typed
from torchkeep.tensors import printable

if TYPE_CHECKING:
    from torchkeep.planning.loadplan import LoadPlan
    from torchkeep.rules import Rule

_REGEX = re.compile(r"[\\^$*+?{}()|\[\]]")
_RED, _YELLOW, _GREEN, _CYAN = 31, 33, 32, 36
_COLOURS = {
    "shape differs": _RED,
    "dtype differs": _RED,
    "only in model": _RED,
    "only in checkpoint": _RED,
    "collision": _RED,
    "skipped": _YELLOW,
    "renamed": _CYAN,
    "cast": _CYAN,
    "adapted": _CYAN,
    "matched": _GREEN,
}
_RULE_OPTIONS = ("--rename", "--skip", "--only", "--cast", "--rule")
_LABEL = re.compile(rf"  ({'|'.join(_COLOURS)})(?=  |:)")


class _AddRule(argparse.Action):
    """Append a rule, so that rules act in the order in which they were given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        try:
            rule = rule_of(option_string or "", values if isinstance(values, str) else None)
        except ValueError as error:
            parser.error(f"{option_string}: {error}")
        namespace.rules = [*namespace.rules, rule]


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "plan",
        run,
        about="Plan a load into a model, and change nothing. Exits with 0 when a strict load would go ahead, else 1.",
        examples=[
            "torchkeep plan resnet50.pth torchvision.models:resnet50",
            "torchkeep plan last.ckpt train:Net --rename module.= --skip fc",
            r"torchkeep plan last.ckpt train:Net --rename '^layers\.(\d+)=blocks.\1' --cast",
            "torchkeep plan rgb.pth train:Grey --rule 'InputChannels(\"conv1\")' --json > plan.json",
            "torchkeep plan rgb.pth train:Grey --replay plan.json",
            "torchkeep plan gan.pt train:make_generator --entry G --suggest",
        ],
        notes="Rules act in the order in which they are given. MODULE is imported, from the current folder too.",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of any format")
    parser.add_argument(
        "factory", metavar="MODULE:FACTORY", help="a class or function that gives the model when called"
    )
    parser.add_argument(
        "--entry", metavar="KEY", help="where in the checkpoint the weights are, when it cannot be told"
    )
    add_rules(parser)
    parser.add_argument("--suggest", action="store_true", help="also print rules that would make it fit, as Python")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON, a row per tensor")
    parser.add_argument(
        "--replay",
        metavar="FILE",
        help="take the rules of a plan that --json printed, and exit with 1 if anything differs",
    )


def add_rules(parser: argparse.ArgumentParser, options: Collection[str] = _RULE_OPTIONS) -> None:
    """Add the options that are rules; ``arguments.rules`` has them in the order in which they are given."""
    rules = parser.add_argument_group("rules")
    rules.set_defaults(rules=[])
    about = {
        "--rename": "rename tensors of the checkpoint: OLD is how names begin, up to a dot, or else a regular "
        "expression; the last = divides",
        "--skip": "leave these tensors alone",
        "--only": "leave all but these alone",
        "--cast": "allow dtypes to narrow (all without GLOB)",
        "--rule": """any rule of torchkeep.rules as Python: 'MapRows(["cat"], ["dog", "cat"], "fc")'""",
    }
    for option in options:
        metavar = {"--rename": "OLD=NEW", "--rule": "CODE"}.get(option, "GLOB")
        nargs = "?" if option == "--cast" else None
        rules.add_argument(option, metavar=metavar, action=_AddRule, dest="rules", nargs=nargs, help=about[option])


def run(arguments: argparse.Namespace) -> int:
    """Make the model, plan the load, print the plan."""
    model = make_model(arguments.factory)
    made = _plan(arguments, model)
    suggested = made.suggest() if arguments.suggest else None
    if arguments.json:
        extra = {} if suggested is None else {"suggested": [repr(rule) for rule in suggested]}
        say_json({**made.to_dict(), **extra})
    else:
        say_plan(text_of(made, terminal_width()))
        if suggested:
            say(f"\n{suggested}")
    try:
        made.check(strict=True)
    except PlanError as error:
        tell(error.what if suggested else f"{error.what}\n  hint: --suggest prints rules that would make it fit")
        return error.exit_code
    return 0


def _plan(arguments: argparse.Namespace, model: object) -> LoadPlan:
    from torchkeep.verbs.loading import plan

    into = model if arguments.entry is None else {arguments.entry: model}
    try:
        made = plan(arguments.checkpoint, into, rules=arguments.rules)
    except TypeError as error:
        raise UsageError(f"{arguments.factory}: {error}") from error
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise NotFoundError("planning needs torch", remedy='pip install "torchkeep[torch]"') from error
    return made if arguments.replay is None else made.replay(recorded(arguments.replay, arguments.rules))


def recorded(file: str, rules: Sequence[Rule], option: str = "--replay") -> str:
    """The text of a recorded plan, of which the rules are taken.

    Raises:
        UsageError: Other rules are given as well.
        NotFoundError: There is no such file.
        FormatError: It is no recorded plan.
        CheckpointError: The operating system refused.
    """
    if rules:
        raise UsageError(f"{option} takes the rules of the recorded plan, so no others can be given")
    from torchkeep.planning.recorded import read_recorded

    try:
        with typed("cannot be read", file):
            text = Path(file).read_text(encoding="utf-8", errors="replace")
        read_recorded(text)
    except FormatError as error:
        raise FormatError(error.what, where=file, remedy=error.remedy) from error
    except CheckpointError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        remedy = "torchkeep plan ... --json > FILE records one"
        raise NotFoundError("no such file", where=file, remedy=remedy) from error
    return text


def text_of(made: LoadPlan, width: int) -> str:
    """A plan as text that is no wider than the terminal, as long as a row can be folded."""
    from torchkeep.planning.report import report_of

    text = str(made)
    if all(len(printable(line)) <= width for line in text.split("\n")):
        return text
    report = report_of(made)
    columns = [Column("", "left"), *(Column("", "left", folds=True, least=least) for least in (20, 14, 12))]
    most = max((len(cells) for cells in report.rows), default=0)
    rows = [[*cells, *[""] * (most - len(cells))] for cells in report.rows]
    laid_out = table(columns[:most], rows, width, "  ").split("\n")[1:] if rows else []
    return "\n".join([*_wrapped(report.head, width), *laid_out, *_wrapped(report.tail, width)])


def _wrapped(lines: Sequence[str], width: int) -> Iterator[str]:
    for line in lines:
        # Paths and rules are to be copied: they stay in one piece.
        yield from textwrap.wrap(line, width, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)


def say_plan(text: str) -> None:
    """Print a plan; on a terminal, the label of each line in the colour of its kind."""
    if not has_colour(sys.stdout):
        say(text)
        return
    for line in map(printable, text.split("\n")):
        label = _LABEL.match(line)
        painted = line if label is None else f"\x1b[{_COLOURS[label[1]]}m{label[0]}\x1b[0m{line[label.end() :]}"
        write(painted, sys.stdout)


def rule_of(option: str, text: str | None) -> Rule:
    r"""The rule that an option and its argument mean.

    Raises:
        ValueError: The argument cannot be understood.

    Example:
        >>> rule_of("--rename", "module.="), rule_of("--skip", "fc"), rule_of("--cast", None)
        (Rename(r"^module\.", ""), Skip("fc"), Cast())
    """
    from torchkeep.rules import Cast, Only, Rename, Skip, parse_rule

    if option == "--rule":
        return parse_rule(text or "")
    if option == "--cast":
        return Cast() if text is None else Cast(text)
    if option != "--rename":
        return Skip(text or "") if option == "--skip" else Only(text or "")
    old, equals, new = (text or "").rpartition("=")
    if not equals or not old:
        raise ValueError(f"OLD=NEW is wanted, not {text!r}")
    if _REGEX.search(old):
        return Rename(old, new)
    # A name, or the beginning of names up to a dot; without a new one the dot goes as well.
    ends = "" if old.endswith(".") else r"\." if not new else r"(?=\.|$)"
    return Rename(f"^{re.escape(old)}{ends}", new.replace("\\", r"\\"))


def make_model(factory: str) -> object:
    """Import ``package.module:factory`` and call it; what it prints goes to stderr.

    Raises:
        NotFoundError: There is no such module, or nothing of that name in it.
        UsageError: It is not of that form, or it raised.
    """
    module_name, colon, name = factory.partition(":")
    if not (module_name and colon and name):
        raise UsageError(f"{factory!r}: package.module:factory is wanted, for example torchvision.models:resnet50")
    with contextlib.redirect_stdout(sys.stderr):
        module = _import(module_name, factory)
        try:
            maker = attrgetter(name)(module)
        except AttributeError as error:
            there = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
            raise NotFoundError(
                f"nothing in {module_name} is called {name!r}",
                where=factory,
                remedy=f"it has {', '.join(there[:12]) or 'nothing to call'}",
            ) from error
        try:
            # A model that exists already is callable too; calling it would run it.
            return maker() if isinstance(maker, type) or not hasattr(maker, "state_dict") else maker
        except (Exception, SystemExit) as error:
            raise _raised(factory, "calling it without arguments", error) from error


def _import(module_name: str, factory: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is None or not f"{module_name}.".startswith(f"{absent}."):
            raise _raised(factory, "importing it", error) from error
        raise NotFoundError(
            f"no module {absent!r} to import",
            where=factory,
            remedy="the current folder and the installed packages are searched: run it where it can be found",
        ) from error


def _raised(factory: str, doing: str, error: BaseException) -> UsageError:
    """Other people's code may raise anything: say what, and where in their code."""
    ours = os.path.dirname(__file__)
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith((ours, "<"))
    ]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return UsageError(f"{factory}: {doing} raised {type(error).__name__}: {error}{where}")
