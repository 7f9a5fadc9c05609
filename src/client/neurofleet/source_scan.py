"""What a module's source asks for, read without running it."""

from __future__ import annotations

import ast
import dis
import functools
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

#: Whoever names one of these changes what the whole process does, so a later call would see it.
STATEFUL = frozenset(
    {
        "environ", "putenv", "unsetenv", "setlocale", "getcontext", "setcontext", "seterr",
        "seterrcall", "set_printoptions", "set_option", "reset_option", "setrecursionlimit",
        "filterwarnings", "simplefilter", "setitimer", "addHandler", "addFilter", "umask",
        "setdefaulttimeout", "settrace", "setprofile", "set_config", "meta_path", "path_hooks",
        "register_adapter", "register_converter", "set_start_method", "setswitchinterval",
    }
)  # fmt: skip
#: So do these modules.
STATEFUL_MODULES = frozenset({"atexit", "ctypes", "locale", "resource", "signal", "faulthandler"})


@dataclass(frozen=True)
class Asked:
    """The imports of some code.

    Attributes
    ----------
    modules : frozenset of str
        Full names; a part may turn out to be no module but something in one.
    stars : frozenset of str
        Modules from which all is imported.
    below : frozenset of str
        Packages of which any module may be asked for, by a name that is made up when it runs.
    any_module : bool
        Whether the name may be any.
    stateful : bool
        Whether it names something that keeps a state for the whole process.
    """

    modules: frozenset[str] = frozenset()
    stars: frozenset[str] = frozenset()
    below: frozenset[str] = frozenset()
    any_module: bool = False
    stateful: bool = False


@dataclass
class _Found:
    modules: set[str] = field(default_factory=set)
    stars: set[str] = field(default_factory=set)
    below: set[str] = field(default_factory=set)
    any_module: bool = False
    stateful: bool = False

    def frozen(self) -> Asked:
        return Asked(
            frozenset(self.modules),
            frozenset(self.stars),
            frozenset(self.below),
            self.any_module,
            self.stateful,
        )


@functools.lru_cache(maxsize=2048)
def parsed(text: bytes) -> ast.Module:
    """Return a source's syntax tree.

    Raises
    ------
    SyntaxError, ValueError
        It is no Python.
    """
    return ast.parse(text)


@functools.lru_cache(maxsize=2048)
def of_source(text: bytes, package: str) -> Asked:
    """Return what a module's source asks for.

    Parameters
    ----------
    text : bytes
    package : str
        The package that its relative imports start from; empty if there is none.
    """
    found = _Found()
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.Import):
            found.modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            _from(found, node.module or "", node.level, [a.name for a in node.names], package)
        elif isinstance(node, ast.Call) and _is_import_call(node):
            _called(found, node, package)
        elif isinstance(node, ast.Attribute):
            found.stateful = found.stateful or node.attr in STATEFUL
        elif isinstance(node, ast.Name):
            found.stateful = found.stateful or node.id in STATEFUL
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.stateful = found.stateful or any(alias.name in STATEFUL for alias in node.names)
    found.stateful = found.stateful or _changes_imported(parsed(text))
    return found.frozen()


def _from(found: _Found, module: str, level: int, names: list[str], package: str) -> None:
    base = absolute(module, level, package)
    if not base:
        return
    found.modules.add(base)
    for name in names:
        if name == "*":
            found.stars.add(base)
        else:
            found.modules.add(f"{base}.{name}")


def absolute(module: str, level: int, package: str) -> str:
    """Return a module's full name; empty if it would be above the topmost package."""
    if not level:
        return module
    parts = package.split(".") if package else []
    if level - 1 > len(parts):
        return ""
    parts = parts[: len(parts) - (level - 1)]
    return ".".join([*parts, module] if module else parts)


def _is_import_call(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else None
    name = node.func.id if isinstance(node.func, ast.Name) else name
    return name in {"import_module", "__import__"} and bool(node.args)


def _called(found: _Found, node: ast.Call, package: str) -> None:
    """Note a call of ``import_module`` or ``__import__``."""
    prefix, whole = _known_start(node.args[0])
    if prefix.startswith("."):
        level = len(prefix) - len(prefix.lstrip("."))
        prefix = absolute(prefix.lstrip("."), level, package)
    if whole:
        found.modules.add(prefix)
    elif "." in prefix:
        found.below.add(prefix.rpartition(".")[0])
    else:
        found.any_module = True


def _known_start(node: ast.expr) -> tuple[str, bool]:
    """Return the text that an expression starts with, and whether that is all of it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value, True
    if isinstance(node, ast.JoinedStr) and node.values:
        return _known_start(node.values[0])[0], False
    if isinstance(node, ast.BinOp):
        return _known_start(node.left)[0], False
    return "", False


#: Methods that change a container, as one in a module.
_CHANGING = frozenset(
    {
        "append", "extend", "insert", "update", "setdefault", "pop", "popitem", "remove",
        "discard", "add", "clear",
    }
)  # fmt: skip
#: Functions that set something in what is their first argument.
_SETTING = frozenset({"setattr", "delattr"})
#: Parts of ``sys`` that are put back after each call.
_PUT_BACK = frozenset({"path", "argv"})


def _changes_imported(tree: ast.Module) -> bool:
    """Tell whether a source sets something in a module that it imports (``numpy.x = ...``)."""
    imported = imported_names(tree)
    return any(_base(changed) in imported for changed in _changed(tree))


def _changed(tree: ast.Module) -> Iterator[ast.expr]:
    """Yield what a source sets something in, as far as that is seen."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            yield node
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in _SETTING:
                yield from node.args[:1]
            elif (
                isinstance(called, ast.Attribute)
                and called.attr in _CHANGING
                and isinstance(called.value, ast.Attribute)
                and called.value.attr not in _PUT_BACK
            ):
                yield called.value


def _base(node: ast.expr) -> str:
    """Return the name with which an expression begins; empty if it begins with none."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def imported_names(tree: ast.Module) -> set[str]:
    """Return the names that a source's imports bind."""
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported.update((a.asname or a.name).partition(".")[0] for a in node.names)
    return imported


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield a code object and all that are defined inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


def of_code(code: types.CodeType, package: str, modules: Iterable[str] = ()) -> Asked:
    """Return what a function asks for whose source need not exist.

    Parameters
    ----------
    code : code
    package : str
        See ``of_source``.
    modules : iterable of str
        Names that are modules among the function's globals.
    """
    found = _Found(stateful=_sets_in_imported(code, modules))
    for part in codes(code):
        found.stateful = found.stateful or not STATEFUL.isdisjoint(part.co_names)
        if "import_module" in part.co_names or "__import__" in part.co_names:
            _strings(found, part, package)
        before: list[object] = [None, None]
        for instruction in dis.get_instructions(part):
            if instruction.opname == "IMPORT_NAME":
                level, names = before
                _from(
                    found,
                    instruction.argval,
                    level if isinstance(level, int) else 0,
                    list(names) if isinstance(names, tuple) else [],
                    package,
                )
            if instruction.opname in {"LOAD_CONST", "LOAD_SMALL_INT"}:
                before = [before[1], instruction.argval]
    return found.frozen()


def _sets_in_imported(code: types.CodeType, modules: Iterable[str]) -> bool:
    """Tell the same as ``_changes_imported`` of code without a source."""
    parts = [
        [one for one in dis.get_instructions(part) if one.opname not in _NOTHING]
        for part in codes(code)
    ]
    imported = set(modules)
    for part in parts:
        for at, one in enumerate(part):
            if one.opname in {"IMPORT_NAME", "IMPORT_FROM"}:
                stored = (later for later in part[at:] if later.opname.startswith("STORE_"))
                imported.update(_names(next(stored, None)))
    if any(not _SETTING.isdisjoint(part.co_names) for part in codes(code)):
        return True
    return any(
        not imported.isdisjoint(_names(_set_in(part, at)))
        if one.opname in _SETS
        else "LOAD_" in one.opname and not imported.isdisjoint(_names(one)) and _changes(part, at)
        for part in parts
        for at, one in enumerate(part)
    )


def _changes(part: list[dis.Instruction], at: int) -> bool:
    """Tell whether a method that changes a container is called of what is loaded here."""
    chain = []
    while at + 1 < len(part) and part[at + 1].opname in {"LOAD_ATTR", "LOAD_METHOD"}:
        at += 1
        chain.append(part[at].argval)
    return len(chain) > 1 and chain[-1] in _CHANGING and chain[-2] not in _PUT_BACK


#: Instructions that set something in an object, which is loaded before them and before a key.
_SETS = frozenset({"STORE_ATTR", "DELETE_ATTR", "STORE_SUBSCR", "DELETE_SUBSCR"})
_NOTHING = frozenset({"CACHE", "EXTENDED_ARG", "NOP"})


def _set_in(part: list[dis.Instruction], at: int) -> dis.Instruction | None:
    """Return the instruction that loads the object in which another one sets something."""
    keyed = part[at].opname.endswith("_SUBSCR")
    if part[at - 1].opname == "SWAP":  # as of ``name.part += 1``: it was loaded for both
        while at and part[at].opname != "COPY":
            at -= 1
        while at and part[at - 1].opname == "COPY":
            at -= 1
    for _ in range(1 + keyed):
        at -= 1
        while at > 0 and part[at].opname == "LOAD_ATTR":
            at -= 1
    return part[at] if at >= 0 and "LOAD_" in part[at].opname else None


def _names(instruction: dis.Instruction | None) -> tuple[str, ...]:
    """Return the names that an instruction loads or stores; newer Pythons join two in one."""
    value = None if instruction is None else instruction.argval
    names = value if isinstance(value, tuple) else (value,)
    return tuple(name for name in names if isinstance(name, str))


def _strings(found: _Found, code: types.CodeType, package: str) -> None:
    """Note every text of a code that imports by name: the name is one of them, if it is known."""
    for constant in code.co_consts:
        if isinstance(constant, str) and constant.strip("."):
            level = len(constant) - len(constant.lstrip("."))
            name = absolute(constant.lstrip("."), level, package)
            if name.endswith("."):
                found.below.add(name.rstrip("."))
            elif all(part.isidentifier() for part in name.split(".")):
                found.modules.add(name)
