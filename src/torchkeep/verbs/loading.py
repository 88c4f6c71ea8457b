"""`load` and `plan`: open a source, lay objects beside its entries, decide everything, check every byte, then place."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchkeep.errors import CheckpointError, PlanError
from torchkeep.folder.parallel import default_threads
from torchkeep.planning.extra_state import match_extra_state
from torchkeep.planning.loadplan import LoadPlan, make_plan
from torchkeep.planning.paths import without
from torchkeep.planning.report import idle_texts
from torchkeep.planning.rows import Row, Status
from torchkeep.planning.rules import Rule
from torchkeep.tensors import Source, TensorSpec, tensors_of
from torchkeep.verbs.arguments import require_flag, threads_of
from torchkeep.verbs.sources import check_bytes, open_source

if TYPE_CHECKING:
    import torch

    from torchkeep.live.build import Builder
    from torchkeep.live.targets import Target


USUAL_MIN_COVERAGE = 0.5


class Loaded(Mapping[str, Any]):
    """What a load gave: the plan it followed, and whatever of the checkpoint was not asked into an object.

    Values are built when they are first asked for, with their bytes checked then.

    Attributes:
        plan: The plan that was applied.
        fresh: Names in the model that were left at their initial values.
        notes: What a person should know: flags that differ, options of the optimizer that the checkpoint decided.
        step: The step in the record, or None.
    """

    def __init__(self, plan: LoadPlan, notes: Sequence[str], rest: Mapping[str, object], builder: Builder) -> None:
        self.plan = plan
        self.fresh = plan.fresh
        self.notes = tuple(notes)
        self.step = getattr(getattr(builder.source, "record", None), "step", None)
        self._rest = rest
        self._builder = builder
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - whatever was saved
        if key not in self._values:
            with self._builder.gathering(default_threads()):
                self._values[key] = self._builder.value(self._rest[key])
        return self._values[key]

    @property
    def reads_on(self) -> bool:
        """Whether tensors are left in the file that a key may still ask for."""
        return bool(tensors_of(self._rest))

    def __iter__(self) -> Iterator[str]:
        return iter(self._rest)

    def __len__(self) -> int:
        return len(self._rest)

    def __repr__(self) -> str:
        return f"<Loaded {self.plan!r}; the rest: {list(self._rest)}>"


def load(
    path: str | os.PathLike[str],
    into: object = None,
    *,
    rules: Sequence[Rule] = (),
    strict: bool = True,
    min_coverage: float = USUAL_MIN_COVERAGE,
    map_location: str | torch.device | None = None,
    mmap: bool = False,
    io_threads: int | None = None,
) -> Any:  # noqa: ANN401 - what was saved, as torch.load gives it
    """Load a checkpoint of any format: as it was saved, or into objects that exist.

    Args:
        path: As for `open`.
        into: None to get back what was saved (a module comes back as its state dict). Else a module, an optimizer,
            anything with ``load_state_dict``, a mapping of tensors (filled in place), or a mapping whose keys are paths
            in the checkpoint (``"ema"``, ``"state_dict.net"``, a tuple where keys hold dots), its values any of these.
        rules: `Rename`, `Skip`, `Only`, `Cast` and those of `torchkeep.rules`, in the order they act.
        strict: Raise at any difference. False takes what fits and reports the rest.
        min_coverage: With ``strict=False``, the least share, by elements, of the model or of the entry that must fit.
        map_location: Where tensors go that have no home: the CPU if None, never the device in the file.
        mmap: Without `into`, let tensors lie in the file, which is checked and not copied: memory is shared with every
            process that does the same, and taken only where somebody writes, which the file does not see. What is not
            in the file as it is in memory (booleans of other formats, strided views) is read. The file must stay as
            it is: torchkeep never writes into a checkpoint, and a removed one stays readable here.
        io_threads: Threads that read and check; by default one per processor, at most 8.

    Returns:
        Without `into`, what was saved. With it, a `Loaded`: the plan, and the rest of the checkpoint as a mapping.

    Raises:
        PlanError: It does not fit; every difference is listed.
        CorruptError, UnsafeError, LimitError, FormatError, NotFoundError: As for `open`, or tensors are damaged.
        TypeError: A value in `into` that nothing can be loaded into, or an argument of another type.
        ValueError: `mmap` together with `into`, whose memory exists; or what only goes with `into`, without it.
        In every case nothing was touched: all differences are found and all needed bytes checked first.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> model, path = torch.nn.Linear(2, 1), tempfile.mkdtemp() + "/ckpt"
        >>> _ = tk.save({"model": model, "epoch": 12}, path)
        >>> rest = tk.load(path, into={"model": torch.nn.Linear(2, 1)})
        >>> rest["epoch"], rest.plan.coverage, rest.fresh
        (12, 1.0, ())
    """
    from torchkeep.live.build import Builder
    from torchkeep.live.mapped import MappedFiles

    require_flag("strict", strict)
    require_flag("mmap", mmap)
    if into is None and (rules or not strict or min_coverage != USUAL_MIN_COVERAGE):
        raise ValueError("rules, strict and min_coverage say how objects are filled: give them as into=")
    if mmap and into is not None:
        raise ValueError("mmap=True goes without into: objects that exist have their memory, and are filled in place")
    threads = threads_of(io_threads, default_threads)
    source = open_source(path)
    mapped = MappedFiles(source) if mmap else None
    builder = Builder(source, "cpu" if map_location is None else map_location, mapped)
    if into is None:
        try:
            with builder.gathering(threads):
                return builder.value(source.tree)
        finally:
            source.close()
    try:
        loaded = plan_load(source, into, rules, builder, threads).apply(strict=strict, min_coverage=min_coverage)
    except BaseException:
        source.close()
        raise
    if isinstance(loaded, Loaded) and not loaded.reads_on:
        source.close()
    return loaded


def plan(
    path: str | os.PathLike[str],
    into: object,
    *,
    rules: Sequence[Rule] = (),
    map_location: str | torch.device | None = None,
    io_threads: int | None = None,
) -> LoadPlan:
    """Decide what a load would do, without touching anything: print it, change its rules, then ``apply`` it.

    Args:
        path: As for `open`.
        into: As for `load`.
        rules: As for `load`.
        map_location: As for `load`.
        io_threads: As for `load`.

    Returns:
        The plan. It never raises because things do not fit; its ``apply`` does, unless ``strict=False``.

    Raises:
        NotFoundError, FormatError, CorruptError, UnsafeError, LimitError: As for `open`.
        PlanError: No entry, or more than one, can be what an object wants.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> path = tempfile.mkdtemp() + "/ckpt"
        >>> _ = tk.save(torch.nn.Linear(2, 1), path)
        >>> plan = tk.plan(path, into=torch.nn.Linear(2, 3))
        >>> plan.coverage, [row.status.value for row in plan.rows]
        (0.0, ['shape_differs', 'shape_differs'])
    """
    from torchkeep.live.build import Builder

    threads = threads_of(io_threads, default_threads)
    builder = Builder(open_source(path), "cpu" if map_location is None else map_location)
    return plan_load(builder.source, into, rules, builder, threads)


def plan_load(source: Source, into: object, rules: Sequence[Rule], builder: Builder, threads: int) -> LoadPlan:
    """The plan of a load from an opened source, bound to what carries it out."""
    from torchkeep.live.targets import make_targets

    targets = make_targets(source, into)
    pairs = {target.entry: pair for target in targets if (pair := target.pair()) is not None}

    execution = Execution(source, targets, builder, threads)
    return replace(make_plan(pairs, rules, source=_shown(source.path)), executor=execution)


@dataclass(frozen=True, slots=True)
class Execution:
    """What carries a plan out: the opened checkpoint, and the objects to load into."""

    source: Source
    targets: Sequence[Target]
    builder: Builder
    threads: int

    def __call__(self, plan: LoadPlan) -> Loaded:
        """Check every byte that is needed, then place it."""
        check_bytes(self.source, needed(plan, self.targets), self.threads)
        check_casts(plan, self.targets, self.builder, self.threads)
        notes = list(idle_texts(plan))
        notes += place(plan, self.targets, self.builder, self.threads)
        rest = without(self.source.tree, [target.path for target in self.targets])
        return Loaded(plan, notes, rest if isinstance(rest, Mapping) else {}, self.builder)


def _shown(path: Path) -> str:
    try:
        relative = os.path.relpath(path)
    except OSError:  # the working folder is gone
        return str(path)
    return str(path) if relative.startswith("..") else relative


def needed(plan: LoadPlan, targets: Sequence[Target]) -> list[TensorSpec]:
    """Every tensor that carrying out a plan will read."""
    specs = []
    for target in targets:
        if target.saved is not None:
            specs += list(target.saved.tensors())
        elif target.kind == "stateful":
            specs += list(tensors_of(target.node).values())
        else:
            specs += list(tensors_of(target.extra_state()).values())
    rows = [row for row in plan.rows if row.status is Status.MATCHED and plan.pairs[row.entry].counts]
    return specs + [part.spec for row in rows for part in row.parts]


def place(plan: LoadPlan, targets: Sequence[Target], builder: Builder, threads: int) -> list[str]:
    """Carry out a plan whose bytes are checked: build what is given to other code first, then fill memory.

    Returns:
        Notes for a person.
    """
    with builder.gathering(threads):
        return _place(plan, targets, builder, threads)


def _place(plan: LoadPlan, targets: Sequence[Target], builder: Builder, threads: int) -> list[str]:
    from torchkeep.live.optimizer_state import put_back_later, put_optimizer_state
    from torchkeep.live.place import place_in_mapping, place_in_module, placements_of
    from torchkeep.live.targets import by_own_code_first

    built = {t.entry: builder.value_now(t.node) for t in targets if t.kind == "stateful"}
    notes: list[str] = []
    matched = _matched(plan, targets)
    undo: list[Callable[[], object]] = []
    for target in by_own_code_first(targets):
        rows = matched[target.entry]
        placements = placements_of(rows, target.live)
        try:
            if target.kind == "module":
                saved = target.extra_state()
                arriving = match_extra_state(target.entry, plan.pairs[target.entry], plan.rules).arriving
                extra = {name: builder.value_now(saved[source]) for name, source in arriving.items()}
                undo += place_in_module(target.live, placements, extra, builder, threads)
            elif target.kind == "tensors":
                place_in_mapping(target.live, placements, builder, threads)
            elif target.saved is not None:
                undo.append(put_back_later(target.live))
                notes += put_optimizer_state(target.live, target.saved, rows, builder.fill, builder.fill_later)
            else:
                undo.append(partial(target.live.load_state_dict, copy.deepcopy(target.live.state_dict())))
                target.live.load_state_dict(built[target.entry])
        except BaseException as error:
            faults = _put_back(undo)
            if isinstance(error, CheckpointError) or not isinstance(error, Exception):
                raise
            raise _refused(plan, target, error, faults) from error
        notes += target.notes()
    return notes


def _put_back(undo: Sequence[Callable[[], object]]) -> list[str]:
    """Undo all of it, the latest first, and say what could not be: what refuses new state may refuse its old one."""
    faults = []
    for put_back in reversed(undo):
        try:
            put_back()
        except Exception as error:  # noqa: BLE001 - other code, and the rest is still to be put back
            owner = getattr(getattr(put_back, "func", put_back), "__self__", put_back)
            faults.append(f"{type(owner).__name__} could not be put back: {_told(error)}")
    return faults


def _told(error: Exception) -> str:
    first, *others = str(error).splitlines() or [""]
    reason = f"{first} {others[0].strip()}" if first.endswith(":") and others else first  # as torch lists its reasons
    return f"{type(error).__name__}: {reason}"


def check_casts(plan: LoadPlan, targets: Sequence[Target], builder: Builder, threads: int) -> None:
    """Return if the policy of every cast accepts the values that it would change.

    Raises:
        PlanError: Some values would overflow, or change where they must not; each tensor is named.
    """
    from torchkeep.live.place import lossy_casts, placements_of

    faults = []
    for target, rows in zip(targets, _matched(plan, targets).values(), strict=True):
        if any(row.casting is not None for row in rows):
            prefix = f"{target.entry}: " if target.entry else ""
            faults += [
                f"{prefix}{f}" for f in lossy_casts(target.live, placements_of(rows, target.live), builder, threads)
            ]
    if faults:
        raise PlanError(
            f"cannot load {plan.source}: {len(faults)} cast{'s' if len(faults) > 1 else ''} would lose values",
            faults=faults,
            remedy='leave them out with Skip(...), or accept it with Cast(..., policy="saturate") or "round"',
        )


def _matched(plan: LoadPlan, targets: Sequence[Target]) -> dict[str, list[Row]]:
    matched: dict[str, list[Row]] = {target.entry: [] for target in targets}
    for row in plan.rows:
        if row.status is Status.MATCHED:
            matched[row.entry].append(row)
    return matched


def _refused(plan: LoadPlan, target: Target, error: Exception, faults: Sequence[str]) -> PlanError:
    name = f"{target.entry} ({type(target.live).__name__})" if target.entry else type(target.live).__name__
    restored = "what was given to other code before it"
    if faults:
        restored = f"the rest of {restored}"
    return PlanError(
        f"cannot load {plan.source}: {name} refuses its state",
        faults=[_told(error), *faults],
        remedy=f"{restored} was put back; leave it out of `into`, or mend its state",
    )


def resume_into(source: Source, into: object, rules: Sequence[Rule], builder: Builder, threads: int) -> Loaded:
    """Load strictly, checking digests only while bytes are placed: for a caller that goes on to an older checkpoint.

    Raises:
        PlanError: It does not fit; nothing was touched.
        CorruptError: Bytes differ; objects may be partly overwritten.
    """
    from torchkeep.live.targets import make_targets

    targets = make_targets(source, into)
    pairs = {target.entry: pair for target in targets if (pair := target.pair()) is not None}
    decided = make_plan(pairs, rules, source=_shown(source.path))
    decided.check(strict=True, call="")
    check_casts(decided, targets, builder, threads)
    return Loaded(decided, place(decided, targets, builder, threads), {}, builder)
