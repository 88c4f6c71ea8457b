"""The tools that save beside training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rows
import torch.distributed.checkpoint as dcp
from states import State
from tools import dcp_writer, is_installed, load_torchkeep, save_torch

import torchkeep as tk
from torchkeep.policies import Staging

Wait = Callable[[], object]


@dataclass(frozen=True)
class Run:
    """A run that is under way: `save` takes a step and gives how to wait until that is durable."""

    save: Callable[[int], Wait]
    close: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Keeper:
    """A tool that saves beside training.

    Attributes:
        begin: Begins a run that saves a state into a folder.
        load: Loads the newest checkpoint of such a folder; None where that is what a save that waits would make, too.
        is_overlapped: Whether the next `optimizer.step` may be held too.
    """

    name: str
    begin: Callable[[State, Path], Run]
    load: Callable[[State, Path], object] | None = None
    is_overlapped: bool = False


def keep_torchkeep(state: State, folder: Path, **options: Any) -> Run:
    manager = tk.CheckpointManager(folder, state.objects(), **options)
    manager.resume()

    def save(step: int) -> Wait:
        manager.save(step)
        return manager.wait

    return Run(save, manager.close)


def load_newest(state: State, folder: Path) -> None:
    load_torchkeep(state, max(folder.glob("step-*")))


def keep_torch(state: State, folder: Path) -> Run:
    folder.mkdir(parents=True)

    def save(step: int) -> Wait:
        save_torch(state, folder / f"{step}.pt")
        return lambda: None

    return Run(save)


def keep_dcp(state: State, folder: Path) -> Run:
    def save(step: int) -> Wait:
        return dcp.async_save(state.tensors, storage_writer=dcp_writer(state, folder / str(step))).result

    return Run(save)


def keep_moonclip(state: State, folder: Path) -> Run:
    import moonclip

    manager = moonclip.CheckpointManager(str(folder))

    def save(step: int) -> Wait:
        manager.save(step=step, **state.objects())
        return manager.flush

    return Run(save)


def load_moonclip(state: State, folder: Path) -> None:
    import moonclip

    moonclip.CheckpointManager(str(folder)).load_latest(**state.objects())


def keepers(state: State) -> list[Keeper]:
    """Those that are installed; without an optimizer there is no step to overlap with."""
    found = [Keeper(rows.TORCHKEEP, keep_torchkeep, load_newest)]
    if state.optimizer is not None:
        overlapped = lambda state, folder: keep_torchkeep(state, folder, staging=Staging.OVERLAPPED)  # noqa: E731
        found.append(Keeper(rows.OVERLAPPED, overlapped, is_overlapped=True))
    found += [Keeper(rows.TORCH, keep_torch), Keeper(rows.DCP, keep_dcp)]
    return found + ([Keeper(rows.MOONCLIP, keep_moonclip, load_moonclip)] if is_installed("moonclip") else [])
