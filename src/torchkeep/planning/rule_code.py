"""Rules from the code that they print as: calls of rules with plain values, read and never executed."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import get_args

from torchkeep.planning.globs import quoted
from torchkeep.planning.rules import Rule

MAX_CODE_CHARACTERS = 10_000_000
_RULES: dict[str, Callable[..., Rule]] = {rule.__name__: rule for rule in get_args(Rule)}


def parse_rule(code: str) -> Rule:
    """Read a rule from its code, the text that its ``repr`` gives.

    Args:
        code: One call of a rule of `torchkeep.rules`, its arguments plain values.

    Raises:
        ValueError: It is no such call, or the rule refuses its arguments.

    Example:
        >>> parse_rule('Skip("fc", entry="G")')
        Skip("fc", entry="G")
    """
    shown = quoted(code if len(code) <= _MOST_SHOWN else f"{code[:_MOST_SHOWN]}...")
    if len(code) > MAX_CODE_CHARACTERS:
        raise ValueError(f"{shown} is too long for a rule: {len(code):,} characters")
    try:
        call = ast.parse(code.strip().removeprefix("tk."), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("it is no call")
        if call.func.id not in _RULES:
            raise ValueError(f"there is no rule {call.func.id!r}")
        arguments = [ast.literal_eval(each) for each in call.args]
        options = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
        return _RULES[call.func.id](*arguments, **options)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        known = ", ".join(_RULES)
        raise ValueError(f"{shown} is no rule: {error}; the rules are {known}") from error


_MOST_SHOWN = 80
