"""Start the real commands, and read what they leave behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from e2e.processes import awaited

MODELS = Path(__file__).parents[1] / "models"
BIN = Path(sys.executable).parent
#: Longest that any single run of the small models may take, and BluePyOpt's serial one [s].
LIMIT_S = 120.0
SERIAL_LIMIT_S = 400.0


@dataclass(frozen=True)
class Model:
    """A bundle below ``tests/models`` and how its evaluator is had."""

    name: str
    factory: str = "evaluator:create"
    search: tuple[str, ...] = (".",)
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return MODELS / self.name

    def options(self) -> list[str]:
        """Return the command line's words for the model."""
        return [
            str(self.directory),
            f"--evaluator={self.factory}",
            *(f"--search={folder}" for folder in self.search),
            f"--kwargs={json.dumps(dict(self.kwargs))}",
        ]


def quick(pause_s: float = 0.0, **kwargs: Any) -> Model:
    """Return the ordinary model; with a pause of 2 s its units take 0.5, 1 and 2 s."""
    return Model("quick", "quick_evaluator:create", kwargs={"pause_s": pause_s, **kwargs})


def misbehaving(how: str, **kwargs: Any) -> Model:
    """Return the model that fails in one way for part of the parameters."""
    return Model("misbehaving", kwargs={"how": how, **kwargs})


@dataclass(frozen=True)
class Evolution:
    """What is run of a model."""

    model: Model
    offspring: int = 4
    generations: int = 2
    seed: int = 42
    selector: str = "IBEA"

    def options(self) -> list[str]:
        """Return the command line's words for the evolution."""
        return [
            *self.model.options(),
            f"--offspring-size={self.offspring}",
            f"--max-ngen={self.generations}",
            f"--seed={self.seed}",
            f"--selector={self.selector}",
        ]


class Finished(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines that say what went wrong."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def counts(self) -> tuple[int, int, int]:
        """Units simulated, found in the store, penalised, as the last line says."""
        told = re.search(
            r"(\d+) simulated, (\d+) from the store(?:, (\d+) of them penalised)?", self.err
        )
        assert told, self.err
        return int(told[1]), int(told[2]), int(told[3] or 0)


class Client:
    """A command under way, in a process group of its own, as a shell would have it.

    With a ``connection``, a pipe's or a pseudoterminal's descriptor, it speaks to that, and a
    terminal is its controlling one.
    """

    def __init__(
        self,
        words: list[str],
        cwd: Path,
        env: Mapping[str, str],
        log: Path,
        connection: int | None = None,
    ) -> None:
        self._out, self._err = log.with_suffix(".out"), log.with_suffix(".err")
        how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "process_group": 0}
        if connection is not None and os.isatty(connection):
            how = {
                "stdin": connection,
                "start_new_session": True,
                "preexec_fn": lambda: fcntl.ioctl(connection, termios.TIOCSCTTY, 0),
            }
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                words,
                cwd=cwd,
                env=dict(env),
                stdout=out if connection is None else connection,
                stderr=err if connection is None else connection,
                **how,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def running(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        """Return what it has printed so far."""
        return self._out.read_text(errors="replace")

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal; a terminal's Ctrl-C goes to the whole group."""
        (os.killpg if group else os.kill)(self.pid, number)

    def ended(self, limit_s: float = LIMIT_S) -> Finished:
        """Wait for the end."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # then it says what every thread does
            self.process.wait()
            text = self._err.read_text(errors="replace")
            raise AssertionError(f"still running after {limit_s:g} s:\n{text}") from None
        return Finished(
            code,
            self._out.read_text(errors="replace"),
            self._err.read_text(errors="replace"),
        )


class Bench:
    """A working directory and a cache in which commands are run."""

    def __init__(self, cwd: Path, cache: Path) -> None:
        self.cwd = cwd
        self.cache = cache
        self.clients: list[Client] = []

    def directory(self, name: str) -> Path:
        return self.cwd / name

    def optimise(
        self,
        evolution: Evolution,
        *options: str,
        run: str = "run",
        backend: str = "local",
        engines: int | None = None,
        env: Mapping[str, str] | None = None,
        connection: int | None = None,
    ) -> Client:
        """Start ``neurofleet optimise``, by default on two local engines, without a report."""
        engines = 2 if backend == "local" and engines is None else engines
        words = [
            *("neurofleet", "optimise"),
            *evolution.options(),
            f"--backend={backend}",
            *([f"--engines={engines}"] if engines is not None else []),
            f"--run-dir={run}",
            "--no-report",
            *options,
        ]
        return self.start(*words, env=env, connection=connection)

    def start(
        self,
        program: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        connection: int | None = None,
    ) -> Client:
        """Start a command of this environment."""
        client = Client(
            [str(BIN / program), *arguments],
            self.cwd,
            {
                **os.environ,
                "NEUROFLEET_CACHE": str(self.cache),
                "PYTHONFAULTHANDLER": "1",
                **(env or {}),
            },
            self.cwd / f"client-{len(self.clients)}",
            connection,
        )
        self.clients.append(client)
        return client


class PageRun(NamedTuple):
    """The command that BluePyOpt's page shows, run on two engines of a cluster that was up."""

    bench: Bench
    done: Finished
    engines_stayed: bool

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.bench.directory("neurofleet-runs") / "l5pc-seed42-offspring1"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint, where the command has it."""
        return self.bench.directory("check.pkl")


class Upstream:
    """BluePyOpt's own serial runs; each one is made once."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._courses: dict[str, dict[str, Any]] = {}

    def course(self, evolution: Evolution) -> dict[str, Any]:
        """Return what an evolution comes to."""
        key = repr(evolution)
        if key not in self._courses:
            checkpoint = self._home / f"check-{len(self._courses)}.pkl"
            self.run(evolution, checkpoint)
            self._courses[key] = course(checkpoint)
        return self._courses[key]

    def run(self, evolution: Evolution, checkpoint: Path, *, go_on: bool = False) -> None:
        """Run an evolution, or go on with a checkpoint."""
        model = evolution.model
        job = {
            "model": str(self._compiled(model)),
            "factory": model.factory,
            "search": list(model.search),
            # A pause changes no number.
            "kwargs": {k: v for k, v in model.kwargs.items() if k != "pause_s"},
            "seed": evolution.seed,
            "offspring": evolution.offspring,
            "generations": evolution.generations,
            "selector": evolution.selector,
            "checkpoint": str(checkpoint),
            "go_on": go_on,
        }
        script = Path(__file__).with_name("upstream.py")
        done = subprocess.run(
            [sys.executable, "-P", str(script), json.dumps(job)],
            cwd=self._home,
            capture_output=True,
            text=True,
            timeout=SERIAL_LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def _compiled(self, model: Model) -> Path:
        target = self._home / "models" / model.name
        if not target.exists():
            shutil.copytree(model.directory, target)
            if (target / "mechanisms").exists():
                subprocess.run(
                    [BIN / "nrnivmodl", "mechanisms"],
                    cwd=target,
                    env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
                    check=True,
                    capture_output=True,
                    timeout=LIMIT_S,
                )
        return target


def course(checkpoint: Path) -> dict[str, Any]:
    """Return everything in a checkpoint that an evolution decides, bit for bit."""
    with checkpoint.open("rb") as file:
        state = pickle.load(file)

    def bits(individuals: Any) -> list[tuple[list[str], list[str]]]:
        return [
            ([float.hex(v) for v in one], [float(v).hex() for v in one.fitness.values])
            for one in individuals
        ]

    return {
        "generation": state["generation"],
        "logbook": [{name: float(row[name]).hex() for name in row} for row in state["logbook"]],
        "halloffame": bits(state["halloffame"]),
        "population": bits(state["population"]),
        "parents": bits(state["parents"]),
        "every individual": bits(state["history"].genealogy_history.values()),
        "generator": state["rndstate"],
    }


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return the names of what differs between two courses."""
    assert found.keys() == expected.keys()
    return [name for name in expected if found[name] != expected[name]]


class Row(NamedTuple):
    """A row of the store."""

    unit: str
    parameters: bytes
    scores: bytes
    status: str
    reason: str
    started: float
    duration_s: float
    host: str
    pid: int


def rows(run: Path) -> list[Row]:
    """Return the scores of a run directory, in the order in which they came."""
    if not (run / "scores.sqlite").exists():
        return []
    with contextlib.closing(sqlite3.connect(run / "scores.sqlite", timeout=30)) as db:
        try:
            found = db.execute(f"SELECT {', '.join(Row._fields)} FROM score ORDER BY rowid")
        except sqlite3.OperationalError as error:  # it is being made
            if "no such table" not in str(error):
                raise
            return []
        return [Row(*row) for row in found]


Scores = Mapping[tuple[str, bytes], bytes]


def scores(found: list[Row]) -> Scores:
    """Return scores by unit and parameters."""
    return {(row.unit, row.parameters): row.scores for row in found}


def phases(run: Path) -> dict[int, tuple[int, int]]:
    """Return (simulated, stored) summed over the phases of each generation."""
    with contextlib.closing(sqlite3.connect(run / "scores.sqlite", timeout=30)) as db:
        found = db.execute(
            "SELECT generation, sum(simulated), sum(stored) FROM phase GROUP BY generation"
        )
        return {generation: (simulated, stored) for generation, simulated, stored in found}


def about(run: Path) -> dict[str, Any]:
    """Return what a run directory says of itself."""
    return dict(json.loads((run / "neurofleet-run.json").read_text()))


def scored(run: Path, at_least: int, client: Client, limit_s: float = 60.0) -> list[Row]:
    """Wait until so many units are scored, and return them."""

    def enough() -> list[Row]:
        if not client.running():
            raise AssertionError(f"the client has ended: {client.ended().err}")
        found = rows(run)
        return found if len(found) >= at_least else []

    return awaited(enough, limit_s, f"{at_least} scores in {run}")


@contextlib.contextmanager
def ipcluster(home: Path, profile: str, engines: int, env: Mapping[str, str]) -> Iterator[Any]:
    """Run a cluster as BluePyOpt's page does; yield a client of it.

    Without engines it is the controller alone.
    """
    import ipyparallel

    log = home / f"ipcluster-{profile}.log"
    environment = {**os.environ, "IPYTHONDIR": str(home), **env}
    words = [str(BIN / "ipcluster"), "start", f"--profile={profile}", f"--n={engines}"]
    if not engines:
        words = [str(BIN / "ipcontroller"), f"--profile={profile}"]
    with log.open("wb") as file:
        cluster = subprocess.Popen(
            words, cwd=home, env=environment, stdout=file, stderr=file, process_group=0
        )
    connection = home / f"profile_{profile}" / "security" / "ipcontroller-client.json"
    try:
        awaited(lambda: connection.exists() and cluster.poll() is None, 60, log.read_text())
        with ipyparallel.Client(str(connection), timeout=30) as client:
            awaited(lambda: len(client.ids) >= engines, 60, f"{engines} engines register")
            yield client
    finally:
        if cluster.poll() is None:
            cluster.send_signal(signal.SIGINT)
        try:
            cluster.wait(30)
        except subprocess.TimeoutExpired:
            cluster.kill()
            cluster.wait()
