"""Warnings that point at the line of the caller's program, however deep they arise."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

_PACKAGE = f"{Path(__file__).parent.parent}{os.sep}"


def warn(message: str) -> None:
    """Warn at the first frame outside this package."""
    frame, level = sys._getframe(1), 2  # noqa: SLF001 - warnings' own skip_file_prefixes came with Python 3.12
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
