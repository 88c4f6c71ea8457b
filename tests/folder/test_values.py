"""Plain values to JSON and back: what comes back equal, what is refused at save, and what hostile nodes do."""

import argparse
import dataclasses
import datetime as dt
import enum
import json
import math
import os
import pathlib
import subprocess
import sys
import types
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchkeep.errors import CorruptError, FormatError
from torchkeep.folder.values import decode, encode
from torchkeep.tensors import Described


class Color(enum.Enum):
    RED = (1, 2)
    GREEN = "g"
    VERDE = "g"


class Level(enum.IntEnum):
    LOW = 1


class Mode(enum.StrEnum):
    FAST = "fast"


class Bits(enum.Flag):
    A = 1
    B = 2


@dataclasses.dataclass
class Config:
    lr: float
    name: str = "sgd"
    made: int = dataclasses.field(default=0, init=False)

    def __post_init__(self):
        self.made += 1


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    text: str


class Point(NamedTuple):
    x: float
    y: object


@dataclasses.dataclass
class Shouting:
    """A dataclass with a property in a field's place: setting it runs code."""

    volume: int

    @property
    def volume(self):
        return 11

    @volume.setter
    def volume(self, value):
        raise SystemExit(value)


class Words(dict):
    pass


def decline(*_):
    """Both hooks: no tensors here."""


def unknown(*_):
    return NotImplemented


def through_json(value):
    return decode(json.loads(json.dumps(encode(value, decline), allow_nan=False)), unknown)


def facts(value):
    """What must come back: the type and the content, to the bit and in order, all the way down."""
    kind = type(value)
    if isinstance(value, np.ndarray | np.generic):
        return kind, value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        beside = getattr(value, "default_factory", None), facts(getattr(value, "_metadata", None))
        return kind, [(facts(key), facts(inside)) for key, inside in value.items()], beside
    if isinstance(value, list | tuple | deque):
        return kind, [facts(inside) for inside in value], getattr(value, "maxlen", None)
    if isinstance(value, set | frozenset):
        return kind, sorted((facts(inside) for inside in value), key=repr)
    if isinstance(value, argparse.Namespace | types.SimpleNamespace | Config):
        return kind, facts(vars(value))
    return kind, hex(value) if kind is int else repr(value)


def _state_dict():
    state = OrderedDict({"fc.weight": 1})
    state._metadata = OrderedDict({"": {"version": 1}})
    return state


CET = dt.timezone(dt.timedelta(hours=1), "CET")
HALF_PAST = dt.timezone(dt.timedelta(hours=-3, minutes=-30, seconds=-7))
VALUES = [
    *(None, True, 0, -1, 2**64, -(10**639), 10**5000, -(10**5000)),
    *(0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan),
    *("", "ünï\0\U0001f600", "\ud800", "\udc80 \ud83d", "$tensor"),
    *([], {}, (), [[], [()]], {"b": 1, "a": {"$x": 2}}, {"$tensor": ["model", "w"]}),
    {1: "a", (2, None): "b", -0.0: "c", math.nan: "d", "e": 1, Key("k"): Color.RED, frozenset({1}): 2, "\udc80": 3},
    *(OrderedDict([("b", 1), ((1,), 2)]), _state_dict()),
    *(
        defaultdict(None, {1: 2}),
        defaultdict(list, {"a": [1]}),
        defaultdict(int),
        Counter("abca"),
        Counter({"a": -1.5}),
    ),
    *(deque([1, (2,)]), deque([1], maxlen=3), {1, "a", (2,)}, set(), frozenset({None, frozenset()})),
    *(b"", b"\0\xff", bytearray(b"ab"), 1j, complex(math.nan, -0.0), complex(-0.0, math.inf)),
    *(range(3), range(5, -(2**70), -2), slice(None, 3), slice(1, None, (2,))),
    *(pathlib.Path("a/ü"), pathlib.PurePosixPath("/"), pathlib.PureWindowsPath("C:\\x")),
    dt.datetime(2026, 10, 25, 2, 30, 0, 1, fold=1),
    dt.datetime(1, 1, 1, tzinfo=dt.UTC),
    dt.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=CET),
    *(dt.time(1, 2, tzinfo=HALF_PAST), dt.time(fold=1), dt.date(2026, 2, 28), dt.timedelta(-1, 5, 7), dt.timedelta.max),
    *(argparse.Namespace(lr=1.0, **{"$x": (1,)}), types.SimpleNamespace(a=types.SimpleNamespace())),
    *(Color.RED, Color.VERDE, Level.LOW, Mode.FAST, Bits.A, {Mode.FAST: 1, Level.LOW: 2}),
    *(Config(0.1), Key("a"), Point(1.0, [Point(-0.0, None)])),
    *(np.float64(-0.0), np.float16(6e-8), np.float32("nan"), np.longdouble(1) / 3, np.complex64(1j), np.bool_(True)),
    *(np.int8(-1), np.uint64(2**64 - 1), np.str_("a\0\ud800\0"), np.str_(""), np.bytes_(b"a\0")),
    *(np.datetime64("2026-01-01T00:00", "25m"), np.datetime64("NaT"), np.timedelta64(3, "ns"), np.timedelta64(3)),
    *(np.array(1.5), np.zeros((2, 0, 3), "int16"), np.arange(4000.0), np.array(["ab", "ü"]), np.array([b"a", b"bc"])),
    *(np.array([True, False]), np.array(["NaT", 1], "M8[D]"), np.float32([math.nan, -0.0])),
    *(np.dtype("float32"), np.dtype(">i8"), np.dtype("U5"), np.dtype("M8[ns]")),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}")
def test_a_value_comes_back_as_it_was(value):
    assert facts(through_json({"at": [value]})) == facts({"at": [value]})


def test_arrays_come_back_in_c_order_native_and_writable():
    for given_array in (np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(6, dtype=">i4")[::2]):
        found = through_json(given_array)
        assert found.flags.c_contiguous
        assert found.flags.writeable
        assert found.dtype.isnative
        assert (found == given_array).all()


def test_a_dataclass_comes_back_without_its_constructor():
    assert through_json(Config(0.1)).made == 1


NODES = [
    ({"a": (1, 2.0)}, '{"a":{"$tuple":[1,2.0]}}'),
    ({"$a": 1}, '{"$dict":[["$a",1]]}'),
    (10**640, '{"$int":"' + hex(10**640) + '"}'),
    (_state_dict(), '{"$OrderedDict":[["fc.weight",1]],"metadata":{"$OrderedDict":[["",{"version":1}]]}}'),
    (dt.datetime(2026, 1, 1, fold=1, tzinfo=CET), '{"$datetime":"2026-01-01T00:00:00+01:00","fold":1,"zone":"CET"}'),
    (np.float32(1), '{"$numpy.scalar":["<f4","AACAPw=="]}'),
    (np.ones((1, 1), ">f4"), '{"$numpy.array":["<f4",[1,1],"AACAPw=="]}'),
    (argparse.Namespace(a=1), '{"$namespace":{"a":1}}'),
    (deque([1], 2), '{"$deque":[[1],2]}'),
    (Color.VERDE, f'{{"$enum":["{__name__}:Color","GREEN","g"]}}'),
    (Color.RED, f'{{"$enum":["{__name__}:Color","RED",null]}}'),
    (Point(1.0, None), f'{{"$namedtuple":["{__name__}:Point",{{"x":1.0,"y":null}}]}}'),
]


@pytest.mark.parametrize(("value", "text"), NODES, ids=lambda each: type(each).__name__)
def test_a_value_is_written_as_the_format_says(value, text):
    assert json.dumps(encode(value, decline), separators=(",", ":")) == text


def _local_classes():
    class Local(enum.Enum):
        A = 1

    return Local.A


def _cycle():
    cycle = {"inside": []}
    cycle["inside"].append(cycle)
    return cycle


def _config(**attributes):
    config = object.__new__(Config)
    vars(config).update(attributes)
    return config


REFUSED = [
    (len, "<class 'builtin_function_or_method'>"),
    (object, "<class 'type'>"),
    (_cycle(), ".inside.0: it contains itself"),
    (_local_classes(), "Local'>, a class defined inside a function; define it at the top of a module"),
    (Words(a=1), "Words'>, a subclass of dict; dict(value) has an encoding"),
    (Bits.A | Bits.B, "<Bits.A|B: 3> is not a member with a name"),
    (_config(lr=1, made=0, cached=1), "Config'> has the attribute 'cached' beyond its fields"),
    (_config(made=0), "Config'> has no value in the field 'lr'"),
    (object.__new__(Shouting), "Shouting'>"),
    (defaultdict(lambda: 0), "only of int, float, str, list, dict, set, tuple, bool or None has an encoding"),
    ("\ud83d\ude00", "a str with two surrogates in place of one character"),
    ({"\ud83d\ude00": 1}, "a str with two surrogates in place of one character"),
    (memoryview(b"a"), "<class 'memoryview'>"),
    (np.array([None]), "numpy's object has no encoding"),
    (np.zeros(1, "i4,i4"), "numpy's [('f0', '<i4'), ('f1', '<i4')] has no encoding"),
    (np.zeros(1, "i4,i4")[0], "numpy's [('f0', '<i4'), ('f1', '<i4')] has no encoding"),
    (np.ma.masked_array([1], [True]), "MaskedArray'>; numpy.asarray(value) has an encoding"),
    (
        dt.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")),
        "fixed offsets have an encoding: astimezone(timezone.utc)",
    ),
    (sys.float_info, "<class 'sys.float_info'>, a subclass of tuple; tuple(value) has an encoding"),
]


@pytest.mark.parametrize(("value", "fault"), REFUSED, ids=lambda each: type(each).__name__)
def test_a_value_without_an_encoding_is_refused_by_its_path(value, fault):
    with pytest.raises(FormatError) as caught:
        encode({"a": [value]}, decline)
    assert caught.value.what == "cannot save: 1 value has no encoding"
    assert caught.value.faults[0].startswith("a.0")
    assert caught.value.faults[0].endswith(fault)


def test_all_values_without_an_encoding_are_named_at_once():
    def hook(path, value):
        if value is print:
            raise FormatError("not from here", faults=["x: one", ": two"])

    with pytest.raises(FormatError) as caught:
        encode({"hparams": {"callback": len}, "fine": {1}, "b": print, "c": (memoryview,)}, hook)
    assert str(caught.value) == (
        "cannot save: 4 values have no encoding\n"
        "  hparams.callback: <class 'builtin_function_or_method'>\n"
        "  b.x: one\n"
        "  b: two\n"
        "  c.0: <class 'type'>\n"
        "  hint: leave them out, or save what they are made of: numbers, text, lists, dicts, tensors"
    )


def test_the_hook_is_asked_first_for_everything_that_is_not_plain():
    asked = []

    def hook(path, value):
        asked.append((path, type(value).__name__))
        return {"$numpy.tensor": {"$tensor": ["model", "a"]}} if isinstance(value, np.ndarray) else None

    value = {"a": np.ones(9999), "b": [1, "x", 2.0, (None, True)], "c": {Color.RED: b""}}
    node = encode(value, hook)
    assert node["a"] == {"$numpy.tensor": {"$tensor": ["model", "a"]}}
    assert asked == [(("a",), "ndarray"), (("c", Color.RED), "Color"), (("c", Color.RED), "bytes")]
    back = decode(json.loads(json.dumps(node)), lambda tag, payload, node: (tag, payload, node))
    assert back["a"] == ("$numpy.tensor", {"$tensor": ["model", "a"]}, node["a"])


def test_a_shared_container_is_written_twice():
    shared = [1]
    first, second = through_json([shared, shared])
    assert first == second == [1] and first is not second  # noqa: PT018 - one fact


def _nested(make, depth):
    value = None
    for _ in range(depth):
        value = make(value)
    return value


@pytest.mark.parametrize(
    ("make", "levels"),
    [(lambda v: [v], 1), (lambda v: (v,), 2), (lambda v: {1: v}, 3), (lambda v: defaultdict(int, a=v), 4)],
)
def test_what_nests_500_levels_of_json_comes_back_and_more_is_refused(make, levels):
    fits = _nested(make, 500 // levels)
    assert encode(through_json(fits), decline) == encode(fits, decline)
    with pytest.raises(FormatError, match=r"nested too deep\n  history: more than 500 levels"):
        encode({"a": 1, "history": _nested(make, -(-500 // levels))}, decline)


@pytest.mark.parametrize(
    ("node", "class_path", "state"),
    [
        ({"$enum": ["not.imported:Color", "RED", 1]}, "not.imported.Color", {"name": "RED", "value": 1}),
        ({"$enum": [f"{__name__}:Color", "BLUE", 3]}, f"{__name__}.Color", {"name": "BLUE", "value": 3}),
        ({"$enum": ["pathlib:Path", "cwd", None]}, "pathlib.Path", {"name": "cwd", "value": None}),
        ({"$enum": ["xml.dom.minidom:Node", "A", None]}, "xml.dom.minidom.Node", {"name": "A", "value": None}),
        ({"$dataclass": [f"{__name__}:Config", {"lr": 1}]}, f"{__name__}.Config", {"lr": 1}),
        ({"$dataclass": [f"{__name__}:Shouting", {"volume": 1}]}, f"{__name__}.Shouting", {"volume": 1}),
        ({"$dataclass": [f"{__name__}:Words", {}]}, f"{__name__}.Words", {}),
        ({"$dataclass": ["subprocess:Popen", {"args": "true"}]}, "subprocess.Popen", {"args": "true"}),
        ({"$dataclass": [":", {}]}, ".", {}),
        ({"$namedtuple": [f"{__name__}:Point", {"x": 1, "z": 2}]}, f"{__name__}.Point", {"x": 1, "z": 2}),
        ({"$namedtuple": ["builtins:tuple", {}]}, "builtins.tuple", {}),
        ({"$namedtuple": [f"{__name__}:Point.x", {}]}, f"{__name__}.Point.x", {}),
    ],
)
def test_a_class_that_is_not_there_as_it_should_be_is_described_and_nothing_is_imported(node, class_path, state):
    before = set(sys.modules)
    found = decode(node, unknown)
    assert isinstance(found, Described)
    assert (found.class_path, found.state) == (class_path, state)
    assert set(sys.modules) == before


def test_a_module_that_answers_for_anything_is_not_asked(monkeypatch):
    class Lazy(types.ModuleType):
        def __getattr__(self, name):
            raise SystemExit(name)

    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    monkeypatch.setitem(sys.modules, "blocked", None)
    for module in ("lazy", "blocked"):
        assert isinstance(decode({"$enum": [f"{module}:Color", "RED", None]}, unknown), Described)


MALFORMED = [
    *(
        {"$tuple": 1},
        {"$set": [1, 1]},
        {"$set": [[]]},
        {"$dict": [[1]]},
        {"$dict": [[[], 1]]},
        {"$dict": [[1, 1], [True, 2]]},
    ),
    *({"$bytes": "a"}, {"$bytes": "ü"}, {"$bytes": "YQ==\n"}, {"$bytes": 1}, {"$bytearray": None}),
    *({"$float": "1"}, {"$float": []}, {"$complex": [1]}, {"$complex": [1, 2]}, {"$int": "12"}, {"$int": 12}, 1e999),
    *(
        {"$range": [0, 1, 0]},
        {"$range": [0, 1.5, 1]},
        {"$slice": [1]},
        {"$deque": [[1, 2], 1]},
        {"$deque": [[], 2**70]},
    ),
    *({"$deque": [[], -1]}, {"$Counter": {}}, {"$defaultdict": ["exec", []]}, {"$OrderedDict": [], "metadata": 1}),
    *(
        {"$path": ["Path", "a"]},
        {"$path": ["PosixPath", 1]},
        {"$path": "a"},
        {"$namespace": []},
        {"$simplenamespace": 1},
    ),
    *(
        {"$datetime": "now"},
        {"$datetime": "2026-01-01T00:00:00", "fold": 2},
        {"$datetime": "2026-01-01", "zone": "CET"},
    ),
    *({"$date": "2026-02-30"}, {"$time": "25:00"}, {"$timedelta": [10**9, 0, 0]}, {"$timedelta": [2**70, 0, 0]}),
    *({"$timedelta": [1]}, {"$enum": ["a:b", "c"]}, {"$enum": ["a:b", "c", []]}, {"$dataclass": ["a:b", []]}),
    *(
        {"$namedtuple": [1, {}]},
        {"$numpy.scalar": ["<f4", ""]},
        {"$numpy.scalar": ["O", ""]},
        {"$numpy.dtype": "f4,f4"},
    ),
    *(
        {"$numpy.scalar": ["<U9", "YQAAAA=="]},
        {"$numpy.scalar": ["<U1", "////fw=="]},
        {"$numpy.scalar": ["|b1", "Ag=="]},
    ),
    *(
        {"$numpy.array": ["<f4", [2**62, 2**62], ""]},
        {"$numpy.array": ["<f4", [-1], ""]},
        {"$numpy.array": ["|S0", [9], ""]},
    ),
    *(
        {"$numpy.array": ["<f4", [0] * 100, ""]},
        {"$numpy.array": ["<f4", [2**70, 0], ""]},
        {"$numpy.array": ["<U1", [1], "////fw=="]},
    ),
    *(
        {"$numpy.array": ["<f4", [1], "AACAPwA="]},
        {"$numpy.array": ["<f4", [True], "AACAPw=="]},
        {"$tuple": [], "x": 1},
    ),
    *({"$tuple": [], "$list": []}, {"$bytes": "", "fold": 1}, (1,), _nested(lambda v: [v], 600)),
]


@pytest.mark.parametrize("node", MALFORMED, ids=lambda node: str(node)[:40])
def test_a_malformed_node_is_a_corrupt_error_that_names_its_place(node):
    with pytest.raises(CorruptError, match=r"^a value in the record is not valid\n  state\.0.*: ."):
        decode({"state": [node]}, unknown)


@pytest.mark.parametrize("tag", ["$newer", "$torch.newer", "$tensor", "$"])
def test_a_tag_that_nobody_knows_is_a_format_error(tag):
    with pytest.raises(FormatError, match=r"holds a \$\S* value.*\n.*written by a newer torchkeep"):
        decode([{tag: 1}], unknown)


def test_ranges_and_shapes_of_astronomic_size_take_no_memory():
    assert len(decode({"$range": [0, 2**62, 1]}, unknown)) == 2**62
    assert decode({"$numpy.array": ["<f4", [2**40, 0], ""]}, unknown).shape == (2**40, 0)


_KEYS = st.one_of(
    st.text(max_size=4), st.integers(), st.floats(allow_nan=False), st.booleans(), st.none(), st.binary(max_size=3)
)
_LEAVES = st.one_of(
    _KEYS,
    st.floats(),
    st.complex_numbers(),
    st.text(st.characters(), max_size=4),
    st.datetimes(timezones=st.one_of(st.none(), st.just(CET))),
    st.timedeltas(),
    st.sampled_from([Color.RED, Mode.FAST, Key("a"), np.float16(0.1), np.array([1, 2]), range(3), {"$tensor": 1}]),
)
_TREES = st.recursive(
    _LEAVES,
    lambda inside: st.one_of(
        st.lists(inside, max_size=4),
        st.lists(inside, max_size=4).map(tuple),
        st.dictionaries(_KEYS, inside, max_size=4),
        st.dictionaries(_KEYS, inside, max_size=4).map(OrderedDict),
        st.dictionaries(st.from_regex(r"\$?[a-z]{1,3}"), inside, max_size=4),
        st.frozensets(_KEYS, max_size=4),
        st.builds(Point, inside, inside),
        st.builds(
            lambda items, spare: deque(items, len(items) + spare), st.lists(inside, max_size=4), st.integers(0, 3)
        ),
    ),
    max_leaves=20,
)


@given(_TREES)
@settings(max_examples=200, deadline=None)
def test_any_tree_of_plain_values_comes_back_as_it_was(tree):
    assert facts(through_json(tree)) == facts(tree)


def _places(node, at=()):
    yield at
    for key, inside in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _places(inside, (*at, key))


def _replaced(node, at, new):
    if not at:
        return new
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[at[0]] = _replaced(copy[at[0]], at[1:], new)
    return copy


_WHOLE = json.loads(json.dumps(encode(VALUES, decline)))
_TAGS = sorted({key for at in _places(_WHOLE) for key in at if isinstance(key, str) and key.startswith("$")})
_JSON = st.one_of(
    st.sampled_from([None, True, -1, 2**70, 1.5, 1e999, "", "x", "<f4", "2026-01-01", [], [[]], [1, 1], {}, {"$x": 1}]),
    st.builds(
        lambda tag, payload: {tag: payload},
        st.sampled_from(_TAGS),
        st.sampled_from([None, [], {}, "a", [[1, 1]], [1, 2, 3]]),
    ),
)


@given(st.sampled_from(list(_places(_WHOLE))), _JSON)
@settings(max_examples=600, deadline=None)
def test_a_node_with_any_part_replaced_is_a_value_or_a_typed_error(at, new):
    try:
        decode(_replaced(_WHOLE, at, new), unknown)
    except (CorruptError, FormatError):
        pass


def test_numpy_and_torch_are_not_loaded_for_plain_values():
    code = (
        "import sys; from torchkeep.folder.values import decode, encode; hook = lambda *_: None; "
        "decode(encode({'a': (1, {2})}, hook), hook); print({'numpy', 'torch'} & set(sys.modules))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout == "set()\n"
