"""Saves from a GPU through pinned memory, loads into one; all of it needs a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchkeep as tk
from torchkeep.live import staging

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LARGE = 5 * 2**20  # elements: more than one piece, and no whole number of them


def make(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(10)).cuda()
    model(torch.rand(2, 3, 16, 16, device="cuda"))
    model.register_parameter("large", nn.Parameter(torch.rand(LARGE + 3, device="cuda")))
    model[0].to(memory_format=torch.channels_last)
    return model, torch.optim.Adam(model.parameters(), fused=True)


def step(model, optimizer):
    optimizer.zero_grad()
    (model(torch.rand(2, 3, 16, 16, device="cuda")).square().sum() + model.large.sum()).backward()
    optimizer.step()


def tensors_of(model, optimizer):
    held = [each for state in optimizer.state.values() for each in state.values()]
    return [each.detach().cpu().clone() for each in [*model.state_dict().values(), *held]]


@pytest.mark.parametrize("mode", tk.policies.Staging)
@pytest.mark.parametrize("aside", [False, True], ids=["the default stream", "a stream aside"])
def test_each_save_holds_the_gpu_as_it_was_at_the_call(tmp_path, mode, aside):
    model, optimizer = make(0)
    expected = {}
    state = {"model": model, "optimizer": optimizer}
    manager = tk.CheckpointManager(tmp_path / "run", state, retain=tk.KeepLast(9), staging=mode)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream() if aside else None), manager:
        for index in range(4):
            step(model, optimizer)
            expected[index] = tensors_of(model, optimizer)
            manager.save(index)
            step(model, optimizer)  # changes everything while the save goes on
    for index, tensors in expected.items():
        other, its_optimizer = make(1)
        tk.load(tmp_path / "run" / f"step-{index:08d}", into={"model": other, "optimizer": its_optimizer})
        assert all(map(torch.equal, tensors, tensors_of(other, its_optimizer)))


def test_what_is_written_on_another_stream_is_saved_after_it_is_written(tmp_path):
    tensor = torch.zeros(LARGE, device="cuda")
    stream = torch.cuda.Stream()
    with tk.CheckpointManager(tmp_path / "run", {"state": {"tensor": tensor}}) as manager, torch.cuda.stream(stream):
        for index in range(3):
            for _ in range(50):
                tensor.add_(1)
            manager.save(index)
            tensor.add_(1)
    assert tk.load(tmp_path / "run" / "step-00000002")["state"]["tensor"].unique().tolist() == [152.0]


def test_staging_memory_is_pinned_and_let_go_of():
    torch.cuda.init()
    for _ in range(3):
        memory = staging.StagingMemory(2**26)
        memory.reset()
        assert memory.take(2**20).tensor.is_pinned()
        del memory


@pytest.mark.parametrize("name", ["ckpt", "ckpt.safetensors"])
def test_a_load_places_on_the_gpu_and_refuses_damage_before_it_touches_it(tmp_path, name):
    model, _ = make(0)
    tk.save(model, tmp_path / name)
    other, _ = make(1)
    assert tk.load(tmp_path / name, into=other).plan.coverage == 1.0
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    assert {each.device.type for each in tk.load(tmp_path / name, map_location="cuda").values()} == {"cuda"}
