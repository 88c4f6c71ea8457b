"""What the source of a class says, read and parsed, never run: its text, its digest, the attributes that it sets."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import linecache
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from torch import nn

from torchkeep.folder.digests import digest_of
from torchkeep.folder.structure import ClassSource

_REGISTERING = ("register_buffer", "register_parameter", "add_module", "register_module")


@dataclass(frozen=True, slots=True)
class _ClassText:
    """A class in a file: its text, and what its own ``__init__`` always sets; None where it has none of its own."""

    text: str
    set_always: frozenset[str] | None
    calls_bases: bool


@dataclass(slots=True)
class SourceReader:
    """Reads the sources of classes, each file once."""

    _texts: dict[str, str] = field(default_factory=dict)
    _versions: dict[str, str | None] = field(default_factory=dict)

    def source_of(self, cls: type, *, include_text: bool = False) -> ClassSource:
        """What is recorded of a class; where no source is to be had, what is left of it."""
        found, top = self._find(cls), cls.__module__.partition(".")[0]
        if top not in self._versions:
            self._versions[top] = _version_of(top)
        return ClassSource(
            _file_of(cls),
            self._versions[top],
            self.file_digest_of(cls),
            None if found is None else digest_of(found.text.encode()),
            tuple(sorted(self.set_always(cls))),
            found.text if include_text and found is not None else None,
        )

    def file_digest_of(self, cls: type) -> str | None:
        """The digest of the file that a class is in, or None where no source is to be had."""
        text = self._text(cls)
        return None if text is None else digest_of(text.encode())

    def set_always(self, cls: type) -> set[str]:
        """The attributes that ``__init__`` sets on every path, with those of the bases that it calls."""
        names: set[str] = set()
        for base in _own_bases(cls):
            found = self._find(base)
            if found is None or found.set_always is None:
                if "__init__" in vars(base):
                    break  # What a constructor without a source sets is not known, nor whether it calls its bases.
                continue
            names |= found.set_always
            if not found.calls_bases:
                break
        return names

    def mentions(self, cls: type) -> set[str] | None:
        """All attributes that any method of a class or its bases reads or sets; None where a source is absent."""
        names: set[str] = set()
        for base in _own_bases(cls):
            found = self._find(base)
            if found is None:
                return None
            for node in ast.walk(ast.parse(textwrap.dedent(found.text))):
                if isinstance(node, ast.Attribute):
                    names.add(node.attr)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    names.add(node.value)  # register_buffer("x", ...), setattr(self, "x", ...)
        return names

    def _text(self, cls: type) -> str | None:
        module = sys.modules.get(cls.__module__)
        file = getattr(module, "__file__", None)
        if module is None or not isinstance(file, str) or not file.endswith(".py"):
            return None
        if file not in self._texts:
            linecache.checkcache(file)
            self._texts[file] = "".join(linecache.getlines(file, vars(module)))
        return self._texts[file]

    def _find(self, cls: type) -> _ClassText | None:
        text = self._text(cls)
        return None if text is None else _classes_of(text).get(cls.__qualname__)


def bases_of(classes: Iterable[type]) -> list[type]:
    """The classes and their bases, once each, without those that every module or object has."""
    return list(dict.fromkeys(base for cls in classes for base in _own_bases(cls)))


def _own_bases(cls: type) -> Iterator[type]:
    return (each for each in cls.__mro__ if each not in (nn.Module, object) and each.__flags__ & (1 << 9))


@functools.lru_cache(maxsize=64)  # Parsing a large file takes longer than everything else about a save.
def _classes_of(text: str) -> Mapping[str, _ClassText]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return {}
    lines = text.splitlines(keepends=True)
    found: dict[str, _ClassText] = {}
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        prefix, node = waiting.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                begin = min([child.lineno, *(each.lineno for each in child.decorator_list)])
                own = "".join(lines[begin - 1 : child.end_lineno])
                made = next((e for e in child.body if isinstance(e, ast.FunctionDef) and e.name == "__init__"), None)
                names = None if made is None else frozenset(_set_at_top(made))
                found[prefix + child.name] = _ClassText(own, names, made is not None and _calls_bases(made))
                waiting.append((f"{prefix}{child.name}.", child))
            elif isinstance(child, (ast.If, ast.Try, ast.With)):
                waiting.append((prefix, child))
    return found


def _set_at_top(function: ast.FunctionDef) -> set[str]:
    """``self.x = ...`` and ``self.register_buffer("x", ...)`` among the statements that always run."""
    me = function.args.args[0].arg if function.args.args else ""
    names: set[str] = set()
    for statement in function.body:
        if isinstance(statement, (ast.Return, ast.Raise)):
            break
        if isinstance(statement, ast.Delete):
            names -= {each.attr for each in statement.targets if _is_mine(each, me)}
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            flat = [part for each in targets for part in (each.elts if isinstance(each, ast.Tuple) else [each])]
            names |= {each.attr for each in flat if _is_mine(each, me)}
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and _is_mine(call.func, me) and call.func.attr in _REGISTERING and call.args:
            first = call.args[0]
            names |= {first.value} if isinstance(first, ast.Constant) and isinstance(first.value, str) else set()
    return names


def _is_mine(node: ast.AST, me: str) -> TypeGuard[ast.Attribute]:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == me


def _calls_bases(function: ast.FunctionDef) -> bool:
    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    return any(
        isinstance(call, ast.Attribute)
        and call.attr == "__init__"
        and isinstance(call.value, ast.Call)
        and isinstance(call.value.func, ast.Name)
        and call.value.func.id == "super"
        and not call.value.args
        for call in calls
    )


def _file_of(cls: type) -> str | None:
    """The file from the top package down; a script's name alone, for where people keep files is their own affair."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):
        return None
    depth = cls.__module__.count(".") + (file.endswith("__init__.py"))
    return "/".join(file.replace("\\", "/").split("/")[-1 - depth :])


def _version_of(top: str) -> str | None:
    version = getattr(sys.modules.get(top), "__dict__", {}).get("__version__")
    if isinstance(version, str):
        return str(version)  # torch's is of a class of its own
    try:
        return importlib.metadata.version(top)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
