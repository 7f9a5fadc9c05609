"""Reads the evaluation store without its lock, so also while a run writes it."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurofleet.errors import RunDirectoryError
from neurofleet.files import json_value
from neurofleet.store import FORMAT, Phase

#: How long to wait for a writer that is in the middle of a commit [s].
BUSY_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Failure:
    """Units that failed alike.

    Attributes
    ----------
    unit, status, reason : str
    count : int
    total_s : float
        Engine time that they took [s].
    """

    unit: str
    status: str
    reason: str
    count: int
    total_s: float


@dataclass(frozen=True, eq=False)
class Evaluations:
    """Every simulated unit of a run, as columns of equal length.

    Attributes
    ----------
    units : tuple of str
        Names that ``unit`` indexes.
    engines : tuple of (str, int)
        Host and process that ``engine`` indexes, in the order that a person sorts in.
    unit, engine : ndarray of int
    started : ndarray of float
        By the engine's clock [s since 1970].
    duration_s : ndarray of float
        Wall time [s].
    failed : ndarray of bool
        Whether its status is another than ``ok``.
    failures : tuple of Failure
        The failed ones by kind, the most frequent first.
    phases : tuple of Phase
        In the order of time.
    """

    units: tuple[str, ...]
    engines: tuple[tuple[str, int], ...]
    unit: NDArray[np.int64]
    engine: NDArray[np.int64]
    started: NDArray[np.float64]
    duration_s: NDArray[np.float64]
    failed: NDArray[np.bool_]
    failures: tuple[Failure, ...]
    phases: tuple[Phase, ...]

    @property
    def count(self) -> int:
        """Units that were simulated."""
        return len(self.unit)


def read(
    path: Path, model: str, versions: Mapping[str, str], unit_order: Sequence[str] = ()
) -> Evaluations:
    """Read what a run's engines did.

    Parameters
    ----------
    path : Path
        ``scores.sqlite``; where there is none, nothing was simulated.
    model : str
        The model's hash.
    versions : mapping
        Of NEURON, BluePyOpt and eFEL.
    unit_order : sequence of str
        Names of units in the order of the model; others follow.

    Raises
    ------
    RunDirectoryError
        The store is damaged, of another format, or cannot be opened.
    """
    if not path.exists() or path.stat().st_size == 0:
        return _columns([], (), (), unit_order)
    try:
        with contextlib.closing(_connect(path)) as db:
            written = db.execute("PRAGMA user_version").fetchone()[0]
            if written != FORMAT:
                raise RunDirectoryError(
                    f"the store {str(path)!r} has format {written}, this program reads {FORMAT}",
                    remedy="Use the version of neurofleet that wrote it",
                )
            db.execute("BEGIN")  # one state of the store, whatever is written meanwhile
            context = _context(db, model, versions)
            rows = db.execute(
                "SELECT unit, host, pid, started, duration_s, status != 'ok' FROM score"
                " WHERE context = ? AND started IS NOT NULL AND duration_s IS NOT NULL"
                " ORDER BY started, unit, host, pid",
                (context,),
            ).fetchall()
            failures = db.execute(
                "SELECT unit, status, reason, count(*), total(duration_s) FROM score"
                " WHERE context = ? AND status != 'ok' GROUP BY unit, status, reason"
                " ORDER BY count(*) DESC, unit, status, reason",
                (context,),
            ).fetchall()
            phases = db.execute("SELECT * FROM phase ORDER BY started, generation").fetchall()
    except sqlite3.OperationalError as error:
        raise RunDirectoryError(
            f"the store {str(path)!r} cannot be read ({error})",
            remedy="Mend its permissions, or run the optimisation's command again: it mends a"
            " write that was cut off",
        ) from error
    except sqlite3.DatabaseError as error:
        raise RunDirectoryError(
            f"the store {str(path)!r} is damaged ({error}); it was left as it is",
            remedy=f"neurofleet repair {str(path.parent)!r} keeps every sound score and sets the"
            " damaged file aside",
        ) from error
    return _columns(
        rows,
        tuple(Failure(*row) for row in failures),
        tuple(Phase(*row) for row in phases),
        unit_order,
    )


def engine_order(engine: tuple[str, int]) -> tuple[Any, ...]:
    """Sort ``worker10`` behind ``worker9``."""
    host, pid = engine
    parts = re.split(r"(\d+)", host)
    return ([(int(p), "") if p.isdigit() else (-1, p) for p in parts], pid)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
    )


def _context(db: sqlite3.Connection, model: str, versions: Mapping[str, str]) -> int:
    """Return the number under which the store keeps a model and versions, or -1.

    ``versions`` may name more than scores depend on, and an older store fewer.
    """
    rows = db.execute("SELECT id, versions FROM context WHERE model = ? ORDER BY id", (model,))
    for number, text in rows.fetchall():
        recorded = json_value(text)
        if all(versions.get(name) == value for name, value in recorded.items()):
            return int(number)
    return -1


def _columns(
    rows: Sequence[tuple[Any, ...]],
    failures: tuple[Failure, ...],
    phases: tuple[Phase, ...],
    unit_order: Sequence[str],
) -> Evaluations:
    seen = {row[0] for row in rows}
    units = [name for name in dict.fromkeys(unit_order) if name in seen]
    units += sorted(seen - set(units))
    engines = sorted({(str(row[1]), int(row[2] or 0)) for row in rows}, key=engine_order)
    unit_of = {name: index for index, name in enumerate(units)}
    engine_of = {name: index for index, name in enumerate(engines)}
    return Evaluations(
        units=tuple(units),
        engines=tuple(engines),
        unit=np.array([unit_of[row[0]] for row in rows], dtype=np.int64),
        engine=np.array([engine_of[str(row[1]), int(row[2] or 0)] for row in rows], dtype=np.int64),
        started=np.array([row[3] for row in rows], dtype=np.float64),
        duration_s=np.maximum(np.array([row[4] for row in rows], dtype=np.float64), 0.0),
        failed=np.array([row[5] for row in rows], dtype=np.bool_),
        failures=failures,
        phases=phases,
    )
