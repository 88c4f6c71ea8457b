"""The position of a plain `DataLoader` inside an epoch, so that a resume goes on with the next batch.

The loader is used as before: registering it puts a sampler of ours around its batch sampler and counts what the
training takes. A resumed epoch draws its order with the random states that the epoch began with, skips what was taken
without loading it, and puts the random states back. In worker processes each batch is seeded by its number, so that
what a worker draws does not depend on what it drew before, nor on how many workers there are.
"""

from __future__ import annotations

import random
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, count, islice
from typing import Any

import torch
import xxhash
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info

from torchkeep.live.generators import GeneratorState, is_generator
from torchkeep.live.rng import capture_rng, restore_rng

_HELD_AS = "_torchkeep_position"


class LoaderPosition:
    """Where a training is in a loader's epoch, with ``state_dict`` and ``load_state_dict``.

    An iterator that is held while a state is loaded goes on from there.

    Raises:
        TypeError: A loader of an iterable dataset, or one that makes no batches.

    Example:
        >>> loader = DataLoader(range(8), batch_size=2, shuffle=True)
        >>> position, batches = position_of(loader), iter(loader)
        >>> first, state = next(batches), position.state_dict()
        >>> rest = [batch.tolist() for batch in batches]
        >>> position.load_state_dict(state)
        >>> rest == [batch.tolist() for batch in loader]
        True
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
            what = "an iterable dataset" if isinstance(loader.dataset, IterableDataset) else "a loader without batches"
            raise TypeError(f"the position in {what} cannot be resumed: use torchdata's StatefulDataLoader")
        self._loader = weakref.ref(loader)  # a cycle would keep worker processes longer than their loader
        self._batches = Batches(loader.batch_sampler, seeds_workers=loader.num_workers > 0)
        samplers = (loader, loader.sampler, loader.batch_sampler)
        owned = {id(each): each for holder in samplers if is_generator(each := getattr(holder, "generator", None))}
        self._own = [GeneratorState(each) for each in owned.values()]
        self._epoch: weakref.ref[_Epoch] | None = None
        self._start: Mapping[str, Any] | None = None
        self._pending: Mapping[str, Any] | None = None
        self._is_first = True
        self.taken = 0
        self.version = 0
        # torch lets nobody set a batch sampler later, because it would be ignored; ours gives what that one gives.
        vars(loader)["batch_sampler"] = self._batches
        vars(loader)["_get_iterator"] = lambda: _Epoch(self)
        vars(loader)[_HELD_AS] = self

    def create(self) -> Any:  # noqa: ANN401 - torch's iterator has no public class
        """Make torch's own iterator."""
        loader = self._loader()
        if loader is None:
            raise RuntimeError("the DataLoader of this iterator is gone")
        return type(loader)._get_iterator(loader)  # noqa: SLF001 - the one place where torch makes every iterator

    def begin(self, epoch: _Epoch, make: Callable[[], Any], *, is_first: bool) -> Any:  # noqa: ANN401 - as above
        """Begin an epoch, or go on in one that was loaded; what `make` gives.

        Args:
            epoch: The iterator that begins it.
            make: Creates torch's iterator, or resets it.
            is_first: Whether it creates one, which draws a seed for the workers before the order is drawn.
        """
        pending, self._pending = self._pending, None
        self.taken = 0
        if pending is None:
            self._start, self._is_first = self._random(), is_first
            self._batches.begin(0, _seed_of(self._start))
            made = make()
            self._batches.draw()
        else:
            self._start, self._is_first, self.taken = pending["start"], pending["is_first"], pending["taken"]
            made = self._go_on(make)
        self._epoch = weakref.ref(epoch)
        return made

    def _go_on(self, make: Callable[[], Any]) -> Any:  # noqa: ANN401 - as above
        """Draw the order of the epoch as it was drawn when it began, and leave the random states as they are."""
        now, loader = self._random(), self._loader()
        try:
            self._set_random(self._start or {})
            if self._is_first:
                torch.empty((), dtype=torch.int64).random_(generator=getattr(loader, "generator", None))
            self._batches.begin(self.taken, _seed_of(self._start or {}))
            self._batches.draw()
            return make()
        finally:
            self._set_random(now)

    def count(self, epoch: _Epoch) -> None:
        """A batch was taken from an epoch; only the one that began last counts."""
        if self._epoch is not None and self._epoch() is epoch:
            self.taken += 1

    def end(self, epoch: _Epoch) -> None:
        """An epoch is over."""
        if self._epoch is not None and self._epoch() is epoch:
            self._epoch = None

    def state_dict(self) -> dict[str, object]:
        """Batches taken (None between epochs), the random states that the epoch began with, and the own generators."""
        own = [each.state_dict() for each in self._own]
        state: dict[str, object] = {"taken": None, "own": own, "length": self._batches.length}
        if self._pending is not None:
            return {**self._pending, **state, "taken": self._pending["taken"]}
        if self._epoch is None or self._epoch() is None:
            return state
        return {**state, "taken": self.taken, "start": self._start, "is_first": self._is_first}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Go on from a state at the next batch.

        Raises:
            ValueError: It is inside an epoch of another length.
        """
        if state["taken"] is not None and state["length"] != self._batches.length:
            raise ValueError(f"the epoch had {state['length']} batches, and this loader has {self._batches.length}")
        for generator, saved in zip(self._own, state["own"], strict=True):
            generator.load_state_dict(saved)
        self._pending = None if state["taken"] is None else state
        self._epoch = None
        self.version += 1

    def _random(self) -> dict[str, Any]:
        return {"rng": capture_rng(), "own": [each.state_dict() for each in self._own]}

    def _set_random(self, state: Mapping[str, Any]) -> None:
        restore_rng(state["rng"])
        for generator, saved in zip(self._own, state["own"], strict=True):
            generator.load_state_dict(saved)


def position_of(loader: DataLoader[Any]) -> LoaderPosition:
    """The position of a loader; the same one each time."""
    held = vars(loader).get(_HELD_AS)
    return held if isinstance(held, LoaderPosition) else LoaderPosition(loader)


class _Epoch:
    """A loader's iterator that counts what is taken, and begins anew when a state was loaded meanwhile."""

    def __init__(self, position: LoaderPosition) -> None:
        self._position = position
        self._begin()

    def _begin(self) -> None:
        self._version = self._position.version
        self._inner = self._position.begin(self, self._position.create, is_first=True)

    def _reset(self, loader: DataLoader[Any], first_iter: bool = False) -> None:  # noqa: FBT001, FBT002 - torch's signature
        """torch asks the iterator of persistent workers to begin another epoch."""
        self._version = self._position.version
        self._position.begin(self, lambda: self._inner._reset(loader, first_iter), is_first=False)  # noqa: SLF001 - torch calls it

    def __iter__(self) -> _Epoch:
        return self

    def __next__(self) -> Any:  # noqa: ANN401 - whatever the loader gives
        if self._version != self._position.version:
            self._begin()
        try:
            batch = next(self._inner)
        except StopIteration:
            self._position.end(self)
            raise
        self._position.count(self)
        return batch

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what else torch's iterator has
        if name == "_inner":
            raise AttributeError(name)
        return getattr(self._inner, name)


class Batches(Sampler[Any]):
    """A batch sampler that can begin in the middle, and gives batches that seed the worker that loads them."""

    def __init__(self, inner: Any, *, seeds_workers: bool) -> None:  # noqa: ANN401 - a sampler or any iterable
        self.inner = inner
        self.seeds_workers = seeds_workers
        self.skip, self.seed = 0, 0
        self.drawn: Iterator[Any] | None = None

    @property
    def length(self) -> int | None:
        """Batches of an epoch, where that is known."""
        try:
            return len(self.inner)
        except (TypeError, NotImplementedError):
            return None

    def begin(self, skip: int, seed: int) -> None:
        """Let the next epoch skip batches, and seed workers."""
        self.skip, self.seed, self.drawn = skip, seed, None

    def draw(self) -> Iterator[Any]:
        """The batches of the epoch, drawn once, so that nothing random is drawn later.

        An endless sampler is drawn one batch ahead only.
        """
        if self.drawn is None:
            drawn = islice(iter(self.inner), self.skip, None)
            ahead = list(drawn) if self.length is not None else list(islice(drawn, 1))
            self.drawn = map(self._seeded, count(self.skip), chain(ahead, drawn))
        return self.drawn

    def _seeded(self, number: int, batch: Any) -> Any:  # noqa: ANN401 - a batch of indices
        if type(batch) is not list or not self.seeds_workers:
            return batch
        return SeededBatch(batch, xxhash.xxh3_64_intdigest(f"{self.seed}/{number}".encode()))

    def __iter__(self) -> Iterator[Any]:
        # torch makes iterators that it never uses: nothing is drawn before it asks for a batch.
        yield from self.draw()
        self.skip, self.drawn = 0, None

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what else the loader's own batch sampler has
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


class SeededBatch(list[Any]):
    """The indices of a batch; in a worker process, going through them seeds its random generators first."""

    def __init__(self, indices: list[Any], seed: int) -> None:
        super().__init__(indices)
        self.seed = seed

    def __reduce__(self) -> tuple[Any, ...]:
        return SeededBatch, (list(super().__iter__()), self.seed)

    def __iter__(self) -> Iterator[Any]:
        if get_worker_info() is not None:
            random.seed(self.seed)
            torch.manual_seed(self.seed)
            if "numpy" in sys.modules:
                import numpy as np

                np.random.seed(self.seed % 2**32)  # noqa: NPY002 - the global generator is what datasets use
        return super().__iter__()


def _seed_of(start: Mapping[str, Any]) -> int:
    """A seed that follows from random states without drawing from them."""
    text = repr((start["rng"]["torch"], start["rng"]["python"], start["own"]))
    return xxhash.xxh3_64_intdigest(text.encode())
