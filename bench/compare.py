"""torchkeep beside the tools that people use: every figure of docs/benchmarks.md and every bar, in one run.

Tools take turns within each round, and figures are medians. Cold means that the files were taken out of the page cache.
"""

from __future__ import annotations

import mmap
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from states import State, adapters, linears, resnet, scraps
from tools import Keeper, Tool, bytes_on_disk, clear, evict, keepers, loaders, tools

import torchkeep as tk
from torchkeep.folder.aligned_file import BOUNCE_BYTES, AlignedFile

ROUNDS = int(os.environ.get("ROUNDS", "5"))
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
Times = dict[str, list[float]]


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def middle(times: Iterable[float]) -> float:
    return statistics.median(times)


class Page:
    """What is printed on the way and written at the end."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bars: list[tuple[str, float, str, float]] = []
        self.failed: list[str] = []

    def say(self, text: str = "") -> None:
        print(text, flush=True)
        self.lines.append(text)

    def table(self, title: str, head: list[str], rows: list[list[str]]) -> None:
        self.say(f"\n## {title}\n")
        self.say("| " + " | ".join(head) + " |")
        self.say("|---|" + "---:|" * (len(head) - 1))
        for row in rows:
            self.say("| " + " | ".join(row) + " |")

    def bar(self, what: str, measured: float, comparison: str, wanted: float) -> None:
        self.bars.append((what, measured, comparison, wanted))

    def holds(self, measured: float, comparison: str, wanted: float) -> bool:
        return measured >= wanted if comparison == "at least" else measured <= wanted


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 0.1 else f"{seconds * 1e3:,.0f} ms"


def mb(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.1f} MB"


class BareWrite:
    """The bytes of a state by a bare parallel O_DIRECT write, from memory that is aligned: what the disk can do."""

    def __init__(self, state: State) -> None:
        size = -(-state.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory.madvise(mmap.MADV_HUGEPAGE)  # the disk takes large pages in fewer pieces
        self.bytes = np.frombuffer(self.memory, np.uint8)
        at = 0
        for tensor in state.tensors.values():
            flat = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
            self.bytes[at : at + len(flat)] = flat
            at += len(flat)

    def write(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        file = AlignedFile(descriptor, len(self.bytes))
        positions = iter(range(0, len(self.bytes), BOUNCE_BYTES))

        def work() -> None:
            for at in positions:
                file.write(self.bytes[at : at + BOUNCE_BYTES], at)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        os.fsync(descriptor)
        os.close(descriptor)


def measure_saves(page: Page, state: State, folder: Path, others: list[Tool]) -> Times:
    """Durable saves to a new path, and loads into the same objects, warm and cold."""
    saves, warm, cold = Times(), Times(), Times()
    written: dict[str, int] = {}
    kept = {each.name: folder / f"kept-{index}" for index, each in enumerate(others)}
    for each in others:
        each.save(state, kept[each.name])
        written[each.name] = bytes_on_disk(kept[each.name])
    path, bare = folder / "saved", BareWrite(state)
    savers = [(each.name, partial(each.save, state, path)) for each in others]
    savers.append(("bare O_DIRECT write", partial(bare.write, path)))
    for number in range(ROUNDS):
        # The disk remembers what was written before: each round begins with another one.
        for name, save in [*savers[number % len(savers) :], *savers[: number % len(savers)]]:
            saves.setdefault(name, []).append(timed(save))
            clear(path)
        for each in others:
            if each.load:
                warm.setdefault(each.name, []).append(timed(lambda each=each: each.load(state, kept[each.name])))
        for each in others:
            if each.load:
                evict(kept[each.name])
                cold.setdefault(each.name, []).append(timed(lambda each=each: each.load(state, kept[each.name])))
    rows = []
    for name, times in ((name, saves[name]) for name, _ in savers):
        speed = f"{state.nbytes / 1e9 / middle(times):.2f}"
        loads = [ms(middle(t[name])) if name in t else "" for t in (warm, cold)]
        rows.append([name, ms(middle(times)), speed, *loads, mb(written[name]) if name in written else ""])
    page.table(
        f"{state.name}: {mb(state.nbytes)} in {len(state.tensors):,} tensors, saved durably and loaded in place",
        ["", "durable save", "GB/s", "load, warm", "load, cold", "on disk"],
        rows,
    )
    for path in kept.values():
        clear(path)
    return {
        **{f"save {k}": v for k, v in saves.items()},
        **{f"warm {k}": v for k, v in warm.items()},
        **{f"cold {k}": v for k, v in cold.items()},
    }


def measure_stalls(
    page: Page, state: State, folder: Path, others: list[Keeper], saves: int
) -> dict[str, dict[str, float]]:
    """Saves beside training: how long the caller is held, and how long until it is durable."""
    found: dict[str, dict[str, float]] = {}
    makers = {}
    for index, each in enumerate(others):
        where = folder / f"run-{index}"
        try:
            makers[each.name] = (where, each.make(state, where))
        except Exception as error:  # noqa: BLE001 - a peer that does not work here is left out
            page.say(f"without {each.name}: {error}")
    stalls, durable, sizes = Times(), Times(), {name: [0] for name in makers}
    for number in range(saves):
        for name, (where, save) in list(makers.items()):
            state.change()
            try:
                waits: list[Callable[[], object]] = []
                stall = timed(lambda save=save, waits=waits, number=number: waits.append(save(number)))
                if "overlapped" in name:
                    time.sleep(0.1)  # the shortest forward and backward of this model is longer
                    stall += held_by_step(state)
                rest = timed(waits[0])
            except Exception as error:  # noqa: BLE001 - as above
                page.say(f"without {name}: {type(error).__name__}: {error}")
                del makers[name]
                continue
            sizes[name].append(bytes_on_disk(where))
            if number > 1:
                stalls.setdefault(name, []).append(stall)
                durable.setdefault(name, []).append(stall + rest)
    rows = []
    for name in stalls:
        growth = (sizes[name][-1] - sizes[name][1]) / max(1, len(sizes[name]) - 2)
        found[name] = {"stall": middle(stalls[name]), "durable": middle(durable[name]), "disk": sizes[name][-1]}
        rows.append([name, ms(found[name]["stall"]), ms(found[name]["durable"]), mb(growth), mb(sizes[name][-1])])
    page.table(
        f"{state.name}: {mb(state.nbytes)}, {saves} saves beside training",
        ["", "held", "until durable", "written per save", "on disk after all"],
        rows,
    )
    for where, _ in makers.values():
        clear(where)
    return found


def held_by_step(state: State) -> float:
    """How long the next step is held, because a save is still copying what it changes; the step itself is not taken."""
    if state.optimizer is None:
        return 0.0
    hooks = list(state.optimizer._optimizer_step_pre_hooks.values())  # noqa: SLF001 - torch has no public way to ask
    return timed(lambda: [hook(state.optimizer, (), {}) for hook in hooks])


def measure_training(page: Page, folder: Path, others: list[Keeper]) -> None:
    """A real loop that saves every third step: how much slower it is than without saving."""
    state = resnet("training", frozen=False)
    state.model.train()
    images, labels = torch.rand(4, 3, 64, 64), torch.arange(4)

    def loop(save: Callable[[int], Callable[[], object]] | None) -> None:
        for step in range(9):
            loss = torch.nn.functional.cross_entropy(state.model(images), labels)
            state.optimizer.zero_grad()
            loss.backward()
            state.optimizer.step()
            if save and step % 3 == 2:
                wait = save(step)
        if save:
            wait()

    loop(None)
    times = Times()
    for number in range(3):
        for index, each in enumerate([None, *others]):
            save = None if each is None else each.make(state, folder / f"loop-{number}-{index}")
            times.setdefault(each.name if each else "no saves", []).append(timed(lambda save=save: loop(save)))
            if each:
                clear(folder / f"loop-{number}-{index}")
    bare = middle(times["no saves"])
    rows = [[name, ms(middle(each)), f"{middle(each) / bare:.2f}"] for name, each in times.items()]
    page.table(
        "A loop of 9 steps of ResNet-50 with Adam that saves after every third and waits for the last",
        ["", "the loop", "times the loop without saves"],
        rows,
    )


def measure_memory(page: Page, folder: Path, others: list[Tool]) -> dict[str, int]:
    """The peak beyond the model, in processes of their own."""
    found: dict[str, int] = {}
    rows = []
    for each in others:
        row = [each.name]
        for action in ("save", "load"):
            command = [
                sys.executable,
                "-W",
                "ignore",
                str(Path(__file__).with_name("memory.py")),
                each.name,
                action,
                str(folder),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                found[f"{action} {each.name}"] = int(done.stdout.splitlines()[-1])
                row.append(mb(found[f"{action} {each.name}"]))
            else:
                row.append("failed")
        rows.append(row)
    page.table("Peak memory beyond the model, 1 GB", ["", "save", "load into the model"], rows)
    return found


def measure_start(page: Page, folder: Path) -> float:
    """`torchkeep show` beside an import of torch."""
    torch.save({"model": torch.nn.Linear(10, 10).state_dict()}, folder / "small.pt")
    commands = {
        "import torchkeep": [sys.executable, "-c", "import torchkeep"],
        "torchkeep show": [sys.executable, "-m", "torchkeep.cli", "show", str(folder / "small.pt")],
        "import torch": [sys.executable, "-c", "import torch"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    times = Times()
    for _ in range(ROUNDS):
        for name, command in commands.items():
            times.setdefault(name, []).append(
                timed(lambda command=command: subprocess.run(command, check=True, capture_output=True))
            )
    page.table("Start-up", ["", "time"], [[name, ms(middle(each))] for name, each in times.items()])
    return middle(times["torchkeep show"]) / middle(times["import torch"])


def judge_saves(page: Page, times: Times) -> None:
    best = min(middle(times[f"save {name}"]) for name in ("torch", "safetensors", "DCP, 2 threads"))
    own = middle(times["save torchkeep"])
    page.bar("(a) durable save against the best of torch.save, safetensors and DCP", best / own, "at least", 1.3)
    page.bar(
        "(a) durable save against a bare O_DIRECT write",
        middle(times["save bare O_DIRECT write"]) / own,
        "at least",
        0.9,
    )
    torch_warm, torch_cold = middle(times["warm torch"]), middle(times["cold torch"])
    page.bar(
        "(a) load, warm, against torch.load + load_state_dict",
        torch_warm / middle(times["warm torchkeep"]),
        "at least",
        6,
    )
    page.bar("(a) load, cold, against the same", torch_cold / middle(times["cold torchkeep"]), "at least", 1.1)
    page.bar(
        "(a) resume, cold, against the same", torch_cold / middle(times["cold torchkeep, as resume"]), "at least", 1.8
    )
    mapped = middle(times["warm torch, mmap"]) / middle(times["warm torchkeep"])
    page.bar("(a) load, warm, against torch.load(mmap=True) + load_state_dict", mapped, "at least", 0.85)


def judge_stalls(
    page: Page, everything: dict[str, dict[str, float]], frozen: dict[str, dict[str, float]], state: State
) -> None:
    own = everything["torchkeep"]["stall"]
    if "moonclip" in everything:
        page.bar("(b) held, against moonclip", own / everything["moonclip"]["stall"], "at most", 1)
    if "DCP, 2 threads" in everything:
        page.bar("(b) held, against DCP", own / everything["DCP, 2 threads"]["stall"], "at most", 1 / 3)
    if "torchkeep, overlapped" in everything:
        page.bar(
            "(b) held with overlap, against without", everything["torchkeep, overlapped"]["stall"] / own, "at most", 0.1
        )
    page.bar(
        "(c) held, against torch.save of the same",
        frozen["torchkeep"]["stall"] / frozen["torch"]["stall"],
        "at most",
        0.05,
    )
    head = state.model.fc.weight.nbytes + state.model.fc.bias.nbytes
    backbone = sum(tensor.nbytes for tensor in state.model.state_dict().values()) - head
    page.bar(
        "(c) on disk, against one backbone and 20 heads",
        frozen["torchkeep"]["disk"] / (backbone + 20 * 3 * head),
        "at most",
        1.05,
    )


def facts() -> list[str]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "",
    )
    names = ("torch", "safetensors", "torchsnapshot", "moonclip", "numpy", "xxhash")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} absent")
    memory = next(
        line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")
    ).split()[1]
    return [
        f"- machine: {len(os.sched_getaffinity(0))} processors ({model}), {int(memory) / 2**20:.0f} GiB, Linux {platform.release()}, no GPU",
        f"- versions: torchkeep {tk.__version__}, Python {platform.python_version()}, {', '.join(versions)}",
        f"- command: `make bench`; medians of {ROUNDS} rounds in which the tools take turns; load average {os.getloadavg()[0]:.1f} at the start",
    ]


def measure_large(page: Page, base: Path) -> None:
    judge_saves(page, measure_saves(page, linears("(a) fp32", 160, 1280), base, [*tools(), *loaders()]))


def measure_beside(page: Page, base: Path) -> None:
    b = resnet("(b) ResNet-50 with Adam, everything changes", frozen=False)
    everything = measure_stalls(page, b, base, keepers(), ROUNDS + 8)
    c = resnet("(c) the same, backbone frozen", frozen=True)
    judge_stalls(page, everything, measure_stalls(page, c, base, keepers(), 20), c)


def measure_small(page: Page, base: Path) -> None:
    measure_saves(page, scraps("(d) small tensors", 10_000, 64), base, tools())


def measure_adapters(page: Page, base: Path) -> None:
    measure_stalls(page, adapters("(e) a base and adapters, 1 % changes"), base, keepers(), ROUNDS + 2)


def measure_processes(page: Page, base: Path) -> None:
    memory = measure_memory(page, base, tools())
    page.bar("peak memory of a save, MB", memory["save torchkeep"] / 1e6, "at most", 128)
    page.bar("peak memory of a load into a model, MB", memory["load torchkeep"] / 1e6, "at most", 64)
    page.bar("torchkeep show against import torch", measure_start(page, base), "at most", 1 / 3)


def measure_loop(page: Page, base: Path) -> None:
    measure_training(page, base, keepers())


def main() -> int:
    """Measure everything, write the page, and say which bars hold."""
    warnings.simplefilter("ignore")
    page, began = Page(), time.monotonic()
    page.say("# Benchmarks\n\nWritten by `make bench`; nothing here is typed by hand.\n")
    for line in facts():
        page.say(line)
    base = Path(tempfile.mkdtemp(prefix="torchkeep-bench-", dir=os.environ.get("BENCH_DIR")))
    # DCP saves beside training only in a process group.
    dist.init_process_group("gloo", init_method=f"file://{base}/rendezvous", rank=0, world_size=1)
    parts = [measure_large, measure_beside, measure_small, measure_adapters, measure_processes, measure_loop]
    try:
        for part in parts:
            try:
                part(page, base)
            except Exception as error:  # noqa: BLE001 - the other parts are still worth having
                page.failed.append(part.__name__)
                page.say(f"\n{part.__name__} failed: {type(error).__name__}: {error}")
    finally:
        dist.destroy_process_group()
        shutil.rmtree(base, ignore_errors=True)
    rows = [
        [
            what,
            f"{measured:.2f}",
            f"{comparison} {wanted:.2f}",
            "yes" if page.holds(measured, comparison, wanted) else "**no**",
        ]
        for what, measured, comparison, wanted in page.bars
    ]
    page.table("Bars", ["", "measured", "wanted", "holds"], rows)
    PAGE.write_text("\n".join(page.lines) + "\n")
    print(f"\n{PAGE} written after {time.monotonic() - began:.0f} s")
    return len(page.failed)


if __name__ == "__main__":
    sys.exit(main())
