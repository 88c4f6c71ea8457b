"""How much memory saves and loads of one state take beyond the state, each in a forked process of its own.

Arguments: the state's letter, ``waiting`` or ``beside``, and a folder. Each line that is printed is an object of JSON: a
tool, ``save`` or ``load``, and the peak in bytes or an error.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from keepers import Keeper, keepers
from states import STATES, State, linears
from tools import Tool, clear, tools

SECONDS = 120


def peak_bytes() -> int:
    """The most memory since the last reset."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


def reset_peak() -> int:
    """Begin anew, without what the allocator (glibc) keeps of memory that is free; what is taken now."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_of_save(tool: Tool, state: State, small: State, path: Path) -> int:
    tool.save(small, path)
    clear(path)
    before = reset_peak()
    tool.save(state, path)
    return peak_bytes() - before


def peak_of_load(
    load: Callable[[State, Path], object],
    prepare: Callable[[], object],
    state: State,
    small: State,
    paths: tuple[Path, Path],
) -> int:
    path, small_path = paths
    prepare()
    load(small, small_path)
    clear(small_path)
    before = reset_peak()
    load(state, path)
    return peak_bytes() - before


def peak_of_second_save(keeper: Keeper, state: State, small: State, paths: tuple[Path, Path]) -> int:
    """What the first save made and what is kept of it counts, as staging memory does."""
    path, small_path = paths
    save_once(keeper, small, small_path)
    clear(small_path)
    state.change()
    before = reset_peak()
    run = keeper.begin(state, path)
    run.save(0)()
    state.change()
    reset_peak()  # what the change itself took is not the tool's
    run.save(1)()
    return peak_bytes() - before


def save_once(keeper: Keeper, state: State, folder: Path) -> None:
    run = keeper.begin(state, folder)
    run.save(0)()
    run.close()


def print_found(name: str, action: str, found: dict[str, object]) -> None:
    print(json.dumps({"name": name, "action": action, **found}), flush=True)


def apart(name: str, action: str, folder: Path, measure: Callable[[], int]) -> None:
    """Measure in a forked process, and print what it found."""
    process = os.fork()
    if process:
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            print_found(name, action, {"error": f"ended by signal {os.WTERMSIG(status)}; {SECONDS} s are given"})
        return
    signal.alarm(SECONDS)
    try:
        rendezvous = folder / f"rendezvous-{os.getpid()}"  # DCP beside training wants a process group
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
        print_found(name, action, {"nbytes": measure()})
    except Exception as error:  # noqa: BLE001 - the others are still worth having
        print_found(name, action, {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"})
    os._exit(0)  # without what the parent would do at its end


def main() -> None:
    torch.set_num_threads(1)  # none may run when the process is forked
    make, group, folder = STATES[sys.argv[1]], sys.argv[2], Path(sys.argv[3])
    small, state = linears("small", 2, 16), make()
    paths = path, small_path = folder / "memory", folder / "memory-small"
    if group == "waiting":
        for tool in tools():
            apart(tool.name, "save", folder, partial(peak_of_save, tool, state, small, path))
            prepare = partial(tool.save, small, small_path)
            for name, load in tool.loads.items():
                apart(name, "load", folder, partial(peak_of_load, load, prepare, state, small, paths))
            clear(path)
    else:
        for keeper in keepers(state):
            apart(keeper.name, "save", folder, partial(peak_of_second_save, keeper, state, small, paths))
            prepare = partial(save_once, keeper, small, small_path)
            if keeper.load:
                apart(keeper.name, "load", folder, partial(peak_of_load, keeper.load, prepare, state, small, paths))
            clear(path)


if __name__ == "__main__":
    main()
