"""NEURON's compiled mechanisms, loaded into this process once, whoever loads them.

NEURON refuses to load a mechanism twice, and takes a library for another one when its name is
written otherwise (``.``, a slash at the end). A model's mechanisms are loaded before its code is
imported; so what its code loads itself is looked at, and left if there is nothing new in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Each mechanism of a library has such a function, named by its file.
_REGISTERS = re.compile(rb"\x00_(\w+)_reg(?=\x00)")
#: Where ``nrnivmodl`` puts a library below the directory it was called in.
_PATTERNS = ("*/libnrnmech.so", "*/.libs/libnrnmech.so", "*/libnrnmech.dylib")


def libraries_in(model: Path) -> list[Path]:
    """Return the libraries that ``nrnivmodl`` made below a directory."""
    return [path for pattern in _PATTERNS for path in sorted(model.glob(pattern))]


def mechanisms_of(library: Path) -> frozenset[str]:
    """Return the mechanisms in a library, by the names of their files."""
    try:
        return frozenset(name.decode() for name in _REGISTERS.findall(library.read_bytes()))
    except OSError:  # NEURON says what it says of such a path
        return frozenset()


class LoadedOnce:
    """Loads libraries of mechanisms, each mechanism once.

    Parameters
    ----------
    neuron : module
        NEURON's, imported; its ``h`` and ``n`` are given a ``nrn_load_dll`` that does nothing
        for mechanisms that are loaded.
    """

    def __init__(self, neuron: Any) -> None:
        self._load = neuron.h.nrn_load_dll
        self._mechanisms: set[str] = set()

        def nrn_load_dll(_interpreter: Any, path: str) -> float:
            return self.load(path)

        # What NEURON does for ``n``: a class of Python's around the same interpreter.
        class TopLevelHocInterpreter(neuron.hoc.HocObject):  # type: ignore[misc]
            __slots__ = ()

        TopLevelHocInterpreter.nrn_load_dll = nrn_load_dll
        type(neuron.n).nrn_load_dll = nrn_load_dll
        neuron.h = TopLevelHocInterpreter()

    def load(self, path: str) -> float:
        """Load a library unless all its mechanisms are loaded; return NEURON's 1 or 0.

        Raises
        ------
        RuntimeError
            Some of its mechanisms are loaded and some are not, which NEURON cannot do.
        """
        found = mechanisms_of(Path(os.fspath(path)))
        new = found - self._mechanisms
        if found and not new:
            return 1.0
        if len(new) < len(found):
            raise RuntimeError(
                f"{os.fspath(path)} has mechanisms that are loaded already"
                f" ({_listed(found - new)}) and others ({_listed(new)}):"
                " name all their directories with --mechanisms"
            )
        done = float(self._load(path))
        if done:
            self._mechanisms |= found
        return done


def _listed(names: frozenset[str]) -> str:
    def parts() -> Iterator[str]:
        yield from sorted(names)[:3]
        if len(names) > 3:
            yield f"and {len(names) - 3} more"

    return ", ".join(parts())
