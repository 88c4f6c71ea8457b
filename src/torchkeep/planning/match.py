"""Lay one entry of a checkpoint beside one object: by name, then by name without wrappers, then shapes and dtypes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torchkeep.planning.rows import Change, Pair, Row, Status
from torchkeep.planning.rules import Cast, Only, Rename, Rule, Skip
from torchkeep.tensors import TensorSpec

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

# Integers: (signed, bits of magnitude). Floats: (bits of significand, largest exponent, smallest exponent of a value).
_INTEGERS = {
    "bool": (False, 1),
    "uint8": (False, 8),
    "uint16": (False, 16),
    "uint32": (False, 32),
    "uint64": (False, 64),
    "int8": (True, 7),
    "int16": (True, 15),
    "int32": (True, 31),
    "int64": (True, 63),
}
_WIDE_FLOATS = {
    "float16": (11, 15, -24),
    "bfloat16": (8, 127, -133),
    "float32": (24, 127, -149),
    "float64": (53, 1023, -1074),
}
_FLOATS = _WIDE_FLOATS | {
    "float8_e4m3fn": (4, 8, -9),
    "float8_e4m3fnuz": (4, 7, -10),
    "float8_e5m2": (3, 15, -16),
    "float8_e5m2fnuz": (3, 15, -17),
    "float8_e8m0fnu": (1, 127, -127),
}
_COMPLEX = {"complex32": "float16", "complex64": "float32", "complex128": "float64"}


@dataclass(frozen=True, slots=True)
class Matching:
    """The rows of one pair, model's first, and the names that more than one checkpoint tensor would get."""

    rows: tuple[Row, ...]
    collisions: tuple[str, ...]


def widens(source: str, target: str) -> bool:
    """Whether every value of one dtype is a value of another; dtypes are torch's names without ``torch.``.

    Example:
        >>> widens("bfloat16", "float32"), widens("int64", "float32"), widens("float16", "bfloat16")
        (True, False, False)
    """
    if source == target:
        return True
    if source in _COMPLEX and target in _COMPLEX:
        return widens(_COMPLEX[source], _COMPLEX[target])
    if source in _INTEGERS:
        signed, bits = _INTEGERS[source]
        if target in _INTEGERS:
            target_signed, target_bits = _INTEGERS[target]
            return bits <= target_bits and target_signed >= signed
        return target in _WIDE_FLOATS and bits <= _WIDE_FLOATS[target][0]
    if source in _FLOATS and target in _WIDE_FLOATS:
        significand, largest, smallest = _FLOATS[source]
        to_significand, to_largest, to_smallest = _WIDE_FLOATS[target]
        return significand <= to_significand and largest <= to_largest and smallest >= to_smallest
    return False


def rename(names: Iterable[str], rules: Sequence[Rule], entry: str) -> dict[str, str]:
    """Every checkpoint name of an entry with its name after the renames, in the order of the names."""
    renames = [rule for rule in rules if isinstance(rule, Rename) and rule.acts_on(entry)]
    resulting: dict[str, str] = {}
    for name in names:
        new = name
        for rule in renames:
            new = rule.apply(new)
        resulting[name] = new
    return resulting


def match(entry: str, pair: Pair, rules: Sequence[Rule]) -> Matching:
    """Decide for every tensor of both sides what becomes of it."""
    active = [rule for rule in rules if rule.acts_on(entry)]
    resulting = rename(pair.checkpoint, active, entry)
    claims: dict[str, list[str]] = defaultdict(list)
    for checkpoint_name, name in resulting.items():
        claims[name].append(checkpoint_name)
    claimed = {name: claimants[0] for name, claimants in claims.items() if len(claimants) == 1}
    found = _found(claimed, pair.model, contested=claims.keys() - claimed.keys())

    rows = [_row(entry, pair, name, found.get(name), resulting, active) for name in pair.model]
    taken = set(found.values())
    for checkpoint_name, name in resulting.items():
        if checkpoint_name not in taken:
            rows.append(_checkpoint_row(entry, pair, name, checkpoint_name, claims[name], active))
    collisions = tuple(
        f"{' and '.join(claimants)} are both renamed to {name}"
        for name, claimants in claims.items()
        if len(claimants) > 1 and _skipping_rule(name, active) is None
    )
    return Matching(tuple(rows), collisions)


def _found(claimed: Mapping[str, str], model: Iterable[str], contested: Iterable[str]) -> dict[str, str]:
    """Model name to checkpoint name, for each tensor that exists on both sides."""
    model_names = list(model)
    if not contested:
        uniform = _uniformly_wrapped(claimed, model_names)
        if uniform is not None:
            return uniform
    found = {name: claimed[name] for name in model_names if name in claimed}
    # A name without wrappers must be the only one of its kind on either side: nothing is guessed.
    in_model = _by_unwrapped_name(model_names)
    in_checkpoint = _by_unwrapped_name([*claimed, *contested])
    for unwrapped, names in in_model.items():
        others = in_checkpoint.get(unwrapped, [])
        if len(names) == len(others) == 1 and names[0] not in found and others[0] in claimed:
            found[names[0]] = claimed[others[0]]
    return found


def _uniformly_wrapped(claimed: Mapping[str, str], model: Sequence[str]) -> dict[str, str] | None:
    """A whole side that stands inside one wrapper, when without it all names agree and with it they do not.

    It goes before exact names: inside a wrapper, ``module.a`` is ``a``, even where the model has a child ``module``.
    """
    if set(claimed) == set(model):
        return None
    for inside in _peeled(list(claimed)):
        if set(inside) == set(model):
            return dict(zip(inside, claimed.values(), strict=True))
    for inside in _peeled(model):
        if set(inside) == set(claimed):
            return {name: claimed[inner] for name, inner in zip(model, inside, strict=True)}
    return None


def _peeled(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """The names without the first wrapper that all begin with, then without the next."""
    while all("." in name for name in names):
        first = {name.partition(".")[0] for name in names}
        if len(first) != 1 or not first <= WRAPPERS:
            return
        names = [name.partition(".")[2] for name in names]
        yield names


def _by_unwrapped_name(names: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[".".join(segment for segment in name.split(".") if segment not in WRAPPERS)].append(name)
    return groups


def _row(
    entry: str,
    pair: Pair,
    name: str,
    checkpoint_name: str | None,
    resulting: Mapping[str, str],
    rules: Sequence[Rule],
) -> Row:
    spec = pair.model[name]
    saved = None if checkpoint_name is None else pair.checkpoint[checkpoint_name]
    skipping = _skipping_rule(name, rules)
    if skipping is not None:
        return Row(entry, name, checkpoint_name, Status.SKIPPED, (), saved, spec, f"{pair.unloaded}: {skipping!r}")
    if checkpoint_name is None:
        if name in pair.optional:
            reason = f"{pair.unloaded}: {pair.optional[name]}"
            return Row(entry, name, None, Status.SKIPPED, (), None, spec, reason)
        reason = f"{pair.unloaded}: no such tensor in the checkpoint"
        return Row(entry, name, None, Status.ONLY_IN_MODEL, (), None, spec, reason)
    status, changes, reasons = _fit(name, pair, saved, rules)
    if checkpoint_name != name:
        changes = (Change.RENAMED, *changes)
        by = "Rename" if resulting[checkpoint_name] == name else "wrapper segments of the names differ"
        reasons = (f"{checkpoint_name} in the checkpoint ({by})", *reasons)
    if status is not Status.MATCHED:
        return Row(entry, name, checkpoint_name, status, (), saved, spec, f"{pair.unloaded}: {reasons[-1]}")
    reason = "; ".join(reasons) or "loads as it was saved"
    return Row(entry, name, checkpoint_name, status, changes, saved, spec, reason)


def _fit(
    name: str, pair: Pair, saved: TensorSpec | None, rules: Sequence[Rule]
) -> tuple[Status, tuple[Change, ...], tuple[str, ...]]:
    """Status, changes and reasons of two tensors that belong together by name."""
    spec = pair.model[name]
    if saved is None:
        return Status.MATCHED, (), ()
    changes: list[Change] = []
    reasons: list[str] = []
    if saved.shape != spec.shape:
        # torch, too, takes one element in a list of one for a scalar: old versions saved scalars so.
        if (saved.shape, spec.shape) != ((1,), ()):
            return Status.SHAPE_DIFFERS, (), (f"shape {saved.shape} in the checkpoint, {spec.shape} in the model",)
        changes.append(Change.ADAPTED)
        reasons.append("one element becomes a scalar")
    if pair.counts and saved.dtype != spec.dtype:
        step = f"{saved.dtype} to {spec.dtype}"
        if widens(saved.dtype, spec.dtype):
            reasons.append(f"{step} keeps every value")
        else:
            allowing = next((rule for rule in rules if isinstance(rule, Cast) and rule.matches(name)), None)
            if allowing is None:
                return Status.DTYPE_DIFFERS, (), (f"narrowing {step} needs Cast()",)
            reasons.append(f"{step} by {allowing!r}")
        changes.append(Change.CAST)
    return Status.MATCHED, tuple(changes), tuple(reasons)


def _checkpoint_row(
    entry: str, pair: Pair, name: str, checkpoint_name: str, claimants: Sequence[str], rules: Sequence[Rule]
) -> Row:
    saved = pair.checkpoint[checkpoint_name]
    skipping = _skipping_rule(name, rules)
    if skipping is not None:
        return Row(entry, name, checkpoint_name, Status.SKIPPED, (), saved, None, f"not loaded: {skipping!r}")
    if name in pair.optional:
        return Row(entry, name, checkpoint_name, Status.SKIPPED, (), saved, None, f"not loaded: {pair.optional[name]}")
    reason = "not loaded: no such tensor in the model"
    if len(claimants) > 1:
        reason = f"not loaded: {' and '.join(claimants)} are both renamed to it"
    return Row(entry, name, checkpoint_name, Status.ONLY_IN_CHECKPOINT, (), saved, None, reason)


def _skipping_rule(name: str, rules: Sequence[Rule]) -> Rule | None:
    for rule in rules:
        if isinstance(rule, Skip) and rule.matches(name):
            return rule
        if isinstance(rule, Only) and not rule.matches(name):
            return rule
    return None
