"""How the weights of one checkpoint would load where those of another are: a `LoadPlan` between two files."""

from __future__ import annotations

from torchkeep.planning.loadplan import LoadPlan, make_plan
from torchkeep.planning.rows import Pair, Row
from torchkeep.planning.weights import find_weights
from torchkeep.tensors import TensorSpec
from torchkeep.verbs.outline import printable
from torchkeep.viewer.subject import Held


def plan_between(source: Held, target: Held) -> LoadPlan:
    """The plan of loading a checkpoint's weights into a model that has the tensors of another's.

    Raises:
        NotFoundError: One of them has nothing that looks like weights.
        PlanError: Several entries of one could be meant.
    """
    weights, model = find_weights(source.checkpoint.tree), find_weights(target.checkpoint.tree)
    name = target.checkpoint.path.name
    pair = Pair(weights.tensors, model.tensors, "module", name, origin=weights.name)
    return make_plan({"": pair}, (), source=source.checkpoint.path.name)


def fit_of(source: Held, target: Held, *, with_suggested: bool) -> dict[str, object]:
    """A plan as plain values: counts, a row per tensor, and the rules that would make it fit.

    Args:
        source: What would be loaded.
        target: What has the names, shapes and dtypes of the model.
        with_suggested: Let the suggested rules act first.
    """
    plan = plan_between(source, target)
    suggested = plan.suggest() if any(row.differs for row in plan.rows) else ()
    if with_suggested:
        plan = plan.with_rules(*suggested)
    return {
        "coverage": plan.coverage,
        "matched_count": plan.matched_count,
        "model_count": plan.model_count,
        "suggested": [printable(repr(rule)) for rule in suggested],
        "collisions": list(map(printable, plan.collisions)),
        "rows": [_row(row) for row in plan.rows],
    }


def _row(row: Row) -> list[object]:
    return [
        row.status.value,
        [change.value for change in row.changes],
        printable(row.name),
        None if row.checkpoint_name is None else printable(row.checkpoint_name),
        _spec(row.checkpoint),
        _spec(row.model),
        printable(row.reason),
    ]


def _spec(spec: TensorSpec | None) -> list[object] | None:
    return None if spec is None else [spec.dtype, spec.shape, spec.nbytes]
