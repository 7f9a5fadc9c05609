"""``neurofleet map``: a person's own function over the lines of a file."""

from __future__ import annotations

import hashlib
import importlib
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurofleet.backends.choice import EngineChoice
from neurofleet.engine.of_json import OfJson
from neurofleet.errors import RunDirectoryError, UsageError, first_line
from neurofleet.files import json_value, open_input
from neurofleet.itemcode import Remedies
from neurofleet.itemrun import ItemRun, Outcome, View, run
from neurofleet.items_wanted import FILES_BYTES
from neurofleet.itemstore import source_of
from neurofleet.jobs import Job, pickled
from neurofleet.own_code import is_own
from neurofleet.plain_names import plain_name, short_hash
from neurofleet.rundir import write_file
from neurofleet.workloads.map_results import Written, results_text

RESULTS = "results.jsonl"
REMEDIES = Remedies(
    "--run-dir",
    "--keep-results keeps them and computes what is missing, --retry-failed keeps them and computes"
    " only what failed",
)


@dataclass(frozen=True)
class Request:
    """What to map.

    Attributes
    ----------
    function : str
        ``MODULE:FUNCTION``; the module is looked for in the working directory too.
    items : Path
        JSON lines.
    engines : EngineChoice
    run_dir : Path or None
        ``None`` derives it from function and file, below ``neurofleet-runs``.
    output : Path or None
        ``None`` is ``results.jsonl`` in the run directory.
    limit_s : float, "none" or None
        Limit of one item [s]; ``None`` derives it from what was measured.
    seed : int
        With an item's number it seeds what its call draws from.
    files_bytes : int
        The most that is brought back of what one item wrote [bytes].
    keep_results : bool
        Whether to go on from results of other code or other versions of packages.
    retry_failed : bool
        Whether to compute only items that have failed.
    show : callable or None
        Called with an item's number, from 0, and each line that it printed.
    """

    function: str
    items: Path
    engines: EngineChoice
    run_dir: Path | None = None
    output: Path | None = None
    limit_s: float | str | None = None
    seed: int = 0
    files_bytes: int = FILES_BYTES
    keep_results: bool = False
    retry_failed: bool = False
    show: Callable[[int, str], None] | None = None


@dataclass(frozen=True)
class Line:
    """A line of a file of items: which one it is, and its JSON."""

    number: int
    text: str


@dataclass(frozen=True)
class Mapped:
    """What a run came to, and where its results are.

    Attributes
    ----------
    outcome : Outcome
    directory : Path
        The run directory.
    results : Path
        The file of results.
    lines : tuple of int
        Which line of the file of items each item is.
    not_finite, with_not_finite : int
        Numbers that are no JSON, and results that have some.
    """

    outcome: Outcome
    directory: Path
    results: Path
    lines: tuple[int, ...]
    not_finite: int = 0
    with_not_finite: int = 0


def map_items(request: Request, view: View, on_end: Callable[[Mapped], None]) -> Mapped:
    """Call the function for every line, and write the results in the lines' order.

    The file of results is written whenever the run ends, in whatever way, whole or not at
    all; ``map_results.py`` says what its lines are.

    Parameters
    ----------
    request : Request
    view : View
    on_end : callable
        Called when the results are written, also when the run was ended before it was done.

    Raises
    ------
    UsageError
        The function cannot be imported here, a line is no JSON, the output cannot be written.
    FleetError
        See its subclasses; what was computed is kept.
    """
    refuse_seed(request.seed)
    lines = read_lines(request.items)
    function = load(request.function)
    directory = run_directory(request, lines)
    results = (request.output or directory / RESULTS).absolute()
    if request.output is not None:
        _refuse_output(results)
    refuse_other_items(directory, request.items)
    wanted = ItemRun(
        job=Job.of(OfJson(function), as_imported=True),
        about={"function": request.function, "seed": str(request.seed)},
        items=pickled([line.text for line in lines]),
        directory=directory,
        engines=request.engines,
        limit_s=request.limit_s,
        seed=request.seed,
        files_bytes=request.files_bytes,
        keep_results=request.keep_results,
        retry_failed=request.retry_failed,
        remedies=REMEDIES,
        source=str(_real(request.items)) if _is_plain(request.items) else "",
        show=request.show,
    )
    mapped: list[Mapped] = []

    def write(outcome: Outcome) -> None:
        written: Written = results_text(outcome)
        write_file(
            _real(results),  # where a link leads: the link is the person's
            written.text.encode(),
            remedy="Make room or mend the permissions, and run the same command again, or name"
            " another file with --output; what was computed is kept",
        )
        numbers = tuple(line.number for line in lines)
        counts = (written.not_finite, written.with_not_finite)
        mapped.append(Mapped(outcome, directory, results, numbers, *counts))
        on_end(mapped[0])

    run(wanted, view, write)
    return mapped[0]


def refuse_seed(seed: int) -> None:
    """Raise unless a number can seed every generator.

    Raises
    ------
    UsageError
        It is negative, or has more than 32 bits.
    """
    if not 0 <= seed < 2**32:
        raise UsageError(
            f"the seed must be from 0 to {2**32 - 1}, not {seed}", remedy="Give another --seed"
        )


def run_directory(request: Request, lines: list[Line]) -> Path:
    """Return the run directory of a request: the one that was named, or one of its own.

    The default has a plain name for a file of items in the working directory, and a module
    from there or an installed one. For anything else, and for another seed, a hash of what it
    is is added, so that two inputs never share a directory.
    """
    if request.run_dir is not None:
        return request.run_dir.absolute()
    runs = Path("neurofleet-runs").absolute()
    stem = plain_name(request.items.stem)
    name = f"map-{request.function.replace(':', '.')}-{stem}"
    here = Path.cwd().resolve()
    different = []
    if not _is_plain(request.items):
        # A pipe has no name that would tell it from another one.
        content = hashlib.sha256("\n".join(line.text for line in lines).encode()).hexdigest()
        different.append(content)
    elif _real(request.items) != here / f"{request.items.stem}.jsonl":
        different.append(os.path.relpath(_real(request.items), here))
    module = sys.modules[request.function.partition(":")[0]]
    file = getattr(module, "__file__", None)
    if file and is_own(module.__name__, module) and not _is_at(Path(file), module.__name__, here):
        different.append(os.path.relpath(Path(file).resolve(), here))
    if request.seed:
        different.append(f"seed {request.seed}")
    if not different:
        return runs / name
    # What an earlier version has begun, which knew no other name, is gone on with there.
    if not request.seed and source_of(runs / name) in ("", str(_real(request.items))):
        return runs / name
    return runs / f"{name}-{short_hash(chr(0).join(different))}"


def refuse_other_items(directory: Path, items: Path) -> None:
    """Raise if a run directory is that of another file of items, which is still there.

    Raises
    ------
    RunDirectoryError
        It is.
    """
    noted = source_of(directory)
    if not noted or not _is_plain(items):
        return
    theirs = Path(noted)
    if theirs != _real(items) and theirs.exists() and not theirs.samefile(items):
        raise RunDirectoryError(
            f"the run directory {str(directory)!r} is that of the items {noted!r},"
            f" these are {str(items)!r}",
            remedy="Name another with --run-dir; nothing was changed",
        )


def _refuse_output(file: Path) -> None:
    """Raise unless results can be written there, as far as can be seen before."""
    if not file.parent.is_dir():
        raise UsageError(
            f"there is no directory {str(file.parent)!r} for the results",
            remedy="Make it, or name another file with --output",
        )
    if (file.exists() and not file.is_file()) or not os.access(file.parent, os.W_OK):
        raise UsageError(
            f"the results cannot be written to {str(file)!r}",
            remedy="Name a file in a directory of yours with --output",
        )


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _is_plain(items: Path) -> bool:
    return stat.S_ISREG(items.stat().st_mode)


def _is_at(file: Path, module: str, directory: Path) -> bool:
    """Tell whether a module's file is where an import from a directory would find it."""
    place = directory.joinpath(*module.split("."))
    return file.resolve() in (place.with_suffix(".py"), place / "__init__.py")


def read_lines(path: Path) -> list[Line]:
    """Return a file's lines, each of them JSON; empty lines are left out.

    ``NaN`` and ``Infinity`` are read as Python's ``json`` reads them, since it also writes
    them.

    Raises
    ------
    UsageError
        The file cannot be read, or a line is no JSON.
    """
    try:
        with open_input(path, "utf-8-sig") as file:
            content = file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(
            f"the items {str(path)!r} cannot be read ({why})",
            remedy="Name a file with one JSON value in each line",
        ) from error
    lines = []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            json_value(line)
        except ValueError as error:
            raise UsageError(
                f"line {number} of {str(path)!r} is not JSON ({error})",
                remedy='Write one JSON value in each line, for example {"x": 1} or "text"',
            ) from error
        lines.append(Line(number, line.strip()))
    return lines


def load(name: str) -> Any:
    """Return the function ``MODULE:FUNCTION``.

    Raises
    ------
    UsageError
        There is no such module or function, or importing it fails.
    """
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), function_name]):
        raise UsageError(
            f"{name!r} is not of the form MODULE:FUNCTION",
            remedy="Name a function, for example mymodule:simulate for one in mymodule.py",
        )
    if "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{module_name!r} cannot be imported ({type(error).__name__}: {first_line(error)})",
            remedy="Go to the directory that has the module, and see that"
            f" python -c 'import {module_name}' works there",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        has = sorted(n for n, v in vars(module).items() if callable(v) and n[0] != "_")[:8]
        raise UsageError(
            f"{module_name!r} has no function {function_name!r}",
            remedy=f"It has {', '.join(has) or 'none'}",
        )
    return function
