"""Names that were flattened, nested again as they were saved."""

from __future__ import annotations

from collections.abc import Mapping

_MAX_KEYS = 100
_MAX_HOLES = 1_000


class _Branch(dict[object, object]):
    """What paths go through; a dict that was saved as a value is a leaf."""


def nest(leaves: Mapping[str, object], paths: Mapping[str, object]) -> tuple[dict[object, object], list[str]]:
    """Put each leaf where its path leads: texts are keys of a dict, whole numbers places in a list.

    A place that nothing leads to holds None: flattening loses empty dicts, also those in lists. It also makes texts of
    all keys; in the state of an optimizer those that number its parameters become numbers again.

    Args:
        leaves: What to place, by name.
        paths: A tuple of keys for a name; a name without one stands at the root.

    Returns:
        The tree, and one line for each fault.

    Example:
        >>> nest({"a.0.x": 1, "b": 2}, {"a.0.x": ("a", 0, "x")})
        ({'a': [{'x': 1}], 'b': 2}, [])
    """
    root, faults = _Branch(), []
    seen_ids: set[int] = set()
    for name, leaf in leaves.items():
        path = paths.get(name, (name,))
        fault = _why_no_path(path)
        if name in paths:
            # One long path that many names share would take time without end to walk.
            fault = "it stands where another stands" if id(path) in seen_ids else fault
            seen_ids.add(id(path))
        if fault is None and isinstance(path, tuple) and not _place(root, path, leaf):
            fault = "it stands where another stands"
        if fault is not None:
            faults.append(f"{name[:80]!r}: {fault}")
    tree = _finish(root, faults)
    return tree if isinstance(tree, dict) else {}, faults


def _why_no_path(path: object) -> str | None:
    if not isinstance(path, tuple) or not 0 < len(path) <= _MAX_KEYS or not isinstance(path[0], str):
        return "its path is none"
    if not all(isinstance(key, str) or (type(key) is int and key >= 0) for key in path):
        return "its path is not of names and places"
    return None


def _place(root: _Branch, path: tuple[object, ...], leaf: object) -> bool:
    branch = root
    for key in path[:-1]:
        inside = branch.setdefault(key, _Branch())
        if type(inside) is not _Branch:
            return False
        branch = inside
    if path[-1] in branch:
        return False
    branch[path[-1]] = leaf
    return True


def _finish(node: object, faults: list[str]) -> object:
    if type(node) is not _Branch:
        return node
    finished = {key: _finish(value, faults) for key, value in node.items()}
    places = [key for key in finished if isinstance(key, int)]
    if not places:
        return _with_numbers(finished)
    length = max(places) + 1
    if len(places) != len(finished) or length > len(places) + _MAX_HOLES:
        faults.append(f"a list has {len(places):,} values, {len(finished) - len(places):,} names and {length:,} places")
        return finished
    return [finished.get(place) for place in range(length)]


def _with_numbers(node: dict[object, object]) -> dict[object, object]:
    state, groups = node.get("state"), node.get("param_groups")
    if not isinstance(state, dict) or not isinstance(groups, list):
        return node
    held = [group.get("params") for group in groups if isinstance(group, dict)]
    numbers = {str(key): key for params in held if isinstance(params, list) for key in params if type(key) is int}
    return {**node, "state": {numbers.get(key, key): value for key, value in state.items()}}
