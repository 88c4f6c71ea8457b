"""``torchkeep tag``: give a checkpoint names to keep it by, or take them away."""

from __future__ import annotations

import argparse
from pathlib import Path

from torchkeep.cli.console import UsageError, Verbs, add_verb, say, say_json


def add_to(verbs: Verbs) -> None:
    """Add the verb to the command line."""
    parser = add_verb(
        verbs,
        "tag",
        run,
        about="Give a checkpoint tags, or take them away; also while its run is being written.",
        examples=[
            "torchkeep tag runs/exp1/step-00001200 paper",
            "torchkeep tag runs/exp1/step-00001200 paper --remove",
            "torchkeep tag runs/exp1/step-00001200                 (says which it has)",
        ],
        notes="torchkeep prune RUN --keep-tagged paper keeps what has the tag.",
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint folder of torchkeep")
    parser.add_argument("tags", metavar="TAG", nargs="*", help="names; without one, those it has are said")
    parser.add_argument("--remove", action="store_true", help="take these tags away")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Change the tags, say all that it has now."""
    from torchkeep.folder.amending import change_tags
    from torchkeep.folder.committed import read_record, tags_of

    path = Path(arguments.checkpoint)
    if arguments.tags:
        gone, new = (arguments.tags, []) if arguments.remove else ([], arguments.tags)
        try:
            tags = change_tags(path, add=new, remove=gone)
        except ValueError as error:
            raise UsageError(f"tag: {error}; nothing was changed") from error
    else:
        tags = tags_of(read_record(path))
    if arguments.json:
        say_json({"path": str(path), "tags": list(tags)})
    else:
        say(f"{path}: {', '.join(tags) or 'no tags'}")
    return 0
