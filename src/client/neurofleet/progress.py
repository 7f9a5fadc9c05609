"""What a person sees while an optimisation runs: a live view, or plain lines."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from neurofleet.evolution import State
from neurofleet.farm import FarmState
from neurofleet.findings import Findings, shown
from neurofleet.progress_items import LINE_S
from neurofleet.scoring import Progress
from neurofleet.status import Patience


class Watcher:
    """Collects what is known of a run; shows it on stderr.

    Parameters
    ----------
    title : str
        What is optimised.
    max_ngen : int
        Generations in all.
    live : bool
        Whether a terminal gets the live view.
    """

    def __init__(self, title: str, max_ngen: int, *, live: bool = True) -> None:
        self._title = title
        self._wanted_live = live
        self._max_ngen = max_ngen
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._started = time.monotonic()
        self._last_line = 0.0
        self._farm: FarmState | None = None
        self._progress: Progress | None = None
        self._found: Findings | None = None
        self._phase_started = (0, time.monotonic(), 0)  # generation, clock, units done then
        self._penalised = 0
        self._short = False
        self._patience = Patience(LINE_S)

    def __enter__(self) -> Self:
        if self._wanted_live and self._console.is_terminal:
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def says(self, text: str) -> None:
        """Show a line for a person."""
        self._console.print(Text(text))

    def farm(self, state: FarmState) -> None:
        """Engines came, went, or changed what they do."""
        before, self._farm = self._farm, state
        if self._live is not None:
            return
        line = self._patience.line(state)
        if line is not None:
            self.says(line)
        if before is None:
            return
        if state.engines < before.engines:
            self._short = True
            self.says(f"an engine was lost, {state.engines} left")
        elif state.engines > before.engines and self._short:
            self.says(f"engines ready: {state.engines}")

    def progress(self, progress: Progress) -> None:
        """A unit was scored."""
        self._progress = progress
        if self._phase_started[0] != progress.generation or progress.outcome is None:
            self._phase_started = (progress.generation, time.monotonic(), progress.units_done)
        if progress.outcome is not None and progress.outcome.status != "ok":
            self._penalised += 1
        if self._live is None and time.monotonic() - self._last_line > LINE_S:
            self._last_line = time.monotonic()
            if progress.outcome is not None:
                self.says(self._state_line())

    def generation(self, state: State, found: Findings) -> None:
        """A generation is complete."""
        self._found = found
        self.says(
            f"generation {state.generation}/{self._max_ngen}: {_fitness(found)}, {self._elapsed()}"
        )

    # -- rendering ----------------------------------------------------------------

    def _state_line(self) -> str:
        progress = self._progress
        if progress is None:
            return "preparing"
        name = f"generation {progress.generation}" if progress.generation else "comparing units"
        parts = [f"{name}: {progress.units_done}/{progress.units_total} units"]
        if self._farm is not None:
            parts.append(f"{self._farm.busy}/{self._farm.engines} engines busy")
        rate = self._units_a_minute()
        if rate:
            parts.append(f"{rate:.1f} units/min")
        if self._penalised:
            parts.append(f"{self._penalised} penalised")
        parts.append(self._time_left())
        return ", ".join(part for part in parts if part)

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column()
        progress = self._progress
        if progress is None:
            return Group(Text(f"{self._title}: preparing, {self._elapsed()}", style="bold"))
        if progress.generation:
            table.add_row("generation", f"{progress.generation} of {self._max_ngen}")
        else:
            table.add_row("comparing", "units with whole individuals, once for this model")
        bar = ProgressBar(
            total=max(progress.units_total, 1), completed=progress.units_done, width=40
        )
        table.add_row("units", bar)
        table.add_row(
            "",
            f"{progress.units_done} of {progress.units_total}, "
            f"{progress.simulated} simulated in this run",
        )
        rate = self._units_a_minute()
        if rate:
            table.add_row("rate", f"{rate:.1f} units a minute")
        if self._farm is not None:
            waiting = self._farm.waiting_since
            engines = f"{self._farm.busy} busy of {self._farm.engines}"
            if waiting is not None:
                doing = "preparing" if self._farm.registered else "waiting for one"
                engines = f"{doing}, {time.monotonic() - waiting:.0f} s"
            table.add_row("engines", engines)
        if self._found is not None:
            table.add_row("fitness", _fitness(self._found))
        if self._penalised:
            table.add_row("penalised", f"{self._penalised} units")
        table.add_row(
            "time", f"{self._elapsed()}{', ' if self._time_left() else ''}{self._time_left()}"
        )
        return Group(Text(self._title, style="bold"), table)

    def _units_a_minute(self) -> float:
        progress = self._progress
        generation, clock, done = self._phase_started
        if progress is None or generation != progress.generation:
            return 0.0
        spent = time.monotonic() - clock
        return 60.0 * (progress.units_done - done) / spent if spent > 1 else 0.0

    def _time_left(self) -> str:
        progress, rate = self._progress, self._units_a_minute()
        if progress is None or not rate or not progress.generation:
            return ""
        later = (self._max_ngen - progress.generation) * progress.units_total
        seconds = 60.0 * (progress.units_total - progress.units_done + later) / rate
        return f"about {timedelta(seconds=round(seconds))} left"

    def _elapsed(self) -> str:
        return f"{timedelta(seconds=round(time.monotonic() - self._started))} elapsed"


def _fitness(found: Findings) -> str:
    """Return the best sum of scores so far, and what the last population's are."""
    text = (
        f"best {shown(found.fitness)}, population minimum {shown(found.population_min)},"
        f" mean {shown(found.population_mean)}"
    )
    if found.unranked:
        text += f" (without {found.unranked} of {found.population_size}, whose sum is not finite)"
    return text
