"""The plain Python values that a pickle may name: each is made by a constructor of ours that checks what it is given.

Nothing here trusts an argument. What a constructor declines stays `Described`, with all that the stream said of it.
"""

from __future__ import annotations

import datetime as dt
import decimal
import fractions
import pathlib
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from types import SimpleNamespace

from torchkeep.errors import UnsafeError
from torchkeep.formats import pickle_configs, pickle_numpy
from torchkeep.formats.dangerous_names import is_dangerous
from torchkeep.formats.faults import MalformedError
from torchkeep.formats.pickle_machine import check_key, set_described_state
from torchkeep.tensors import Described, Named

Constructor = Callable[..., object]
Finisher = Callable[[Described, object], object]

_OLD_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "UserDict": "collections",
    "exceptions": "builtins",
    "pathlib._local": "pathlib",
}
_OLD_BUILTINS = {"xrange": "range", "long": "int", "unicode": "str"}
# The constructors take the bytes that pickle writes, which the type stubs do not say.
_AnyDatetime: Callable[..., dt.datetime] = dt.datetime
_AnyDate: Callable[..., dt.date] = dt.date
_AnyTime: Callable[..., dt.time] = dt.time
_FACTORIES: Mapping[str, Callable[[], object]] = {
    f"builtins.{kind.__name__}": kind for kind in (int, float, str, list, dict, set, tuple, bool, bytes)
}


class DeclinedError(Exception):
    """These arguments are not the ones that pickle writes for such a value."""


class PlainVocabulary:
    """Plain values, numpy arrays and scalars; everything else is described."""

    def name(self, module: str, name: str) -> Named:
        """The global of that name.

        Raises:
            UnsafeError: Its only use in a file is to run or reach something. Safety does not rest on this: no global
                is ever called, so one that is not known to be dangerous is described and does nothing.
        """
        if module == "__builtin__":
            name = _OLD_BUILTINS.get(name, name)
        module = _OLD_MODULES.get(module, module)
        path = f"{module}.{name}"
        if is_dangerous(module, name):
            raise UnsafeError(
                f"the file wants to use {path}, and nothing of it was run",
                faults=[f"it names {path}"],
                remedy="ask for a file of tensors only, and load this one with nothing that runs pickles",
            )
        return Named(path)

    def construct(self, callee: Described, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
        """A plain value where a constructor of ours knows the call, else its description."""
        if not isinstance(callee, Named):
            return Described(f"{callee.class_path}.__call__", (callee, *args), kwargs)
        if callee.class_path == "builtins.getattr" and len(args) == 2:
            owner, name = args
            if isinstance(owner, Named) and isinstance(name, str):
                return self.name(owner.class_path, name)
        if callee.class_path in {"copyreg._reconstructor", "copyreg.__newobj__"} and args:
            return self._reconstruct(args)
        make = None if kwargs else CONSTRUCTORS.get(callee.class_path)
        if make is None:
            return Described(callee.class_path, args, kwargs)
        try:
            return make(*args)
        except (DeclinedError, TypeError, ValueError, ArithmeticError):
            return Described(callee.class_path, args, kwargs)

    def set_state(self, target: object, state: object) -> object:
        """`target` with its state; a finished value in place of a description that was waiting for it."""
        is_namespace = isinstance(target, SimpleNamespace) or type(target).__module__ == "argparse"
        if is_namespace or (isinstance(target, OrderedDict) and state):
            _set_attributes(target, state)
        elif type(target) is Described:
            return _finished(target, state)
        elif state:
            raise MalformedError(f"a state is given to a {type(target).__name__}")
        return target

    def resolve(self, persistent_id: object) -> object:
        """Plain pickles keep nothing outside the stream."""
        raise MalformedError(f"an object outside the stream is named, by a {type(persistent_id).__name__}")

    def _reconstruct(self, args: tuple[object, ...]) -> object:
        owner = args[0]
        if not isinstance(owner, Named):
            raise MalformedError("an object has no class")
        base = args[1].class_path if len(args) == 3 and isinstance(args[1], Named) else None
        if base == "builtins.object":
            return self.construct(owner, (), {})
        return Described(owner.class_path, args[2:] if base else args[1:])


def _finished(target: Described, state: object) -> object:
    finish = FINISHERS.get(target.class_path, _decline)
    try:
        return finish(target, state)
    except (DeclinedError, TypeError, ValueError, ArithmeticError):
        set_described_state(target, state)
        return target


def _decline(_target: Described, _state: object) -> object:
    raise DeclinedError


def _set_attributes(target: object, state: object) -> None:
    if type(state) is not dict:
        raise MalformedError(f"the attributes of a {type(target).__name__} are not a dict")
    attributes = vars(target)
    for name, value in state.items():
        if not isinstance(name, str) or hasattr(type(target), name):
            raise MalformedError(f"{name!r} cannot be an attribute of a {type(target).__name__}")
        attributes[name] = value


def _require(condition: object) -> None:
    if not condition:
        raise DeclinedError


def _raw(text_or_bytes: object) -> bytes:
    """Bytes, also where Python 2 or protocol 2 wrote them as text."""
    if isinstance(text_or_bytes, str):
        return text_or_bytes.encode("latin-1")
    if not isinstance(text_or_bytes, (bytes, bytearray)):
        raise DeclinedError
    return bytes(text_or_bytes)


def _keys(values: object) -> list[object]:
    if not isinstance(values, (list, tuple, set, frozenset)):
        raise DeclinedError
    for value in values:
        check_key(value)
    return list(values)


def _ordered_dict(pairs: object = ()) -> OrderedDict[object, object]:
    if not isinstance(pairs, (list, tuple)):
        raise DeclinedError
    made: OrderedDict[object, object] = OrderedDict()
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise DeclinedError
        check_key(pair[0])
        made[pair[0]] = pair[1]
    return made


def _default_dict(factory: object = None) -> defaultdict[object, object]:
    if factory is None:
        return defaultdict(None)
    if not isinstance(factory, Named) or factory.class_path not in _FACTORIES:
        raise DeclinedError
    return defaultdict(_FACTORIES[factory.class_path])


def _counter(counts: object = None) -> Counter[object]:
    _require(counts is None or type(counts) is dict)
    made: Counter[object] = Counter()
    if isinstance(counts, dict):
        # Counter.update would add counts up; only the items themselves are wanted.
        dict.update(made, counts)
    return made


def _deque(values: object = (), limit: object = None) -> deque[object]:
    if not isinstance(values, (list, tuple)) or not (limit is None or type(limit) is int):
        raise DeclinedError
    return deque(values, limit)


def _list(values: object = ()) -> list[object]:
    if not isinstance(values, (list, tuple)):
        raise DeclinedError
    return list(values)


def _bytes(content: object = b"", encoding: object = None) -> bytes:
    if isinstance(content, str):
        _require(encoding in {"latin1", "latin-1"})
    return _raw(content)


def _bytearray(content: object = b"", encoding: object = "latin-1") -> bytearray:
    return bytearray(_bytes(content, encoding))


def _complex(real: object, imaginary: object) -> complex:
    if not isinstance(real, (int, float)) or not isinstance(imaginary, (int, float)):
        raise DeclinedError
    return complex(real, imaginary)


def _range(start: object, stop: object, step: object) -> range:
    if not isinstance(start, int) or not isinstance(stop, int) or not isinstance(step, int):
        raise DeclinedError
    return range(start, stop, step)


def _slice(start: object, stop: object, step: object) -> slice:
    _require(all(part is None or isinstance(part, int) for part in (start, stop, step)))
    return slice(start, stop, step)


def _datetime(raw: object, zone: object = None) -> dt.datetime:
    if not (zone is None or isinstance(zone, dt.tzinfo)):
        raise DeclinedError
    content = _raw(raw)
    _require(len(content) == 10)
    return _AnyDatetime(content, zone) if zone else _AnyDatetime(content)


def _date(raw: object) -> dt.date:
    content = _raw(raw)
    _require(len(content) == 4)
    return _AnyDate(content)


def _time(raw: object, zone: object = None) -> dt.time:
    if not (zone is None or isinstance(zone, dt.tzinfo)):
        raise DeclinedError
    content = _raw(raw)
    _require(len(content) == 6)
    return _AnyTime(content, zone) if zone else _AnyTime(content)


def _timedelta(days: object, seconds: object, microseconds: object) -> dt.timedelta:
    if not isinstance(days, int) or not isinstance(seconds, int) or not isinstance(microseconds, int):
        raise DeclinedError
    return dt.timedelta(days, seconds, microseconds)


def _timezone(offset: object, name: object = None) -> dt.timezone:
    if not isinstance(offset, dt.timedelta):
        raise DeclinedError
    return dt.timezone(offset) if name is None else dt.timezone(offset, str(name))


def _path(here: type[pathlib.PurePath], otherwise: type[pathlib.PurePath]) -> Constructor:
    def make(*parts: object) -> pathlib.PurePath:
        texts = [part for part in parts if isinstance(part, str)]
        _require(len(texts) == len(parts))
        try:
            return here(*texts)
        except NotImplementedError:
            return otherwise(*texts)

    return make


def _namespace() -> object:
    import argparse

    return argparse.Namespace()


def _simple_namespace() -> SimpleNamespace:
    return SimpleNamespace()


def _decimal(text: object) -> decimal.Decimal:
    if not isinstance(text, str) or len(text) > 1_000:
        raise DeclinedError
    return decimal.Decimal(text)


def _fraction(numerator: object, denominator: object = 1) -> fractions.Fraction:
    if isinstance(numerator, str):
        # "1e999999999" would be computed in full.
        _require(denominator == 1 and len(numerator) <= 1_000 and set(numerator) <= set("+-0123456789/"))
        return fractions.Fraction(numerator)
    if not isinstance(numerator, int) or not isinstance(denominator, int):
        raise DeclinedError
    return fractions.Fraction(numerator, denominator)


def _uuid(_target: Described, state: object) -> uuid.UUID:
    if not isinstance(state, dict) or not isinstance(state.get("int"), int):
        raise DeclinedError
    return uuid.UUID(int=state["int"])


CONSTRUCTORS: Mapping[str, Constructor] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "collections.Counter": _counter,
    "collections.deque": _deque,
    "builtins.list": _list,
    "builtins.tuple": lambda values=(): tuple(_list(values)),
    **dict.fromkeys(["builtins.dict", *pickle_configs.DICT_CLASSES], lambda pairs=(): dict(_ordered_dict(pairs))),
    "builtins.set": lambda values=(): set(_keys(values)),
    "builtins.frozenset": lambda values=(): frozenset(_keys(values)),
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytearray,
    "_codecs.encode": lambda text, encoding="latin-1": _bytes(text, encoding),
    "builtins.complex": _complex,
    "builtins.range": _range,
    "builtins.slice": _slice,
    "datetime.datetime": _datetime,
    "datetime.date": _date,
    "datetime.time": _time,
    "datetime.timedelta": _timedelta,
    "datetime.timezone": _timezone,
    "pathlib.Path": _path(pathlib.Path, pathlib.PurePath),
    "pathlib.PosixPath": _path(pathlib.PosixPath, pathlib.PurePosixPath),
    "pathlib.WindowsPath": _path(pathlib.WindowsPath, pathlib.PureWindowsPath),
    "pathlib.PurePath": _path(pathlib.PurePath, pathlib.PurePath),
    "pathlib.PurePosixPath": _path(pathlib.PurePosixPath, pathlib.PurePosixPath),
    "pathlib.PureWindowsPath": _path(pathlib.PureWindowsPath, pathlib.PureWindowsPath),
    "argparse.Namespace": _namespace,
    "types.SimpleNamespace": _simple_namespace,
    "decimal.Decimal": _decimal,
    "fractions.Fraction": _fraction,
    **pickle_numpy.CONSTRUCTORS,
}
# Values that pickle makes empty and then fills: they stay a description until their state is there.
FINISHERS: Mapping[str, Finisher] = {"uuid.UUID": _uuid, **pickle_numpy.FINISHERS, **pickle_configs.FINISHERS}
