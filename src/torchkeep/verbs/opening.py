"""`open`: look into any checkpoint, lazily and safely; torch is imported only when a torch tensor is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torchkeep.errors import FormatError
from torchkeep.folder.read import FolderSource
from torchkeep.folder.runs import metrics_of
from torchkeep.folder.structure import STRUCTURE, texts_in
from torchkeep.planning.paths import resolve
from torchkeep.planning.weights import find_weights
from torchkeep.tensors import Described, Source, TensorSpec, is_floating, name_of, tensors_of
from torchkeep.verbs.outline import outline
from torchkeep.verbs.sources import open_source

if TYPE_CHECKING:
    import numpy as np
    import torch


class LazyTensor:
    """A tensor in a file: its dtype and shape are known, its bytes are read when asked for."""

    def __init__(self, source: Source, spec: TensorSpec) -> None:
        self._source = source
        self.spec = spec

    @property
    def dtype(self) -> str:
        """torch's name of the dtype without ``torch.``."""
        return self.spec.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in elements."""
        return self.spec.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.spec.nbytes

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.spec.numel

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray[Any, Any]:  # noqa: FBT001 - numpy's protocol
        del copy  # it is read anew each time
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)  # type: ignore[call-overload]

    def numpy(self) -> np.ndarray[Any, Any]:
        """Read it as a new numpy array.

        Raises:
            FormatError: numpy has no such dtype (bfloat16, float8): use `torch`.
            CorruptError: The bytes are damaged.
        """
        import numpy as np

        array = np.empty(self.spec.nbytes, np.uint8)
        if self.dtype.startswith(("bfloat", "float8", "float4", "float6", "complex32")):
            raise FormatError(f"numpy has no {self.dtype}", where=self._source.path, remedy="use .torch()")
        self._source.read_into(self.spec, memoryview(array))  # type: ignore[arg-type]  # as in Python 3.12, arrays are buffers
        return array.view(np.dtype(self.dtype)).reshape(self.shape)

    def torch(self) -> torch.Tensor:
        """Read it as a new torch tensor on the CPU.

        Raises:
            CorruptError: The bytes are damaged.
        """
        from torchkeep.live.build import Builder

        return Builder(self._source).tensor(self.spec)

    def __repr__(self) -> str:
        device = f", {self.spec.device}" if self.spec.device else ""
        return f"<{self.dtype} {self.shape}{device}, not read: .torch() or .numpy()>"


class LazyMapping(Mapping[Any, Any]):
    """A mapping inside a checkpoint; its tensors are `LazyTensor`."""

    def __init__(self, source: Source, tree: Mapping[Any, object]) -> None:
        self._source = source
        self._tree = tree

    def __getitem__(self, key: object) -> Any:  # noqa: ANN401 - whatever was saved
        return wrap(self._source, self._tree[key])

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)

    def __repr__(self) -> str:
        return f"<{len(self)} keys: {', '.join(map(repr, list(self)[:6]))}{', ...' if len(self) > 6 else ''}>"  # noqa: PLR2004 - enough to recognise


class StateDict(LazyMapping):
    """The tensors of one entry by name.

    Attributes:
        entry: Its path in the checkpoint; "" when the checkpoint itself is the state dict.
        others: Dotted names of what else could have been taken for the weights.
    """

    def __init__(self, source: Source, tensors: Mapping[str, TensorSpec], entry: str, others: tuple[str, ...]) -> None:
        super().__init__(source, tensors)
        self.entry = entry
        self.others = others

    @property
    def parameter_count(self) -> int:
        """Elements of all floating-point tensors."""
        return sum(
            spec.numel for spec in self._tree.values() if isinstance(spec, TensorSpec) and is_floating(spec.dtype)
        )


def wrap(source: Source, node: object) -> object:
    """A node of a source's tree as `open` gives it."""
    if isinstance(node, TensorSpec):
        return LazyTensor(source, node)
    if isinstance(node, Mapping):
        return LazyMapping(source, node)
    if type(node) is list:
        return [wrap(source, each) for each in node]
    if type(node) is tuple:
        return tuple(wrap(source, each) for each in node)
    return node


class Checkpoint(LazyMapping):
    """An opened checkpoint of any format: a nested mapping of what was saved, with nothing read that is not asked for.

    Attributes:
        path: The file or folder.
        format: The format by its bytes: ``"torchkeep"``, ``"torch-zip"``, ``"torch-legacy"``, ``"safetensors"``, ...
        tree: What was saved as the file describes it.
    """

    def __init__(self, source: Source) -> None:
        tree = source.tree
        super().__init__(source, _as_mapping(tree))
        self.path: Path = source.path
        self.format: str = source.format
        self.tree = tree

    @property
    def source(self) -> Source:
        """The source under it."""
        return self._source

    @property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """Every tensor of the file by dotted name, in order."""
        return LazyMapping(self._source, tensors_of(self.tree))

    def weights(self, entry: str | tuple[Any, ...] | None = None) -> StateDict:
        """The entry that holds the model's weights: found by what is in it, raw weights before averaged ones.

        Args:
            entry: The path of the one to take instead of searching.

        Raises:
            PlanError: There is none, or two tie; the message lists them.
            NotFoundError: `entry` is not in the checkpoint.
        """
        path, node = ((), self.tree) if entry is None else resolve(self._source, entry)
        found = find_weights(node, where=self.path, below=path)
        where = name_of((*path, *found.path))
        return StateDict(self._source, found.tensors, where, found.candidates)

    @property
    def step(self) -> int | None:
        """The step in our record; for other formats the ``global_step`` or ``step`` they have at the top."""
        if isinstance(self._source, FolderSource):
            return self._source.record.step
        found = [self._tree.get(key) for key in ("global_step", "step")]
        return next((value for value in found if type(value) is int), None)

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics in our record; empty for other formats."""
        return metrics_of(self._source.record) if isinstance(self._source, FolderSource) else {}

    @property
    def sources(self) -> Mapping[str, str]:
        """The texts of classes that ``save_whole(..., include_source=True)`` kept, to read; they are never run."""
        if not isinstance(self._source, FolderSource):
            return {}
        return texts_in(entry.facts.get(STRUCTURE) for entry in self._source.record.entries.values())

    def close(self) -> None:
        """Let go of open files; tensors cannot be read after it."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return outline(f"{self.path} ({self.format})", self.tree)

    def __repr__(self) -> str:
        return f"<{self.format} checkpoint {str(self.path)!r} of {len(self)} keys>"


def _as_mapping(tree: object) -> Mapping[Any, object]:
    if isinstance(tree, Mapping):
        return tree
    if isinstance(tree, (list, tuple)):
        return dict(enumerate(tree))
    if isinstance(tree, Described) and isinstance(tree.state, Mapping):
        return tree.state
    return {"": tree}


def open(path: str | os.PathLike[str]) -> Checkpoint:  # noqa: A001 - the verb people expect, used as tk.open
    """Open any checkpoint to look inside: nothing of it is run, and no tensor is read until it is asked for.

    Args:
        path: A torchkeep folder or file, a torch file of either container, a safetensors file; a folder of
            Hugging Face, torch DCP, DeepSpeed, Accelerate or the Trainer. The bytes decide, not the name.

    Raises:
        NotFoundError: There is nothing at the path.
        FormatError: It is of no known format.
        CorruptError, UnsafeError, LimitError: It is damaged, wants something run, or asks for too much.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> folder = tempfile.mkdtemp()
        >>> torch.save({"state_dict": torch.nn.Linear(2, 1).state_dict(), "epoch": 3}, f"{folder}/old.pth")
        >>> with tk.open(f"{folder}/old.pth") as checkpoint:
        ...     checkpoint["epoch"], checkpoint.weights().entry, checkpoint.weights()["weight"].shape
        (3, 'state_dict', (1, 2))
    """
    return Checkpoint(open_source(path))
