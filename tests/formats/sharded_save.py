"""Run as a program by two processes: a model sharded over both ranks, saved by torch.distributed.checkpoint."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

PLACEMENTS = {
    "rows": Shard(0),
    "uneven_rows": Shard(0),
    "one_row": Shard(0),
    "columns": Shard(1),
    "uneven_columns": Shard(1),
    "middle": Shard(1),
    "bfloats": Shard(1),
    "complex": Shard(1),
    "everywhere": Replicate(),
}


def whole_tensors() -> dict[str, torch.Tensor]:
    """What the shards are of, the same on each rank."""
    generator = torch.Generator().manual_seed(0)
    return {
        "rows": torch.randn(4, 3, generator=generator),
        "uneven_rows": torch.randn(5, 3, generator=generator),
        "one_row": torch.randn(1, 4, generator=generator),
        "columns": torch.randn(3, 4, generator=generator),
        "uneven_columns": torch.randn(3, 5, generator=generator),
        "middle": torch.randn(2, 5, 3, generator=generator),
        "bfloats": torch.randn(3, 5, generator=generator).bfloat16(),
        "complex": torch.randn(3, 4, dtype=torch.complex128, generator=generator),
        "everywhere": torch.randn(2, 2, generator=generator),
    }


def make_network() -> torch.nn.Module:
    """A network whose tensors do not divide evenly."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))


def inputs() -> torch.Tensor:
    """What each rank trains on."""
    return torch.arange(20.0).square().reshape(4, 5)


def main(rank: int, world_size: int, rendezvous: str, folder: str) -> None:
    """Shard and save; each rank adds a value and a plain tensor of its own."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    mesh = init_device_mesh("cpu", (world_size,))
    sharded = {name: distribute_tensor(tensor, mesh, [PLACEMENTS[name]]) for name, tensor in whole_tensors().items()}
    network = fully_shard(make_network())
    optimizer = torch.optim.AdamW(network.parameters())
    network(inputs()).square().sum().backward()
    optimizer.step()
    parts = get_state_dict(network, optimizer)
    state = {
        "network": parts[0],
        "optimizer": parts[1],
        "model": sharded,
        "epoch": 7,
        f"of_rank_{rank}": [torch.full((2,), float(rank)), {"rank": rank}],
    }
    dcp.save(state, checkpoint_id=folder)
    os.write(1, b"saved")
    os._exit(0)  # the group is not taken down: gloo may abort there, which is no part of the save


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
