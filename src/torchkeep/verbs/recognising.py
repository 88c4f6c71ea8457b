"""What the parts of a checkpoint are and who wrote it: what the file says is certain, the rest is inferred."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from torchkeep.errors import NotFoundError, PlanError
from torchkeep.folder.read import FolderSource
from torchkeep.planning.weights import USUAL_KEYS, Weights, find_weights
from torchkeep.tensors import Described, KeyPath, Source, name_of, tensors_of, walk

_MAX_CONFIG_BYTES = 1 << 20
_MAX_INSIDE = 12


class Part(StrEnum):
    """What an entry of a checkpoint is."""

    WEIGHTS = "weights"
    OTHER_WEIGHTS = "other weights"
    OPTIMIZER = "optimizer"
    SCHEDULER = "scheduler"
    RANDOM_STATE = "random state"
    SCALER = "gradient scaler"
    HYPER_PARAMETERS = "hyper-parameters"
    PROGRESS = "progress"
    METRICS = "metrics"
    CALLBACKS = "callbacks"
    DATA_POSITION = "data position"
    VERSION = "version"
    UNREADABLE = "unreadable"
    TENSORS = "tensors"
    OTHER = "other values"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a checkpoint.

    Attributes:
        path: Its keys from the root; empty for the whole.
        part: What it is.
        is_certain: Whether the file says so; else it is inferred.
        why: What that is known or inferred from.
        tensor_count: Tensors in it.
        total_bytes: Bytes of them.
        value_count: Values in it that are no tensors.
    """

    path: KeyPath
    part: Part
    is_certain: bool
    why: str
    tensor_count: int
    total_bytes: int
    value_count: int

    @property
    def name(self) -> str:
        """Its dotted path."""
        return name_of(self.path)


@dataclass(frozen=True, slots=True)
class Producer:
    """What wrote a checkpoint.

    Attributes:
        name: With its version, where that is told.
        is_certain: Whether the file says so; else it is inferred.
        why: What that is known or inferred from.
    """

    name: str
    is_certain: bool
    why: str


# By the last key of an entry's path; the first that is found decides.
_NAMES: tuple[tuple[re.Pattern[str], Part], ...] = tuple(
    (re.compile(pattern), part)
    for pattern, part in (
        (r"optim", Part.OPTIMIZER),
        (r"sched|(^|_)lr_decay", Part.SCHEDULER),
        (r"scaler|(^|_)amp(_|$)", Part.SCALER),
        (r"(^|_)(rng|random)(_|s?$)|^rng", Part.RANDOM_STATE),
        (r"callbacks?$|loops?$", Part.CALLBACKS),
        (r"sampler|data_?loader|dl_state", Part.DATA_POSITION),
        (r"hparams|hyper_?param|(^|_)args?$|(^|_)cfg$|config|opt(ions)?$|settings", Part.HYPER_PARAMETERS),
        (r"version", Part.VERSION),
        (r"epoch|(^|_)steps?$|iter(ation)?s?$|global_step|progress|trainer_state", Part.PROGRESS),
        (r"loss|acc(uracy)?(_|\d|$)|best|metric|score|history|(^|_)(top1|map|miou|psnr|fid)$", Part.METRICS),
    )
)
_SCHEDULER_KEYS = frozenset(("last_epoch", "_step_count", "base_lrs", "_last_lr"))
_SCALER_KEYS = frozenset(("scale", "growth_factor", "backoff_factor"))
# Keys by which frameworks sign: (path, name).
_SIGNATURES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("pytorch-lightning_version",), "PyTorch Lightning"),
    (("ds_version",), "DeepSpeed"),
    (("meta", "mmengine_version"), "MMEngine"),
    (("meta", "mmcv_version"), "MMCV"),
    (("trainer_state", "transformers_version"), "transformers"),
)


def recognise(source: Source) -> list[Entry]:
    """The entries of a checkpoint in order, the weights among them wherever they stand.

    Raises:
        LimitError: As for `walk`.
    """
    try:
        weights: Weights | None = find_weights(source.tree)
    except (NotFoundError, PlanError):
        weights = None
    tree = source.tree
    if weights is not None and not weights.path:
        return [_weights_entry(source, (), tree)]
    entries = []
    for key, node in _items(tree):
        if weights is not None and weights.path[:1] == (key,):
            entries.append(_weights_entry(source, weights.path, _at(tree, weights.path)))
            entries += [_entry(source, path, inside, weights) for path, inside in _beside(tree, weights.path)]
        else:
            entries.append(_entry(source, (key,), node, weights))
    return entries


def producer_of(source: Source) -> Producer:
    """What wrote a checkpoint, as exactly as can be told."""
    if isinstance(source, FolderSource):
        said = source.record.provenance
        beside = [f"{name} {said[key]}" for name, key in (("torch", "torch"), ("Python", "python")) if said.get(key)]
        name = " ".join(["torchkeep", str(said.get("torchkeep", ""))]).strip()
        return Producer(" ".join([name, f"({_listed(beside)})"]) if beside else name, True, "its record")
    for path, name in _SIGNATURES:
        version = _at(source.tree, path)
        if isinstance(version, str):
            return Producer(f"{name} {version[:40]}", True, f"its key {name_of(path)}")
    return _by_folder(source) or _by_container(source)


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words)


def version_of(source: Source) -> str | None:
    """The version of the format, where it has one."""
    if isinstance(source, FolderSource):
        return "1"
    version = source.metadata.get("version") or source.metadata.get("protocol_version")
    return None if version is None else str(version)


def ties_of(tree: object) -> list[list[str]]:
    """The names of tensors that are one tensor, a list for each; tensors without elements do not count.

    Raises:
        LimitError: As for `walk`.

    Example:
        >>> from torchkeep.tensors import TensorSpec
        >>> spec = TensorSpec("float32", (2,), "storage 0")
        >>> ties_of({"wte": spec, "lm_head": spec})
        [['wte', 'lm_head']]
    """
    names: dict[Hashable, list[str]] = {}
    for name, spec in tensors_of(tree).items():
        if spec.numel and spec.key is not None:
            names.setdefault((spec.key, spec.dtype, spec.shape), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _weights_entry(source: Source, path: KeyPath, node: object) -> Entry:
    kind = _recorded_kind(source, path)
    if kind == "module":
        return _made(path, node, Part.WEIGHTS, True, "recorded as a module")
    names = [key for key in path if isinstance(key, str) and key.lower() in USUAL_KEYS]
    why = "a usual name, tensors by name" if names else "tensors by name"
    return _made(path, node, Part.WEIGHTS, False, why)


def _entry(source: Source, path: KeyPath, node: object, weights: Weights | None) -> Entry:
    kind = _recorded_kind(source, path)
    if kind == "module":
        return _made(path, node, Part.OTHER_WEIGHTS, True, "recorded as a module")
    if kind == "optimizer":
        return _made(path, node, Part.OPTIMIZER, True, "recorded as an optimizer")
    if isinstance(node, Described) and node.class_path.endswith("unreadable"):
        return _made(path, node, Part.UNREADABLE, True, str(node.kwargs.get("why", "")))
    others = () if weights is None else weights.candidates
    if name_of(path) in others or any(other.startswith(f"{name_of(path)}.") for other in others):
        return _made(path, node, Part.OTHER_WEIGHTS, False, "tensors by name")
    part, why = _by_content(node)
    if part is None:
        part, why = _by_name(path)
    if part is None:
        part, why = (Part.TENSORS, "tensors") if tensors_of(node) else (Part.OTHER, "no sign of what it is")
    return _made(path, node, part, False, why)


def _by_content(node: object) -> tuple[Part | None, str]:
    first = node[0] if isinstance(node, (list, tuple)) and node else node
    if not isinstance(first, Mapping):
        return None, ""
    keys = {key for key in first if isinstance(key, str)}
    if {"state", "param_groups"} <= keys:
        return Part.OPTIMIZER, "it has state and param_groups"
    if len(_SCHEDULER_KEYS & keys) > 1:
        return Part.SCHEDULER, f"it has {' and '.join(sorted(_SCHEDULER_KEYS & keys)[:2])}"
    if keys >= _SCALER_KEYS:
        return Part.SCALER, "it has scale, growth_factor and backoff_factor"
    return None, ""


def _by_name(path: KeyPath) -> tuple[Part | None, str]:
    text = str(path[-1]).lower() if path else ""
    part = next((part for pattern, part in _NAMES if pattern.search(text)), None)
    return part, "its name"


def _made(path: KeyPath, node: object, part: Part, is_certain: bool, why: str) -> Entry:  # noqa: FBT001 - the file says so or not
    specs = list(tensors_of(node).values())
    values = sum(1 for _ in walk(node)) - len(specs)
    return Entry(path, part, is_certain, why, len(specs), sum(spec.nbytes for spec in specs), values)


def _recorded_kind(source: Source, path: KeyPath) -> str | None:
    if not isinstance(source, FolderSource):
        return None
    record = source.record
    entry = record.entries.get(record.whole if record.whole is not None and not path else str(path[0]) if path else "")
    return None if entry is None or len(path) > 1 else entry.kind


def _items(tree: object) -> Sequence[tuple[Hashable, object]]:
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, (list, tuple)):
        return list(enumerate(tree))
    if isinstance(tree, Described) and isinstance(tree.state, Mapping):
        return list(tree.state.items())
    return [("", tree)]


def _at(tree: object, path: Sequence[Hashable]) -> object:
    for key in path:
        inside = dict(_items(tree))
        if key not in inside:
            return None
        tree = inside[key]
    return tree


def _beside(tree: object, path: KeyPath) -> Iterator[tuple[KeyPath, object]]:
    """What stands beside the weights inside their own entry."""
    for depth in range(1, len(path)):
        siblings = [(key, node) for key, node in _items(_at(tree, path[:depth])) if key != path[depth]]
        for key, node in siblings[:_MAX_INSIDE]:
            yield (*path[:depth], key), node


def _by_folder(source: Source) -> Producer | None:
    """What a configuration beside the weights, or the names of files, say."""
    folder = source.path if source.path.is_dir() else source.path.parent
    if source.format == "training-folder":
        keys = [str(key) for key, _ in _items(source.tree)]
        if "trainer_state" in keys:
            return Producer("Hugging Face Trainer", False, "it has trainer_state.json")
        if any(key.startswith("random_states") for key in keys):
            return Producer("Accelerate", False, "it has random_states files")
    if source.format not in {"safetensors", "huggingface", "training-folder"}:
        return None
    version = _transformers_version(folder)
    return Producer(f"transformers {version}", True, "config.json beside it") if version else None


def _transformers_version(folder: object) -> str | None:
    from pathlib import Path

    config = Path(str(folder), "config.json")
    try:
        if not config.is_file() or config.stat().st_size > _MAX_CONFIG_BYTES:
            return None
        parsed = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    version = parsed.get("transformers_version") if isinstance(parsed, dict) else None
    return version[:40] if isinstance(version, str) else None


def _by_container(source: Source) -> Producer:
    metadata = source.metadata
    if metadata.get("torchscript"):
        return Producer("torch.jit.save", False, "an archive of TorchScript")
    if source.format == "torch-zip":
        return Producer("torch.save of torch 1.6 or later", False, "a zip archive of torch")
    if source.format == "torch-legacy":
        return Producer("torch.save before torch 1.6, or in its old form", False, "a stream of pickles")
    if source.format == "torch-dcp":
        return Producer("torch.distributed.checkpoint", False, "a folder with .metadata")
    said = metadata.get("__metadata__")
    if isinstance(said, Mapping) and said.get("format") == "pt":
        return Producer("safetensors from PyTorch", False, "__metadata__ says format pt")
    return Producer("not known", False, "nothing in it says")
