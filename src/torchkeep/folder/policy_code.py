"""A retention policy as the code that makes it, for a record, and back: read by a closed table, never evaluated."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from torchkeep.folder.keeping import KINDS, KeepAll
from torchkeep.folder.retention import KeepAny, KeepBoth, RetentionPolicy, joined_by_and
from torchkeep.folder.runs import Listing

RETAIN_MEMBER = "retain"  # of a record's provenance
_MAX_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class RecordedPolicy:
    """The retention policy that a run's last save recorded.

    Attributes:
        code: The Python that makes it, as its manager was given it: ``"KeepLast(3) | KeepTagged('paper')"``.
        policy: It; None where some of it is not torchkeep's own, which is not run.
        unknown: What that is: names of classes, or the whole text where it is no policy.
    """

    code: str
    policy: RetentionPolicy | None
    unknown: tuple[str, ...] = ()


def code_of(policy: RetentionPolicy) -> str:
    """The code that makes a policy; of a class that is not torchkeep's, its name alone.

    Example:
        >>> from torchkeep.policies import KeepLast, KeepTagged
        >>> class Mine(RetentionPolicy):
        ...     pass
        >>> code_of(KeepLast(3) | (KeepTagged("a") & Mine()))
        "KeepLast(3) | KeepTagged('a') & Mine"
    """
    if type(policy) in KINDS.values():
        return repr(policy)
    if type(policy) is KeepAny:
        return " | ".join(map(code_of, policy.policies))
    if type(policy) is KeepBoth:
        return joined_by_and(policy, code_of)
    return type(policy).__name__


def policy_of_run(run: Listing) -> RecordedPolicy | None:
    """The policy that the last save of a run recorded; None where it recorded none, as older versions did not."""
    if not run.checkpoints:
        return None
    last = max(run.checkpoints, key=lambda each: each.summary.saved_at_ns)
    code = last.summary.provenance.get(RETAIN_MEMBER)
    return parse_policy(code) if isinstance(code, str) and code else None


def parse_policy(code: str) -> RecordedPolicy:
    """Read what `code_of` wrote; nothing of it is run, and any text at all is an answer.

    Example:
        >>> parse_policy("KeepLast(3) | KeepBest(2, 'acc', mode='max')").policy
        KeepLast(3) | KeepBest(2, 'acc', mode='max')
        >>> parse_policy("KeepLast(3) | Mine").unknown, parse_policy("open('x')").policy
        (('Mine',), None)
    """
    unknown: list[str] = []
    try:
        if len(code) > _MAX_CHARACTERS:
            raise ValueError(f"{len(code):,} characters")
        policy = _policy(ast.parse(code, mode="eval").body, unknown)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return RecordedPolicy(code[:_MAX_CHARACTERS], None, (code[:_MAX_CHARACTERS],))
    return RecordedPolicy(code, None if unknown else policy, tuple(dict.fromkeys(unknown)))


def _policy(node: ast.expr, unknown: list[str]) -> RetentionPolicy:
    match node:
        case ast.BinOp(left, ast.BitOr(), right):
            return _policy(left, unknown) | _policy(right, unknown)
        case ast.BinOp(left, ast.BitAnd(), right):
            return _policy(left, unknown) & _policy(right, unknown)
        case ast.Name(name):
            unknown.append(name)
            return KeepAll()
        case ast.Call(ast.Name(name), args, keywords) if name in KINDS:
            named = {keyword.arg: _constant(keyword.value) for keyword in keywords if keyword.arg}
            if len(named) != len(keywords):
                raise ValueError("** in a policy")
            return KINDS[name](*map(_constant, args), **named)
        case ast.Call(ast.Name(name)):
            unknown.append(name)
            return KeepAll()
    raise ValueError("no policy")


def _constant(node: ast.expr) -> str | int:
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int)):
        return node.value
    raise ValueError("no constant")
