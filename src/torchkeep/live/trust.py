"""Which names of a file may become classes and functions, and how a name is followed without running anything.

Whether a name is admitted is decided by its text, for all names at once, before the first import.
"""

from __future__ import annotations

import difflib
import enum
import functools
import importlib
import inspect
import sys
import types
from collections.abc import Iterable, Mapping

from torchkeep.errors import PlanError, UnsafeError
from torchkeep.formats.dangerous_names import is_dangerous
from torchkeep.live.functions import known_values
from torchkeep.live.modules import StandStill
from torchkeep.tensors import printable

_FREE_PACKAGES = ("torch.nn",)
_FREE_CLASSES: tuple[type, ...] = (StandStill,)
_FUNCTION_TYPES = (types.FunctionType, types.BuiltinFunctionType, functools._lru_cache_wrapper)  # noqa: SLF001 - it has no other name
_TOO_WIDE = frozenset(("torch", "builtins", "torch._C", "io", "operator", "functools"))
_SHOWN_NAMES = 8


class Trust:
    """What a caller of `load_whole` admits beside torch.nn.

    Args:
        trust: Classes and functions; dotted names of classes, functions, modules and packages; modules.
        class_map: Names in the file to the class, function or name that has its place now.

    Raises:
        TypeError: Something in them is neither.
        ValueError: A package that holds what runs programs or reads files, such as ``torch`` as a whole.
    """

    def __init__(self, trust: Iterable[object] = (), class_map: Mapping[str, object] | None = None) -> None:
        if isinstance(trust, (str, type, types.ModuleType)) or callable(trust):
            trust = [trust]
        if not isinstance(trust, Iterable):
            raise TypeError(
                f"trust is a list of classes and dotted names, not {trust!r}: name what the file may import"
            )
        self._objects: dict[str, object] = {path_of(each): each for each in _FREE_CLASSES}
        self._packages: list[str] = []
        self._moved: dict[str, str] = {}
        self._mapped: list[str] = []
        for each in trust:
            self._admit(each)
        if class_map is not None and not isinstance(class_map, Mapping):
            raise TypeError(f"class_map is a {type(class_map).__name__}: names in the file to classes are wanted")
        for name, new in ({} if class_map is None else class_map).items():
            old = name.replace(":", ".")
            self._mapped.append(old)
            if isinstance(new, str):
                self._moved[old] = new
            else:
                self._admit(new)
                self._objects[old] = new

    def _admit(self, each: object) -> None:
        if isinstance(each, (type, *_FUNCTION_TYPES)):
            self._objects[path_of(each)] = each
            return
        name = each.__name__ if isinstance(each, types.ModuleType) else each
        if not isinstance(name, str):
            raise TypeError(f"trust holds a {type(each).__name__}: classes, functions and dotted names are wanted")
        name = name.replace(":", ".")
        if not name or not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"trust={name!r} is no dotted name of a class or package; everything cannot be trusted")
        if name in _TOO_WIDE or is_dangerous(*_split(f"{name}.x")) or is_dangerous(*_split(name)):
            raise ValueError(
                f"trust={name!r} would admit what runs programs or reads files; name the classes that the error lists"
            )
        self._packages.append(name)

    def current(self, name: str) -> str:
        """The dotted name that a name of the file has now."""
        path = name.replace(":", ".")
        for old, new in self._moved.items():
            if path == old or path.startswith(f"{old}."):
                return new + path[len(old) :]
        return path

    def idle_texts(self, names: Iterable[str]) -> list[str]:
        """A line for each name of the class map that is none of a file's, nor stands above one."""
        paths = [name.replace(":", ".") for name in names]
        idle = [old for old in self._mapped if not any(self._is_inside(path, [old]) for path in paths)]
        near = {old: difflib.get_close_matches(old, paths, 1) for old in idle}
        return [
            f"class_map names {old!r}, which the file does not{f': it names {near[old][0]!r}' if near[old] else ''}"
            for old in idle
        ]

    def refusal(self, name: str) -> str | None:
        """Why a name is not admitted, by its text alone: ``"dangerous"``, ``"malformed"`` or ``"not trusted"``."""
        path = self.current(name)
        if path in self._objects or path in known_values():
            return None
        parts = path.split(".")
        is_main = parts[0] == "__main__"
        if len(parts) < 2 or not all(p.isidentifier() and not p.startswith("__") for p in parts[is_main:]):  # noqa: PLR2004 - a module and a name
            return "malformed"
        if parts[0] == "builtins" or is_dangerous(*_split(path)) or is_dangerous(*_split(name)):
            return "dangerous"
        return None if self._is_inside(path, (*_FREE_PACKAGES, *self._packages)) else "not trusted"

    @staticmethod
    def _is_inside(path: str, packages: Iterable[str]) -> bool:
        return any(path == each or path.startswith(f"{each}.") for each in packages)

    def resolve(self, name: str) -> object:
        """The class, function or enum member of an admitted name.

        Raises:
            PlanError: It is not where the name says; nothing stands there, or its module does not import.
            UnsafeError: What stands there is something else, or comes from elsewhere.
        """
        path = self.current(name)
        if path in self._objects:
            return self._objects[path]
        if path in known_values():
            return known_values()[path]
        module, qualname = self._module_of(path if name.replace(":", ".") != path else name)
        found = _follow(module, qualname)
        if isinstance(found, (type, enum.Enum)):
            return found
        if isinstance(found, _FUNCTION_TYPES) and self._is_inside(path, self._packages):
            return found
        raise UnsafeError(f"{path} is a {type(found).__name__}, which only a trusted package may give")

    def _module_of(self, name: str) -> tuple[types.ModuleType, str]:
        """The module of a name and what follows it; of a dotted name, the longest part that is a module."""
        text, _, qualname = name.partition(":")
        if qualname:
            return _import(text), qualname
        parts = text.split(".")
        for cut in range(len(parts) - 1, 0, -1):
            try:
                return _import(".".join(parts[:cut])), ".".join(parts[cut:])
            except _AbsentModuleError:
                continue
        raise PlanError(f"{name}: no module {parts[0]!r} is here")


class _AbsentModuleError(PlanError):
    pass


def _import(name: str) -> types.ModuleType:
    try:
        found = sys.modules.get(name) or importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise _AbsentModuleError(f"no module {error.name!r} is here") from error
        raise PlanError(f"{name} does not import: {error}") from error
    except Exception as error:
        raise PlanError(f"{name} does not import: {type(error).__name__}: {error}") from error
    if not issubclass(type(found), types.ModuleType):
        raise UnsafeError(f"{name} is no module")
    return found


def _follow(module: types.ModuleType, qualname: str) -> object:
    """Follow a qualified name through plain dictionaries: every step but the last is a class defined in this module."""
    path = f"{module.__name__}.{qualname}"
    names: Mapping[str, object] = object.__getattribute__(module, "__dict__")
    found: object = module
    for part in qualname.split("."):
        if found is not module and not issubclass(type(found), type):
            raise UnsafeError(f"{path}: the name leads through a {type(found).__name__}")
        if isinstance(found, enum.EnumType) and part in found.__members__:
            return found.__members__[part]
        if found is not module:
            names = type.__getattribute__(found, "__dict__")
        if part not in names:
            raise PlanError(f"{path}: nothing is there any more")
        found = names[part]
    found = found.__func__ if type(found) is staticmethod else found
    if not isinstance(found, (type, *_FUNCTION_TYPES)):
        raise UnsafeError(f"{path} is a {type(found).__name__}, neither a class nor a function")
    if path_of(found) != path:
        raise UnsafeError(f"{path} is {path_of(found)}, which is defined elsewhere and has to be named so")
    return found


def path_of(value: object) -> str:
    """The dotted name that a class or function says it has."""
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', None)}"


def find_again(value: object) -> str | None:
    """The ``"module:name"`` by which a class or function is found again as it is; None if it is not."""
    module, qualname = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or module not in sys.modules:
        return None
    try:
        return f"{module}:{qualname}" if _follow(sys.modules[module], qualname) is value else None
    except (PlanError, UnsafeError):
        return None


def _split(name: str) -> tuple[str, str]:
    module, _, name = name.rpartition(":" if ":" in name else ".")
    return module, name


def find_method(cls: type, name: str) -> object:
    """The function of that name in a class or its bases, plain or of the class; None for anything else."""
    found = inspect.getattr_static(cls, name, None)
    return found if isinstance(found, (types.FunctionType, classmethod)) else None


def resolve_all(wanted: Mapping[str, str], trust: Trust, where: object) -> dict[str, object]:
    """What every wanted name means: all are admitted before the first is looked up.

    Args:
        wanted: Names in the file, each with the place that wants it.
        trust: What is admitted.
        where: The file, for messages.

    Raises:
        UnsafeError: Names are not admitted, or lead elsewhere; all of them are listed.
        PlanError: Names are not found in the code of today; all of them are listed.
    """
    refusals = {name: why for name in wanted if (why := trust.refusal(name)) is not None}
    if refusals:
        raise _refused(refusals, wanted, trust, where)
    found: dict[str, object] = {}
    absent: list[str] = []
    elsewhere: list[str] = []
    for name, place in wanted.items():
        try:
            found[name] = trust.resolve(name)
        except PlanError as error:
            absent.append(f"{error.what}   (of {place})")
        except UnsafeError as error:
            elsewhere.append(f"{error.what}   (of {place})")
    if elsewhere:
        raise UnsafeError("names in the file lead where they may not", where=str(where), faults=elsewhere)
    if absent:
        count = f"{len(absent)} name{'' if len(absent) == 1 else 's'}"
        remedy = 'where the code moved: load_whole(..., class_map={"old.path.Net": Net})'
        faults = [*absent, *trust.idle_texts(wanted)]
        raise PlanError(f"{count} of the model not found", where=str(where), faults=faults, remedy=remedy)
    return found


def _refused(refusals: Mapping[str, str], wanted: Mapping[str, str], trust: Trust, where: object) -> UnsafeError:
    shown = {name: printable(trust.current(name)) for name in refusals}
    width = max(map(len, shown.values()))
    faults = [f"{shown[name]:<{width}}   of {wanted[name]}" for name in refusals]
    dangerous = [name for name, why in refusals.items() if why != "not trusted"]
    if dangerous:
        first = [fault for name, fault in zip(refusals, faults, strict=True) if name in dangerous]
        return UnsafeError(
            f"the file wants {', '.join(shown[n] for n in dangerous[:_SHOWN_NAMES])}; nothing was imported or called",
            where=str(where),
            faults=first,
            remedy="no model needs this in its file: ask for its weights alone, and who made it what it is for",
        )
    names = sorted(shown.values())
    count = f"{len(names)} name{' that is' if len(names) == 1 else 's that are'}"
    hint = f"if you would import them yourself: load_whole(..., trust={names!r})".replace("'", '"')
    packages = sorted({name.partition(".")[0] for name in names} - {"torch", "__main__"})
    if len(names) > _SHOWN_NAMES and packages:
        hint += f"\n        or whole packages: trust={packages!r}".replace("'", '"')
    if any(name.startswith("__main__.") for name in names):
        hint += '\n        __main__ is the script that saved: class_map={"__main__.Net": Net} says where Net is now'
    faults += trust.idle_texts(wanted)
    return UnsafeError(
        f"the model wants {count} not trusted; nothing was imported", where=str(where), faults=faults, remedy=hint
    )
