"""Numbers as JSON can hold them."""

from __future__ import annotations

import math


def number_of(value: float | None) -> float | str | None:
    """A number as it is, and one that is not finite as the text that JavaScript's ``Number`` takes.

    Example:
        >>> number_of(0.5), number_of(float("-inf")), number_of(float("nan"))
        (0.5, '-Infinity', 'NaN')
    """
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
