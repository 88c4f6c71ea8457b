"""``torchkeep convert``: a checkpoint in another format, with what is lost said before."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from torchkeep.cli.console import Verbs, add_verb, say, say_json, tell
from torchkeep.cli.progress import ProgressBar
from torchkeep.tensors import format_bytes

if TYPE_CHECKING:
    from torchkeep.verbs.converting import Conversion

KINDS = ("safetensors", "torch", "huggingface", "dcp", "torchkeep")
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "convert",
        run,
        about="Convert a checkpoint of any format to another. What is lost is listed before; nothing is replaced.",
        examples=[
            "torchkeep convert last.ckpt weights.safetensors --dtype bfloat16",
            "torchkeep convert model.safetensors model.pth",
            "torchkeep convert dcp_folder/ hf_folder --to huggingface --max-shard-size 2GB",
            "torchkeep convert old.pth.tar runs/exp1/imported --dry-run",
        ],
        notes="Safetensors and Hugging Face folders hold the weights, or the entry named; the others everything.",
    )
    parser.add_argument("source", metavar="SRC", help="a checkpoint of any format")
    parser.add_argument("target", metavar="DST", help="a new path; its name says the format, a folder is torchkeep's")
    parser.add_argument("--to", choices=KINDS, help="the format, where the name does not say it")
    parser.add_argument("--entry", metavar="KEY", help="take only this entry")
    parser.add_argument("--dtype", metavar="DTYPE", help="cast the weights' floating-point tensors on the way")
    parser.add_argument(
        "--max-shard-size", metavar="SIZE", type=size_of, default=5 * 10**9, help="cut safetensors at this size (5GB)"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what it would do and what would be lost")
    parser.add_argument("--json", action="store_true", help="print JSON")


def size_of(text: str) -> int:
    """A size as people write it, in bytes.

    Example:
        >>> size_of("5GB"), size_of("1.5 MiB"), size_of("700")
        (5000000000, 1572864, 700)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS or float(match[1]) * _UNITS[match[2]] < 1:
        raise argparse.ArgumentTypeError(f"a size is wanted, as 5GB or 500MB, not {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def run(arguments: argparse.Namespace) -> int:
    """Plan it, say what is lost, do it, say what was made."""
    from torchkeep.verbs.converting import plan_conversion

    planned = plan_conversion(
        arguments.source,
        arguments.target,
        to=arguments.to,
        entry=arguments.entry,
        dtype=arguments.dtype,
        max_shard_bytes=arguments.max_shard_size,
    )
    try:
        done = planned.conversion
        for loss in done.losses:
            tell(f"not kept: {loss}")
        if not arguments.dry_run:
            with ProgressBar("converting") as bar:
                done = planned.carry_out(bar)
    finally:
        planned.close()
    for note in done.notes:
        tell(note)
    if arguments.json:
        say_json(describe(done))
    else:
        say(text_of(done))
    return 0


def describe(done: Conversion) -> dict[str, object]:
    """A conversion as plain values for JSON."""
    return {
        "source": str(done.source),
        "target": str(done.target),
        "to": done.to.value,
        "entry": done.entry,
        "tensor_count": done.tensor_count,
        "total_bytes": done.total_bytes,
        "losses": list(done.losses),
        "files": [str(path) for path in done.files],
        "notes": list(done.notes),
    }


def text_of(done: Conversion) -> str:
    """What was made, or would be."""
    what = f"{done.tensor_count:,} tensor{'' if done.tensor_count == 1 else 's'}, {format_bytes(done.total_bytes)}"
    entry = f" of {done.entry}" if done.entry else ""
    if not done.files:
        return f"would write {what}{entry} to {done.target} ({done.to.value})"
    return "\n".join(
        f"{path}: {what}{entry} ({done.to.value})" if path == done.files[0] else f"{path}" for path in done.files
    )
