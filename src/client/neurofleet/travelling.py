"""What travels with a function: its content for engines, and a name for all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from neurofleet import own_code, set_since_import
from neurofleet.engine import own_modules
from neurofleet.engine.job_content import JobContent
from neurofleet.errors import UsageError, first_line
from neurofleet.own_code import Reach
from neurofleet.pickling import (
    Referred,
    by_name,
    dumps,
    generators_undisturbed,
    stable_reduce,
)
from neurofleet.refusal import culprit, inner, name_of
from neurofleet.stable_hash import stable_hash


@dataclass(frozen=True)
class Travelling:
    """A function that is ready to be sent.

    Attributes
    ----------
    content : JobContent
    code : mapping of str to str
        A hash of each part of the code that the function can reach, by the name of its module;
        of what the program has set in one, by ``module.name``; and of the function, if it is
        in no module. The same from run to run.
    data : str
        A hash of the shared data.
    versions : mapping of str to str
        The installed distributions that the function can reach.
    """

    content: JobContent
    code: Mapping[str, str]
    data: str
    versions: Mapping[str, str]


@generators_undisturbed()
def travelling(
    function: Callable[..., Any],
    shared: Mapping[str, Any] | None = None,
    modules: Iterable[str] = (),
    *,
    mechanisms: Mapping[str, bytes],
    as_imported: bool = False,
) -> Travelling:
    """Make a function ready to be sent.

    Parameters
    ----------
    function : callable
        Of one item, and of ``shared`` as keyword arguments.
    shared : mapping or None
    modules : iterable of str
        More modules that the calls need: those of the items' classes.
    mechanisms : mapping of str to bytes
        ``.mod`` files that engines compile and load first, by name.
    as_imported : bool
        Whether nothing but imports has run here, so nothing can have been set since.

    Raises
    ------
    UsageError
        Function or data cannot be sent; says which part.
    """
    name = name_of(function)
    wanted = own_modules.WithData(function, dict(shared)) if shared else function
    met = Referred(modules=set(modules))
    call = _dumped(name, wanted, met)
    reach = own_code.reach(met.modules, met.asked)
    changed: dict[str, dict[str, Any]] = {}
    values = b""
    while not as_imported:
        changed, met.replaced = set_since_import.changed(reach.sources)
        values = _dumped(name, changed, met) if changed else b""
        before, reach = reach, own_code.reach(met.modules, met.asked)
        if set(reach.sources) == set(before.sources):
            break
    if met.replaced:
        call = _dumped(name, wanted, met)
    content = JobContent(
        name,
        call,
        reach.sources,
        dumps((list(changed), values), Referred()) if changed else b"",
        reach.own_process or bool(mechanisms),
        mechanisms,
        reach.beforehand,
    )
    code = _code(name, function, reach, changed, met.replaced)
    data = _hash(dict(shared)) if shared else ""
    return Travelling(content, code, data, reach.versions())


def _dumped(name: str, value: Any, met: Referred) -> bytes:
    try:
        return dumps(value, met)
    except RecursionError as error:
        raise UsageError(
            f"{name} or its data cannot be sent to engines: they are nested too deeply",
            remedy="Send flat data, for example lists and arrays",
        ) from error
    except Exception as error:
        path, kind = culprit(value)
        what = f"{path} is {kind}" if path else f"it is {kind}"
        raise UsageError(
            f"{name} cannot be sent to engines: {what} ({first_line(error)})",
            remedy="Open files and connections inside the function; keep the rest plain data",
        ) from error


def _code(
    name: str,
    function: Any,
    reach: Reach,
    changed: Mapping[str, Mapping[str, Any]],
    replaced: frozenset[int],
) -> dict[str, str]:
    sources = {**reach.sources, **reach.libraries}
    code = {one: hashlib.sha256(source.text).hexdigest()[:12] for one, source in sources.items()}
    for module, values in changed.items():
        for one, value in values.items():
            code[f"{module}.{one}"] = _hash(value, replaced)[:12]
    if not by_name(inner(function)):
        code[f"{name}()"] = _hash(inner(function), replaced)[:12]
    return code


def _hash(value: Any, replaced: frozenset[int] = frozenset()) -> str:
    def is_found(one: Any) -> bool:
        return id(one) not in replaced and by_name(one)

    try:
        return stable_hash(value, stable_reduce, is_found)
    except RecursionError:
        # Nested too deeply for that, and not for pickle.
        return hashlib.sha256(dumps(value, Referred(replaced=replaced))).hexdigest()
