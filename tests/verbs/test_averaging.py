"""An average is what torch's own averaging computes from the same checkpoints."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import torchkeep as tk
from torchkeep.arithmetic.averaging import ema_weights
from torchkeep.errors import ConflictError, PlanError

COUNT = 5


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
    for buffer in model.buffers():
        buffer.copy_(torch.rand_like(buffer) if buffer.is_floating_point() else torch.tensor(seed))
    return model


@pytest.fixture
def run(tmp_path):
    """Give a run of five checkpoints with a metric, and their models."""
    models = [network(seed) for seed in range(COUNT)]
    live = network()
    with tk.CheckpointManager(tmp_path / "run", {"model": live, "epoch": {"n": 0}}) as manager:
        manager.resume()
        for step, model in enumerate(models):
            live.load_state_dict(model.state_dict())
            manager.save(step, metrics={"acc": [0.1, 0.9, 0.5, 0.8, 0.2][step]})
    return tk.checkpoints(tmp_path / "run"), models


def torchs_average(models, **options):
    averaged = swa_utils.AveragedModel(models[0], **options)
    for model in models:
        averaged.update_parameters(model)
    return averaged.module.state_dict()


def assert_close(made, expected, models):
    assert list(made) == list(expected)
    for name, value in made.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=2e-6, atol=1e-7, msg=name)
        else:
            assert value == models[-1].state_dict()[name]


def test_a_uniform_average_is_that_of_averaged_model_and_exact_to_the_last_bit(run, tmp_path):
    checkpoints, models = run
    made = tk.average(checkpoints, tmp_path / "soup")
    state = tk.load(tmp_path / "soup")
    assert_close(state, torchs_average(models, use_buffers=True), models)
    for name, value in state.items():
        if value.is_floating_point():
            exact = torch.stack([model.state_dict()[name].double() for model in models])
            assert torch.equal(value, (exact * (1 / COUNT)).sum(0).float()), name
    assert made.weights == (0.2,) * 5
    assert made.copied == ("1.num_batches_tracked",)
    assert made.notes == ("running statistics of 1 batch norms are averages: torch.optim.swa_utils.update_bn is exact",)
    assert tk.verify(tmp_path / "soup").ok
    network().load_state_dict(state)


def test_buffers_can_be_the_last_checkpoints_as_averaged_model_keeps_them(run, tmp_path):
    checkpoints, models = run
    made = tk.average(checkpoints, tmp_path / "soup", buffers="last")
    state = tk.load(tmp_path / "soup")
    assert torch.equal(state["1.running_mean"], models[-1][1].running_mean)
    assert_close(state, torchs_average(models, use_buffers=False), models)
    assert (made.copied, made.notes) == (("1.running_mean", "1.running_var", "1.num_batches_tracked"), ())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_an_ema_is_that_of_averaged_model_over_the_steps_whatever_the_order_given(run, tmp_path, decay):
    checkpoints, models = run
    expected = torchs_average(models, use_buffers=True, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay))
    shuffled = [checkpoints[at] for at in (3, 0, 4, 1, 2)]
    tk.average(shuffled, tmp_path / "soup", ema_decay=decay)
    assert_close(tk.load(tmp_path / "soup"), expected, models)
    assert sum(ema_weights(COUNT, decay)) == pytest.approx(1)


def test_weights_are_scaled_and_the_best_of_a_run_can_be_averaged(run, tmp_path):
    checkpoints, models = run
    best = checkpoints.best("acc", mode="max", n=2)
    made = tk.average(best, tmp_path / "soup.safetensors", weights=[3, 1])
    assert ([path.name for path in made.sources], made.weights) == (["step-00000001", "step-00000003"], (0.75, 0.25))
    with tk.open(tmp_path / "soup.safetensors") as soup:
        expected = 0.75 * models[1][3].weight.double() + 0.25 * models[3][3].weight.double()
        assert torch.equal(soup.weights()["3.weight"].torch(), expected.float().detach())


@pytest.mark.parametrize("name", ["soup", "soup.pt", "soup.safetensors"])
def test_any_formats_are_averaged_into_any_format(name, tmp_path):
    tied = torch.ones(3)
    torch.save({"state_dict": {"a": tied, "b": tied, "h": torch.ones(2).half()}, "epoch": 1}, tmp_path / "1.ckpt")
    tk.save({"a": tied * 3, "b": tied * 3, "h": torch.ones(2) * 2}, tmp_path / "2.safetensors")
    tk.average([tmp_path / "1.ckpt", tmp_path / "2.safetensors"], tmp_path / name)
    with tk.open(tmp_path / name) as made:
        weights = made.weights()
        assert weights["a"].torch().tolist() == [2, 2, 2]
        assert (weights["h"].dtype, weights["h"].torch().tolist()) == ("float32", [1.5, 1.5])


@pytest.mark.parametrize("wrapped_last", [False, True])
def test_wrappers_are_no_difference_and_the_last_names_stay(tmp_path, wrapped_last):
    models = [network(seed) for seed in (1, 2)]
    sides = [nn.DataParallel(models[0]), models[1]][:: -1 if wrapped_last else 1]
    for at, model in enumerate(sides):
        torch.save(model.state_dict(), tmp_path / f"{at}.pt")
    tk.average([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "soup")
    state = tk.load(tmp_path / "soup")
    assert list(state) == list(sides[1].state_dict())
    expected = (models[0][3].weight.double() + models[1][3].weight.double()) / 2
    assert torch.equal(state[f"{'module.' * wrapped_last}3.weight"], expected.float().detach())


def test_one_checkpoint_is_its_own_average(tmp_path):
    torch.save(network(3).state_dict(), tmp_path / "a.pt")
    tk.average([tmp_path / "a.pt"], tmp_path / "b.pt")
    assert tk.diff(tmp_path / "a.pt", tmp_path / "b.pt").is_equal


def test_complex_and_narrow_floats_are_averaged_in_their_own_dtype(tmp_path):
    for at, factor in enumerate([1, 3]):
        state = {
            "c": torch.full((3,), factor * (1 + 2j)),
            "b": torch.full((3,), float(factor)).bfloat16(),
            "e": torch.full((3,), float(factor)).to(torch.float8_e5m2),
            "flags": torch.tensor([True, False]),
            "nan": torch.tensor([math.nan if at else 0.0]),
        }
        torch.save(state, tmp_path / f"{at}.pt")
    tk.average([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "soup.pt")
    soup = torch.load(tmp_path / "soup.pt")
    assert (soup["c"].tolist(), soup["b"].tolist(), soup["e"].float().tolist()) == ([2 + 4j] * 3, [2.0] * 3, [2.0] * 3)
    assert soup["nan"].isnan().all()
    assert [value.dtype for value in soup.values()] == [value.dtype for value in state.values()]


def test_checkpoints_of_other_networks_are_refused_with_every_difference(tmp_path):
    torch.save({"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)}, tmp_path / "1.pt")
    torch.save({"a": torch.ones(3), "b": torch.ones(2).long(), "d": torch.ones(2)}, tmp_path / "2.pt")
    with pytest.raises(PlanError) as caught:
        tk.average([tmp_path / "1.pt", tmp_path / "2.pt"], tmp_path / "soup")
    said = str(caught.value).replace(f"{tmp_path}/", "")
    assert said.splitlines()[:-1] == [
        "the checkpoints are not of one network: 4 differences",
        "  a: float32 (2,) in 1.pt, float32 (3,) in 2.pt",
        "  b: float32 (2,) in 1.pt, int64 (2,) in 2.pt",
        "  d: only in 2.pt",
        "  c: only in 1.pt",
    ]
    assert not (tmp_path / "soup").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": [1]}, "weights are 2 numbers"),
        ({"weights": [1, -1]}, "none negative"),
        ({"weights": [0, 0]}, "not all 0"),
        ({"weights": [1, math.nan]}, "none negative"),
        ({"ema_decay": 1.0}, "decay is a number from 0 to below 1"),
        ({"ema_decay": 0.5, "weights": [1, 1]}, "not both"),
        ({"buffers": "first"}, "'first' is not a valid Buffers"),
    ],
)
def test_what_means_nothing_is_refused(options, words, tmp_path):
    for name in "ab":
        torch.save({"w": torch.ones(2)}, tmp_path / f"{name}.pt")
    with pytest.raises(ValueError, match=words):
        tk.average([tmp_path / "a.pt", tmp_path / "b.pt"], tmp_path / "soup", **options)
    with pytest.raises(ValueError, match="one or more checkpoints"):
        tk.average([], tmp_path / "soup")
    with pytest.raises(ConflictError, match="something is there already"):
        tk.average([tmp_path / "a.pt"], tmp_path / "b.pt")
