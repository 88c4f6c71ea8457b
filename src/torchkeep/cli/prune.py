"""``torchkeep prune``: remove what need not be kept of a run."""

from __future__ import annotations

import argparse
import re
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Literal, cast

from torchkeep.cli.console import UsageError, Verbs, add_verb, say, say_json, tell

if TYPE_CHECKING:
    from torchkeep.policies import RetentionPolicy
    from torchkeep.verbs.pruning import Pruned

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "prune",
        run,
        about="Remove the checkpoints of a run that no rule keeps, and say why each stays or goes.",
        examples=[
            "torchkeep prune runs/exp1 --keep-last 3 --dry-run",
            "torchkeep prune runs/exp1 --keep-last 3 --keep-best 2:val_acc:max --keep-tagged paper",
            "torchkeep prune runs/exp1 --keep-within 200GB --optimizer-in-last 2",
            "torchkeep prune runs/exp1 --dry-run      (by the policy that its training kept by)",
        ],
        notes="What any --keep rule keeps stays; --keep-within and --optimizer-in-last then thin that.\n"
        "Without any, what the run's own policy keeps stays: its last save recorded it.\n"
        "The newest checkpoint and the newest that verifies always stay. A run that is being written is refused.",
    )
    parser.add_argument("run_folder", metavar="RUN", help="a run folder, which holds checkpoints by step")
    add_keeps(parser)
    parser.add_argument("--dry-run", action="store_true", help="remove nothing; print what would go and why")
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_keeps(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options that say what to keep; `policy_of` makes a policy of them."""
    parser.add_argument("--keep-last", metavar="N", type=int, help="the newest N")
    parser.add_argument(
        "--keep-best",
        metavar="N:METRIC:max|min",
        action="append",
        default=[],
        help="the best N; repeatable",
    )
    parser.add_argument("--keep-every", metavar="STEPS", type=int, help="those after a multiple of STEPS steps")
    parser.add_argument(
        "--keep-tagged", metavar="TAG", action="append", nargs="?", const="", help="those with a tag; repeatable"
    )
    parser.add_argument("--keep-within", metavar="SIZE", help="as many as fit, sparser with age: 200GB, 1.5TiB")
    parser.add_argument("--optimizer-in-last", metavar="N", type=int, help="optimizer state in the newest N only")


def run(arguments: argparse.Namespace) -> int:
    """Prune and report; damaged checkpoints and what could not be removed go to stderr."""
    from torchkeep.verbs.pruning import prune

    pruned = prune(arguments.run_folder, policy_of(arguments), dry_run=arguments.dry_run)
    if arguments.json:
        say_json(describe(pruned))
    else:
        say(str(pruned))
    for note in pruned.notes:
        tell(note)
    return 0


def policy_of(arguments: argparse.Namespace) -> RetentionPolicy | None:
    """The policy that the options mean; None without any."""
    from torchkeep.policies import KeepBest, KeepEvery, KeepLast, KeepTagged, KeepWithin, OptimizerInLast

    keeps: list[RetentionPolicy] = []
    try:
        if arguments.keep_last is not None:
            keeps.append(KeepLast(arguments.keep_last))
        for text in arguments.keep_best:
            n, _, rest = text.partition(":")
            metric, _, mode = rest.rpartition(":")
            if not n.isdigit() or not metric:
                raise UsageError(f"--keep-best {text}: N:METRIC:max or N:METRIC:min is wanted, as 2:val_acc:max")
            keeps.append(KeepBest(int(n), metric, mode=cast("Literal['max', 'min']", mode)))  # it says what it takes
        if arguments.keep_every is not None:
            keeps.append(KeepEvery(arguments.keep_every))
        if arguments.keep_tagged is not None:
            keeps.append(KeepTagged(*(tag for tag in arguments.keep_tagged if tag)))
        thins: list[RetentionPolicy] = []
        if arguments.keep_within is not None:
            thins.append(KeepWithin(bytes_of(arguments.keep_within)))
        if arguments.optimizer_in_last is not None:
            thins.append(OptimizerInLast(arguments.optimizer_in_last))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not keeps and not thins:
        return None
    policy = reduce(or_, keeps) if keeps else thins.pop(0)
    for thin in thins:
        policy = policy & thin
    return policy


def bytes_of(text: str) -> int:
    """A size as a number of bytes.

    Example:
        >>> bytes_of("200GB"), bytes_of("1.5 KiB"), bytes_of("7")
        (200000000000, 1536, 7)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?i?)B?", text.strip())
    unit = match[2].replace("K", "k") if match and not match[2].endswith("i") else match[2] if match else None
    unit = {"ki": "Ki"}.get(unit or "", unit)
    if match is None or unit not in _UNITS:
        raise UsageError(f"{text!r} is not a size; 200GB or 1.5TiB is")
    return int(float(match[1]) * _UNITS[unit])


def describe(pruned: Pruned) -> dict[str, object]:
    """What was decided as plain values for JSON."""
    return {
        "path": str(pruned.folder),
        "dry_run": pruned.is_dry_run,
        "freed_bytes": pruned.freed_bytes,
        "own_policy": pruned.own_policy,
        "checkpoints": [
            {
                "step": each.step,
                "keep": each.keep,
                "drops_optimizers": each.drops_optimizers,
                "reasons": list(each.reasons),
            }
            for each in pruned.decisions
        ],
        "notes": list(pruned.notes),
    }
