"""`save_whole` and `load_whole`: a live model kept and given back without its constructor call, and without pickle."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torchkeep.errors import CorruptError, FormatError, LimitError, NotFoundError, PlanError
from torchkeep.folder.parallel import default_threads
from torchkeep.folder.read import FolderSource, leaf_decoder
from torchkeep.folder.structure import STRUCTURE, Structure, decode_structure
from torchkeep.folder.write import Saved
from torchkeep.tensors import Described, Source, name_of, printable
from torchkeep.verbs.saving import draft_of_captured, target_of, write_draft
from torchkeep.verbs.sources import check_bytes, open_source

if TYPE_CHECKING:
    import torch
    from torch import nn

    from torchkeep.live.build import Builder


def save_whole(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_inputs: object = None,
    include_source: bool = False,
    step: int | None = None,
    metrics: Mapping[str, float] | None = None,
    io_threads: int | None = None,
) -> Saved:
    """Save a whole model: its weights as `save` does, and what it takes to have it back without its constructor call.

    Kept are, for each module, its class by name, its attributes, its train or eval flag, its parameters and buffers
    with their ties; hooks are named in the notes and not kept. `load` reads the weights into a model that exists.

    Args:
        model: The module. A wrapper of DataParallel or torch.compile is left out.
        path: As for `save`.
        example_inputs: What to call the model with once (a tuple is positional arguments, a mapping of names keyword
            arguments, all else one argument), in evaluation mode; the outputs are kept for ``load_whole(check=True)``.
        include_source: Keep the text of each class, for people to read; it is never run.
        step: As for `save`.
        metrics: As for `save`.
        io_threads: As for `save`.

    Returns:
        As `save`, with a note for each hook that was not kept.

    Raises:
        FormatError: Attributes that cannot be described (a lambda, a local class, an open file), all of them by name.
        ConflictError, CheckpointError: As for `save`. In every case what was at the path is as before.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> saved = tk.save_whole(model, tempfile.mkdtemp() + "/model")
        >>> tk.load_whole(saved.path)
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
          (1): ReLU()
        )
    """
    from torch import nn

    from torchkeep.live.describe import capture_whole
    from torchkeep.live.fingerprint import as_call

    if not isinstance(model, nn.Module):
        raise TypeError(
            f"save_whole(model, path): the model is {type(model).__name__}; "
            + (
                "are the two arguments swapped?"
                if isinstance(model, (str, os.PathLike))
                else "save(...) keeps all else"
            )
        )
    target = target_of(path)
    call = None if example_inputs is None else as_call(example_inputs)
    captured, notes = capture_whole(model, call, include_source=include_source)
    saved = write_draft(target, draft_of_captured(captured, step, metrics), io_threads)
    return replace(saved, notes=(*saved.notes, *notes))


def load_whole(
    path: str | os.PathLike[str],
    *,
    trust: Iterable[object] = (),
    class_map: Mapping[str, object] | None = None,
    entry: str | None = None,
    strict: bool = True,
    check: bool = False,
    tolerance: float | None = None,
    map_location: str | torch.device | None = None,
) -> nn.Module:
    """Rebuild a live, trainable model from what `save_whole` wrote, or from a pickled module of ``torch.save(model)``.

    No constructor is called and no pickle is run. Only ``torch.nn`` and what `trust` lists is imported;
    docs/design, "Whole models", has the rules.

    Args:
        path: A checkpoint of `save_whole`, or a torch file that holds a pickled module.
        trust: Classes and functions, or dotted names of these, of modules or of packages, whose classes the model may
            be made of. The error for one that is not listed has the list to paste.
        class_map: Names in the file to the class (or the name) that has its place now, for code that moved. A name that
            the file does not have is warned of.
        entry: The key of the module in a file that holds several, dotted.
        strict: Raise when classes set other attributes than at the save. False builds all the same, and warns.
        check: Run the model on the kept example inputs and compare the outputs.
        tolerance: How far outputs may differ, absolute and relative; by default what torch.testing takes for the dtype.
        map_location: Where tensors go: the CPU if None.

    Returns:
        The model, its flags as they were saved.

    Raises:
        UnsafeError: It wants names that are not trusted, or more than a model is made of; nothing was imported.
        PlanError: Its code is not found or has changed, or outputs differ; everything is listed.
        FormatError: The file holds no whole model.
        NotFoundError: There is nothing at the path, no such entry, or no outputs to check.
        CorruptError, LimitError: As for `open`.

    Example:
        >>> import tempfile, torch, torchkeep as tk
        >>> path = tempfile.mkdtemp() + "/model"
        >>> _ = tk.save_whole(torch.nn.LSTM(2, 3), path, example_inputs=torch.ones(4, 1, 2))
        >>> tk.load_whole(path, check=True)
        LSTM(2, 3)
    """
    from torchkeep.live.build import Builder
    from torchkeep.live.code_changes import changes_of
    from torchkeep.live.rebuild import Rebuilding
    from torchkeep.live.trust import Trust

    trusted = Trust(trust, class_map)
    source = open_source(path)
    try:
        structure = _structure_of(source, entry)
        if check and structure.fingerprint is None:
            remedy = "save_whole(..., example_inputs=...) keeps some"
            raise NotFoundError("it holds no outputs to check", where=source.path, remedy=remedy)
        builder = Builder(source, "cpu" if map_location is None else map_location)
        rebuilding = Rebuilding(structure.root, trusted, builder)
        changes = changes_of(rebuilding.wanted.objects, rebuilding.classes, structure.sources)
        if strict and changes.faults:
            count = f"{len(changes.faults)} attribute{'' if len(changes.faults) == 1 else 's'}"
            remedy = "strict=False builds it all the same; load(path, into=model) takes the weights alone"
            raise PlanError(
                f"classes changed since the save: {count}", where=source.path, faults=changes.faults, remedy=remedy
            )
        check_bytes(source, rebuilding.wanted.tensors, default_threads())
        model = rebuilding.build()
        _warn(source, structure, [*changes.faults, *changes.notes])
        for text in trusted.idle_texts(rebuilding.wanted.names):
            warnings.warn(f"{source.path}: {text}", stacklevel=2)
        if check:
            _compare(model, structure, builder, tolerance)
    finally:
        source.close()
    return model


def _structure_of(source: Source, entry: str | None) -> Structure:
    if isinstance(source, FolderSource):
        found = {name: e.facts[STRUCTURE] for name, e in source.record.entries.items() if STRUCTURE in e.facts}
        node = found.get(_chosen(source, list(found), entry))
        try:
            return decode_structure(node, leaf_decoder(source.record, source.path))
        except (CorruptError, LimitError) as error:
            raise type(error)(error.what, where=source.path, faults=error.faults, remedy=error.remedy) from error
    modules = dict(_modules_in(source.tree, ()))
    return Structure(modules[_chosen(source, list(modules), entry)], {}, (), None)


def _chosen(source: Source, names: list[str], entry: str | None) -> str:
    if entry is not None and entry not in names:
        raise NotFoundError(f"no whole model is called {entry!r}", where=source.path, faults=names)
    if not names:
        raise FormatError(
            "it holds weights and no whole model",
            where=source.path,
            remedy="make the model and load(path, into=model); save_whole(model, path) keeps whole models",
        )
    if entry is None and len(names) > 1:
        raise PlanError(f"it holds {len(names)} models", where=source.path, faults=names, remedy="name one: entry=...")
    return names[0] if entry is None else entry


def _modules_in(node: object, path: tuple[object, ...]) -> Iterable[tuple[str, Described]]:
    """Pickled modules at the top of a tree or in the mappings below it, outermost first."""
    if isinstance(node, Described):
        state = node.state
        if isinstance(state, Mapping) and {"_modules", "_parameters"} <= set(state):
            yield name_of(path), node
    elif isinstance(node, Mapping) and len(path) < 3:  # noqa: PLR2004 - as deep as people put a model
        for key, value in node.items():
            yield from _modules_in(value, (*path, key))


def _warn(source: Source, structure: Structure, notes: list[str]) -> None:
    """Say what is not as it was at the save, in one warning."""
    from torchkeep.live.module_tables import RUNNING_KINDS

    running = [each for each in structure.hooks if each[1] in RUNNING_KINDS]
    left_out = (f"{at or 'the model'}: the {kind} hook {name} was not stored" for at, kind, name in running)
    notes = [*notes, *map(printable, left_out)]
    if notes:
        lines = "\n  ".join(notes)
        warnings.warn(f"{source.path}: the model is not in all as it was saved\n  {lines}", stacklevel=3)


def _compare(model: nn.Module, structure: Structure, builder: Builder, tolerance: float | None) -> None:
    from torchkeep.live.fingerprint import differences, outputs_of

    kept = structure.fingerprint
    if kept is None:
        return
    then = builder.value(kept.outputs)
    try:
        now = outputs_of(model, builder.value(kept.args), builder.value(kept.kwargs))
    except Exception as error:
        raise PlanError(
            "the model does not run on the inputs that it was saved with",
            where=builder.source.path,
            faults=[f"{type(error).__name__}: {error}"],
            remedy="its code has changed, or its constructor prepares more than the object; check=False skips this",
        ) from error
    faults = differences(then, now, tolerance)
    if faults:
        raise PlanError(
            f"{len(faults)} of {len(then)} outputs differ from those at the save",
            where=builder.source.path,
            faults=faults,
            remedy="its code, or torch, computes something else now; tolerance=... allows for rounding",
        )
