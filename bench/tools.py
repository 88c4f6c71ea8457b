"""The tools that are compared: each saves durably, and loads into a model that exists."""

from __future__ import annotations

import importlib
import mmap
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import rows
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from states import State

import torchkeep as tk
from torchkeep.folder.aligned_file import BOUNCE_BYTES, AlignedFile
from torchkeep.folder.parallel import in_parallel
from torchkeep.folder.read import open_folder
from torchkeep.live.build import Builder
from torchkeep.verbs.loading import resume_into

BARE_THREADS = 8


def flush(path: Path) -> None:
    """Flush a file, or every file of a folder and the folder."""
    for each in [path, *(path.rglob("*") if path.is_dir() else ())]:
        descriptor = os.open(each, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def clear(path: Path) -> None:
    """Remove a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def files_of(path: Path) -> list[Path]:
    """A file, or all of a folder."""
    return [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]


def bytes_on_disk(path: Path) -> int:
    """What files take, linked ones counted once."""
    return sum({each.stat().st_ino: each.stat().st_size for each in files_of(path)}.values())


def read_through(path: Path) -> None:
    """Take files into the page cache."""
    for each in files_of(path):
        with each.open("rb", buffering=0) as file:
            while file.read(2**20):
                pass


def evict(path: Path) -> None:
    """Take files out of the page cache."""
    for each in files_of(path):
        descriptor = os.open(each, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@dataclass(frozen=True)
class Tool:
    """A way to save a state to a path, and ways by name to load that back into the same objects."""

    name: str
    save: Callable[[State, Path], object]
    loads: Mapping[str, Callable[[State, Path], object]]


def save_torch(state: State, path: Path) -> None:
    torch.save(state.as_dict(), path)
    flush(path)


def load_torch(state: State, path: Path, *, mapped: bool = False) -> None:
    found = torch.load(path, weights_only=True, mmap=mapped)
    state.model.load_state_dict(found["model"])
    if state.optimizer is not None:
        state.optimizer.load_state_dict(found["optimizer"])


def assign_torch(state: State, path: Path) -> None:
    found = torch.load(path, weights_only=True, mmap=True)
    state.twin.load_state_dict(found["model"], assign=True)
    if state.optimizer is not None:
        state.optimizer.load_state_dict(found["optimizer"])


def save_safetensors(state: State, path: Path) -> None:
    safetensors.torch.save_file(state.tensors, path)
    flush(path)


@torch.no_grad()
def load_safetensors(state: State, path: Path) -> None:
    found = safetensors.torch.load_file(path)
    for name, tensor in state.tensors.items():
        tensor.copy_(found[name])


def dcp_writer(state: State, path: Path) -> dcp.FileSystemWriter:
    """The faster of its two ways: a file for each tensor, or one for each thread where there are thousands."""
    files = len(state.tensors) > 1000
    return dcp.FileSystemWriter(path, thread_count=2, sync_files=True, single_file_per_rank=files)


def save_dcp(state: State, path: Path) -> None:
    dcp.save(state.tensors, storage_writer=dcp_writer(state, path), no_dist=True)


def load_dcp(state: State, path: Path) -> None:
    dcp.load(state.tensors, storage_reader=dcp.FileSystemReader(path), no_dist=True)


def save_torchsnapshot(state: State, path: Path) -> None:
    import torchsnapshot

    torchsnapshot.Snapshot.take(str(path), {"state": torchsnapshot.StateDict(**state.tensors)})
    flush(path)


def load_torchsnapshot(state: State, path: Path) -> None:
    import torchsnapshot

    torchsnapshot.Snapshot(str(path)).restore({"state": torchsnapshot.StateDict(**state.tensors)})


def save_torchkeep(state: State, path: Path) -> None:
    tk.save(state.objects(), path)


def load_torchkeep(state: State, path: Path) -> None:
    tk.load(path, into=state.objects())


def resume_torchkeep(state: State, path: Path) -> None:
    source = open_folder(path)
    try:
        resume_into(source, state.objects(), (), Builder(source), len(os.sched_getaffinity(0)))
    finally:
        source.close()


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
        try:
            positions = range(0, len(self.bytes), BOUNCE_BYTES)
            in_parallel(lambda at: file.write(self.bytes[at : at + BOUNCE_BYTES], at), positions, BARE_THREADS)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def tools() -> list[Tool]:
    """Those that are installed; torchkeep comes first."""
    of_torchkeep = {rows.TORCHKEEP: load_torchkeep, rows.RESUME: resume_torchkeep}
    of_torch = {
        rows.TORCH: load_torch,
        rows.TORCH_MAPPED: partial(load_torch, mapped=True),
        rows.TORCH_ASSIGNED: assign_torch,
    }
    found = [
        Tool(rows.TORCHKEEP, save_torchkeep, of_torchkeep),
        Tool(rows.TORCH, save_torch, of_torch),
        Tool(rows.SAFETENSORS, save_safetensors, {rows.SAFETENSORS: load_safetensors}),
        Tool(rows.DCP, save_dcp, {rows.DCP: load_dcp}),
    ]
    if is_installed("torchsnapshot"):
        found.append(Tool(rows.TORCHSNAPSHOT, save_torchsnapshot, {rows.TORCHSNAPSHOT: load_torchsnapshot}))
    return found


@cache
def is_installed(name: str) -> bool:
    """Whether a peer can be imported; it is left out where it cannot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever stands in its way
            print(f"without {name}: {error}")
            return False
    return True
