"""Which optimizers keep the same kinds of state, by their classes and by the state itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from torchkeep.live.modules import class_path

PARAMETER_SHAPED = frozenset(
    {
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "sum"),
        *("square_avg", "grad_avg", "acc_delta", "ax", "prev", "variance"),
    }
)

_LBFGS = "func_evals n_iter d t old_dirs old_stps ro H_diag prev_flat_grad prev_loss al"
# Per class of torch what its state must have, and what it may; a step counter comes with most.
_KINDS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    name: (frozenset(must.split()), frozenset(may.split()))
    for name, must, may in (
        ("SGD", "", "momentum_buffer"),
        ("Adam", "exp_avg exp_avg_sq", "max_exp_avg_sq"),
        ("AdamW", "exp_avg exp_avg_sq", "max_exp_avg_sq"),
        ("SparseAdam", "exp_avg exp_avg_sq", ""),
        ("NAdam", "exp_avg exp_avg_sq mu_product", ""),
        ("RAdam", "exp_avg exp_avg_sq", ""),
        ("Adamax", "exp_avg exp_inf", ""),
        ("Adagrad", "sum", ""),
        ("Adadelta", "square_avg acc_delta", ""),
        ("RMSprop", "square_avg", "momentum_buffer grad_avg"),
        ("Rprop", "prev step_size", ""),
        ("ASGD", "eta mu ax", ""),
        ("Adafactor", "", "row_var col_var variance"),
        ("Muon", "momentum_buffer", ""),
        ("LBFGS", "func_evals n_iter", _LBFGS),
    )
}
_SAME = {"AdamW": "Adam"}  # one class's state is the other's


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether saved state is an optimizer's own kind.

    Attributes:
        mismatch: Why a strict load refuses it; "" when it does not.
        unusable: Whether nothing of it can be used at all.
    """

    mismatch: str = ""
    unusable: bool = False


def judge(saved_class: str | None, optimizer: torch.optim.Optimizer, states: Iterable[object]) -> Fit:
    """Whether state is of the kind that an optimizer keeps.

    The same class, wherever it is imported from, has the same; so do Adam and AdamW, and a class and what is derived
    from it. Of other classes, and where the file names none, the state's own keys must be those of the optimizer.

    Args:
        saved_class: The path of the class that it was saved from; None where the file does not say it.
        optimizer: The live one.
        states: The saved state of each parameter.
    """
    here = class_path(optimizer)
    if saved_class == here:
        return Fit()
    kinds = [frozenset(map(str, each)) - {"step"} for each in states if isinstance(each, Mapping) and each]
    misfit = next(filter(None, (_misfit(each, optimizer) for each in dict.fromkeys(kinds))), "")
    if saved_class is None:
        return Fit(misfit, bool(misfit))
    differs = f"saved from {saved_class}, and this is {here}: one's state is not the other's"
    if misfit:
        return Fit(differs, unusable=True)
    return Fit("" if _is_relative(saved_class, optimizer) else differs)


def _is_relative(saved_class: str, optimizer: torch.optim.Optimizer) -> bool:
    """Whether a class that is not the optimizer's own keeps the same state, as far as names tell; its state fits."""
    name = saved_class.rpartition(".")[2]
    if name in {each.__name__ for each in _own_classes(optimizer)}:
        return True
    nearest = _nearest(optimizer)
    if nearest is None:
        return False
    if not saved_class.startswith("torch.optim."):
        return True
    return _SAME.get(name, name) == _SAME.get(nearest.__name__, nearest.__name__)


def _own_classes(optimizer: torch.optim.Optimizer) -> list[type[torch.optim.Optimizer]]:
    """The classes of an optimizer below torch's base of all."""
    above = torch.optim.Optimizer.__mro__
    return [each for each in type(optimizer).__mro__ if each not in above and issubclass(each, torch.optim.Optimizer)]


def _nearest(optimizer: torch.optim.Optimizer) -> type[torch.optim.Optimizer] | None:
    """The class of torch that an optimizer is of, or is derived from."""
    own = _own_classes(optimizer)
    return next((each for each in own if each.__module__.startswith("torch.optim") and each.__name__ in _KINDS), None)


def _misfit(keys: frozenset[str], optimizer: torch.optim.Optimizer) -> str:
    """Why a parameter's state with such keys cannot be an optimizer's; "" if it can, or nothing tells."""
    nearest, name = _nearest(optimizer), type(optimizer).__name__
    if nearest is None:
        held = [frozenset(map(str, each)) - {"step"} for each in optimizer.state.values() if each]
        apart = held and keys and not any(keys & each for each in held)
        return f"its state has {_listed(keys)}, and that of {name} has {_listed(held[0])}" if apart else ""
    must, may = _KINDS[nearest.__name__]
    strange = keys - must - may
    is_known = any(one <= keys <= one | other for one, other in _KINDS.values())
    if type(optimizer) is not nearest and not is_known:
        strange = frozenset()  # what a derived class adds
    missing = frozenset() if _steps_by_itself(optimizer, nearest) else must - keys
    if strange:
        return f"its state has {_listed(strange)}, which {name} does not keep"
    return f"its state lacks {_listed(missing)}, which {name} needs" if missing else ""


def _steps_by_itself(optimizer: torch.optim.Optimizer, base: type[torch.optim.Optimizer]) -> bool:
    """Whether a derived class has a step of its own, and may keep other state; torch wraps each class's step."""
    return inspect.unwrap(type(optimizer).step) is not inspect.unwrap(base.step)


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(sorted(keys))
