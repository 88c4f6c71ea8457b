"""The tools that are compared: each saves durably, and loads into a model that exists."""

from __future__ import annotations

import importlib
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from states import State

import torchkeep as tk
from torchkeep.folder.read import open_folder
from torchkeep.live.build import Builder
from torchkeep.verbs.loading import resume_into


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


def bytes_on_disk(path: Path) -> int:
    """What files take, linked ones counted once."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum({each.stat().st_ino: each.stat().st_size for each in files}.values())


def evict(path: Path) -> None:
    """Take files out of the page cache."""
    for each in [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]:
        descriptor = os.open(each, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@dataclass(frozen=True)
class Tool:
    """A way to save a state to a path and to load it back into the same objects."""

    name: str
    save: Callable[[State, Path], object]
    load: Callable[[State, Path], object] | None = None


def save_torch(state: State, path: Path) -> None:
    torch.save(state.as_dict(), path)
    flush(path)


def load_torch(state: State, path: Path, **options: Any) -> None:
    found = torch.load(path, weights_only=True, **options)
    state.model.load_state_dict(found["model"])
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


def save_dcp(state: State, path: Path) -> None:
    writer = dcp.FileSystemWriter(path, thread_count=2, sync_files=True, single_file_per_rank=False)
    dcp.save(state.tensors, storage_writer=writer, no_dist=True)


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


def tools() -> list[Tool]:
    """Those that are installed; torchkeep comes first."""
    found = [
        Tool("torchkeep", save_torchkeep, load_torchkeep),
        Tool("torch", save_torch, load_torch),
        Tool("safetensors", save_safetensors, load_safetensors),
        Tool("DCP, 2 threads", save_dcp, load_dcp),
    ]
    if is_installed("torchsnapshot"):
        found.append(Tool("torchsnapshot", save_torchsnapshot, load_torchsnapshot))
    return found


def loaders() -> list[Tool]:
    """Other ways to load what these tools saved."""
    return [
        Tool("torchkeep, as resume", save_torchkeep, resume_torchkeep),
        Tool("torch, mmap", save_torch, lambda state, path: load_torch(state, path, mmap=True)),
    ]


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


class Keeper:
    """A tool that saves beside training: `save` gives how to wait until it is durable."""

    def __init__(self, name: str, make: Callable[[State, Path], Callable[[int], Callable[[], object]]]) -> None:
        self.name = name
        self.make = make


def keep_torchkeep(state: State, folder: Path, **options: Any) -> Callable[[int], Callable[[], object]]:
    manager = tk.CheckpointManager(folder, state.objects(), retain=tk.KeepLast(100), **options)
    manager.resume()

    def save(step: int) -> Callable[[], object]:
        manager.save(step)
        return manager.wait

    return save


def keep_dcp(state: State, folder: Path) -> Callable[[int], Callable[[], object]]:
    def save(step: int) -> Callable[[], object]:
        writer = dcp.FileSystemWriter(folder / str(step), thread_count=2, sync_files=True, single_file_per_rank=False)
        return dcp.async_save(state.tensors, storage_writer=writer).result

    return save


def keep_moonclip(state: State, folder: Path) -> Callable[[int], Callable[[], object]]:
    import moonclip

    manager = moonclip.CheckpointManager(str(folder))

    def save(step: int) -> Callable[[], object]:
        manager.save(step=step, **state.objects())
        return manager.flush

    return save


def keep_torch(state: State, folder: Path) -> Callable[[int], Callable[[], object]]:
    folder.mkdir(parents=True)

    def save(step: int) -> Callable[[], object]:
        save_torch(state, folder / f"{step}.pt")
        return lambda: None

    return save


def keepers() -> list[Keeper]:
    """Those that are installed."""
    found = [Keeper("torchkeep", keep_torchkeep)]
    if hasattr(tk.policies, "Staging"):
        overlapped = tk.policies.Staging.OVERLAPPED
        found.append(
            Keeper("torchkeep, overlapped", lambda state, path: keep_torchkeep(state, path, staging=overlapped))
        )
    found += [Keeper("torch", keep_torch), Keeper("DCP, 2 threads", keep_dcp)]
    return found + ([Keeper("moonclip", keep_moonclip)] if is_installed("moonclip") else [])
