"""What a description of a model wants, found before anything of it is looked up or made: names, objects, tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

from torchkeep.errors import LimitError, UnsafeError
from torchkeep.folder.structure import MAX_OBJECTS
from torchkeep.live.module_tables import HOOK_TABLES, KEPT_HOOKS, RECOMPUTED, is_reserved
from torchkeep.tensors import Described, Enclosing, Named, TensorSpec, printable

# Descriptions that our own code makes a value of, whatever class path they have; the names in them are not looked up.
VALUES = frozenset(
    """
    torch.dtype torch.device torch.Size torch.sparse torch.quantized torch.packed torch.Tensor numpy.ndarray
    builtins.getattr functools.partial logging.getLogger torch.nn.parameter.Parameter torch.serialization._get_layout
    """.split()  # noqa: SIM905 - as a list each would take a line
)
_SHOWN_FAULTS = 20
_LONGEST_PLACE = 500


@dataclass(slots=True)
class Wanted:
    """Everything in a description, by kind.

    Attributes:
        names: Names of classes and functions, each with the first place that wants it.
        objects: Descriptions of objects in the order they are found, the model first.
        places: The place of each object, by identity of its description.
        tensors: Every tensor.
    """

    names: dict[str, str] = field(default_factory=dict)
    objects: list[Described] = field(default_factory=list)
    places: dict[int, str] = field(default_factory=dict)
    tensors: list[TensorSpec] = field(default_factory=list)


def survey(root: Described, where: object) -> Wanted:
    """Walk a description, which may contain itself, and list what it wants.

    Raises:
        UnsafeError: It wants a call, an attribute that Python itself reads, or a key that is a container.
        LimitError: More than 200,000 objects.
    """
    found = Wanted()
    faults: list[str] = []
    seen: set[int] = set()
    waiting: deque[tuple[object, str]] = deque([(root, "")])
    while waiting:
        node, at = waiting.popleft()
        if isinstance(node, TensorSpec):
            found.tensors.append(node)
            continue
        if id(node) in seen or isinstance(node, Enclosing):
            continue
        seen.add(id(node))
        if isinstance(node, Named):
            if node.class_path not in VALUES:
                found.names.setdefault(node.class_path, at or "the model itself")
        elif isinstance(node, Described):
            if node.class_path not in VALUES:
                found.objects.append(node)
                found.places[id(node)] = at
                found.names.setdefault(node.class_path, at or "the model itself")
                faults += map(printable, _faults_of(node, at))
            if len(found.objects) > MAX_OBJECTS:
                raise LimitError(f"the model is made of more than {MAX_OBJECTS:,} objects", where=str(where))
        waiting.extend((child, _join(at, key)) for key, child in _children(node))
    if faults:
        raise UnsafeError(
            "the file wants more than a model is made of; nothing was imported or called",
            where=str(where),
            faults=[*faults[:_SHOWN_FAULTS], *([f"... {len(faults):,} in all"] if len(faults) > _SHOWN_FAULTS else [])],
            remedy="load its weights alone: load(path, into=model)",
        )
    return found


def _faults_of(node: Described, at: str) -> list[str]:
    at = at or "the model itself"
    if node.kwargs:
        return [f"{at}: a call of {node.class_path} with {', '.join(map(str, node.kwargs))}"]
    if isinstance(node.state, list):  # of a dataclass with slots; whether it is one is known later
        return []
    if node.state is not None and not isinstance(node.state, Mapping):
        return [f"{at}: a {node.class_path} whose state is no mapping of attributes"]
    names = list(node.state or ())
    return [
        f"{at}: the attribute {name!r}, which {'Python itself reads' if isinstance(name, str) else 'is no text'}"
        for name in names
        if not isinstance(name, str) or is_reserved(name)
    ]


def attributes_in(state: Mapping[str, object]) -> dict[str, object]:
    """The attributes of a described module or object: without what torch makes anew, and without its tables."""
    return {name: value for name, value in state.items() if name not in RECOMPUTED}


def is_module_state(state: object) -> bool:
    """Whether a description's state is that of a module."""
    return isinstance(state, Mapping) and "_modules" in state and "_parameters" in state


def _children(node: object) -> Iterable[tuple[str, object]]:
    if isinstance(node, Described):
        state = node.state
        if isinstance(state, Mapping):
            yield from _state_children(state)
        elif state is not None:
            yield "", state
        yield from (("", each) for each in (*node.args, *node.items, *node.kwargs.values()))
    elif isinstance(node, Mapping):
        yield from ((str(key) if isinstance(key, (str, int)) else "", each) for key, each in node.items())
        yield from (("", key) for key in node if isinstance(key, (Described, tuple, frozenset)))
    elif isinstance(node, (list, tuple, set, frozenset, deque)):
        yield from ((str(index), each) for index, each in enumerate(node))
    elif isinstance(node, SimpleNamespace) or type(node).__module__ == "argparse":
        yield from vars(node).items()


def _state_children(state: Mapping[str, object]) -> Iterable[tuple[str, object]]:
    is_module = is_module_state(state)
    for name, value in state.items():
        if not is_module:
            yield str(name), value
        elif name in {"_modules", "_parameters", "_buffers"} and isinstance(value, Mapping):
            yield from ((str(key), each) for key, each in value.items())
        elif name not in RECOMPUTED:
            yield str(name), value
        elif name in HOOK_TABLES and isinstance(value, Mapping):
            yield from (("a hook", each) for each in kept_hooks(value).values())


def kept_hooks(table: Mapping[object, object]) -> dict[object, object]:
    """The hooks of a described table that belong to torch's own norms and pruning, or to `freeze`."""
    return {key: each for key, each in table.items() if isinstance(each, Described) and _is_kept(each.class_path)}


def _is_kept(class_path: str) -> bool:
    return class_path.replace(":", ".").rpartition(".")[0] in KEPT_HOOKS


def _join(at: str, key: str) -> str:
    if len(at) > _LONGEST_PLACE:  # A chain of modules would take memory in the square of its length.
        return at
    key = printable(key[:_LONGEST_PLACE])
    return f"{at}.{key}" if at and key else at or key
