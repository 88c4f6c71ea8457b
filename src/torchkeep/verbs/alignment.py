"""Names under which two checkpoints, of whatever formats, are laid side by side: what means the same has one name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torchkeep.errors import NotFoundError, PlanError
from torchkeep.planning.weights import Weights, find_weights
from torchkeep.tensors import KeyPath, Source, TensorSpec, name_of, unused_name, walk

_STATE, _GROUPS, _PARAMETERS = "state", "param_groups", "params"


@dataclass(frozen=True, slots=True)
class Named:
    """What a checkpoint holds, by the names that it is compared under.

    Attributes:
        tensors: Every tensor.
        values: Every other leaf; the leaves of one list, or of one dict with numbers for keys, are a list.
        weights: The names of those tensors that are the weights.
    """

    tensors: Mapping[str, TensorSpec]
    values: Mapping[str, object]
    weights: frozenset[str]


def align(first: Source, second: Source, *, weights_only: bool = False) -> tuple[Named, Named]:
    """Name what is in two checkpoints so that equal things have equal names.

    The weights of both are named as in their state dicts where they stand at different places. Optimizer state that one
    side has by position and the other by parameter name is named by parameter. All else has its dotted path.

    Args:
        first: One checkpoint.
        second: The other.
        weights_only: Leave out all but the weights.

    Raises:
        NotFoundError, PlanError: With `weights_only`, one of them has no weights that can be told.
        LimitError: As for `walk`.
    """
    weights = [_weights(source, required=weights_only) for source in (first, second)]
    one, other = weights
    at_one_place = one is not None and other is not None and one.path == other.path
    prefixes = ["" if each is None or not at_one_place else name_of(each.path) for each in weights]
    if one is None or other is None:
        weights = [None, None]
    positions = _positions(first.tree, second.tree)
    sides = [
        _name(source.tree, found, prefix, numbered, weights_only=weights_only)
        for source, found, prefix, numbered in zip((first, second), weights, prefixes, positions, strict=True)
    ]
    return sides[0], sides[1]


def _weights(source: Source, *, required: bool) -> Weights | None:
    try:
        return find_weights(source.tree)
    except (NotFoundError, PlanError) as error:
        if required:
            remedy = "compare all that is in both: leave out weights_only, on the command line --weights"
            raise type(error)(error.what, where=source.path, faults=error.faults, remedy=remedy) from None
        return None


def _name(
    tree: object,
    weights: Weights | None,
    prefix: str,
    positions: Mapping[KeyPath, Mapping[object, str]],
    *,
    weights_only: bool,
) -> Named:
    tensors: dict[str, TensorSpec] = {}
    values: dict[str, object] = {}
    if weights is not None:
        tensors = {f"{prefix}.{name}" if prefix else name: spec for name, spec in weights.tensors.items()}
    own = frozenset(tensors)
    if weights_only:
        return Named(tensors, values, own)
    held = set(map(id, tensors.values()))
    for path, leaf in walk(tree):
        if isinstance(leaf, TensorSpec):
            if id(leaf) not in held or weights is None or path[: len(weights.path)] != weights.path:
                tensors[unused_name(name_of(_by_name(path, positions)), tensors)] = leaf
        elif _is_list_of_parameters(path, positions):
            continue
        elif len(path) > 1 and type(path[-1]) is int:
            series = values.setdefault(name_of(_by_name(path[:-1], positions)), [])
            series.append(leaf) if isinstance(series, list) else None
        else:
            values[unused_name(name_of(_by_name(path, positions)), values)] = leaf
    return Named(tensors, values, own)


def _by_name(path: KeyPath, positions: Mapping[KeyPath, Mapping[object, str]]) -> KeyPath:
    """A path into optimizer state with the parameter's name where its position stands."""
    for at in range(len(path) - 1):
        names = positions.get(path[:at])
        if names is not None and path[at] == _STATE and path[at + 1] in names:
            return (*path[: at + 1], names[path[at + 1]], *path[at + 2 :])
    return path


def _is_list_of_parameters(path: KeyPath, positions: Mapping[KeyPath, Mapping[object, str]]) -> bool:
    """Whether a value is of a list of parameters that has positions on one side and names on the other."""
    return any(path[:at] in positions and path[at] == _GROUPS and _PARAMETERS in path for at in range(len(path)))


def _positions(
    first: object, second: object
) -> tuple[dict[KeyPath, dict[object, str]], dict[KeyPath, dict[object, str]]]:
    """For each optimizer that both have, of which one is by position and the other by name: the name of each key."""
    found: tuple[dict[KeyPath, dict[object, str]], dict[KeyPath, dict[object, str]]] = ({}, {})
    others = dict(_optimizers(second))
    for path, parameters in _optimizers(first):
        opposite = others.get(path, ())
        if len(parameters) != len(opposite) or _are_positions(parameters) == _are_positions(opposite):
            continue
        names = [str(name) for name in (opposite if _are_positions(parameters) else parameters)]
        found[0][path] = dict(zip(parameters, names, strict=True))
        found[1][path] = dict(zip(opposite, names, strict=True))
    return found


def _optimizers(tree: object, path: KeyPath = ()) -> list[tuple[KeyPath, list[object]]]:
    """The parameters of each optimizer's groups, in order, by the optimizer's path."""
    if not isinstance(tree, Mapping) or len(path) > 4:  # noqa: PLR2004 - optimizers stand near the top
        return []
    groups = tree.get(_GROUPS)
    if _STATE in tree and isinstance(groups, list):
        listed = [group.get(_PARAMETERS) for group in groups if isinstance(group, Mapping)]
        return [(path, [key for keys in listed if isinstance(keys, list) for key in keys])]
    return [found for key, node in tree.items() for found in _optimizers(node, (*path, key))]


def _are_positions(keys: object) -> bool:
    return isinstance(keys, list) and all(type(key) is int for key in keys)
