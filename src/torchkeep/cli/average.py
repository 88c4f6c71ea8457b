"""``torchkeep average``: one state dict of several checkpoints' weights."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from torchkeep.cli.console import UsageError, Verbs, add_verb, say, say_json, tell
from torchkeep.cli.convert import KINDS
from torchkeep.cli.progress import ProgressBar

if TYPE_CHECKING:
    from torchkeep.verbs.averaging import Averaged


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "average",
        run,
        about="Average the weights of checkpoints of any formats into one new state dict.",
        examples=[
            "torchkeep average a.ckpt b.ckpt c.ckpt -o soup.safetensors",
            "torchkeep average runs/exp1 --best 3 --metric val_acc --mode max -o soup",
            "torchkeep average runs/exp1 --ema 0.9 -o ema.pth",
            "torchkeep average a.pth b.pth --weights 3 1 -o soup.pth",
        ],
        notes="Integers are the last checkpoint's. Running statistics of batch norms are averaged, which is an\n"
        "approximation; --buffers last takes the last checkpoint's, and torch.optim.swa_utils.update_bn is exact.",
    )
    parser.add_argument(
        "checkpoints", metavar="CKPT|RUN", nargs="+", help="checkpoints of any formats, or one run folder"
    )
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="a new path; its name says the format")
    parser.add_argument("--to", choices=KINDS, help="the format, where the name does not say it")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--weights", metavar="W", type=float, nargs="+", help="a number per checkpoint; scaled to add up to 1"
    )
    how.add_argument("--ema", metavar="DECAY", type=float, help="exponential moving average in the order of the steps")
    parser.add_argument(
        "--buffers", choices=("average", "last"), default="average", help="running statistics (average)"
    )
    parser.add_argument("--entry", metavar="KEY", help="where the weights are, when it cannot be told")
    best = parser.add_argument_group("of a run")
    best.add_argument("--best", metavar="N", type=int, help="take the best N by a metric; without it, all")
    best.add_argument("--metric", metavar="NAME", help="which metric")
    best.add_argument("--mode", choices=("min", "max"), help="whether less or more is better")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Choose the checkpoints, average them, say what was made."""
    from torchkeep.verbs.averaging import average

    chosen = _chosen(arguments)
    if arguments.weights is not None and len(arguments.weights) != len(chosen):
        raise UsageError(
            f"--weights: {len(chosen)} numbers are wanted, one per checkpoint; not {len(arguments.weights)}"
        )
    try:
        with ProgressBar("averaging") as bar:
            made = average(
                chosen,
                arguments.output,
                weights=arguments.weights,
                ema_decay=arguments.ema,
                buffers=arguments.buffers,
                entry=arguments.entry,
                to=arguments.to,
                progress=bar,
            )
    except ValueError as error:
        raise UsageError(str(error)) from error
    for note in made.notes:
        tell(note)
    if arguments.json:
        say_json(describe(made))
    else:
        say(text_of(made))
    return 0


def _chosen(arguments: argparse.Namespace) -> list[Path]:
    """The checkpoints that are named, or those of the run that is."""
    from torchkeep.folder.record import RECORD_NAME
    from torchkeep.verbs.listing import checkpoints

    paths = [Path(path) for path in arguments.checkpoints]
    wants_best = arguments.best is not None or arguments.metric or arguments.mode
    is_run = len(paths) == 1 and paths[0].is_dir() and not os.path.lexists(paths[0] / RECORD_NAME)
    run_folder = checkpoints(paths[0]) if is_run else ()
    if not run_folder:
        if wants_best:
            raise UsageError("--best, --metric and --mode choose among the checkpoints of one run folder")
        return paths
    if not wants_best:
        return [each.path for each in run_folder]
    if arguments.best is None or arguments.metric is None or arguments.mode is None or arguments.best < 1:
        raise UsageError("--best N, --metric NAME and --mode min|max go together; N is 1 or more")
    return [each.path for each in run_folder.best(arguments.metric, mode=arguments.mode, n=arguments.best)]


def describe(made: Averaged) -> dict[str, object]:
    """An average as plain values for JSON."""
    return {
        "target": str(made.target),
        "files": [str(path) for path in made.files],
        "sources": [
            {"path": str(path), "weight": weight} for path, weight in zip(made.sources, made.weights, strict=True)
        ],
        "averaged": list(made.averaged),
        "copied": list(made.copied),
        "notes": list(made.notes),
    }


def text_of(made: Averaged) -> str:
    """What was made, and of what."""
    lines = [f"{made.target}: {len(made.averaged):,} tensors averaged, {len(made.copied):,} of the last checkpoint"]
    return "\n".join(
        [*lines, *(f"  {weight:.6g}  {path}" for path, weight in zip(made.sources, made.weights, strict=True))]
    )
