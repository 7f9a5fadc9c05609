"""``neurofleet map``: a person's own function over the lines of a file."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurofleet.backends.choice import EngineChoice
from neurofleet.engine.job import OfJson
from neurofleet.errors import UsageError, first_line
from neurofleet.files import json_value, open_input
from neurofleet.itemrun import ItemRun, Outcome, View, run
from neurofleet.jobs import Job, pickled
from neurofleet.rundir import write_file

RESULTS = "results.jsonl"


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
    limit_s : float or None
        Limit of one item [s].
    """

    function: str
    items: Path
    engines: EngineChoice
    run_dir: Path | None = None
    output: Path | None = None
    limit_s: float | None = None

    @property
    def directory(self) -> Path:
        """The run directory."""
        name = f"map-{self.function.replace(':', '.')}-{self.items.stem}"
        return (self.run_dir or Path("neurofleet-runs") / name).absolute()

    @property
    def results(self) -> Path:
        """Where the results are written."""
        return (self.output or self.directory / RESULTS).absolute()


def map_items(request: Request, view: View) -> Outcome:
    """Call the function for every line, and write the results in the lines' order.

    Each line of the result is ``{"result": ...}``, or ``{"error": "..."}`` for a line whose
    call raised.

    Raises
    ------
    UsageError
        The function cannot be imported here, a line is no JSON, the output cannot be written.
    FleetError
        See its subclasses; what was computed is kept.
    """
    lines = read_lines(request.items)
    function = load(request.function)
    if not request.results.parent.is_dir() and request.output is not None:
        raise UsageError(
            f"there is no directory {str(request.results.parent)!r} for the results",
            remedy="Make it, or name another file with --output",
        )
    job = Job.of(OfJson(function), as_imported=True)
    wanted = ItemRun(
        job=job,
        about={"function": request.function, "code": _digest(job.code)},
        items=pickled(lines),
        directory=request.directory,
        engines=request.engines,
        limit_s=request.limit_s,
    )
    outcome = run(wanted, view)
    text = io.StringIO()
    for result in outcome.results:
        if result.ok:
            text.write(f'{{"result": {result.value()}}}\n')
        else:
            text.write(json.dumps({"error": result.ended.reason}) + "\n")
    write_file(
        request.results,
        text.getvalue().encode(),
        remedy="Make room or mend the permissions, and run the same command again, or name another"
        " file with --output; what was computed is kept",
    )
    return outcome


def read_lines(path: Path) -> list[str]:
    """Return a file's lines, each of them JSON; empty lines are left out.

    Raises
    ------
    UsageError
        The file cannot be read, or a line is no JSON.
    """
    try:
        with open_input(path) as file:
            content = file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
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
                f"line {number} of {str(path)!r} is no JSON ({error})",
                remedy='Write one JSON value in each line, for example {"x": 1} or "text"',
            ) from error
        lines.append(line.strip())
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


def _digest(code: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()[:12]
