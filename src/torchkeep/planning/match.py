"""Lay one entry of a checkpoint beside one object: by name, then by name without wrappers, then shapes and dtypes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TypeVar

from torchkeep.planning.adaptations import ADAPTATIONS, DoesNotFitError
from torchkeep.planning.globs import quoted
from torchkeep.planning.recipes import Part, Recipe, needs_initial, spec_of, steps
from torchkeep.planning.regrouping import Fuse, Offer, Split
from torchkeep.planning.rows import PARAMETRIZED as _PARAMETRIZED
from torchkeep.planning.rows import Change, Pair, Row, Status
from torchkeep.planning.rules import Cast, Only, Rename, Rule, Skip
from torchkeep.planning.widening import widens
from torchkeep.tensors import TensorSpec

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
LONGEST_RULE = 80
_OLDER_FORM = {"": "", "0": "_g", "1": "_v"}
Claim = TypeVar("Claim")


@dataclass(frozen=True, slots=True)
class Matching:
    """What becomes of one pair.

    Attributes:
        rows: The model's first.
        collisions: The names that more than one checkpoint tensor would get, a line each.
        untied: Tensors that are one in the model and several in the checkpoint, a line for each such group.
    """

    rows: tuple[Row, ...]
    collisions: tuple[str, ...]
    untied: tuple[str, ...]


def arrange(checkpoint: Mapping[str, TensorSpec | None], rules: Sequence[Rule], entry: str) -> list[Offer]:
    """What an entry offers under which names, once `Rename`, `Fuse` and `Split` have acted in their order."""
    offers = [Offer(name, name, None if spec is None else Part(name, spec)) for name, spec in checkpoint.items()]
    for rule in rules:
        if isinstance(rule, Rename) and rule.acts_on(entry):
            offers = [replace(offer, name=rule.apply(offer.name)) for offer in offers]
        elif isinstance(rule, (Fuse, Split)) and rule.acts_on(entry):
            offers = rule.regroup(offers)
    return offers


def match(entry: str, pair: Pair, rules: Sequence[Rule]) -> Matching:
    """Decide for every tensor of both sides what becomes of it."""
    active = [rule for rule in rules if rule.acts_on(entry)]
    offers = arrange(pair.checkpoint, active, entry)
    counts = Counter(offer.name for offer in offers)
    claimed = {offer.name: offer for offer in offers if counts[offer.name] == 1}
    contested = _grouped([offer for offer in offers if counts[offer.name] > 1], attrgetter("name"))
    found = find_names(claimed, pair.model, contested.keys())

    rows = [_row(entry, pair, name, found.get(name), active) for name in pair.model]
    taken = {offer.name for offer in found.values()}
    for name in counts:
        if name not in taken:
            claimants = contested.get(name) or [claimed[name]]
            rows += [_checkpoint_row(entry, pair, offer, claimants, active) for offer in claimants]
    collisions = tuple(
        f"{_sources(claimants)} are both renamed to {name}"
        for name, claimants in contested.items()
        if skipping_rule(name, active) is None
    )
    rows, untied = _with_ties(rows, pair)
    return Matching(tuple(rows), collisions, untied)


def _with_ties(rows: Sequence[Row], pair: Pair) -> tuple[list[Row], tuple[str, ...]]:
    """Let one name of a tied tensor arrive with another, and find those for which different values would arrive."""
    by_name = {row.name: row for row in rows if row.model is not None}
    untied: list[str] = []
    for names in pair.tied:
        group = [by_name[name] for name in names if name in by_name]
        arriving = [row for row in group if row.status is Status.MATCHED]
        for row in group:
            if arriving and row.status is Status.ONLY_IN_MODEL:
                reason = f"it is tied to {arriving[0].name}, which arrives"
                by_name[row.name] = replace(row, status=Status.MATCHED, reason=reason)
        if len({_source_of(row) for row in arriving}) > 1 and len({_values_of(row, pair) for row in arriving}) > 1:
            shown = " and ".join(row.name for row in arriving)
            others = ", ".join(quoted(row.name) for row in arriving[1:])
            untied.append(
                f"{shown} are one tensor in the model and differ in the checkpoint: Skip({others}) takes the first"
            )
    return [by_name[row.name] if row.model is not None else row for row in rows], tuple(untied)


def _source_of(row: Row) -> Hashable:
    return tuple(steps(row.recipe)) if row.recipe is not None else (), tuple(part.spec.key for part in row.parts)


def _values_of(row: Row, pair: Pair) -> Hashable:
    return tuple(steps(row.recipe)) if row.recipe is not None else (), tuple(pair.content(p.spec) for p in row.parts)


def find_names(claimed: Mapping[str, Claim], model: Iterable[str], contested: Iterable[str]) -> dict[str, Claim]:
    """Model name to what the checkpoint has for it, for each tensor that exists on both sides."""
    model_names = list(model)
    if not contested:
        uniform = _uniformly_wrapped(claimed, model_names)
        if uniform is not None:
            return uniform
    found = {name: claimed[name] for name in model_names if name in claimed}
    if len(found) == len(model_names):
        return found
    # A name without wrappers must be the only one of its kind on either side: nothing is guessed.
    for of_model, of_checkpoint in ((_unwrapped, _unwrapped), (_unparametrized, _older_form)):
        taken = {id(claim) for claim in found.values()}
        in_model = _grouped(model_names, of_model)
        in_checkpoint = _grouped([*claimed, *contested], of_checkpoint)
        for plain, names in in_model.items():
            others = in_checkpoint.get(plain, [])
            alone = len(names) == len(others) == 1 and names[0] not in found and others[0] in claimed
            if alone and id(claimed[others[0]]) not in taken:
                found[names[0]] = claimed[others[0]]
    return found


def _uniformly_wrapped(claimed: Mapping[str, Claim], model: Sequence[str]) -> dict[str, Claim] | None:
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


def _grouped(values: Iterable[Claim], key: Callable[[Claim], str]) -> dict[str, list[Claim]]:
    groups: dict[str, list[Claim]] = defaultdict(list)
    for value in values:
        groups[key(value)].append(value)
    return groups


def _unwrapped(name: str) -> str:
    """A name without what wrappers add anywhere in it."""
    return ".".join(segment for segment in name.split(".") if segment not in WRAPPERS)


def _unparametrized(name: str) -> str:
    """A model's name as it would be without parametrizations; weight norm's pair by the names of its older form."""
    return _unwrapped(_PARAMETRIZED.sub(lambda found: found[1] + _OLDER_FORM[found[2]], name))


def _older_form(name: str) -> str:
    """A checkpoint's name with weight norm's pair by the names of its older form.

    What any other parametrization computes from its ``original`` a file does not say: that is no plain weight.
    """
    return _unwrapped(_PARAMETRIZED.sub(lambda found: found[1] + _OLDER_FORM[found[2]] if found[2] else found[0], name))


def _row(entry: str, pair: Pair, name: str, offer: Offer | None, rules: Sequence[Rule]) -> Row:
    spec = pair.model[name]
    skipping = skipping_rule(name, rules)
    if skipping is not None:
        reason = f"{pair.unloaded}: {skipping!r}"
        return _with_offer(Row(entry, name, None, Status.SKIPPED, (), None, spec, reason), offer)
    if offer is None and name in pair.optional:
        reason = f"{pair.unloaded}: {pair.optional[name]}"
        return Row(entry, name, None, Status.SKIPPED, (), None, spec, reason)
    if offer is None:
        reason = f"{pair.unloaded}: no such tensor in the checkpoint"
        return Row(entry, name, None, Status.ONLY_IN_MODEL, (), None, spec, reason)
    if _is_as_saved(name, spec, pair, offer, rules):  # nearly every row of nearly every plan
        saved = None if offer.recipe is None else spec_of(offer.recipe)
        reason = "loads as it was saved"
        return Row(entry, name, name, Status.MATCHED, (), saved, spec, reason, offer.name, offer.recipe)
    row = _with_offer(_fit(Row(entry, name, None, Status.MATCHED, (), None, spec, ""), pair, offer, rules), offer)
    if row.status is not Status.MATCHED:
        return replace(row, reason=f"{pair.unloaded}: {row.reason}")
    if offer.source != name and isinstance(offer.recipe, Part | None):
        by = "Rename" if offer.name == name else _said_of_names(row)
        reasons = (f"{offer.source} in the checkpoint ({by})", row.reason)
        row = replace(row, changes=(Change.RENAMED, *row.changes), reason="; ".join(filter(None, reasons)))
    elif not isinstance(offer.recipe, Part | None):
        row = replace(row, reason=f"from {offer.source}: {row.reason}")
    return row if row.reason else replace(row, reason="loads as it was saved")


def _is_as_saved(name: str, spec: TensorSpec, pair: Pair, offer: Offer, rules: Sequence[Rule]) -> bool:
    """Whether nothing has to be done to a tensor or said of it."""
    if not isinstance(offer.recipe, Part) or (offer.source, offer.name) != (name, name):
        return False
    saved = offer.recipe.spec
    fits = saved.shape == spec.shape and (saved.dtype == spec.dtype or not pair.counts)
    return fits and not any(isinstance(rule, ADAPTATIONS) for rule in rules)


def _said_of_names(row: Row) -> str:
    if row.inverts_parametrization:
        return "by the right_inverse of its parametrization"
    return "wrapper segments of the names differ"


def _with_offer(row: Row, offer: Offer | None) -> Row:
    if offer is None:
        return row
    recipe = offer.recipe if row.recipe is None else row.recipe
    saved = None if offer.recipe is None else spec_of(offer.recipe)
    return replace(row, checkpoint_name=offer.source, checkpoint=saved, resulting_name=offer.name, recipe=recipe)


def _fit(row: Row, pair: Pair, offer: Offer, rules: Sequence[Rule]) -> Row:
    """The row of two tensors that belong together by name, with what has to be done so that they fit."""
    spec = pair.model[row.name]
    if offer.recipe is None:
        return row
    recipe, refusals = _adapted(row.name, offer.recipe, spec, rules)
    changes: list[Change] = []
    reasons: list[str] = []
    if not isinstance(recipe, Part):
        changes.append(Change.ADAPTED)
        reasons += steps(recipe)
    if pair.counts and spec.device == "meta" and needs_initial(recipe):
        refusals.append('the model is on the meta device and has no initial values to keep: fill="zero" or "mean"')
    if refusals or recipe.shape != spec.shape:
        # torch, too, takes one element in a list of one for a scalar: old versions saved scalars so.
        if refusals or (recipe.shape, spec.shape) != ((1,), ()):
            saved = f"{recipe.shape} made of it" if recipe != offer.recipe else f"{recipe.shape} in the checkpoint"
            reason = f"shape {saved}, {spec.shape} in the model"
            status, refusal = Status.SHAPE_DIFFERS, "; ".join(refusals)
            return replace(row, status=status, reason="; ".join([reason, *refusals]), refusal=refusal)
        changes.append(Change.ADAPTED)
        reasons.append("one element becomes a scalar")
    row = replace(row, changes=tuple(changes), reason="; ".join(reasons), recipe=recipe)
    return _cast(row, spec_of(recipe).dtype, rules) if pair.counts else row


def _adapted(name: str, recipe: Recipe, wanted: TensorSpec, rules: Sequence[Rule]) -> tuple[Recipe, list[str]]:
    """What the rules make of a tensor, and why those that were meant for it could not act."""
    refusals: list[str] = []
    for rule in rules:
        if isinstance(rule, ADAPTATIONS) and rule.matches(name):
            try:
                recipe = rule.adapt(recipe, wanted)
            except DoesNotFitError as error:
                refusals.append(f"{_shown(rule)} cannot act: {error}")
    return recipe, refusals


def _shown(rule: Rule) -> str:
    code = repr(rule)
    return code if len(code) <= LONGEST_RULE else f"{type(rule).__name__}(...)"


def _cast(row: Row, saved: str, rules: Sequence[Rule]) -> Row:
    wanted = saved if row.model is None else row.model.dtype
    if saved == wanted:
        return row
    step = f"{saved} to {wanted}"
    if widens(saved, wanted):
        how, casting = f"{step} keeps every value", None
    else:
        allowing = next((rule for rule in rules if isinstance(rule, Cast) and rule.matches(row.name)), None)
        if allowing is None:
            reason = f"narrowing {step} needs Cast()"
            return replace(row, status=Status.DTYPE_DIFFERS, changes=(), reason=reason)
        how, casting = f"{step} by {allowing!r}", allowing.policy
    reason = "; ".join(filter(None, (row.reason, how)))
    return replace(row, changes=(*row.changes, Change.CAST), reason=reason, casting=casting)


def _checkpoint_row(entry: str, pair: Pair, offer: Offer, claimants: Sequence[Offer], rules: Sequence[Rule]) -> Row:
    skipping = skipping_rule(offer.name, rules)
    status = Status.SKIPPED
    if skipping is not None:
        reason = f"not loaded: {skipping!r}"
    elif offer.name in pair.optional:
        reason = f"not loaded: {pair.optional[offer.name]}"
    elif len(claimants) > 1:
        status, reason = Status.ONLY_IN_CHECKPOINT, f"not loaded: {_sources(claimants)} are both renamed to it"
    else:
        status, reason = Status.ONLY_IN_CHECKPOINT, "not loaded: no such tensor in the model"
    return _with_offer(Row(entry, offer.name, None, status, (), None, None, reason), offer)


def _sources(claimants: Sequence[Offer]) -> str:
    return " and ".join(offer.source for offer in claimants)


def skipping_rule(name: str, rules: Sequence[Rule]) -> Rule | None:
    """The first rule that leaves a name alone."""
    for rule in rules:
        if isinstance(rule, Skip) and rule.matches(name):
            return rule
        if isinstance(rule, Only) and not rule.matches(name):
            return rule
    return None
