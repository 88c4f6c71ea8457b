"""Say which names became which in as few renames as explain it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

from torchkeep.planning.alignment import count_shared
from torchkeep.planning.rules import Rename

MAX_RENAMES = 8
MAX_CANDIDATES = 40
MIN_EXPLAINED = 2
_TOKEN = re.compile(r"[A-Za-z]+|\d+|[^A-Za-z0-9]")


@dataclass(frozen=True, slots=True, order=True)
class _Candidate:
    """A rename that would bring one name nearer to its target."""

    looseness: int
    pattern: str
    replacement: str

    def rename(self, name: str) -> str:
        return re.sub(self.pattern, self.replacement, name)


def generalise(
    assigned: Mapping[str, str], settled: Mapping[str, str], others: Mapping[str, str], *, entry: str | None
) -> tuple[Rename, ...]:
    """The fewest renames that turn each assigned name into its target.

    A general rule is kept only if every name that it changes is one that it brings nearer to its target.

    Args:
        assigned: Checkpoint name to model name.
        settled: Checkpoint names that have their place, to the name in the model; no rule may move them away.
        others: Names that have no counterpart; no rule may give them a name that is somebody else's.
        entry: What the renames are limited to.
    """
    working = {name: name for name in assigned}
    free = dict(others)
    rules: list[Rename] = []
    while len(rules) < MAX_RENAMES:
        votes: dict[_Candidate, set[str]] = defaultdict(set)
        for name, now in working.items():
            if now != assigned[name]:
                for candidate in _candidates(now, assigned[name]):
                    votes[candidate].add(name)
        voted = [candidate for candidate in votes if len(votes[candidate]) >= MIN_EXPLAINED]
        finished = {
            candidate: sum(candidate.rename(working[name]) == assigned[name] for name in votes[candidate])
            for candidate in voted
        }
        ranked = sorted(
            voted, key=lambda found: (-len(votes[found]), -finished[found], found.looseness, len(found.pattern), found)
        )
        best = next(
            (
                candidate
                for candidate in ranked[:MAX_CANDIDATES]
                if {name for name, now in working.items() if candidate.rename(now) != now} <= votes[candidate]
                and _leaves_others_alone(candidate, settled, free, assigned)
            ),
            None,
        )
        if best is None:
            break
        rules.append(Rename(best.pattern, best.replacement, entry=entry))
        working = {name: best.rename(now) for name, now in working.items()}
        free = {name: best.rename(now) for name, now in free.items()}
    exact = {now: assigned[name] for name, now in working.items() if now != assigned[name]}
    return (*rules, Rename(exact, entry=entry)) if exact else tuple(rules)


def _leaves_others_alone(
    candidate: _Candidate, settled: Mapping[str, str], free: Mapping[str, str], assigned: Mapping[str, str]
) -> bool:
    taken = {*assigned.values(), *settled, *settled.values()}
    stays = all(candidate.rename(name) in (name, target) for name, target in settled.items())
    return stays and all((new := candidate.rename(now)) == now or new not in taken for now in free.values())


@lru_cache(maxsize=4096)
def _candidates(name: str, target: str) -> frozenset[_Candidate]:
    old, new = name.split("."), target.split(".")
    return frozenset(
        (*_beginning_candidates(old, new), *_segment_candidates(old, new), *_token_candidates(name, target))
    )


def _beginning_candidates(old: list[str], new: list[str]) -> Iterator[_Candidate]:
    """Rename all that stands before the segments that both names end in, and the same with the first of those."""
    shared = count_shared(old[::-1], new[::-1])
    for kept, looseness in ((shared, 0), (shared - 1, 2)):
        if kept > 0:
            gone, put = old[: len(old) - kept], new[: len(new) - kept]
            pattern = "^" + "".join(rf"{_escape(segment)}\." for segment in gone)
            yield _Candidate(looseness, pattern, _template(put) + "." if put else "")


def _segment_candidates(old: list[str], new: list[str]) -> Iterator[_Candidate]:
    """Renames of whole segments, with the dots around them, and of the beginning up to them with any numbers."""
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    kept = {block.a + step: block.b + step for block in matcher.get_matching_blocks() for step in range(block.size)}
    for tag, *span in matcher.get_opcodes():
        if tag == "equal":
            continue
        i1, i2, j1, j2 = span
        if tag == "insert" and i1 > 0:
            i1, j1 = i1 - 1, j1 - 1
        elif tag == "insert" and i2 < len(old):
            yield _Candidate(0, "^", _template(new[j1:j2]) + ".")
            i2, j2 = i2 + 1, j2 + 1
        if i1 > 0:
            yield _anchored(old[:i2], new[:j2], kept, at_end=i2 == len(old))
        # A number alone says too little about where it stands.
        if i1 == 0 or any(segment.strip("0123456789") for segment in old[i1:i2]):
            yield _bounded(old, new, (i1, i2), (j1, j2))


def _bounded(old: list[str], new: list[str], span: tuple[int, int], new_span: tuple[int, int]) -> _Candidate:
    (i1, i2), (j1, j2) = span, new_span
    gone, put = ".".join(old[i1:i2]), _template(new[j1:j2])
    at_start, at_end = i1 == 0, i2 == len(old)
    if put:
        pattern = ("^" if at_start else r"\.") + _escape(gone) + ("$" if at_end else r"\.")
        return _Candidate(0 if at_start else 1, pattern, ("" if at_start else ".") + put + ("" if at_end else "."))
    if at_start:
        return _Candidate(0, f"^{_escape(gone)}" + ("$" if at_end else r"\."), "")
    return _Candidate(1, rf"\.{_escape(gone)}" + ("$" if at_end else r"\."), "" if at_end else ".")


def _anchored(old: list[str], new: list[str], kept: Mapping[int, int], *, at_end: bool) -> _Candidate:
    """From the beginning on; numbers that stand on both sides stand for any number."""
    pattern, put, groups = [], [_template([segment]) for segment in new], 0
    for index, segment in enumerate(old):
        target = kept.get(index)
        if segment.isdecimal() and target is not None and target < len(new):
            groups += 1
            pattern.append(r"(\d+)")
            put[target] = rf"\g<{groups}>"
        else:
            pattern.append(_escape(segment))
    end, new_end = ("$", "") if at_end else (r"\.", ".")
    return _Candidate(2, "^" + r"\.".join(pattern) + end, ".".join(put) + new_end)


def _token_candidates(name: str, target: str) -> Iterator[_Candidate]:
    """Renames inside segments, as ``layer`` to ``block`` in ``layer1``, or of what stands between their words."""
    old, new = _TOKEN.findall(name), _TOKEN.findall(target)
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        gone, put = "".join(old[i1:i2]), _template(["".join(new[j1:j2])])
        is_separator = len(gone) == 1 and gone != "." and not put.isalnum()
        if tag != "equal" and (is_separator or any(letter.isalpha() for letter in gone)):
            if i1 == 0:
                yield _Candidate(3, f"^{_escape(gone)}", put)
            yield _Candidate(4, _escape(gone), put)


def _template(segments: list[str]) -> str:
    return ".".join(segments).replace("\\", r"\\")


def _escape(text: str) -> str:
    """`re.escape`, but for spaces, which mean themselves."""
    return re.escape(text).replace(r"\ ", " ")
