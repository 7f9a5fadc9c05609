"""What a person sees of a run over items: a bar, or plain lines."""

from __future__ import annotations

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from neurofleet.farm import FarmState
from neurofleet.status import Patience

#: Without a terminal, a line of progress at most so often [s].
LINE_S = 30.0


class ItemWatcher:
    """Shows a run over items on stderr.

    Parameters
    ----------
    title : str
        What is computed.
    """

    def __init__(self, title: str) -> None:
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[more]}"),
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID = self._bar.add_task(title, total=None, more="")
        self._title = title
        self._engines = ""
        self._size = 0
        self._last_line = time.monotonic()
        self._patience = Patience(LINE_S)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def says(self, text: str) -> None:
        """Show a line for a person."""
        self._console.print(Text(text))

    def printed(self, number: int, line: str) -> None:
        """Show a line that an item printed; its number counts from 0."""
        self.says(f"item {number + 1}: {line}")

    def farm(self, state: FarmState) -> None:
        """Engines came, went, or changed what they do."""
        if not self._console.is_terminal:
            line = self._patience.line(state)
            if line is not None:
                self.says(line)
            if state.engines < self._size:
                self.says(f"an engine was lost, {state.engines} left")
        self._size = state.engines
        self._engines = f"{state.busy}/{state.engines} engines busy"

    def items(self, done: int, total: int, failed: int) -> None:
        """Items ended."""
        more = ", ".join(
            part for part in (self._engines, f"{failed} failed" * bool(failed)) if part
        )
        self._bar.update(self._task, completed=done, total=total, more=more)
        if not self._console.is_terminal and time.monotonic() - self._last_line > LINE_S:
            self._last_line = time.monotonic()
            self.says(f"{self._title}: {done}/{total} items, {more}")
