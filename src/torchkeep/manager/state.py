"""What a manager may be given to keep: every value must be able to take its state back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

from torchkeep.policies import Also

_TAKES = (
    "a module, an optimizer, anything with state_dict and load_state_dict, a DataLoader, a random generator, a tensor, "
    "or a dict"
)


def held_state(state: object, also: Also) -> dict[str, object]:
    """Each value as what is saved and takes its state back, and what is kept of modules besides.

    Raises:
        TypeError: Values that could not be put back; all of them are named.
        ValueError: There is none.
    """
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise TypeError(f'state is {type(state).__name__}: a mapping by name is wanted, as {{"model": model}}')
    if not state:
        raise ValueError('state is empty: name what to keep, as {"model": model}')
    if not isinstance(also, Also):
        raise TypeError(f"also is {also!r}: Also.GRADIENTS or the like is wanted, from torchkeep.policies")
    held = {name: _held(value) for name, value in state.items()}
    faults = list(_faults(state, held))
    if faults:
        raise TypeError("\n  ".join(faults))
    for name, value in _besides(state, also):
        if name in held:
            raise TypeError(f"{name!r} names what is kept beside a module: give that value another name")
        held[name] = value
    return held


def _held(value: object) -> object:
    """A value, or what takes and gives the state of one that has no methods for it."""
    if isinstance(value, MutableMapping) or hasattr(value, "load_state_dict") or _is_tensor(value):
        return value
    from torch.utils.data import DataLoader

    from torchkeep.live.generators import GeneratorState, is_generator
    from torchkeep.live.loaders import position_of

    if isinstance(value, DataLoader):
        return position_of(value)
    return GeneratorState(value) if is_generator(value) else value


def _besides(state: Mapping[str, object], also: Also) -> Iterator[tuple[str, object]]:
    """What is kept of modules beside their state dicts, when asked."""
    if not also:
        return
    from torch import nn

    from torchkeep.live.leftovers import Gradients, NonPersistentBuffers

    for name, value in state.items():
        if isinstance(value, nn.Module):
            if Also.GRADIENTS in also:
                yield f"{name}:gradients", Gradients(value)
            if Also.NON_PERSISTENT_BUFFERS in also:
                yield f"{name}:non_persistent_buffers", NonPersistentBuffers(value)


def is_beside(name: str, held: Mapping[str, object]) -> bool:
    """Whether an entry is kept beside a module that is there, and so comes and goes with it."""
    owner, _, what = name.rpartition(":")
    return owner in held and what in {"gradients", "non_persistent_buffers"}


def refillable(value: object) -> object:
    """What takes a state back: the value itself, or a dict as something that does."""
    from torchkeep.live.refill import LiveDict

    return LiveDict(value) if isinstance(value, MutableMapping) else value


def _faults(state: Mapping[str, object], held: Mapping[str, object]) -> Iterator[str]:
    inside = [
        f"{name}.{path}" for name, value in state.items() if isinstance(value, Mapping) for path in _stateful(value)
    ]
    if inside:
        yield f"a resume would not reach {', '.join(inside)} inside a dict: give each its own name in the state"
    classes = [f"{name!r} ({value.__name__})" for name, value in held.items() if isinstance(value, type)]
    if classes:
        yield f"a class has no state of its own: {', '.join(classes)}; give an object of it, as Linear(8, 2)"
    immutable = {
        name: type(value).__name__
        for name, value in held.items()
        if not isinstance(value, (type, MutableMapping))
        and not hasattr(value, "load_state_dict")
        and not _is_tensor(value)
    }
    if immutable:
        shown = ", ".join(f"{name!r} ({kind})" for name, kind in immutable.items())
        yield (
            f"a resume could not put these back: {shown}. {_TAKES} is wanted; put plain values in a dict: "
            '{"progress": {"epoch": 0}}'
        )


def _stateful(value: object, path: str = "") -> Iterator[str]:
    """Paths of objects inside a dict that keep a state of their own."""
    if hasattr(value, "load_state_dict") and not isinstance(value, type):
        yield path
    elif isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, each in items:
            yield from _stateful(each, f"{path}.{key}" if path else str(key))


def _is_tensor(value: object) -> bool:
    return hasattr(value, "copy_") and hasattr(value, "data_ptr")
