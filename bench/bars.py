"""What torchkeep wants to reach beside its peers, and whether it does: ratios of medians of one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import rows
from measures import Results, Times


@dataclass(frozen=True)
class Measured:
    """All that bars are computed from: results by state, and times of commands by name."""

    states: Mapping[str, Results]
    starts: Times

    def saves(self, name: str) -> float:
        return statistics.median(self.states["a"].waiting[name].durable)

    def warm(self, name: str) -> float:
        return statistics.median(self.states["a"].waiting[name].warm)

    def cold(self, name: str) -> float:
        return statistics.median(self.states["a"].waiting[name].cold)

    def held(self, state: str, name: str) -> float:
        return statistics.median(self.states[state].beside[name].held)

    def memory(self, action: str) -> float:
        found = getattr(self.states["a"].waiting[rows.TORCHKEEP], f"{action}_memory")
        if found is None:
            raise KeyError(action)
        return found / 1e6

    def start(self, name: str) -> float:
        return statistics.median(self.starts[name])


@dataclass(frozen=True)
class Bar:
    what: str
    measure: Callable[[Measured], float]
    comparison: Literal["at least", "at most"]
    limit: float

    @property
    def wanted(self) -> str:
        return f"{self.comparison} {self.limit:.2f}"

    def holds(self, measured: float) -> bool:
        return measured >= self.limit if self.comparison == "at least" else measured <= self.limit


Judged = tuple[Bar, float | None]

BARS: Sequence[Bar] = (
    Bar(
        "(a) durable save against the best of torch.save, safetensors and DCP",
        lambda m: min(map(m.saves, (rows.TORCH, rows.SAFETENSORS, rows.DCP))) / m.saves(rows.TORCHKEEP),
        "at least",
        1.3,
    ),
    Bar(
        "(a) durable save against a bare O_DIRECT write",
        lambda m: m.saves(rows.BARE_WRITE) / m.saves(rows.TORCHKEEP),
        "at least",
        0.9,
    ),
    Bar(
        "(a) load, warm, against torch.load + load_state_dict",
        lambda m: m.warm(rows.TORCH) / m.warm(rows.TORCHKEEP),
        "at least",
        6,
    ),
    Bar("(a) load, cold, against the same", lambda m: m.cold(rows.TORCH) / m.cold(rows.TORCHKEEP), "at least", 1.1),
    Bar(
        "(a) resume, cold, against the same",
        lambda m: m.cold(rows.TORCH) / m.cold(rows.RESUME),
        "at least",
        1.8,
    ),
    Bar(
        "(a) load, warm, against torch.load(mmap=True) + load_state_dict",
        lambda m: m.warm(rows.TORCH_MAPPED) / m.warm(rows.TORCHKEEP),
        "at least",
        0.85,
    ),
    Bar("(b) held, against moonclip", lambda m: m.held("b", rows.TORCHKEEP) / m.held("b", rows.MOONCLIP), "at most", 1),
    Bar("(b) held, against DCP", lambda m: m.held("b", rows.TORCHKEEP) / m.held("b", rows.DCP), "at most", 1 / 3),
    Bar(
        "(b) held with overlap, against without",
        lambda m: m.held("b", rows.OVERLAPPED) / m.held("b", rows.TORCHKEEP),
        "at most",
        0.1,
    ),
    Bar(
        "(c) held, against torch.save of the same",
        lambda m: m.held("c", rows.TORCHKEEP) / m.held("c", rows.TORCH),
        "at most",
        0.05,
    ),
    Bar(
        "(c) on disk, against one backbone and 20 heads",
        lambda m: m.states["c"].beside[rows.TORCHKEEP].disk / m.states["c"].least_bytes,
        "at most",
        1.05,
    ),
    Bar("peak memory of a save, MB", lambda m: m.memory("save"), "at most", 128),
    Bar("peak memory of a load into a model, MB", lambda m: m.memory("load"), "at most", 64),
    Bar(
        "torchkeep show against import torch",
        lambda m: m.start("torchkeep show") / m.start("import torch"),
        "at most",
        1 / 3,
    ),
)


def judge(measured: Measured) -> list[Judged]:
    """Each bar with what was measured, or None where a figure of it is missing."""
    judged: list[Judged] = []
    for bar in BARS:
        try:
            judged.append((bar, bar.measure(measured)))
        except (KeyError, statistics.StatisticsError):
            judged.append((bar, None))
    return judged
