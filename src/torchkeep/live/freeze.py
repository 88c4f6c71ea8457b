"""Which parameters train: freezing by glob, and parameter groups of what is left."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from torchkeep.live.modules import (
    CheckpointNames,
    StandStill,
    named_modules,
    named_parameters,
    require_module,
    stands_still,
)
from torchkeep.planning.globs import matches


def freeze(model: nn.Module, *names: str, batch_norm: bool = False) -> tuple[str, ...]:
    """Stop parameters from training.

    Args:
        model: Any module; wrappers such as DataParallel are seen through.
        *names: Names or globs: ``*`` crosses dots, a bare ``layer4`` means everything under it. Names of buffers are
            accepted, so what a plan loaded can be given as it is.
        batch_norm: Whether batch norms under those names also use and keep their running statistics, until unfrozen.

    Returns:
        The names of the parameters that are frozen now and were named.

    Raises:
        ValueError: A name that fits nothing in the model; nothing was changed.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> freeze(model, "0")
        ('0.weight', '0.bias')
    """
    require_module("freeze", model)
    frozen = _parameters_named(model, names)
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    if batch_norm:
        for norm in _batch_norms_named(model, names):
            norm.eval()
            if not stands_still(norm):
                norm.register_forward_pre_hook(StandStill())
    return tuple(frozen)


def unfreeze(model: nn.Module, *names: str) -> tuple[str, ...]:
    """Let parameters train again, and batch norms under those names move their statistics again.

    Args:
        model: Any module; wrappers such as DataParallel are seen through.
        *names: As for `freeze`.

    Returns:
        The names of the parameters that train now and were named.

    Raises:
        ValueError: A name that fits nothing in the model; nothing was changed.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> _ = freeze(model, "*")
        >>> unfreeze(model, "bias")
        ('bias',)
    """
    require_module("unfreeze", model)
    named = _parameters_named(model, names)
    for parameter in named.values():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    for norm in _batch_norms_named(model, names):
        hooks = norm._forward_pre_hooks  # noqa: SLF001 - hooks have no public list
        for key in [key for key, hook in hooks.items() if isinstance(hook, StandStill)]:
            del hooks[key]
            norm.train(model.training)
    return tuple(named)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that train, each once, in the model's order: what to give to an optimizer.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> _ = freeze(model, "0")
        >>> [tuple(parameter.shape) for parameter in trainable(model)]
        [(1, 2), (1,)]
    """
    require_module("trainable", model)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def param_groups(
    model: nn.Module, options: Mapping[str | tuple[str, ...], Mapping[str, object]]
) -> list[dict[str, object]]:
    """Parameter groups of what trains, by glob; where several globs fit a parameter, the last one wins.

    Args:
        model: Any module; wrappers such as DataParallel are seen through.
        options: Glob to the options of its group, for example ``{"*": {"lr": 1e-4}, "fc": {"lr": 1e-2}}``. A tuple of
            names or globs, such as ``plan.fresh`` and what `replace_head` returns, is one group. Names of buffers are
            accepted; an empty tuple is no group.

    Returns:
        One group per key that has parameters, in the order given, as torch optimizers take them.

    Raises:
        ValueError: A glob that fits no parameter, or parameters that train and fit no glob; all of them are named.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> groups = param_groups(model, {"*": {"lr": 0.1}, "1": {"lr": 0.2}})
        >>> [(group["lr"], len(group["params"])) for group in groups]
        [(0.1, 2), (0.2, 2)]
    """
    require_module("param_groups", model)
    wrong = [glob for glob, group in options.items() if not isinstance(group, Mapping)]
    if wrong:
        raise TypeError(f'the options of {wrong[0]!r} are a mapping, as {{"lr": 1e-3}}; not {options[wrong[0]]!r}')
    named = dict(named_parameters(model))
    known = _known_names(model)
    members = {key: _Selection.of(key if isinstance(key, tuple) else (key,), known) for key in options}
    _refuse_unknown([glob for selection in members.values() for glob in selection.globs], known)
    groups: dict[str | tuple[str, ...], list[nn.Parameter]] = {key: [] for key in options}
    left_over = []
    seen: set[int] = set()
    for name, parameter in named.items():
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        fitting = [key for key, selection in members.items() if name in selection]
        if fitting:
            groups[fitting[-1]].append(parameter)
        else:
            left_over.append(name)
    if left_over:
        raise ValueError(f'no glob fits {", ".join(left_over)}: add "*" for all others, or freeze them')
    return [{"params": parameters, **options[glob]} for glob, parameters in groups.items() if parameters]


def _parameters_named(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    known = _known_names(model)
    if not names:
        raise ValueError('no names are given; "*" means all')
    selection = _Selection.of(names, known)
    _refuse_unknown(selection.globs, known)
    return {name: parameter for name, parameter in named_parameters(model) if name in selection}


def _known_names(model: nn.Module) -> set[str]:
    """The names of all parameters and buffers."""
    checkpoint_name = CheckpointNames(model)
    return {checkpoint_name(name) for name, _ in model.named_buffers()} | {name for name, _ in named_parameters(model)}


@dataclass(frozen=True, slots=True)
class _Selection:
    """Names and globs: a name of the model means only itself, whatever characters it has."""

    names: frozenset[str]
    globs: tuple[str, ...]

    @classmethod
    def of(cls, given: Sequence[str], known: Collection[str]) -> _Selection:
        """Tell names from globs."""
        names = frozenset(each for each in given if isinstance(each, str) and each in known)
        return cls(names, tuple(each for each in given if not isinstance(each, str) or each not in known))

    def __contains__(self, name: str) -> bool:
        return name in self.names or any(matches(glob, name) for glob in self.globs)


def _refuse_unknown(globs: Iterable[str], known: Collection[str]) -> None:
    globs = list(globs)
    wrong = [glob for glob in globs if not isinstance(glob, str)]
    if wrong:
        raise TypeError(f"a name is a string, not a {type(wrong[0]).__name__}; a list of names takes a star: *names")
    unknown = [glob for glob in globs if not any(matches(glob, name) for name in known)]
    if unknown:
        parts = {name.rsplit(".", depth)[0]: None for name in known for depth in range(name.count(".") + 1)}
        close = {glob: difflib.get_close_matches(glob, parts, n=1) for glob in unknown}
        shown = [repr(glob) + (f" (close: {near[0]!r})" if near else "") for glob, near in close.items()]
        raise ValueError(f"nothing in the model is called {', '.join(shown)}")


def _batch_norms_named(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The batch norms of which the module, a parameter or a statistic is named."""
    return [
        module
        for name, module in named_modules(model)
        if isinstance(module, nn.modules.batchnorm._NormBase)  # noqa: SLF001 - the base of all batch norms
        and any(matches(glob, own) for glob in names for own in (name, f"{name}.weight", f"{name}.running_mean"))
    ]
