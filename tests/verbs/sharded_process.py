"""A process of its own: load a checkpoint into a model under FullyShardedDataParallel, and save that."""

from __future__ import annotations

import os
import sys
import tempfile

import torch
from torch import nn
from torch.distributed import init_process_group
from torch.distributed.fsdp import FullyShardedDataParallel

import torchkeep as tk


def main(bare: str, sharded: str, original_parameters: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        options = {"use_orig_params": bool(int(original_parameters)), "device_id": torch.device("cpu")}
        torch.manual_seed(9)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
        model[0] = FullyShardedDataParallel(model[0], **options)
        whole = FullyShardedDataParallel(model, **options)
        coverage = tk.load(bare, into=whole).plan.coverage
        sys.stdout.write(f"{coverage}\n")
        tk.save(whole, sharded)
    sys.stdout.flush()
    os._exit(0)  # the group is not taken down: gloo may abort there, which is no part of the test


if __name__ == "__main__":
    main(*sys.argv[1:])
