"""What is measured in processes of its own: peak memory, and how long commands take to start."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from measures import Acts, Results, Say, Times, take_turns, timed


def measure_memory(key: str, results: Results, folder: Path, say: Say) -> None:
    """The peaks beyond the state of both groups at once: the clock does not matter here."""
    groups = {"waiting": results.waiting, "beside": results.beside}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("memory.py")), key]
    processes = {}
    for group in groups:
        (folder / group).mkdir(exist_ok=True)
        process = subprocess.Popen([*command, group, folder / group], stdout=subprocess.PIPE, text=True)
        processes[group] = process
    for group, process in processes.items():
        for line in process.communicate()[0].splitlines():
            if not line.startswith("{"):  # what tools print
                continue
            found = json.loads(line)
            if "error" in found:
                say(f"without the memory of {found['name']}, {found['action']}: {found['error']}")
            elif found["name"] in groups[group]:
                setattr(groups[group][found["name"]], f"{found['action']}_memory", found["nbytes"])
        if process.returncode:
            say(f"memory.py {key} {group} ended with {process.returncode}")


def measure_starts(folder: Path, rounds: int, say: Say) -> Times:
    """`torchkeep show` beside an import of torch."""
    torch.save({"model": torch.nn.Linear(10, 10).state_dict()}, folder / "small.pt")
    commands = {
        "import torchkeep": [sys.executable, "-c", "import torchkeep"],
        "torchkeep show": [sys.executable, "-m", "torchkeep.cli", "show", str(folder / "small.pt")],
        "import torch": [sys.executable, "-c", "import torch"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    times: Times = {name: [] for name in commands}

    def start(name: str) -> None:
        times[name].append(timed(lambda: subprocess.run(commands[name], check=True, capture_output=True)))

    acts: Acts = {name: partial(start, name) for name in commands}
    for number in range(rounds):
        take_turns(acts, number, say)
    return times
