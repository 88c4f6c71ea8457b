"""What is printed on the way and written at the end."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from bars import Judged
from measures import Figures, Results

import torchkeep as tk

PEERS = ("torch", "torchvision", "safetensors", "torchsnapshot", "moonclip", "numpy", "xxhash")
COLUMNS: Sequence[tuple[str, Callable[[Figures], str]]] = (
    ("held", lambda row: ms(row.held)),
    ("until durable", lambda row: ms(row.durable)),
    ("written per save", lambda row: mb(row.written)),
    ("on disk / checkpoints", lambda row: f"{mb(row.disk)} / {row.checkpoints}" if row.disk else ""),
    ("load, warm", lambda row: ms(row.warm)),
    ("load, cold", lambda row: ms(row.cold)),
    ("memory of a save", lambda row: mb(row.save_memory)),
    ("memory of a load", lambda row: mb(row.load_memory)),
    ("loop", lambda row: f"{row.slowdown:.2f}" if row.slowdown else ""),
)
LEGEND = """\
Each state has one table, and each row one tool. An empty cell is a figure that there is not; what failed is said.

- **held**: how long a save holds the training; with overlap also how long the next `optimizer.step` is held.
- **until durable**: from the call until all is fsynced. With overlap that has 100 ms of a forward and backward in it.
- **written per save**: what the process gave to the disk until then: `write_bytes` less `cancelled_write_bytes` of
  /proc/self/io, which has all threads and neither the journal nor the metadata of the file system. Every tool writes
  in this process, DCP and moonclip in threads of it.
- **on disk**: the sizes of all files after so many checkpoints, linked ones once.
- **load**: into the same model and optimizer, of the newest checkpoint; what torch and DCP save beside
  training they load like what they save otherwise. Cold: the files are not in the page cache. With `assign`
  torch maps the file, puts its tensors into a model without memory and reads none of them.
- **memory**: the most beyond model and optimizer, in a process of its own. That of a save beside training has what the tool
  keeps since its first save, staging memory above all. Pages of mapped files that a load has touched count.
- **loop**: a loop of six steps on small inputs that saves after every third and waits for the last, as a multiple of the
  loop without saves. Each run has saved twice before. There is none for (a) and (d), behind
  which stands no training.

Saves beside training follow a change to the state; those that wait go to a new path each, of a state that stays. The first
two of the former are in no median. DCP has two threads and a file for each tensor, with 10,000 tensors a file for each
thread: each time the faster of the two."""


def ms(seconds: Sequence[float]) -> str:
    if not seconds:
        return ""
    middle = statistics.median(seconds) * 1e3
    return f"{middle:,.1f} ms" if middle < 100 else f"{middle:,.0f} ms"


def mb(nbytes: Sequence[int] | int | None) -> str:
    if nbytes is None or nbytes == []:
        return ""
    return f"{(nbytes if isinstance(nbytes, int) else statistics.median(nbytes)) / 1e6:,.1f} MB"


class Page:
    """Text that is printed at once and kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str = "") -> None:
        print(text, flush=True)
        self.lines.append(text)

    def table(self, title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        self.say(f"\n## {title}\n")
        self.say("| " + " | ".join(["", *head]) + " |")
        self.say("|---|" + "---:|" * len(head))
        for row in rows:
            self.say("| " + " | ".join(row) + " |")

    def state(self, results: Results) -> None:
        """All figures of a state: a row for each tool, in two groups."""
        rows: list[list[str]] = []
        for title, group in (("beside training", results.beside), ("saves that wait", results.waiting)):
            rows.append([f"**{title}**", *[""] * len(COLUMNS)])
            rows += [[name, *(show(figures) for _, show in COLUMNS)] for name, figures in group.items()]
        self.table(results.title, [head for head, _ in COLUMNS], rows)

    def bars(self, judged: Iterable[Judged]) -> None:
        head = ["measured", "wanted", "holds"]
        rows = []
        for bar, measured in judged:
            if measured is None:
                rows.append([bar.what, "", bar.wanted, "not measured"])
            else:
                rows.append([bar.what, f"{measured:.2f}", bar.wanted, "yes" if bar.holds(measured) else "**no**"])
        self.table("Bars", head, rows)


def facts(folder: Path, rounds: int) -> list[str]:
    """Machine, versions and command: what a figure depends on."""
    cpu = _line("/proc/cpuinfo", "model name").partition(":")[2].strip()
    memory_kib = int(_line("/proc/meminfo", "MemTotal").split()[1])
    huge_pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    huge = huge_pages.read_text().partition("[")[2].partition("]")[0] if huge_pages.exists() else "absent"
    machine = [
        f"{len(os.sched_getaffinity(0))} processors ({cpu})",
        f"{memory_kib / 2**20:.0f} GiB",
        f"Linux {platform.release()}",
        f"{_output('df', '--output=fstype', str(folder)).split()[-1]}",
        f"huge pages: {huge}",
        torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
    ]
    commit = _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty")
    own = f"torchkeep {tk.__version__}{f' ({commit})' if commit else ''}"
    python = [f"Python {platform.python_version()}", " ".join(platform.libc_ver())]
    threads = f"torch computes in {torch.get_num_threads()} threads"
    load = f"load average {os.getloadavg()[0]:.1f} at the start"
    return [
        f"- machine: {', '.join(machine)}",
        f"- versions: {', '.join([own, *python, *map(_version, PEERS)])}",
        f"- command: `make bench`; medians of {rounds} rounds, beside training more for (b) and (c), in which the tools take turns; {threads}; {load}",
    ]


def _version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} absent"


def _line(path: str, word: str) -> str:
    return next((line for line in Path(path).read_text().splitlines() if line.startswith(word)), "")


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()
