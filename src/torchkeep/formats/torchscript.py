"""What of a TorchScript module is its state: its code, which is read as text and never run, lists it class by class."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

from torchkeep.tensors import Described, TensorSpec

PREFIX = "__torch__."
MAX_MODULE_DEPTH = 100
_CLASS = re.compile(
    r"^class (?P<name>\w+)\(Module\):\n  __parameters__ = \[(?P<parameters>.*)\]\n  __buffers__ = \[(?P<buffers>.*)\]$",
    re.MULTILINE,
)
_NAME = re.compile(r'"([^"\\]*)"')


def with_transients(tree: object, read_code: Callable[[str], str | None]) -> object:
    """The tree with each module's tensors that are neither parameters nor buffers marked so.

    Args:
        tree: As the archive's pickle describes it.
        read_code: The text of a member below ``code/``, or None when there is none.
    """

    @cache
    def states(file: str) -> dict[str, frozenset[str]]:
        found = _CLASS.finditer(read_code(file) or "")
        return {each["name"]: frozenset(_NAME.findall(f"{each['parameters']} {each['buffers']}")) for each in found}

    def marked(node: object, depth: int) -> object:
        if not isinstance(node, Described) or not node.class_path.startswith(PREFIX) or depth > MAX_MODULE_DEPTH:
            return node
        if not isinstance(node.state, Mapping):
            return node
        module, _, name = node.class_path.rpartition(".")
        state = states(f"{module.replace('.', '/')}.py").get(name)
        tensors = (key for key, value in node.state.items() if isinstance(value, TensorSpec))
        inside = {key: marked(value, depth + 1) for key, value in node.state.items()}
        transient = frozenset(str(key) for key in tensors if state is not None and key not in state)
        return replace(node, state=inside, transient=transient)

    return marked(tree, 0)
