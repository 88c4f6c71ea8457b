"""How each figure is measured: tools take turns within each round, and another one begins each round.

The disk and the allocator remember what was done before, so nobody always follows the same tool.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

from keepers import Keeper, Run, Wait
from rows import BARE_WRITE
from states import State
from tools import BareWrite, Tool, bytes_on_disk, clear, evict, read_through

OVERLAP_SECONDS = 0.1  # of a forward and a backward: those of (b) take longer

Say = Callable[[str], None]
Acts = dict[str, Callable[[], None]]
Times = dict[str, list[float]]
Loads = Mapping[str, tuple[Callable[[State, Path], object], Path]]


@dataclass
class Figures:
    """What was measured of one tool with one state; what is empty was not."""

    held: list[float] = field(default_factory=list)
    durable: list[float] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    disk: int = 0
    checkpoints: int = 0
    warm: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    save_memory: int | None = None
    load_memory: int | None = None
    slowdown: float | None = None


Rows = dict[str, Figures]


@dataclass
class Results:
    """The rows of one state: saves that wait, and saves beside training."""

    waiting: Rows = field(default_factory=dict)
    beside: Rows = field(default_factory=dict)
    title: str = ""
    least_bytes: int = 0


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def written_bytes() -> int:
    """What all threads of this process gave to disks so far: direct writes, and pages of the cache made dirty."""
    lines = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    found = {name: int(value) for name, value in lines}
    return found["write_bytes"] - found["cancelled_write_bytes"]


def counts_writes(folder: Path) -> bool:
    """Whether writes in a folder are counted: those of a tmpfs, or by the server of a network, are not."""
    before = written_bytes()
    (folder / "probe").write_bytes(bytes(2**20))
    written = written_bytes() - before
    clear(folder / "probe")
    return written >= 2**20


@contextmanager
def left_out(name: str, say: Say, otherwise: Callable[[], object] = lambda: None) -> Iterator[None]:
    """A tool that does not work here is left out, and that is said."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever stands in its way
        say(f"without {name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        otherwise()


def take_turns(acts: Acts, number: int, say: Say) -> None:
    """One round; what raises is not tried again."""
    names = list(acts)
    for name in [*names[number % len(names) :], *names[: number % len(names)]]:
        with left_out(name, say, partial(acts.pop, name)):
            acts[name]()


def measure_waiting(state: State, folder: Path, tools: list[Tool], rounds: int, say: Say) -> Rows:
    """Durable saves to a new path each, and loads of one of them."""
    rows, loads = Rows(), dict[str, tuple[Callable[[State, Path], object], Path]]()
    acts: Acts = {}
    path, bare, is_counted = folder / "saved", BareWrite(state), counts_writes(folder)

    def save(name: str, act: Callable[[Path], object]) -> None:
        before = written_bytes()
        rows[name].durable.append(timed(lambda: act(path)))
        if is_counted:
            rows[name].written.append(written_bytes() - before)
        clear(path)

    for tool in tools:
        with left_out(tool.name, say):
            for name, load in tool.loads.items():  # each its own: how a file was read last tells in the page cache
                loads[name] = load, folder / f"kept-{len(loads)}"
                tool.save(state, loads[name][1])
            rows |= {name: Figures() for name in tool.loads}
            rows[tool.name].disk, rows[tool.name].checkpoints = bytes_on_disk(loads[tool.name][1]), 1
            acts[tool.name] = partial(save, tool.name, partial(tool.save, state))
    rows[BARE_WRITE] = Figures()
    acts[BARE_WRITE] = partial(save, BARE_WRITE, bare.write)
    for number in range(rounds):
        take_turns(acts, number, say)
    for row in rows.values():
        row.held = row.durable
    measure_loads(state, {name: loads[name] for name in loads if name in rows}, rows, rounds, say)
    for _, kept in loads.values():
        clear(kept)
    return rows


def measure_loads(state: State, loads: Loads, rows: Rows, rounds: int, say: Say) -> None:
    """Loads into the same objects, warm and cold in each round."""

    def load(name: str, times: list[float], *, is_cold: bool = False) -> None:
        act, path = loads[name]
        state.rebind()
        if is_cold:
            evict(path)
        times.append(timed(lambda: act(state, path)))

    for _, path in loads.values():
        read_through(path)
    warm = {name: partial(load, name, rows[name].warm) for name in loads}
    for number in range(rounds):
        take_turns(warm, number, say)
        take_turns({name: partial(load, name, rows[name].cold, is_cold=True) for name in warm}, number, say)
    state.rebind()


def measure_beside(state: State, folder: Path, keepers: list[Keeper], saves: int, rounds: int, say: Say) -> Rows:
    """Saves beside training, all of them before the first load: held, until durable, written."""
    rows, runs, acts = Rows(), dict[str, Run](), Acts()
    folders = {each.name: folder / f"run-{index}" for index, each in enumerate(keepers)}
    is_counted = counts_writes(folder)

    def save(keeper: Keeper, step: int) -> None:
        row = rows[keeper.name]
        state.change()
        before, began = written_bytes(), time.perf_counter()
        wait = runs[keeper.name].save(step)
        held = time.perf_counter() - began
        if keeper.is_overlapped:
            time.sleep(OVERLAP_SECONDS)
            held += held_by_step(state)
        wait()
        if step > 1:
            row.durable.append(time.perf_counter() - began)
            row.held.append(held)
            row.written += [written_bytes() - before] if is_counted else []
        row.checkpoints = step + 1

    for each in keepers:
        with left_out(each.name, say):
            runs[each.name], rows[each.name] = each.begin(state, folders[each.name]), Figures()
            acts[each.name] = partial(save, each)
    for number in range(saves):
        for_now = {name: partial(act, number) for name, act in acts.items()}
        take_turns(for_now, number, say)
        acts = {name: acts[name] for name in for_now}
    for name, run in runs.items():
        with left_out(name, say):
            run.close()
            rows[name].disk = bytes_on_disk(folders[name])
    loads = {each.name: (each.load, folders[each.name]) for each in keepers if each.load and each.name in acts}
    measure_loads(state, loads, rows, rounds, say)
    for each in folders.values():
        clear(each)
    return {name: rows[name] for name in acts}


def held_by_step(state: State) -> float:
    """How long the next step is held, because a save is still copying what it changes; the step itself is not taken."""
    if state.optimizer is None:
        return 0.0
    hooks = list(state.optimizer._optimizer_step_pre_hooks.values())  # noqa: SLF001 - torch has no public way to ask
    return timed(lambda: [hook(state.optimizer, (), {}) for hook in hooks])


def measure_loop(state: State, folder: Path, keepers: list[Keeper], rounds: int, say: Say) -> Times:
    """A real loop of six steps that saves after every third, and the same with "no saves"."""
    times, runs, acts = Times(), dict[str, Run](), Acts()

    def loop(save: Callable[[], Wait] | None) -> None:
        for step in range(6):
            state.train()
            if save and step % 3 == 2:
                wait = save()
        if save:
            wait()

    def measure(name: str, save: Callable[[], Wait] | None) -> None:
        times.setdefault(name, []).append(timed(lambda: loop(save)))

    loop(None)
    acts["no saves"] = partial(measure, "no saves", None)
    for index, each in enumerate(keepers):
        with left_out(each.name, say):
            run, steps = each.begin(state, folder / f"loop-{index}"), count()
            runs[each.name] = run
            save = lambda run=run, steps=steps: run.save(next(steps))  # noqa: E731
            for _ in range(2):  # what a run makes once, and what it learns of the state
                wait = save()
                state.train()
                wait()
            acts[each.name] = partial(measure, each.name, save)
    for number in range(rounds):
        take_turns(acts, number, say)
    for name, run in runs.items():
        with left_out(name, say):
            run.close()
    for index, _ in enumerate(keepers):
        clear(folder / f"loop-{index}")
    return {name: times[name] for name in acts}
