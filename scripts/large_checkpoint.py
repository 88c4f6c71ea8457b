"""Measure every command that reads values on a large checkpoint: seconds, and memory beyond nothing.

    .venv/bin/python scripts/large_checkpoint.py [--gigabytes 5] [--folder DIR] [--write docs/large-checkpoints.md]

It makes a checkpoint of that size (a few large tensors, many of ordinary size, an optimizer's state), runs the command
line on it as processes of their own, and reads the peak of each one's resident memory from the kernel.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path

LIMIT_BYTES = 200 * 10**6
PIECE_BYTES, PATTERN_VALUES = 4 * 2**20, 2**12


def layout(total_bytes: int) -> dict[str, list[int]]:
    """Names and shapes of float32 tensors: one embedding of a fifth of it, blocks of 16 MiB, a bias for each."""
    columns = 4096
    shapes = {"embedding.weight": [total_bytes // 5 // 4 // columns, columns]}
    held = total_bytes // 5
    block = 0
    while held < total_bytes:
        shapes[f"blocks.{block}.weight"] = [1024, columns]
        shapes[f"blocks.{block}.bias"] = [columns]
        held += 4 * (1024 * columns + columns)
        block += 1
    return shapes


def write_safetensors(path: Path, shapes: dict[str, list[int]], seed: int) -> None:
    """Write random values, a piece at a time."""
    header, at = {}, 0
    for name, shape in shapes.items():
        nbytes = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    # Made of few values over and over, so that this process stays small: a child's peak begins at its parent's.
    chance = random.Random(seed)
    few = array("f", (chance.gauss(0, 1) for _ in range(PATTERN_VALUES)))
    piece = memoryview(few.tobytes() * (PIECE_BYTES // (4 * PATTERN_VALUES)))
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left = at
        while left:
            left -= file.write(piece[:left])


def measure(arguments: list[str], folder: Path) -> tuple[float, int, int]:
    """Run the command line: seconds, peak of resident bytes, exit code."""
    command = [sys.executable, "-m", "torchkeep.cli", *arguments]
    began = time.monotonic()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        said = process.stderr.read().decode() if process.stderr else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in {0, 1}:
        raise RuntimeError(f"{' '.join(arguments)}: {said}")
    return time.monotonic() - began, usage.ru_maxrss * 1024, process.returncode


def commands() -> list[tuple[str, list[str], int]]:
    """What is run, in order: a name, the arguments, the exit code it should have."""
    return [
        ("show", ["show", "a.safetensors"], 0),
        ("show --stats", ["show", "a.safetensors", "--stats"], 0),
        ("convert to a torch file", ["convert", "a.safetensors", "a.pt"], 0),
        ("convert to a folder", ["convert", "a.pt", "folder"], 0),
        ("show, of the torch file", ["show", "a.pt"], 0),
        ("show --stats, of the torch file", ["show", "a.pt", "--stats"], 0),
        ("show --stats, of the folder", ["show", "folder", "--stats"], 0),
        ("verify, of the folder", ["verify", "folder"], 0),
        ("verify, of the torch file", ["verify", "a.pt"], 0),
        ("diff, of equal values", ["diff", "a.pt", "folder"], 0),
        ("diff, of other values", ["diff", "folder", "b.safetensors"], 1),
        ("convert to bfloat16 shards", ["convert", "folder", "hf", "--to", "huggingface", "--dtype", "bfloat16"], 0),
        ("average of two", ["average", "folder", "b.safetensors", "-o", "soup.safetensors"], 0),
        ("convert to DCP", ["convert", "hf", "dcp", "--to", "dcp"], 0),
        ("verify, of the DCP folder", ["verify", "dcp"], 0),
    ]


def main() -> int:
    """Make the checkpoint, run everything, say and write what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="large-", dir=arguments.folder))
    try:
        shapes = layout(int(arguments.gigabytes * 10**9))
        for seed, name in enumerate(("a", "b")):
            write_safetensors(folder / f"{name}.safetensors", shapes, seed)
        rows = []
        for name, words, expected in commands():
            seconds, peak_bytes, code = measure(words, folder)
            if code != expected:
                raise RuntimeError(f"{name}: exit code {code}, not {expected}")
            rows.append((name, seconds, peak_bytes))
            print(f"{name:34} {seconds:7.2f} s {peak_bytes / 1e6:7.0f} MB", flush=True)
    finally:
        shutil.rmtree(folder)
    if arguments.write is not None:
        arguments.write.write_text(text_of(rows, len(shapes), arguments.gigabytes), encoding="utf-8")
    over = [name for name, _, peak_bytes in rows if peak_bytes > LIMIT_BYTES]
    print("within 200 MB:", f"not {', '.join(over)}" if over else "all")
    return 1 if over else 0


def text_of(rows: list[tuple[str, float, int]], count: int, gigabytes: float) -> str:
    """The document."""
    lines = [
        "# Large checkpoints",
        "",
        f"Written by `scripts/large_checkpoint.py`: {gigabytes:g} GB of float32 in {count:,} tensors, one of them",
        f"a fifth of it; {os.cpu_count()} processors shared with other work, Python {platform.python_version()}, files",
        "in the page cache where they fit: the seconds are upper bounds. Memory is the peak of what the process holds,",
        "the interpreter and all modules included. The bar is 200 MB.",
        "",
        "| command | seconds | peak memory |",
        "|---|---|---|",
        *(f"| {name} | {seconds:.2f} | {peak_bytes / 1e6:.0f} MB |" for name, seconds, peak_bytes in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
