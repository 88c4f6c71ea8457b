"""What `test_ranks` runs under torchrun: a training on every rank of a gloo group, whole, cut and resumed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

import torchkeep as tk
from torchkeep.errors import CheckpointError, Preempted
from torchkeep.policies import EveryMinutes, OnException

EPOCHS = 3


class Training:
    """Data-parallel, with dropout that each rank draws for itself, and a count that differs from rank to rank."""

    def __init__(self, seed: int) -> None:
        rank = dist.get_rank()
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 1))
        self.model = DistributedDataParallel(model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        data = [torch.full((4,), float(i)) for i in range(24)]
        self.sampler = DistributedSampler(data, shuffle=True)
        self.loader = DataLoader(data, batch_size=3, sampler=self.sampler)
        self.own = {"rank": rank, "seen": torch.zeros(3), "draws": []}
        self.progress = {"epoch": 0}
        torch.manual_seed(seed * 100 + rank)

    def state(self) -> dict[str, object]:
        names = ("model", "optimizer", "loader", "own", "progress")
        return {name: getattr(self, name) for name in names}

    def run(self, folder: Path, signal_at: int | None = None) -> int:
        """Train to the end; rank 1 alone gets a signal at a step. The step after the last one that was resumed."""
        policy = tk.OnPreemption() | EveryMinutes(60) | OnException()
        with tk.CheckpointManager(folder, self.state(), save_when=policy, retain=tk.KeepLast(1)) as manager:
            first = step = manager.resume()
            for epoch in range(self.progress["epoch"], EPOCHS):
                self.progress["epoch"] = epoch
                self.sampler.set_epoch(epoch)
                for batch in self.loader:
                    loss = self.model(batch / 24).pow(2).mean()
                    self.optimizer.zero_grad()
                    loss.backward()
                    self.optimizer.step()
                    self.own["seen"] += batch[0, 0] * (1 + dist.get_rank())
                    self.own["draws"].append(torch.rand(()).item())
                    if step == signal_at and dist.get_rank() == 1:
                        os.kill(os.getpid(), signal.SIGUSR1)
                        time.sleep(0.01)
                    manager.after_step(step)
                    step += 1
            manager.save(step - 1).wait()
        return first

    def result(self) -> list[object]:
        weights = [parameter.tolist() for parameter in self.model.parameters()]
        return [weights, self.own["rank"], self.own["seen"].tolist(), self.own["draws"], torch.rand(3).tolist()]


def exact(folder: Path) -> dict[str, object]:
    """A training of which one rank is signalled ends as one that was left alone, on every rank."""
    whole = Training(0)
    whole.run(folder / "whole")
    expected = whole.result()
    cut = Training(0)
    try:
        cut.run(folder / "cut", signal_at=5)
    except Preempted as ended:
        saved = {"step": ended.step, "code": ended.code, "path": str(ended.path)}
    again = Training(1)
    first = again.run(folder / "cut")
    return {**saved, "first": first, "exact": again.result() == expected, "draws": len(again.own["draws"])}


def failing(folder: Path) -> dict[str, object]:
    """A save that rank 0 cannot make, and a checkpoint that rank 1 alone cannot read, are errors on every rank."""
    told = {}
    training = Training(0)
    manager = tk.CheckpointManager(folder / "run", training.state())
    manager.save(0).wait()
    flush = os.fsync
    if dist.get_rank() == 0:
        os.fsync = lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    try:
        manager.save(1).wait()
    except CheckpointError as error:
        told["save"] = str(error)
    os.fsync = flush
    training.own["odd"] = print if dist.get_rank() == 1 else 1
    try:
        manager.save(1)
    except CheckpointError as error:
        told["draft"] = str(error)
    del training.own["odd"]
    manager.save(2).wait()
    manager.close()
    dist.barrier()
    other = Training(1)
    if dist.get_rank() == 1:
        other.own = {"rank": object()}
        other.model.register_buffer("extra", torch.zeros(2))
    try:
        tk.CheckpointManager(folder / "run", other.state()).resume()
    except CheckpointError as error:
        told["resume"] = str(error)
    return told


def forever(folder: Path) -> None:
    """Train until somebody ends it."""
    training = Training(0)
    with tk.CheckpointManager(folder, training.state(), save_when=tk.OnPreemption()) as manager:
        for step in range(manager.resume(), 10**6):
            time.sleep(0.02)
            if step == 3:
                (folder.parent / f"running-{dist.get_rank()}").touch()
            manager.after_step(step)


if __name__ == "__main__":
    warnings.filterwarnings("error", module="torchkeep")
    dist.init_process_group("gloo")
    what, place = sys.argv[1], Path(sys.argv[2])
    result = {"exact": exact, "failing": failing, "forever": forever}[what](place)
    (place / f"{what}-{dist.get_rank()}.json").write_text(json.dumps(result))
    dist.barrier()  # neither leaves while the other needs it
    os._exit(0)  # the group is not taken down: gloo may abort there, which is no part of the test
