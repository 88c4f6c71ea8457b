"""``torchkeep view``: a run or a checkpoint as a page in the browser, or as one file."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from torchkeep.cli.console import UsageError, Verbs, add_verb, say, say_json, tell
from torchkeep.errors import ConflictError, NotFoundError
from torchkeep.tensors import format_bytes

if TYPE_CHECKING:
    from torchkeep.viewer.server import Server
    from torchkeep.viewer.subject import Subject

_LARGEST_PORT = 65535


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "view",
        run,
        about="View a run or a checkpoint in the browser. Served to this machine alone; nothing is changed.",
        examples=[
            "torchkeep view runs/exp1",
            "torchkeep view finetuned.ckpt --against pretrained.pth",
            "torchkeep view runs/exp1 --export report.html",
            "torchkeep view runs/exp1 --compare 100 2000 --export report.html",
        ],
        notes="On another machine: ssh -L PORT:127.0.0.1:PORT host, with --port PORT there, and open the address here.",
    )
    parser.add_argument("path", metavar="RUN|FILE", help="a run folder, or a checkpoint of any format")
    parser.add_argument(
        "--against",
        metavar="FILE",
        action="append",
        default=[],
        help="one more checkpoint, to compare with; repeatable",
    )
    parser.add_argument("--export", metavar="FILE.html", help="write the page as one file instead of serving it")
    parser.add_argument(
        "--compare", metavar=("STEP", "STEP"), nargs=2, help="with --export: the steps before and after; the first and "
        "the last by default",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=0, help="the port to serve at; any free one by default")
    parser.add_argument("--no-browser", action="store_true", help="print the address and open no browser")
    parser.add_argument("--json", action="store_true", help="print the address, or what was written, as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Serve until interrupted, or write one file."""
    from torchkeep.viewer.subject import Subject

    if arguments.compare and not arguments.export:
        raise UsageError("--compare goes with --export; on the served page the checkpoints are chosen there")
    if not 0 <= arguments.port <= _LARGEST_PORT:
        raise UsageError(f"--port: {arguments.port} is no port")
    subject = Subject(arguments.path, arguments.against)
    try:
        return _export(subject, arguments) if arguments.export else _serve(subject, arguments)
    finally:
        subject.close()


def _export(subject: Subject, arguments: argparse.Namespace) -> int:
    from torchkeep.viewer.export import export_page

    pair = None if arguments.compare is None else _pair(subject, *arguments.compare)
    written = export_page(subject, arguments.export, compare=pair, progress=_progress if sys.stderr.isatty() else None)
    if arguments.json:
        about = {"path": str(written.path), "total_bytes": written.nbytes}
        say_json({**about, "checkpoint": written.at, "compared_with": written.compared_with})
    else:
        say(f"{written.path}: {format_bytes(written.nbytes)}, one file that needs no network")
    return 0


def _progress(done: int, count: int) -> None:
    end = "\n" if done == count else ""
    sys.stderr.write(f"\rreading {done:,} of {count:,} tensors{end}")
    sys.stderr.flush()


def _pair(subject: Subject, before: str, after: str) -> tuple[str, str]:
    """The ids that two steps stand for."""
    listed = subject.listing()
    if listed is None:
        raise UsageError("--compare takes the steps of a run; for one file name the other with --against")
    ids = {str(each.step): each.path.name for each in listed}
    for step in (before, after):
        if step not in ids:
            known = ", ".join(ids) or "none"
            raise NotFoundError(
                f"no checkpoint of step {step}", where=subject.path, remedy=f"steps that are here: {known}"
            )
    return ids[before], ids[after]


def _serve(subject: Subject, arguments: argparse.Namespace) -> int:
    server = _server(subject, arguments.port)
    with server:
        if arguments.json:
            say_json({"address": server.url})
        else:
            say(server.url)
        sys.stdout.flush()
        tell("serving to this machine alone; Ctrl-C ends it")
        wants_browser = not arguments.no_browser and _has_screen()
        with _browser_at(server.url) if wants_browser else nullcontext(), suppress(KeyboardInterrupt):
            server.serve_forever()  # Ctrl-C is the way to end it
    return 0


@contextmanager
def _browser_at(url: str) -> Iterator[None]:
    """Open a browser, by a file that leads there: the browser's command line is for all users of a machine to see."""
    with tempfile.NamedTemporaryFile("w", prefix="torchkeep-view-", suffix=".html") as leading:
        leading.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={url}">')
        leading.flush()
        webbrowser.open(Path(leading.name).as_uri())
        yield


def _server(subject: Subject, port: int) -> Server:
    from torchkeep.viewer.server import Server

    try:
        return Server(subject, port)
    except PermissionError as error:
        raise ConflictError(f"port {port} is not ours to open", remedy="name another with --port, or none") from error
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise ConflictError(
            f"port {port} is in use", remedy="name another with --port, or none for a free one"
        ) from error


def _has_screen() -> bool:
    """Whether a browser would open beside this terminal; without one, text browsers would take the terminal over."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
