"""A stop that loses nothing: what engines have begun is finished and kept, nothing else begins.

Asked for by SIGUSR1, which Slurm sends some time before a job's limit.
"""

from __future__ import annotations

import threading

from neurofleet.errors import Interrupted

_asked = threading.Event()


def ask() -> None:
    """Have the run that is under way stop."""
    _asked.set()


def asked() -> bool:
    """Tell whether to begin nothing more."""
    return _asked.is_set()


def reached() -> Interrupted:
    """Return what a run raises when it has stopped."""
    return Interrupted(
        "stopped at a safe point; all that engines had begun is finished and kept",
        remedy="Run the same command again to go on",
    )
