"""The forms in which files hold an optimizer's state, brought to torch's own: ``state`` and ``param_groups``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchkeep.tensors import Described, TensorSpec

_STATE, _GROUPS = "state.", "param_groups."


@dataclass(frozen=True, slots=True)
class SavedForm:
    """An optimizer's state as torch's ``state_dict`` has it.

    Attributes:
        tree: ``state`` by what ``params`` of the ``param_groups`` hold: positions, or names.
        class_path: The optimizer's class, where the file names it.
        parameters: The parameters themselves, where the file holds them with it.
    """

    tree: Mapping[str, Any]
    class_path: str | None = None
    parameters: tuple[TensorSpec, ...] = ()


def read_form(node: object) -> SavedForm | None:
    """An optimizer's state in any form: torch's own, flattened, or the whole optimizer pickled; None for all else."""
    if isinstance(node, Described):
        return _pickled(node)
    if not isinstance(node, Mapping):
        return None
    if isinstance(node.get("param_groups"), (list, tuple)):
        return SavedForm(node)
    return _flattened(node)


def _flattened(node: Mapping[Any, object]) -> SavedForm | None:
    """``state.NAME.KIND`` and ``param_groups.NAME.OPTION``, as ``flatten_optimizer_state_dict`` makes them.

    Kinds and options hold no dots. Parameters with equal options are one group.
    """
    keys = [key for key in node if isinstance(key, str)]
    if len(keys) < len(node) or not keys or not all(key.startswith((_STATE, _GROUPS)) for key in keys):
        return None
    state: dict[str, dict[str, object]] = {}
    options: dict[str, dict[str, object]] = {}
    for key in keys:
        into, begin = (state, len(_STATE)) if key.startswith(_STATE) else (options, len(_GROUPS))
        name, _, last = key[begin:].rpartition(".")
        into.setdefault(name, {})[last] = node[key]
    groups: dict[str, dict[str, Any]] = {}
    for name, own in options.items():
        groups.setdefault(repr(own), {**own, "params": []})["params"].append(name)
    if not groups or not state.keys() <= options.keys():
        return None
    return SavedForm({"state": state, "param_groups": list(groups.values())})


def _pickled(node: Described) -> SavedForm | None:
    """A whole optimizer: its state is keyed by the parameters themselves."""
    inside = node.state
    if not isinstance(inside, Mapping) or not isinstance(inside.get("param_groups"), list):
        return None
    parameters: list[Any] = []
    groups = []
    for group in inside["param_groups"]:
        if not isinstance(group, Mapping) or not isinstance(group.get("params"), list):
            return None
        begin = len(parameters)
        parameters += group["params"]
        groups.append({**group, "params": list(range(begin, len(parameters)))})
    if not all(isinstance(each, TensorSpec) for each in parameters):
        return None
    position = {spec: index for index, spec in enumerate(parameters)}
    held = inside.get("state")
    state = {position.get(key, key): value for key, value in held.items()} if isinstance(held, Mapping) else {}
    return SavedForm({"state": state, "param_groups": groups}, node.class_path, tuple(parameters))
