"""What a load will do, decided before anything is touched: a frozen plan that can be read, changed and executed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, get_args

from torchkeep.errors import PlanError
from torchkeep.planning import recorded, report
from torchkeep.planning.extra_state import extra_names, match_extra_state
from torchkeep.planning.match import arrange, match
from torchkeep.planning.regrouping import Fuse, Split
from torchkeep.planning.rows import Pair, Row, Status
from torchkeep.planning.rules import Only, Rename, Rule
from torchkeep.planning.suggest import Suggestions, suggest

Executor: TypeAlias = Callable[["LoadPlan"], object]


@dataclass(frozen=True, repr=False)
class LoadPlan:
    """What becomes of every tensor of a checkpoint and of the objects it should go into. Made by `make_plan`.

    Attributes:
        source: The path that people know the checkpoint by.
        pairs: What is matched with what, by entry.
        rules: In the order they act.
        rows: One per tensor: by pair, the model's order first, then what is only in the checkpoint.
        collisions: Names that several checkpoint tensors would get, one line each; such a plan never applies.
        idle_rules: The parts of the rules that matched nothing.
        mismatches: Entry, and why it does not go together with its object as a whole; a strict load refuses it.
        executor: What carries the plan out; bound by whoever has the objects.

    Example:
        >>> from torchkeep.tensors import TensorSpec
        >>> spec = TensorSpec("float32", (10, 4))
        >>> pair = Pair({"head.weight": spec}, {"fc.weight": spec}, "module", "Net")
        >>> plan = make_plan({"": pair}, [Rename("^head", "fc")], source="ckpt")
        >>> plan.coverage, plan.matched_count, plan.fresh
        (1.0, 1, ())
    """

    source: str
    pairs: Mapping[str, Pair]
    rules: tuple[Rule, ...]
    rows: tuple[Row, ...]
    collisions: tuple[str, ...] = ()
    idle_rules: tuple[Rule, ...] = ()
    mismatches: tuple[tuple[str, str], ...] = ()
    executor: Executor | None = field(default=None, compare=False)

    @property
    def coverage(self) -> float:
        """The share of the models' elements that arrives; 1.0 when there are none. Optimizers do not count."""
        return _share_of_model(list(self._counting_rows()))

    @property
    def matched_count(self) -> int:
        """How many of the models' tensors are matched. Optimizers do not count."""
        return sum(row.status is Status.MATCHED for row in self._counting_rows())

    @property
    def model_count(self) -> int:
        """How many tensors the models have. Optimizers do not count."""
        return sum(row.model is not None for row in self._counting_rows())

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names in the model that arrive with all their elements; with several models ``"entry.name"``."""
        several = self._has_several_models
        return tuple(name for entry in self.pairs for name in _named(entry, self.loaded_of(entry), several=several))

    @property
    def fresh(self) -> tuple[str, ...]:
        """Names in the model that are left as they are, in whole or in part; with several models ``"entry.name"``."""
        several = self._has_several_models
        return tuple(name for entry in self.pairs for name in _named(entry, self.fresh_of(entry), several=several))

    def loaded_of(self, entry: str) -> tuple[str, ...]:
        """`loaded` of one entry, by the names that its model has: for `freeze` and the like.

        Raises:
            ValueError: The plan has no such entry; says which it has.
        """
        return tuple(row.name for row in self._counting_rows(entry) if _arrives(row))

    def fresh_of(self, entry: str) -> tuple[str, ...]:
        """`fresh` of one entry, by the names that its model has: for `unfreeze`, `param_groups` and the like.

        Raises:
            ValueError: The plan has no such entry; says which it has.

        Example:
            >>> from torchkeep.tensors import TensorSpec
            >>> pair = Pair({}, {"fc.weight": TensorSpec("float32", (10, 4))}, "module", "Net")
            >>> plan = make_plan({"student": pair, "teacher": pair}, [], source="ckpt")
            >>> plan.fresh, plan.fresh_of("student")
            (('student.fc.weight', 'teacher.fc.weight'), ('fc.weight',))
        """
        return tuple(row.name for row in self._counting_rows(entry) if row.model is not None and not _arrives(row))

    @property
    def left_alone(self) -> tuple[str, ...]:
        """Entries whose models would get nothing at all by these rules, and hardly on purpose.

        All of them where nothing would be loaded into any object, else those of an `Only` that means no name.
        """
        models = [entry for entry, pair in self.pairs.items() if pair.counts and pair.model]
        arriving = (match_extra_state(entry, pair, self.rules).arriving for entry, pair in self.pairs.items())
        if self.rules and all(row.status is Status.SKIPPED for row in self.rows) and not any(arriving):
            return tuple(models)
        void = [
            rule
            for rule in self.rules
            if isinstance(rule, Only) and all(rule.with_globs(glob) in self.idle_rules for glob in rule.globs)
        ]
        return tuple(entry for entry in models if any(rule.acts_on(entry) for rule in void))

    def suggest(self) -> Suggestions:
        """The few rules that, after the plan's own, would make it fit in strict mode; none when it fits.

        Printed, they are code to paste, with what each gains, what else there is, and what was too ambiguous to say.
        """
        return suggest(self)

    def with_rules(self, *rules: Rule) -> LoadPlan:
        """This plan with more rules after its own; the same executor."""
        return replace(make_plan(self.pairs, (*self.rules, *rules), source=self.source), executor=self.executor)

    def require(self, *, coverage: float) -> LoadPlan:
        """Return this plan if at least that share of the model's elements is matched.

        Raises:
            ValueError: `coverage` is not between 0 and 1.
            PlanError: Less is matched, or names collide; it says what is not.
        """
        _require_share("coverage", coverage)
        self._refuse_collisions()
        if self.coverage < coverage:
            raise report.too_little(self, f"{report.percent(self.coverage)} of the model's elements", coverage)
        return self

    def check(self, *, strict: bool, min_coverage: float = 0.5, call: str = report.LOAD_CALL) -> None:
        """Return if a load may go ahead.

        Args:
            strict: Refuse every difference. Else refuse a dtype that would narrow, and a pair in which less than
                `min_coverage` of the model and of the checkpoint's entry, by elements not skipped, is matched.
                Either way refuse where rules leave everything alone, but for ``min_coverage=0`` without `strict`.
            min_coverage: From 0 to 1.
            call: What a hint's rules are shown in; "" where several calls take them.

        Raises:
            ValueError: `min_coverage` is not between 0 and 1.
            PlanError: It does not fit; every difference is named.
        """
        _require_share("min_coverage", min_coverage)
        self._refuse_collisions()
        if strict and self.mismatches:
            raise report.does_not_go_together(self)
        if any(row.differs and (strict or row.status is Status.DTYPE_DIFFERS) for row in self.rows):
            raise report.does_not_fit(self, strict=strict, call=call)
        if (strict or min_coverage) and self.left_alone:
            raise report.reaches_nothing(self)
        if strict:
            return
        for entry, pair in self.pairs.items():
            rows = [row for row in self.rows if row.entry == entry and row.status is not Status.SKIPPED]
            matched = [row for row in rows if row.status is Status.MATCHED]
            of_model, of_checkpoint = _share_of_model(rows), _share_of_checkpoint(matched, rows)
            if pair.counts and max(of_model, of_checkpoint) < min_coverage:
                found = (
                    f"{report.percent(of_model)} of {pair.target}, {report.percent(of_checkpoint)} of the checkpoint"
                )
                raise report.too_little(self, found, min_coverage)

    def apply(self, *, strict: bool = True, min_coverage: float = 0.5) -> object:
        """Carry the plan out, after `check`; returns what the executor returns.

        Raises:
            PlanError: It does not fit, or nothing can carry it out. Nothing was touched.
        """
        self.check(strict=strict, min_coverage=min_coverage)
        if self.executor is None:
            raise PlanError(
                f"the plan for {self.source} holds no objects to load into",
                remedy="make it with torchkeep.plan(path, into=...), then apply it",
            )
        return self.executor(self)

    def to_dict(self) -> dict[str, object]:
        """The plan as plain values for JSON, ``schema`` 1."""
        return recorded.plain_values(self)

    def to_json(self) -> str:
        """The plan as JSON, to be kept beside the code and given to `replay`."""
        return json.dumps(self.to_dict(), indent=1)

    def replay(self, text: str) -> LoadPlan:
        """This load under the rules of a recorded plan, if it decides for every tensor what was recorded.

        Args:
            text: What `to_json` gave, also of another path. Its rules take the place of this plan's own.

        Raises:
            FormatError: It is no recorded plan.
            PlanError: A tensor is other than it was, or something else would become of it; all of them are named.

        Example:
            >>> from torchkeep.tensors import TensorSpec
            >>> spec = TensorSpec("float32", (2,))
            >>> before = make_plan(
            ...     {"": Pair({"a": spec}, {"b": spec}, "module", "Net")}, [Rename("a", "b")], source="x"
            ... )
            >>> after = make_plan({"": Pair({"a": spec}, {"b": spec}, "module", "Net")}, [], source="y")
            >>> after.replay(before.to_json()).rules
            (Rename("a", "b"),)
        """
        rules, rows = recorded.read_recorded(text)
        again = replace(make_plan(self.pairs, rules, source=self.source), executor=self.executor)
        recorded.refuse_differences(again, rows)
        return again

    def __str__(self) -> str:
        return report.render(self)

    def __repr__(self) -> str:
        return f"<LoadPlan {report.summary(self)}>"

    def _counting_rows(self, entry: str | None = None) -> Iterator[Row]:
        if entry is not None and entry not in self.pairs:
            has = ", ".join(map(repr, self.pairs)) or "none"
            raise ValueError(f"the plan has no entry {entry!r}; it has {has}")
        return (row for row in self.rows if self.pairs[row.entry].counts and entry in {None, row.entry})

    @property
    def _has_several_models(self) -> bool:
        return sum(pair.counts for pair in self.pairs.values()) > 1

    def _refuse_collisions(self) -> None:
        if self.collisions:
            raise report.collides(self)


def make_plan(pairs: Mapping[str, Pair], rules: Sequence[Rule], *, source: str) -> LoadPlan:
    """Match every pair under the rules; never raises because things do not fit.

    Args:
        pairs: Entry to what is laid side by side; the key "" when there is just one that needs no name.
        rules: In the order they act: renames one after the other, then the others on the resulting names.
        source: The path that people know the checkpoint by.
    """
    _require_rules(rules)
    matchings = {entry: match(entry, pair, rules) for entry, pair in pairs.items()}
    extra = {entry: match_extra_state(entry, pair, rules) for entry, pair in pairs.items()}
    rows = tuple(row for matching in matchings.values() for row in matching.rows)
    return LoadPlan(
        source=source,
        pairs=dict(pairs),
        rules=tuple(rules),
        rows=rows,
        collisions=tuple(
            f"{entry}: {collision}" if entry else collision
            for entry, matching in matchings.items()
            for collision in matching.collisions
        ),
        idle_rules=tuple(_idle(pairs, rules, rows)),
        mismatches=tuple(
            (entry, fault)
            for entry, matching in matchings.items()
            for fault in (pairs[entry].mismatch, *matching.untied, *extra[entry].faults)
            if fault
        ),
    )


def _require_rules(rules: object) -> None:
    given = rules if isinstance(rules, (list, tuple)) else [rules]
    wrong = [each for each in given if not isinstance(each, get_args(Rule))]
    if wrong or given is not rules:
        raise TypeError(f'rules is a list of rules, as [Skip("fc")]; not {", ".join(map(repr, wrong or given))}')


def _idle(pairs: Mapping[str, Pair], rules: Sequence[Rule], rows: Sequence[Row]) -> Iterator[Rule]:
    """What of the rules matched nothing. Those that make names see what the ones before made, the rest the result."""
    for index, rule in enumerate(rules):
        entries = [entry for entry in pairs if rule.acts_on(entry)]
        if isinstance(rule, (Rename, Fuse, Split)):
            seen = [arrange(pairs[entry].checkpoint, rules[:index], entry) for entry in entries]
            if isinstance(rule, Rename):
                others = (extra_names(entry, pairs[entry], rules[:index]) for entry in entries)
                yield from rule.idle({offer.name for offers in seen for offer in offers}.union(*others))
            elif all(rule.regroup(offers) == offers for offers in seen):
                yield rule
        else:
            others = (extra_names(entry, pairs[entry], rules) for entry in entries)
            yield from rule.idle({row.name for row in rows if row.entry in entries}.union(*others))


def _named(entry: str, names: Sequence[str], *, several: bool) -> Iterator[str]:
    return (f"{entry}.{name}" if several else name for name in names)


def _arrives(row: Row) -> bool:
    return row.model is not None and row.status is Status.MATCHED and row.arriving_elements == row.model.numel


def _share_of_model(rows: Sequence[Row]) -> float:
    total = sum(row.model.numel for row in rows if row.model is not None)
    return sum(row.arriving_elements for row in rows) / total if total else 1.0


def _share_of_checkpoint(matched: Sequence[Row], rows: Sequence[Row]) -> float:
    total = sum(row.checkpoint.numel for row in rows if row.checkpoint is not None)
    return sum(row.checkpoint.numel for row in matched if row.checkpoint is not None) / total if total else 1.0


def _require_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a share from 0 to 1; not {value!r}")
