"""Configuration objects of other libraries that are dicts and lists at heart: they are read as those.

What such an object has beside its values (flags, types, parents) is left out; interpolations stay the texts they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torchkeep.formats.untangling import complete
from torchkeep.tensors import Described

# Subclasses of dict with no attributes of their own.
DICT_CLASSES = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
_NODES = ("AnyNode", "BooleanNode", "BytesNode", "EnumNode", "FloatNode", "IntegerNode", "PathNode", "StringNode")


def _content_in(attribute: str) -> Callable[[Described, object], object]:
    def finish(target: Described, state: object) -> object:
        """What the object holds under its attribute.

        Raises:
            ValueError: It does not have that attribute.
        """
        if not isinstance(state, dict) or attribute not in state:
            raise ValueError("not the state of a configuration")
        # What was read while this was unfinished holds the description, which must neither stay empty nor lead back.
        complete(target, "state", {name: value for name, value in state.items() if name != "_parent"})
        return state[attribute]

    return finish


FINISHERS: Mapping[str, Callable[[Described, object], object]] = {
    "omegaconf.dictconfig.DictConfig": _content_in("_content"),
    "omegaconf.listconfig.ListConfig": _content_in("_content"),
    **{f"omegaconf.nodes.{node}": _content_in("_val") for node in _NODES},
}
