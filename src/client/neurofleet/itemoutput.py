"""What functions print and log on engines: a file for each engine, and shown if wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from neurofleet.errors import one_line
from neurofleet.plain_names import plain_name

if TYPE_CHECKING:
    from neurofleet.batches import Result


class ItemOutput:
    """Keeps what items printed, below a header line for each.

    Parameters
    ----------
    directory : Path or None
        For a file ``<host>-<pid>.log`` of each engine; ``None`` keeps nothing.
    show : callable or None
        Called with an item's number, from 0, and each line that it printed.
    """

    def __init__(
        self, directory: Path | None, show: Callable[[int, str], None] | None = None
    ) -> None:
        self._directory = directory
        self._show = show
        #: Why output could not be kept; empty if it was.
        self.lost = ""

    def take(self, results: Mapping[int, Result]) -> None:
        """Keep and show what these items printed; a full disk does not end a run."""
        for number, result in sorted(results.items()):
            if result.ended.output:
                self._take(number, result)

    def _take(self, number: int, result: Result) -> None:
        output = result.ended.output
        if self._directory is not None:
            name = plain_name(f"{result.host or 'lost'}-{result.pid}")
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            header = f"=== item {number + 1}, until {when}: {result.ended.status}\n".encode()
            end = b"" if output.endswith(b"\n") else b"\n"
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                with (self._directory / f"{name}.log").open("ab") as file:
                    file.write(header + output + end)
            except OSError as error:
                self.lost = error.strerror or str(error)
        if self._show is not None:
            for line in output.decode(errors="replace").splitlines():
                self._show(number, line if line.isprintable() else one_line(line))
