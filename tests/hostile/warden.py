"""A process that opens bad inputs, each in a fork of its own, and says what it took and what it touched.

Run as a script it reads commands, one JSON object a line with the `path` to open and the `folder` that it may read, and
answers each with one line. It never imports torch, so a fork is cheap and its memory is that of reading alone.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import sysconfig
import time
from pathlib import Path

from torchkeep.errors import CheckpointError
from torchkeep.folder.read import FolderSource
from torchkeep.tensors import tensors_of
from torchkeep.verbs.sources import open_source
from torchkeep.verbs.verifying import verify

# What runs or reaches something, as sys.audit calls it.
FORBIDDEN = re.compile(
    r"os\.(system|exec|fork|posix_spawn|spawn|startfile|remove|rename|rmdir|mkdir|link|symlink|chmod)"
)
ELSEWHERE = re.compile(r"(subprocess|socket|ctypes\.dlopen|pickle\.find_class|shutil|ftplib|urllib|webbrowser|pty)\b")
LIBRARY = tuple({os.path.realpath(path) for path in (*sysconfig.get_paths().values(), *sys.path) if path})
FINDINGS = ".verified.json"  # what `verify` remembers beside the steps of a run
MOST_SECONDS = 20


def watch(folder: str, touched: list[str]) -> None:
    """Note every call that runs something, writes, or reads outside of a folder."""

    def hook(event: str, args: tuple[object, ...]) -> None:
        if args and isinstance(args[0], str) and args[0].startswith(f"{folder}/{FINDINGS}"):
            return
        if FORBIDDEN.match(event) or ELSEWHERE.match(event):
            touched.append(f"{event} {args!r:.200}")
        elif event == "open" and isinstance(args[0], (str, bytes)):
            path = os.fsdecode(args[0])
            if not (isinstance(args[2], int) and args[2] & os.O_NOFOLLOW):
                path = os.path.realpath(path)
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes or not path.startswith((folder, "/proc/", *LIBRARY)):
                touched.append(f"open {path}")

    sys.addaudithook(hook)


def look(path: Path) -> str:
    """Open, read every tensor, verify: the class of the typed error with its text, or "opens"."""
    try:
        source = open_source(path)
        try:
            for spec in tensors_of(source.tree).values():
                source.read_into(spec, memoryview(bytearray(spec.nbytes)))
            if isinstance(source, FolderSource):
                source.check_all()
        finally:
            source.close()
        verify(path, io_threads=1)
    except CheckpointError as error:
        return f"{type(error).__name__}: {error}"
    return "opens"


def peak_bytes() -> int:
    """The most memory that this process has had since it was last reset."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10


def answer(command: dict[str, str]) -> dict[str, object]:
    """In a fork: open the path, and say what happened."""
    touched: list[str] = []
    watch(os.path.realpath(command["folder"]), touched)
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
    Path("/proc/self/clear_refs").write_text("5")
    touched.clear()
    before, started = peak_bytes(), time.process_time()
    outcome = look(Path(command["path"]))
    seconds = time.process_time() - started
    return {"outcome": outcome, "seconds": seconds, "grown_bytes": peak_bytes() - before, "touched": touched[:5]}


def main() -> None:
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(writer, json.dumps(answer(json.loads(line))).encode()[:60_000])
            except BaseException as error:  # noqa: BLE001 - an untyped error is what is looked for
                os.write(writer, json.dumps({"outcome": f"UNTYPED {type(error).__name__}: {error}"[:2_000]}).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write((said.decode() or json.dumps({"outcome": f"DIED with {code}"})) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
