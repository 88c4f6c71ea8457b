"""What a manager may be given to keep: every value must be able to take its state back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

_TAKES = "a module, an optimizer, anything with state_dict and load_state_dict, a tensor, or a dict"


def refillable(value: object) -> object:
    """What takes a state back: the value itself, or a dict as something that does."""
    from torchkeep.live.refill import LiveDict

    return LiveDict(value) if isinstance(value, MutableMapping) else value


def require_state(state: object) -> None:
    """Every value must be able to take its state back."""
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise TypeError(f'state is {type(state).__name__}: a mapping by name is wanted, as {{"model": model}}')
    inside = [
        f"{name}.{path}" for name, value in state.items() if isinstance(value, Mapping) for path in _stateful(value)
    ]
    if inside:
        raise TypeError(
            f"a resume would not reach {', '.join(inside)} inside a dict: give each its own name in the state"
        )
    immutable = {
        name: type(value).__name__
        for name, value in state.items()
        if not isinstance(value, MutableMapping) and not hasattr(value, "load_state_dict") and not _is_tensor(value)
    }
    if immutable:
        shown = ", ".join(f"{name!r} ({kind})" for name, kind in immutable.items())
        raise TypeError(
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
