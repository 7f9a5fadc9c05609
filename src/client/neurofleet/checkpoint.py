"""BluePyOpt's checkpoint: written whole, every generation, and checked before it is read.

The file is a pickle of the dictionary that BluePyOpt's own tools read, with one key
more, ``neurofleet``, which says what it belongs to. A pickle is code: another user's file is
not opened, and in any file only the classes that a checkpoint consists of are allowed.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurofleet.errors import RunDirectoryError
from neurofleet.files import as_object, count, entries, open_plain, text, texts, user_name
from neurofleet.rundir import write_file

#: What BluePyOpt's tools read from a checkpoint (``bluepyopt.deapext.algorithms``).
KEYS = (
    "population",
    "generation",
    "parents",
    "halloffame",
    "history",
    "logbook",
    "rndstate",
    "param_names",
)
#: Behind the pickle, where BluePyOpt's tools do not look: a hash of it, and this.
MARK = b"neurofleet checkpoint\n"
HASH_SIZE = 32
#: What a checkpoint of IBEA or NSGA2 consists of, besides Python's own values; nothing else
#: is called or made by reading one.
ALLOWED = frozenset(
    {
        ("bluepyopt.deapext.optimisations", "WSListIndividual"),
        ("bluepyopt.deapext.optimisations", "WeightedSumFitness"),
        ("collections", "defaultdict"),
        ("deap.tools.support", "HallOfFame"),
        ("deap.tools.support", "History"),
        ("deap.tools.support", "Logbook"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.multiarray", "scalar"),  # as numpy 1 has it
        ("_operator", "eq"),
    }
)


class _Named:
    """Reads of other modules only what is allowed."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}"[:200])
        return getattr(importlib.import_module(module), name)


class _Quick(_Named, pickle.Unpickler):
    """Reads what is known to be as it was written."""


class _Careful(_Named, pickle._Unpickler):
    """Reads anything: a wrong number does not make it ask for all the memory there is."""


def write(path: Path, state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Write a checkpoint.

    Parameters
    ----------
    path : Path
    state : mapping
        ``KEYS``.
    identity : mapping
        Model, versions and settings that the state belongs to.

    Raises
    ------
    RunDirectoryError
        It cannot be written.
    """
    content = pickle.dumps({**state, "neurofleet": dict(identity)}, protocol=4)
    write_file(
        path,
        content + _hash(content) + MARK,
        remedy="Make room or mend the permissions, and run the same command again, or name another"
        " file with --checkpoint; no score is lost",
    )


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of BluePyOpt's or ours.

    Raises
    ------
    RunDirectoryError
        It is missing, damaged, somebody else's, or of a BluePyOpt that does not fit.
    """
    content = read_own_pickle(path)
    import bluepyopt

    try:
        unpickler: type[_Named] = _Careful
        if content.endswith(MARK):
            content, found = content[: -len(MARK) - HASH_SIZE], content[: -len(MARK)]
            if found[len(content) :] != _hash(content):
                raise ValueError("its hash is another")
            unpickler = _Quick
        stream = io.BytesIO(content)
        state = unpickler(stream).load()  # type: ignore[call-arg,attr-defined]
        if stream.read(1):  # a part of the mark, if it was cut off there
            raise ValueError("something follows it")
        return _checked(state)
    except Exception as error:  # unpickling raises anything
        raise RunDirectoryError(
            f"the checkpoint {str(path)!r} is damaged or not of BluePyOpt"
            f" {bluepyopt.__version__} ({type(error).__name__}: {error}); it was left as it is",
            remedy="Move it away; the scores in the run directory are enough to go on",
        ) from error


def read_own_pickle(path: Path) -> bytes:
    """Return a file's content, not unpickled, if it is this user's.

    Raises
    ------
    RunDirectoryError
        It is another user's, or cannot be read.
    """
    try:
        with open_plain(path) as file:
            owner = os.fstat(file.fileno()).st_uid
            content = file.read()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise RunDirectoryError(
            f"the file {str(path)!r} cannot be read ({why})", remedy="Name an existing file"
        ) from error
    if owner != os.geteuid():
        raise RunDirectoryError(
            f"{str(path)!r} belongs to another user, {user_name(owner)}; a pickle is code and is"
            " not opened",
            remedy="Copy it yourself if you trust who wrote it",
        )
    return content


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=HASH_SIZE).digest()


def _checked(state: Any) -> dict[str, Any]:
    """Return a checkpoint's content if every part of it is of its kind."""
    from deap.tools import HallOfFame, History, Logbook

    missing = [key for key in KEYS if key not in state]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    count(state, "generation")
    texts(state, "param_names")
    for group in ("population", "parents"):
        for individual in entries(state, group):
            if not all(isinstance(value, float | int) for value in individual):
                raise ValueError(f"something in its {group} is not an individual")
    random.Random().setstate(state["rndstate"])
    for name, kind in (("halloffame", HallOfFame), ("history", History), ("logbook", Logbook)):
        if not isinstance(state[name], kind):
            raise ValueError(f"its {name} is not a {kind.__name__}")
    if "neurofleet" in state:
        own = as_object(state["neurofleet"])
        text(own, "model")
        as_object(own["versions"])
        as_object(own["settings"])
    return dict(state)


def belongs_elsewhere(
    state: Mapping[str, Any], identity: Mapping[str, Any], param_names: list[str]
) -> str | None:
    """Return why a checkpoint cannot be gone on from or replaced here, ``None`` if it can."""
    own = state.get("neurofleet")
    if list(state["param_names"]) != param_names:
        return "it has other parameters, so it is another model's"
    if own is None:
        return "it was written by BluePyOpt itself"
    if own["model"] != identity["model"]:
        return f"it is of model {own['model'][:12]}, this is model {identity['model'][:12]}"
    for name, version in identity["versions"].items():
        # What an earlier version of this program did not record is no difference.
        if own["versions"].get(name) not in (None, version):
            return f"it was made with {name} {own['versions'].get(name)}, here is {version}"
    differing = [
        f"{name} {own['settings'].get(name)}"
        for name, value in identity["settings"].items()
        if own["settings"].get(name) != value
    ]
    return f"it was made with {', '.join(differing)}" if differing else None
