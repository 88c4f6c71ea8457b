"""What a manager takes and brings back: every scheduler of torch, generators, loaders, what state dicts leave out."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, WeightedRandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader

import torchkeep as tk
from torchkeep.errors import PlanError
from torchkeep.policies import Also

# Schedulers


def chained(optimizer):
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer, 0.5, 4), lr_scheduler.ExponentialLR(optimizer, 0.9)], optimizer=optimizer
    )


def sequential(optimizer):
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3), lr_scheduler.StepLR(optimizer, 2)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.3, 4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=6),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 9, 2),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, mode="exp_range", gamma=0.9),
    "CyclicLR of a function": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, scale_fn=lambda x: 0.9**x),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=20),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, anneal_epochs=4),
    "ChainedScheduler": chained,
    "SequentialLR": sequential,
}


def rates_of(make, run, first, last):
    """The learning rates of some steps, resumed if the run is there."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler, rates = make(optimizer), []
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    with tk.CheckpointManager(run, state) as manager:
        assert manager.resume() == first
        for _ in range(first, last):
            optimizer.step()
            plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*([torch.tensor(1.0)] if plateau else []))
            rates.append(optimizer.param_groups[0]["lr"])
        manager.save(last - 1)
    return rates


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_learning_rate_goes_on_as_if_nobody_had_interrupted_it(tmp_path, name):
    make = SCHEDULERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own about the order of steps
        whole = rates_of(make, tmp_path / "whole", 0, 12)
        assert rates_of(make, tmp_path / "cut", 0, 5) + rates_of(make, tmp_path / "cut", 5, 12) == whole
    assert len(set(whole)) > 1


def test_every_scheduler_of_torch_is_tried_above():
    kinds = [each for each in lr_scheduler.LRScheduler.__subclasses__() if each.__module__.startswith("torch.")]
    assert {each.__name__ for each in kinds} - {"_LRScheduler"} <= set(SCHEDULERS)


# Random generators


def test_generators_of_every_kind_go_on_where_they_were(tmp_path):
    def generators(seed):
        return {
            "torch": torch.Generator().manual_seed(seed),
            "pcg": np.random.default_rng(seed),
            "philox": np.random.Generator(np.random.Philox(seed)),
            "legacy": np.random.RandomState(seed),
            "python": random.Random(seed),
        }

    def draws(held):
        return [
            torch.rand(3, generator=held["torch"]).tolist(),
            held["pcg"].random(3).tolist(),
            held["philox"].integers(0, 2**31, 3, dtype=np.int32).tolist(),
            held["legacy"].randn(3).tolist(),
            [held["python"].gauss(0, 1) for _ in range(3)],
        ]

    first = generators(0)
    draws(first)
    with tk.CheckpointManager(tmp_path, first) as manager:
        manager.save(0)
    expected = draws(first)
    again = generators(99)
    with tk.CheckpointManager(tmp_path, again) as manager:
        manager.resume()
    assert draws(again) == expected
    with (
        tk.CheckpointManager(tmp_path, {**again, "pcg": random.Random(1)}) as manager,
        pytest.raises(PlanError, match="the state is that of a numpy PCG64 generator, and this one is of Python"),
    ):
        manager.resume()


# Loaders


class Data(torch.utils.data.Dataset):
    def __init__(self, length=23):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        noise = random.random() + np.random.rand()  # noqa: NPY002 - the global generator
        return torch.tensor([index, noise, torch.rand(())], dtype=torch.float64)


def with_generator(seed, **options):
    return DataLoader(Data(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(seed), **options)


LOADERS = {
    "shuffled": lambda seed: DataLoader(Data(), batch_size=4, shuffle=True),
    "in order": lambda seed: DataLoader(Data(), batch_size=4, drop_last=True),
    "a generator of its own": with_generator,
    "drawn with replacement": lambda seed: DataLoader(
        Data(), 4, sampler=RandomSampler(Data(), replacement=True, num_samples=23, generator=torch.Generator())
    ),
    "weighted": lambda seed: DataLoader(Data(), 4, sampler=WeightedRandomSampler([1.0, 2.0] * 11, 22)),
    "batches of its own": lambda seed: DataLoader(Data(), batch_sampler=BatchSampler(RandomSampler(Data()), 5, False)),
    "workers": lambda seed: DataLoader(Data(), batch_size=4, shuffle=True, num_workers=2),
    "workers that stay": lambda seed: with_generator(seed, num_workers=2, persistent_workers=True),
}


def taken(run, make, seed, epochs, stop=None, registered=True):
    """The batches that a training over some epochs takes before it stops; it goes on where the run is."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - as above
    loader, progress, batches = make(seed), {"epoch": 0}, []
    state = {"progress": progress, **({"loader": loader} if registered else {})}
    with tk.CheckpointManager(run, state) as manager:
        step = manager.resume()
        for epoch in range(progress["epoch"], epochs):
            progress["epoch"] = epoch
            for batch in loader:
                torch.rand(2)
                batches.append(batch)
                if step == stop:
                    manager.save(step)
                    return batches
                step += 1
    return batches


@pytest.mark.parametrize("name", LOADERS)
def test_a_plain_loader_goes_on_with_the_next_batch_and_its_augmentation(tmp_path, name):
    make = LOADERS[name]
    whole = taken(tmp_path / "whole", make, 0, 3)
    length = len(whole) // 3
    stops = [0, length - 1, length + 2] if "workers" not in name else [length + 2]
    for stop in stops:
        first = taken(tmp_path / str(stop), make, 0, 3, stop)
        again = taken(tmp_path / str(stop), make, 1, 3)
        assert len(first) + len(again) == len(whole)
        assert all(torch.equal(one, other) for one, other in zip(first + again, whole, strict=True))


@pytest.mark.parametrize("name", ["shuffled", "in order", "a generator of its own", "weighted"])
def test_registering_a_loader_does_not_change_what_it_gives(tmp_path, name):
    with_it = taken(tmp_path / "a", LOADERS[name], 0, 2)
    without = taken(tmp_path / "b", LOADERS[name], 0, 2, registered=False)
    assert all(torch.equal(one, other) for one, other in zip(with_it, without, strict=True))


def test_what_a_worker_draws_does_not_depend_on_how_many_workers_there_are(tmp_path):
    one, two = (
        taken(tmp_path / str(n), lambda _, n=n: DataLoader(Data(), 4, shuffle=True, num_workers=n), 0, 1)
        for n in (1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_an_iterator_that_is_held_goes_on_from_the_state_and_a_loader_is_wrapped_once(tmp_path):
    loader = DataLoader(Data(), batch_size=4, shuffle=True)
    batches = iter(loader)
    with tk.CheckpointManager(tmp_path, {"loader": loader}) as manager:
        batches = iter(loader)
        next(batches)
        manager.save(0).wait()
        expected = [batch[:, 0].tolist() for batch in batches]
    with tk.CheckpointManager(tmp_path, {"loader": loader}) as manager:
        assert manager.resume() == 1
        assert [batch[:, 0].tolist() for batch in batches] == expected
    assert len(loader) == 6
    assert loader.batch_sampler.batch_size == 4
    assert len(list(loader.batch_sampler)) == len(list(loader.batch_sampler)) == 6


def test_a_loop_that_was_left_begins_a_new_epoch(tmp_path):
    loader = DataLoader(Data(), batch_size=4, shuffle=True)
    with tk.CheckpointManager(tmp_path, {"loader": loader}) as manager:
        for _ in loader:
            break
        manager.save(0)
    again = DataLoader(Data(), batch_size=4, shuffle=True)
    with tk.CheckpointManager(tmp_path, {"loader": again}) as manager:
        manager.resume()
        assert len(list(again)) == 6


def test_a_loader_of_another_length_is_refused_inside_an_epoch(tmp_path):
    loader = DataLoader(Data(), batch_size=4)
    with tk.CheckpointManager(tmp_path, {"loader": loader}) as manager:
        for _ in loader:
            manager.save(0)
            break
    shorter = {"loader": DataLoader(Data(20), batch_size=4)}
    with (
        tk.CheckpointManager(tmp_path, shorter) as manager,
        pytest.raises(PlanError, match="the epoch had 6 batches, and this loader has 5"),
    ):
        manager.resume()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(9))


@pytest.mark.parametrize(
    "loader", [DataLoader(Stream()), DataLoader(Data(), batch_size=None)], ids=["stream", "single"]
)
def test_a_loader_that_cannot_be_resumed_names_what_can(tmp_path, loader):
    with pytest.raises(TypeError, match="cannot be resumed: use torchdata's StatefulDataLoader"):
        tk.CheckpointManager(tmp_path, {"loader": loader})


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("workers", [0, 2])
def test_torchdatas_loader_is_taken_as_it_is(tmp_path, workers):
    def loader(seed):
        torch.manual_seed(seed)
        return StatefulDataLoader(list(range(20)), batch_size=4, shuffle=True, num_workers=workers)

    first = loader(0)
    batches = iter(first)
    next(batches)
    next(batches)
    with tk.CheckpointManager(tmp_path, {"loader": first}) as manager:
        manager.save(1)
    expected = [batch.tolist() for batch in batches]
    again = loader(1)
    with tk.CheckpointManager(tmp_path, {"loader": again}) as manager:
        manager.resume()
    assert [batch.tolist() for batch in again] == expected
    assert len(expected) == 3


# What a state dict leaves out


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(3), persistent=False)
        self.inner.register_buffer("cache", torch.zeros(()), persistent=False)
        self.register_buffer("nothing", None, persistent=False)


def test_gradients_and_non_persistent_buffers_come_back_when_asked(tmp_path):
    model = Counting()
    model.inner(torch.ones(1, 2)).sum().backward()
    model.inner.bias.grad = None
    model.seen.fill_(7)
    model.inner.cache.fill_(5)
    with tk.CheckpointManager(tmp_path, {"model": model}, also=Also.GRADIENTS | Also.NON_PERSISTENT_BUFFERS) as manager:
        manager.save(0)
    again = Counting()
    again.inner.bias.grad = torch.ones(2)
    with tk.CheckpointManager(tmp_path, {"model": again}, also=Also.GRADIENTS | Also.NON_PERSISTENT_BUFFERS) as manager:
        assert manager.resume(only=["model"]) == 1
    assert torch.equal(again.inner.weight.grad, model.inner.weight.grad)
    assert again.inner.bias.grad is None
    assert again.seen.tolist() == [7, 7, 7]
    assert again.inner.cache == 5
    plain = Counting()
    with (
        tk.CheckpointManager(tmp_path, {"model": plain}) as manager,
        pytest.warns(UserWarning, match="not restored, since the state does not have them: model:gradients"),
    ):
        manager.resume()
    assert plain.inner.weight.grad is None


def test_a_checkpoint_without_them_resumes_and_says_so(tmp_path):
    with tk.CheckpointManager(tmp_path, {"model": Counting()}) as manager:
        manager.save(0)
    model = Counting()
    model.seen.fill_(7)
    with (
        tk.CheckpointManager(tmp_path, {"model": model}, also=Also.NON_PERSISTENT_BUFFERS) as manager,
        pytest.warns(UserWarning, match="saved without model:non_persistent_buffers: they stay as they are"),
    ):
        assert manager.resume() == 1
    assert model.seen.tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: tk.CheckpointManager(p, {"p": {}}, also=3), "also is 3: Also.GRADIENTS or the like"),
        (
            lambda p: tk.CheckpointManager(p, {"m": nn.Linear(1, 1), "m:gradients": {}}, also=Also.GRADIENTS),
            "'m:gradients' names what is kept beside a module",
        ),
    ],
)
def test_wrong_requests_are_type_errors(tmp_path, make, text):
    with pytest.raises(TypeError, match=text):
        make(tmp_path)


# What is not registered


def test_nothing_is_reported_where_everything_is_registered(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    inner = [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    scheduler = lr_scheduler.SequentialLR(optimizer, inner, milestones=[2])
    loader = DataLoader(Data(), batch_size=4)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
    other = nn.Linear(2, 2)
    unrelated = lr_scheduler.StepLR(torch.optim.SGD(other.parameters()), 3)
    with tk.CheckpointManager(tmp_path, state) as manager:
        for _ in loader:
            optimizer.step()
            scheduler.step()
            manager.save(0)
            break
    assert unrelated.optimizer is not optimizer


def test_everything_that_is_missing_is_reported_once(tmp_path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    schedulers = [lr_scheduler.ReduceLROnPlateau(optimizer), lr_scheduler.StepLR(optimizer, 2)]
    with tk.CheckpointManager(tmp_path, {"optimizer": optimizer}) as manager:
        with pytest.warns(UserWarning, match="a resume will not be exact; give the manager's state") as warned:
            manager.save(0)
        manager.save(1)
    (told,) = [str(each.message).splitlines()[1:] for each in warned]
    assert sorted(told) == [
        "  2 of the parameters that 'optimizer' trains are in no module of this checkpoint",
        "  the ReduceLROnPlateau of 'optimizer' is not in this checkpoint",
        "  the StepLR of 'optimizer' is not in this checkpoint",
    ]
    assert len(schedulers) == 2
