"""torchkeep beside the tools that people use: every figure of docs/benchmarks.md and every bar, in one run.

`ROUNDS` says how many rounds there are, `BENCH_DIR` where the files go: about 30 GB of them with five rounds.
`STATES=bc` measures those alone and writes no page.
"""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from bars import Measured, judge
from keepers import keepers
from measures import (
    Results,
    Times,
    counts_writes,
    measure_beside,
    measure_loop,
    measure_waiting,
)
from page import LEGEND, Page, facts, ms
from processes import measure_memory, measure_starts
from states import STATES
from tools import tools

from vision import import_torchvision

ROUNDS = int(os.environ.get("ROUNDS", "5"))
CHOSEN = os.environ.get("STATES", "".join(STATES))
SAVES = {"a": ROUNDS + 2, "b": ROUNDS + 8, "c": 20, "d": ROUNDS + 2, "e": ROUNDS + 2}
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


class Benchmark:
    """The parts of a run, each worth having without the others."""

    def __init__(self, page: Page, folder: Path) -> None:
        self.page = page
        self.folder = folder
        self.failed: list[str] = []

    def attempt(self, what: str, part: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            part()
        except Exception as error:  # noqa: BLE001 - the other parts are still worth having
            self.failed.append(what)
            self.page.say(f"\n{what} failed: {type(error).__name__}: {error}")
        gc.collect()
        print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)

    def measure(self, key: str) -> Results:
        """All figures of a state; each part has a state of its own."""
        make, say, results = STATES[key], self.page.say, Results()

        def waiting() -> None:
            results.waiting = measure_waiting(make(), self.folder, tools(), ROUNDS, say)

        def beside() -> None:
            state = make()
            results.title, results.least_bytes = state.title, state.least_bytes(SAVES[key])
            results.beside = measure_beside(state, self.folder, keepers(state), SAVES[key], ROUNDS, say)

        def loop() -> None:
            state = make()
            if state.train is None:
                return
            times = measure_loop(state, self.folder, keepers(state), ROUNDS, say)
            bare = statistics.median(times.pop("no saves"))
            for name in times.keys() & results.beside.keys():
                results.beside[name].slowdown = statistics.median(times[name]) / bare

        def memory() -> None:
            measure_memory(key, results, self.folder, say)

        for part in (waiting, beside, loop, memory):
            self.attempt(f"({key}) {part.__name__}", part)
        self.page.state(results)
        return results


def main() -> int:
    """Measure everything, write the page, and say which bars hold."""
    warnings.simplefilter("ignore")
    began, page = time.monotonic(), Page()
    folder = Path(tempfile.mkdtemp(prefix="torchkeep-bench-", dir=os.environ.get("BENCH_DIR")))
    import_torchvision()  # may fetch it; its version is told
    page.say("# Benchmarks\n\nWritten by `make bench`; nothing here is typed by hand.\n")
    for line in (*facts(folder, ROUNDS), "", LEGEND):
        page.say(line)
    if not counts_writes(folder):
        page.say("\nThe file system of this run does not count what is written.")
    # DCP saves beside training only in a process group.
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    run = Benchmark(page, folder)
    starts = Times()
    try:
        measured = Measured({key: run.measure(key) for key in CHOSEN}, starts)
        run.attempt("start-up", lambda: starts.update(measure_starts(folder, ROUNDS, page.say)))
    finally:
        dist.destroy_process_group()
        shutil.rmtree(folder, ignore_errors=True)
    page.table("Start-up", ["time"], [[name, ms(each)] for name, each in starts.items()])
    page.bars(judge(measured))
    took = f"after {time.monotonic() - began:.0f} s"
    if set(CHOSEN) == set(STATES):
        PAGE.write_text("\n".join(page.lines) + "\n")
        print(f"\n{PAGE} written {took}")
    else:
        print(f"\nnot written, for it is a part: {took}")
    return len(run.failed)


if __name__ == "__main__":
    sys.exit(main())
