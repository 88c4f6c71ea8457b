"""How a shard is laid out: file names of groups, order of tensors, and the safetensors header, byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from torchkeep.folder.digests import digest_of
from torchkeep.folder.record import ALIGNMENT_BYTES
from torchkeep.tensors import CODE_OF_DTYPE, TensorSpec, bits_of, unused_name

MAX_STEM_LENGTH = 100
_DEVICE_NAMES = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
_as_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
# Complex dtypes that safetensors has no code for are stored as pairs of reals.
_STORED_AS_PAIRS = {"complex128": "F64", "complex32": "F16"}


def stems_of(names: Iterable[str]) -> dict[str, str]:
    """The file stem of each group's name, distinct also where case does not count.

    Example:
        >>> stems_of(["model", "Model", "a/b", "con"])
        {'model': 'model', 'Model': 'Model~2', 'a/b': 'a%2Fb', 'con': '%63on'}
    """
    taken: dict[str, object] = {}
    stems = {}
    for name in names:
        stem = _escape(name)
        folded = unused_name(stem.lower(), taken)
        taken[folded] = None
        stems[name] = stem + folded[len(stem) :]
    return stems


def _escape(name: str) -> str:
    raw = name.encode("utf-8", "surrogatepass")
    stem = "".join(
        chr(byte) if re.match(rb"[A-Za-z0-9_.-]", raw[i : i + 1]) else f"%{byte:02X}" for i, byte in enumerate(raw)
    )
    if not stem or stem.startswith(".") or _DEVICE_NAMES.fullmatch(stem):
        stem = f"%{raw[0]:02X}{stem[1:]}" if raw else "%"
    if len(stem) > MAX_STEM_LENGTH:
        stem = f"{stem[:MAX_STEM_LENGTH]}-{digest_of(raw)[:16]}"
    return stem


def single_file_names(groups: Mapping[str, Iterable[str]]) -> dict[tuple[str, str], str]:
    """The names that tensors of several groups have in one file: their own when there is one group, else stem first.

    Example:
        >>> single_file_names({"model": ["w"], "ema": ["w"]})
        {('model', 'w'): 'model.w', ('ema', 'w'): 'ema.w'}
    """
    filled = [group for group, names in groups.items() if any(True for _ in names)]
    stems = stems_of(groups)
    taken: dict[str, object] = {}
    found = {}
    for group in filled:
        for name in groups[group]:
            found[group, name] = unused_name(name if len(filled) == 1 else f"{stems[group]}.{name}", taken)
            taken[found[group, name]] = None
    return found


def file_order(tensors: Mapping[str, TensorSpec]) -> list[str]:
    """The order of a shard's tensors: widest elements first, so that each is naturally aligned; otherwise as given."""
    return sorted(tensors, key=lambda name: -min(bits_of(tensors[name].dtype), 64))


def header_of(tensors: Mapping[str, TensorSpec], order: Sequence[str], metadata: Mapping[str, str]) -> bytes:
    """A safetensors header with its length, padded so that data begins at a multiple of 4096 bytes.

    The format is the one of the safetensors README: eight bytes of little-endian length, then JSON.
    """
    # A text for each member: the whole as objects would be many containers for the collector to walk.
    members = [f'"__metadata__":{_as_json(dict(metadata))}']
    begin = 0
    for name in order:
        spec = tensors[name]
        (code, shape), end = _stored_form(spec), begin + spec.nbytes
        sizes = ",".join(map(str, shape))
        members.append(f'{_as_json(name)}:{{"dtype":"{code}","shape":[{sizes}],"data_offsets":[{begin},{end}]}}')
        begin = end
    text = f"{{{','.join(members)}}}".encode()
    padding = -(8 + len(text)) % ALIGNMENT_BYTES
    return (len(text) + padding).to_bytes(8, "little") + text + b" " * padding


def _stored_form(spec: TensorSpec) -> tuple[str, tuple[int, ...]]:
    """The code of the dtype and the shape that safetensors knows a tensor by."""
    pair = _STORED_AS_PAIRS.get(spec.dtype)
    if pair is not None:
        return pair, (*spec.shape, 2)
    code = CODE_OF_DTYPE[spec.dtype]
    if code == "F4":  # two of its values in one torch element
        return code, (*spec.shape[:-1], 2 * spec.shape[-1]) if spec.shape else (2,)
    return code, spec.shape


def index_of(shard_of_tensor: Mapping[str, str], total_bytes: int) -> bytes:
    """The Hugging Face index of a group that has more than one shard."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(shard_of_tensor.items()))}
    return (json.dumps(index, indent=2) + "\n").encode("ascii")
