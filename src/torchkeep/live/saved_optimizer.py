"""An optimizer's state in a file beside the live optimizer it is for: who each saved parameter is, and its shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from torchkeep.live.memory import spec_of
from torchkeep.live.modules import named_parameters, named_state
from torchkeep.live.optimizer_forms import SavedForm
from torchkeep.live.optimizer_kinds import PARAMETER_SHAPED, Fit, judge
from torchkeep.live.optimizers import Identity, OptimizerParameters, entries_of, identity_keys, labels_of
from torchkeep.tensors import TensorSpec, is_floating, walk

if TYPE_CHECKING:
    import torch
    from torch import nn

Weights: TypeAlias = Mapping[str, Mapping[str, TensorSpec]]  # per entry its parameters in the file, in order


@dataclass(frozen=True, slots=True)
class SavedOptimizer:
    """An optimizer's state in a file beside the live one it is for: both sides under keys that agree.

    Attributes:
        keys: The saved parameters' keys, in their order.
        live_keys: The live parameters' keys, in torch's order.
        live_elements: How many elements the live parameters have together.
        identities: Who each live parameter is.
        state: Per saved key its state tree; what other optimizers keep beside is under its own key.
        groups: The saved groups, their ``params`` as keys.
        tree: What the file has in torch's own form, with `TensorSpec` leaves.
        specs: Per saved key the parameter at the save; None where nothing says it.
        dtypes: Per saved key the parameter's dtype at the save, where it was recorded.
        note: How the two sides were brought together, if that is not by name.
        mismatch: Why they cannot be.
        unusable: Why none of the state can be this optimizer's; then there are no keys and no state here.
    """

    keys: tuple[str, ...]
    live_keys: tuple[str, ...]
    live_elements: int
    identities: Mapping[str, Identity]
    state: Mapping[object, object]
    groups: tuple[Mapping[str, Any], ...]
    tree: Mapping[str, object]
    specs: Mapping[str, TensorSpec | None]
    dtypes: Mapping[str, str]
    note: str
    mismatch: str
    unusable: str = ""

    def tensors(self) -> Iterator[TensorSpec]:
        """Every tensor of the state."""
        return (leaf for _, leaf in walk(self.tree) if isinstance(leaf, TensorSpec))

    def sizes(self) -> list[int]:
        """How many elements each saved parameter has, in their order; empty unless that is known of all."""
        sizes = [spec.numel for key in self.keys if (spec := self.specs.get(key)) is not None]
        return sizes if len(sizes) == len(self.keys) else []

    def spanning(self) -> tuple[str, int] | None:
        """The parameter with which an optimizer like LBFGS keeps vectors over all of them, and how long these are."""
        with_state = [key for key in self.keys if self.state.get(key)]
        if len(with_state) != 1 or len(self.keys) == 1:
            return None
        tree = self.state[with_state[0]]
        lengths = {leaf.numel for _, leaf in walk(tree) if isinstance(leaf, TensorSpec) and leaf.shape}
        if len(lengths) != 1 or (isinstance(tree, Mapping) and PARAMETER_SHAPED & tree.keys()):
            return None
        sizes, length = self.sizes(), lengths.pop()
        return None if sizes and sum(sizes) != length else (with_state[0], length)


def read_optimizer(
    form: SavedForm,
    facts: Mapping[str, Any],
    live: OptimizerParameters,
    optimizer: torch.optim.Optimizer,
    weights: Weights,
) -> SavedOptimizer:
    """Bring a saved optimizer and a live one together.

    By who the parameters are; else by names that both sides have; else, where the file has positions only, by the order
    of the parameters of the model in it; else by position.

    Args:
        form: What the file has, with `TensorSpec` leaves.
        facts: What our record says beside it; empty for other formats.
        live: The parameters of the optimizer it is for.
        optimizer: That optimizer.
        weights: The parameters that the file has of the modules given with it; under "" those of its only model.
    """
    tree = form.tree
    groups = tuple(group for group in tree["param_groups"] if isinstance(group, Mapping))
    ids = [each for group in groups for each in group.get("params", ())]
    saved = _Saved.read(ids, groups, tree.get("state"), form, facts, weights)
    naming = _bring_together(saved, live, weights)
    fit = judge(facts.get("class") or form.class_path, optimizer, saved.states)
    renamed = dict(zip(ids, naming.keys, strict=True))
    state = tree.get("state")
    by_key = {renamed.get(key, key): value for key, value in state.items()} if isinstance(state, Mapping) else {}
    shapes, dtypes = ({renamed[k]: v for k, v in dict(facts.get(f) or {}).items() if k in renamed} for f in _FACTS)
    begin, own_groups = 0, []
    for group in groups:
        count = len(group.get("params", ()))
        own_groups.append({**group, "params": naming.keys[begin : begin + count]})
        begin += count
    live_parameters = dict(zip(naming.live_keys, live.parameters, strict=True))
    read = SavedOptimizer(
        keys=naming.keys,
        live_keys=naming.live_keys,
        live_elements=sum(parameter.numel() for parameter in live.parameters),
        identities={k: each for k, each in zip(naming.live_keys, live.identities, strict=True) if each is not None},
        state=by_key,
        groups=tuple(own_groups),
        tree=tree,
        specs=_specs(naming, saved, by_key, shapes, live_parameters),
        dtypes=dtypes,
        note=naming.note,
        mismatch=naming.mismatch or fit.mismatch,
    )
    return _without_state(read, fit) if fit.unusable else replace(read, mismatch=read.mismatch or _too_long(read))


_FACTS = ("shapes", "dtypes")


def _without_state(read: SavedOptimizer, fit: Fit) -> SavedOptimizer:
    return replace(
        read, keys=(), state={}, groups=(), tree={}, specs={}, note="", mismatch=fit.mismatch, unusable=fit.mismatch
    )


def _too_long(read: SavedOptimizer) -> str:
    """Why state over all parameters cannot be for those there are now, where nothing else tells; "" if it can."""
    spanning = read.spanning()
    if spanning is None or read.sizes() or spanning[1] == read.live_elements:
        return ""
    return f"its state spans {spanning[1]:,} elements, and the parameters have {read.live_elements:,}"


@dataclass(frozen=True, slots=True)
class _Saved:
    """What a file says of an optimizer's parameters, in its order.

    Attributes:
        identities: Who each is, as recorded or as the memory that it shares with the file's model tells.
        names: Ways to name all of them, the surest first; none where there are positions only.
        states: The state of each.
        shapes: The shape of each that a pickled parameter or moments tell; None where nothing does.
        group_sizes: How many are in each group.
    """

    identities: tuple[Identity | None, ...]
    names: tuple[tuple[str, ...], ...]
    states: tuple[object, ...]
    shapes: tuple[TensorSpec | None, ...]
    group_sizes: tuple[int, ...]

    @classmethod
    def read(
        cls,
        ids: Sequence[object],
        groups: Sequence[Mapping[str, Any]],
        state: object,
        form: SavedForm,
        facts: Mapping[str, Any],
        weights: Weights,
    ) -> _Saved:
        recorded = dict(facts.get("parameters") or {})
        identities = tuple(_identity(recorded.get(each)) if isinstance(each, str) else None for each in ids)
        if form.parameters:
            who = {spec.key: (entry, name) for entry, named in weights.items() for name, spec in named.items()}
            identities = tuple(who.get(each.key) for each in form.parameters)
        states = tuple(state.get(each) if isinstance(state, Mapping) else None for each in ids)
        return cls(
            identities,
            tuple(_names(ids, groups, identities, facts)),
            states,
            form.parameters or tuple(_told(each) for each in states),
            tuple(len(group.get("params", ())) for group in groups),
        )

    def may_have(self, specs: Sequence[TensorSpec]) -> bool:
        """Whether these can be the parameters, one by one, as far as the shapes tell."""
        if len(specs) != len(self.shapes):
            return False
        each = zip(self.shapes, specs, strict=True)
        return all(told is None or told.shape == spec.shape for told, spec in each)


def _identity(recorded: object) -> Identity | None:
    return (str(recorded[0]), str(recorded[1])) if isinstance(recorded, list) and len(recorded) == 2 else None  # noqa: PLR2004 - entry and name


def _names(
    ids: Sequence[object],
    groups: Sequence[Mapping[str, Any]],
    identities: Sequence[Identity | None],
    facts: Mapping[str, Any],
) -> Iterator[tuple[str, ...]]:
    """torch's ``param_names``, then names in place of positions, then those that we recorded."""
    labels = labels_of(groups)
    if labels is not None and len(labels) == len(ids):
        yield labels
    texts = tuple(each for each in ids if isinstance(each, str))
    if texts and facts.get("names") != "positions" and len(set(texts)) == len(ids):
        yield texts
    if ids and all(identities):
        yield tuple(identity_keys(identities, entries_of(identities)))


def _told(state: object) -> TensorSpec | None:
    """What a moment that is known to have its parameter's shape tells of it."""
    values = state.items() if isinstance(state, Mapping) else ()
    return next((leaf for key, leaf in values if key in PARAMETER_SHAPED and isinstance(leaf, TensorSpec)), None)


@dataclass(frozen=True, slots=True)
class _Naming:
    """Keys for both sides that are equal where the parameters are the same, and what the file's model says of them."""

    keys: tuple[str, ...]
    live_keys: tuple[str, ...]
    note: str = ""
    mismatch: str = ""
    specs: Mapping[str, TensorSpec] | None = None


_BY_POSITION = "positions only on one side: taken in the order of the optimizer's parameters"
_LOOSE = "parameters that are in no module given with it are taken in their order"
_BY_MODEL = "positions only in the file: taken in the order of the model's parameters there"


def _bring_together(saved: _Saved, live: OptimizerParameters, weights: Weights) -> _Naming:
    if any(saved.identities) and any(live.identities):
        entries = entries_of([*saved.identities, *live.identities])
        note = "" if all(saved.identities) else _LOOSE
        keys = tuple(identity_keys(saved.identities, entries))
        return _Naming(keys, tuple(identity_keys(live.identities, entries)), note)
    pairs = [(ours, theirs) for ours in saved.names for theirs in _live_names(live)]
    if pairs:
        keys, live_keys = max(pairs, key=lambda pair: len(set(pair[0]) & set(pair[1])))
        return _Naming(keys, live_keys, specs=_only_model(live, weights))
    live_specs = [spec_of(parameter) for parameter in live.parameters]
    return _by_model(saved, live, weights, live_specs) or _by_position(saved, live, live_specs)


def _live_names(live: OptimizerParameters) -> Iterator[tuple[str, ...]]:
    """The names of live parameters: with the entry where there are several, without it, and those that torch keeps."""
    if any(live.identities):
        yield tuple(identity_keys(live.identities, entries_of(live.identities)))
        bare = tuple(name or entry for entry, name in filter(None, live.identities))
        if len(set(bare)) == len(live.identities):
            yield bare
    if live.labels is not None:
        yield live.labels


def _only_model(live: OptimizerParameters, weights: Weights) -> Mapping[str, TensorSpec] | None:
    """What the file has of the one model whose parameters a live optimizer has; of its only one where none is given."""
    entries = entries_of(live.identities)
    return weights.get(next(iter(entries), "")) if len(entries) <= 1 else None


def _by_model(
    saved: _Saved, live: OptimizerParameters, weights: Weights, live_specs: Sequence[TensorSpec]
) -> _Naming | None:
    """The saved parameters named as the file's model names its own, where there are as many and their shapes agree.

    Several groups are seldom in the model's order: groups as large as the live ones are rather in the order of these,
    and of others the state of every parameter must tell a shape that agrees.
    """
    named = _only_model(live, weights)
    live_names = next(_live_names(live), None)
    if not named or live_names is None or not saved.may_have(list(named.values())):
        return None
    fits_here = saved.may_have(live_specs)
    if len(saved.group_sizes) > 1 and ((fits_here and saved.group_sizes == live.group_sizes) or not all(saved.shapes)):
        return None
    keys = tuple(named)
    elsewhere = fits_here and set(live_names) == set(keys) and live_names != keys
    note = f"{_BY_MODEL}; the order of this optimizer's is another and would fit too" if elsewhere else _BY_MODEL
    return _Naming(keys, live_names, note, specs=named)


def _by_position(saved: _Saved, live: OptimizerParameters, live_specs: Sequence[TensorSpec]) -> _Naming:
    live_keys = live.keys()[0]
    if len(saved.identities) == len(live_keys):
        keys = live_keys if any(live.identities) or live.labels is not None else next(iter(saved.names), live_keys)
        alike = len({spec.shape for spec in live_specs}) < len(live_specs)
        return _Naming(keys, keys, f"{_BY_POSITION}; equal shapes would hide another order" if alike else _BY_POSITION)
    mismatch = (
        f"{len(saved.identities)} parameters by position only on one side and {len(live_keys)} on the other: "
        "nothing says which belongs to which"
    )
    return _Naming(tuple(f"saved #{index}" for index in range(len(saved.identities))), live_keys, mismatch=mismatch)


def parameters_in(tensors: Mapping[str, TensorSpec], module: nn.Module | None) -> dict[str, TensorSpec]:
    """What of a saved state dict are parameters, in their order, a tied one once: as the saved model had them.

    The live module tells its buffers; what it does not have is one if it counts, or has a name that batch norms use.
    """
    own = {} if module is None else {name: id(parameter) for name, parameter in named_parameters(module)}
    buffers = set() if module is None else named_state(module).keys() - own.keys()
    found: dict[str, TensorSpec] = {}
    seen: set[object] = set()
    for name, spec in tensors.items():
        if {name, name.partition(".")[2]} & buffers and name not in own:
            continue
        if name not in own and (name.rpartition(".")[2] in _STATISTICS or not is_floating(spec.dtype)):
            continue
        memory = {("file", spec.key), ("live", own.get(name, name))}
        if not memory & seen:
            found[name] = spec
        seen |= memory
    return found


_STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


def _specs(
    naming: _Naming,
    saved: _Saved,
    state: Mapping[object, object],
    shapes: Mapping[str, Sequence[int]],
    live: Mapping[str, torch.Tensor],
) -> dict[str, TensorSpec | None]:
    """The shape of each parameter at the save; None where nothing says it.

    It is the recorded one, else that of moments known to have it, else that of the parameter in the file's model. Other
    state tells it where most of its kind has its parameters' shapes: that of LBFGS and factored moments have others.
    """
    if shapes:
        return {key: TensorSpec("float32", tuple(shapes[key])) if key in shapes else None for key in naming.keys}
    others = _mostly_shaped(naming.keys, state, live)
    in_model = naming.specs or {}
    return {
        key: told or in_model.get(key) or others.get(key) for key, told in zip(naming.keys, saved.shapes, strict=True)
    }


def _mostly_shaped(
    keys: Sequence[str], state: Mapping[object, object], live: Mapping[str, torch.Tensor]
) -> dict[str, TensorSpec]:
    """Per parameter a piece of its state of a kind of which more than half have their parameters' shapes."""
    by_kind: dict[object, dict[str, TensorSpec]] = {}
    for key in keys:
        tree = state.get(key)
        for kind, leaf in tree.items() if isinstance(tree, Mapping) else ():
            if isinstance(leaf, TensorSpec) and leaf.shape:
                by_kind.setdefault(kind, {})[key] = leaf
    found: dict[str, TensorSpec] = {}
    for leaves in by_kind.values():
        fitting = sum(key in live and leaf.shape == tuple(live[key].shape) for key, leaf in leaves.items())
        if 2 * fitting > len(leaves):
            found = {**leaves, **found}
    return found


def live_specs(live_keys: Sequence[str], parameters: Sequence[torch.Tensor]) -> dict[str, TensorSpec]:
    """The parameters of a live optimizer as the plan sees them."""
    return {key: spec_of(parameter) for key, parameter in zip(live_keys, parameters, strict=True)}
