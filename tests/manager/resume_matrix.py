"""Trainings that are interrupted and resumed, compared bit for bit with one that was not: one cell per combination."""

from __future__ import annotations

import itertools
import math
import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import torchkeep as tk
from torchkeep.policies import Also

BATCHES, EPOCHS, ACCUMULATE = 6, 3, 2
STEPS = BATCHES * EPOCHS
# The step after which the run ends: at the end of an epoch, inside one, and with one of two backward passes done.
PLACES = {"boundary": 5, "mid-epoch": 7, "mid-accumulation": 8}
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}
PRECISIONS = ("float32", "bfloat16 autocast", "float16 scaled")


@dataclass(frozen=True)
class Cell:
    """One combination; `resumes` is how often the run is interrupted."""

    optimizer: str
    precision: str
    place: str
    workers: int
    resumes: int

    def __str__(self) -> str:
        return f"{self.optimizer}, {self.precision}, {self.place}, {self.workers} workers, resume {self.resumes}"


CELLS = tuple(itertools.starmap(Cell, itertools.product(OPTIMIZERS, PRECISIONS, PLACES, (0, 2), (1, 2))))


class Data(torch.utils.data.Dataset[torch.Tensor]):
    """Samples that are changed at random by all three generators when they are loaded, in the worker."""

    def __len__(self) -> int:
        return 4 * BATCHES

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = random.random() + np.random.rand() + torch.rand(())  # noqa: NPY002 - the global generators
        return torch.linspace(-1, 1, 8) * (index + 1) / len(self) + noise


class Net(nn.Module):
    """Batch norm, dropout, and a buffer that no state dict has and that every output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(8, 16), nn.BatchNorm1d(16)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(16, 2)
        self.register_buffer("passes", torch.zeros(()), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.head(self.drop(self.norm(self.body(inputs)).relu())) * (1 + 0.01 * self.passes)


class Training:
    """A training whose every step depends on everything that a resume has to bring back."""

    def __init__(self, cell: Cell, seed: int) -> None:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - as above
        random.seed(seed)
        self.cell = cell
        self.model = Net()
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.optimizer = OPTIMIZERS[cell.optimizer](self.model.parameters())
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        self.generator = torch.Generator().manual_seed(seed)
        self.loader = torch.utils.data.DataLoader(Data(), batch_size=4, shuffle=True, num_workers=cell.workers)
        self.progress: dict[str, Any] = {"epoch": 0, "losses": []}

    def state(self) -> dict[str, object]:
        """What the manager is given."""
        names = ("model", "ema", "optimizer", "scheduler", "scaler", "generator", "loader", "progress")
        return {name: getattr(self, name) for name in names}

    def steps(self, first: int) -> Iterator[int]:
        """Train from a step on; yields after each."""
        step = first
        for epoch in range(self.progress["epoch"], EPOCHS):
            self.progress["epoch"] = epoch
            for inputs in self.loader:
                self.train_on(inputs, step)
                yield step
                step += 1

    def train_on(self, inputs: torch.Tensor, step: int) -> None:
        """One forward and backward pass; the optimizer acts on every second."""
        with self.autocast():
            outputs = self.model(inputs + torch.randn(8, generator=self.generator) * 0.1)
            loss = outputs.float().pow(2).mean()
        scales = self.cell.precision == "float16 scaled"
        (self.scaler.scale(loss) if scales else loss).backward()
        self.progress["losses"].append(loss.item())
        if (step + 1) % ACCUMULATE:
            return
        if scales:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.ema.update_parameters(self.model)

    def autocast(self) -> Any:
        """The precision of the forward pass."""
        kinds = {"bfloat16 autocast": torch.bfloat16, "float16 scaled": torch.float16}
        kind = kinds.get(self.cell.precision)
        return nullcontext() if kind is None else torch.autocast("cpu", kind)

    def result(self) -> dict[str, object]:
        """Everything that must be equal at the end."""
        kept = {name: value.state_dict() for name, value in self.state().items() if hasattr(value, "state_dict")}
        own = {"generator": self.generator.get_state(), "progress": self.progress, "passes": self.model.passes}
        rng = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state()}  # noqa: NPY002
        return {**kept, **own, **rng, "next draw": torch.rand(3)}


@cache
def whole(optimizer: str, precision: str, workers: int) -> dict[str, object]:
    """The result of a training that nobody interrupted; its loader is registered, as in the others."""
    training = Training(Cell(optimizer, precision, "", workers, 0), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        tk.CheckpointManager(folder, training.state())
        for _ in training.steps(0):
            pass
    return training.result()


def interrupted(cell: Cell, folder: Path, without: str | None = None) -> dict[str, object]:
    """The result of one that ended `cell.resumes` times and went on in new objects, without one item of the state."""
    ends = [PLACES[cell.place] + 5 * each for each in range(cell.resumes)]
    also = {"gradients": Also.NON_PERSISTENT_BUFFERS, "passes": Also.GRADIENTS}.get(
        without or "", Also.GRADIENTS | Also.NON_PERSISTENT_BUFFERS
    )
    for seed, end in enumerate([*ends, STEPS]):
        training = Training(cell, seed=seed)
        state = {name: value for name, value in training.state().items() if name != without}
        with tk.CheckpointManager(folder, state, also=also) as manager:
            first = manager.resume(only=list(state) if without == "random states" and seed else None)
            for step in training.steps(first):
                if step == end:
                    manager.save(step)
                    break
    return training.result()


def differing(one: object, other: object, at: str = "") -> list[str]:
    """The paths at which two results are not the same bits."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if list(one) != list(other):
            return [at]
        return [path for key in one for path in differing(one[key], other[key], f"{at}.{key}" if at else str(key))]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [at]
        pairs = enumerate(zip(one, other, strict=True))
        return [path for index, (a, b) in pairs for path in differing(a, b, f"{at}.{index}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return [] if same and one.detach().numpy().tobytes() == other.detach().numpy().tobytes() else [at]
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return [] if one.tobytes() == other.tobytes() else [at]
    both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return [] if both_nan or (type(one) is type(other) and one == other) else [at]


def try_cell(cell: Cell, folder: Path, without: str | None = None) -> list[str]:
    """Where an interrupted training ends otherwise than one that was not."""
    return differing(whole(cell.optimizer, cell.precision, cell.workers), interrupted(cell, folder, without))
