"""Run in a process of its own: how much memory one save or load takes beyond the model, in bytes, as its last line."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from states import linears
from tools import clear, loaders, tools

import torchkeep as tk


def peak_bytes() -> int:
    """The most memory since the last reset."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    """Arguments: the tool, ``save`` or ``load``, and a folder."""
    name, action, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    tool = next(each for each in (*tools(), *loaders()) if each.name == name)
    small, state = linears("small", 2, 16), linears("a", 160, 1280)
    path = folder / "memory"
    tool.save(small, path)
    if tool.load:
        tool.load(small, path)
    clear(path)
    if action == "load":
        tool.save(state, path)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    (tool.save if action == "save" else tool.load)(state, path)
    print(peak_bytes() - before)
    clear(path)
    assert tk


if __name__ == "__main__":
    main()
