"""How much slower this machine is than the one that the seconds in tests are of."""

from __future__ import annotations

import time

REFERENCE_SECONDS = 0.017  # of the processor, for the loop below


def slowness() -> float:
    """What limits in seconds are multiplied with; 1 on a machine as fast, or faster."""
    measured = []
    for _ in range(3):
        begin = time.process_time()
        kept = {}
        for index in range(200_000):
            kept[index % 1000] = (index, str(index))
        measured.append(time.process_time() - begin)
    return max(1.0, min(measured) / REFERENCE_SECONDS)
