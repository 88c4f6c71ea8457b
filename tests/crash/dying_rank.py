"""Two ranks save, and rank 1 dies: a script that does so at its collective calls, and says what became of rank 0.

It takes the folder of a run, which it copies for each, and which of the calls to take: every so many. It ends with the
save in which rank 1 had no further call to die at.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from tests.crash.versions import NEW, OLD, Run, save_step

import torchkeep as tk

COLLECTIVES = ("all_reduce", "all_gather", "broadcast")


def die_at(count: int) -> None:
    """Let this process be killed where it would begin its collective call of a number, from 1."""
    left = itertools.count(count - 1, -1)

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def called(*args: object, **options: object) -> object:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return called

    for name in COLLECTIVES:
        setattr(dist, name, counted(getattr(dist, name)))


def save_as(rank: int, folder: Path, dies_at: int) -> dict[str, str]:
    """In a fork: resume and save the next step as one of two ranks; what came of it."""
    rendezvous = f"file://{folder.parent}/rendezvous-{folder.name}"
    dist.init_process_group("gloo", rendezvous, timedelta(seconds=300), 2, rank)
    run = Run(folder)
    if rank == 1:
        die_at(dies_at)
    try:
        run.save(NEW)
        run.manager.close()
    except tk.errors.CheckpointError as error:
        return {"error": str(error)}
    return {"error": ""}


def fork_rank(rank: int, folder: Path, dies_at: int, told: Path) -> int:
    """Its process number."""
    child = os.fork()
    if not child:
        try:
            result = save_as(rank, folder, dies_at)
        except BaseException as error:  # noqa: BLE001 - an untyped error is what is looked for
            result = {"untyped": f"{type(error).__name__}: {error}"}
        if rank == 0:
            told.write_text(json.dumps(result))
        os._exit(0)  # the group is not taken down: the other is gone
    return child


def main(before: Path, stride: int) -> None:
    torch.set_num_threads(1)
    for step in (0, OLD):
        save_step(before, step)
    for dies_at in itertools.count(stride, stride):
        folder = before.parent.with_name(f"{dies_at}") / "run"
        shutil.copytree(before, folder)
        told = folder.with_name("told")
        ranks = [fork_rank(rank, folder, dies_at, told) for rank in (0, 1)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) for each in ranks]
        result = {"folder": str(folder), "codes": codes, **json.loads(told.read_text())}
        sys.stdout.write(json.dumps(result) + "\n")
        if codes[1] == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
