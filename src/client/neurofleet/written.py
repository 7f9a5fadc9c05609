"""What the source of a person's module binds, and what it does to names of others."""

from __future__ import annotations

import ast
import functools
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from neurofleet import source_scan
from neurofleet.source_scan import codes, parsed


@dataclass
class Written:
    """What the source of a module or class binds.

    Attributes
    ----------
    literals : dict of str to list
        The values that are written for a name.
    computed : set of str
        Names that get a value by running something.
    imported : dict of str to (module, name)
        By ``from module import name``, else with an empty name.
    defined : set of str
        Functions without decorators.
    classes : dict of str to Written
    assigned : set of str
        Names that functions assign with ``global``.
    stars : set of str
        Modules of which everything is imported; may be relative.
    decorated : bool
        Whether it is a class that something has changed after its body.
    """

    literals: dict[str, list[Any]] = field(default_factory=dict)
    computed: set[str] = field(default_factory=set)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    defined: set[str] = field(default_factory=set)
    classes: dict[str, Written] = field(default_factory=dict)
    assigned: set[str] = field(default_factory=set)
    stars: set[str] = field(default_factory=set)
    decorated: bool = False

    def binds(self, name: str) -> bool:
        """Tell whether a name is bound at all."""
        places = (self.literals, self.computed, self.imported, self.defined, self.classes)
        return any(name in place for place in places)


@functools.lru_cache(maxsize=512)
def read_source(text: bytes) -> Written:
    """Return what a module's source binds; nothing if it is no Python."""
    found = Written()
    try:
        tree = parsed(text)
    except (SyntaxError, ValueError):
        return found
    _read(tree.body, found)
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            found.assigned.update(node.names)
    return found


def _read(body: Iterable[ast.stmt], found: Written) -> None:
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                plain = all(ast.unparse(d) in _STAY_METHODS for d in node.decorator_list)
                (found.defined if plain else found.computed).add(node.name)
            case ast.ClassDef():
                inner = Written(decorated=bool(node.decorator_list))
                found.classes[node.name] = inner
                _read(node.body, inner)
            case ast.Import() | ast.ImportFrom():
                _read_import(node, found)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                _read_value(name, node.value, found)
            case _:
                _read_others(node, found)
    for name in found.computed:
        found.defined.discard(name)
        found.classes.pop(name, None)


_STAY_METHODS = ("staticmethod", "classmethod")


def _read_value(name: str, value: ast.expr | None, found: Written) -> None:
    if value is None:
        return  # only an annotation
    try:
        found.literals.setdefault(name, []).append(ast.literal_eval(value))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        found.computed.add(name)


def _read_import(node: ast.Import | ast.ImportFrom, found: Written) -> None:
    for alias in node.names:
        if alias.name == "*":
            found.stars.add("." * getattr(node, "level", 0) + (getattr(node, "module", "") or ""))
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found.imported[alias.asname or alias.name] = (module, alias.name)
        else:
            found.imported[alias.asname or alias.name.partition(".")[0]] = (alias.name, "")


def _read_others(node: ast.AST, found: Written) -> None:
    """Note what other statements bind: loops, conditions, with, try, del, several targets."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            found.computed.add(name)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            found.computed.add(node.name)
            return
        case ast.Lambda():
            return
        case ast.Import() | ast.ImportFrom():
            _read_import(node, found)
        case ast.ExceptHandler(name=str(name)):
            found.computed.add(name)
    for inner in ast.iter_child_nodes(node):
        _read_others(inner, found)


@functools.lru_cache(maxsize=512)
def codes_of(text: bytes, filename: str) -> dict[str, list[types.CodeType]]:
    """Return the code of all functions in a source, by qualified name."""
    found: dict[str, list[types.CodeType]] = {}
    try:
        whole = compile(text, filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return found
    for code in codes(whole):
        found.setdefault(code.co_qualname, []).append(code)
    return found


@functools.lru_cache(maxsize=512)
def done_in(text: bytes) -> tuple[frozenset[str], frozenset[str], bool]:
    """Return the names that a source assigns to and uses, and whether it may do anything else."""
    assigned: set[str] = set()
    used: set[str] = set()
    anything = False
    imported = source_scan.imported_names(parsed(text))
    for node in ast.walk(parsed(text)):
        match node:
            case ast.Attribute(value=value, attr=attr, ctx=ast.Store() | ast.Del()):
                assigned.add(attr)
                used.update(_bases(value))
            case ast.Subscript(value=value, ctx=ast.Store() | ast.Del()):
                used.update(_bases(value))
            case ast.Call(func=ast.Attribute(value=value)):
                used.update(_bases(value))
            case ast.Call(
                func=ast.Name(id="setattr"), args=[value, ast.Constant(value=str(name)), _]
            ):
                assigned.add(name)
                used.update(_bases(value))
            case ast.Call(func=ast.Name(id="globals" | "exec")):
                anything = True
            case ast.Call(func=ast.Name(id="setattr" | "vars"), args=[value, *_]):
                # Of what is no module (``setattr(self, key, value)``) it is like any other use.
                used.update(_bases(value))
                anything = anything or not imported.isdisjoint(_bases(value))
            case ast.Attribute(value=value, attr="__dict__" | "__setattr__"):
                anything = anything or not imported.isdisjoint(_bases(value))
    return frozenset(assigned), frozenset(used), anything


def _bases(node: ast.expr) -> Iterator[str]:
    """Yield the names in ``a.b[0].c``."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        if isinstance(node, ast.Attribute):
            yield node.attr
        node = node.value
    if isinstance(node, ast.Name):
        yield node.id
