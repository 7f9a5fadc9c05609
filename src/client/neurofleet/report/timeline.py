"""What the engines did, second by second, and where their time went in sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from neurofleet.report.drawing import (
    BAD,
    BAND,
    GRID,
    INK,
    MUTED,
    WIDE,
    Drawing,
    Size,
    canvas,
    finish,
    outline,
    room_for,
    shortened,
    style,
)
from neurofleet.report.scores import Evaluations
from neurofleet.report.times import Times
from neurofleet.report.words import counted
from neurofleet.store import Phase

#: Evaluations that are drawn one by one; more are summed up in stretches of time.
ONE_BY_ONE = 5_000
#: Cells of the summed-up timeline, over all engines.
CELLS = 15_000
#: Engines that get a row; of more, every so-manieth.
MOST_ROWS = 128
#: Space for a pause, as a fraction of the axis.
PAUSE_WIDTH = 0.012


@dataclass(frozen=True)
class Clock:
    """Time since the start with the pauses cut out.

    Attributes
    ----------
    begins, ends : ndarray of float
        Of the sessions [s since 1970].
    offsets : ndarray of float
        Where each session begins on the axis [s].
    """

    begins: NDArray[np.float64]
    ends: NDArray[np.float64]
    offsets: NDArray[np.float64]

    @classmethod
    def of(cls, sessions: Sequence[tuple[float, float]]) -> Clock:
        """Return the clock of a run's sessions, of which there is at least one."""
        begins, ends = np.array(sessions, dtype=np.float64).T
        lengths = ends - begins
        gap = PAUSE_WIDTH * lengths.sum()
        offsets = np.concatenate([[0.0], np.cumsum(lengths + gap)[:-1]])
        return cls(begins, ends, offsets)

    @property
    def length(self) -> float:
        """Length of the axis [s]."""
        return float(self.offsets[-1] + self.ends[-1] - self.begins[-1])

    def place(self, moments: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return where moments lie on the axis [s]."""
        session = np.clip(np.searchsorted(self.begins, moments, side="right") - 1, 0, None)
        inside = np.clip(moments, self.begins[session], self.ends[session])
        return self.offsets[session] + inside - self.begins[session]


def timeline(
    evaluations: Evaluations, times: Times, colours: Sequence[str]
) -> tuple[Drawing, tuple[str, ...]]:
    """Draw a row for each engine and a bar for each unit.

    Returns
    -------
    Drawing
    tuple of str
        Remarks for the caption.
    """
    clock = Clock.of(times.sessions)
    scale, unit = _time_unit(clock.length)
    rows = _rows(len(evaluations.engines))
    row_of = np.full(len(evaluations.engines), -1)
    row_of[rows] = np.arange(len(rows))
    drawn = row_of[evaluations.engine] >= 0
    begins = clock.place(evaluations.started[drawn]) / scale
    ends = clock.place((evaluations.started + evaluations.duration_s)[drawn]) / scale
    row, of_unit = row_of[evaluations.engine][drawn], evaluations.unit[drawn]
    remarks = []
    names = [shortened(f"{host} · {pid}", 26) for host, pid in
             (evaluations.engines[index] for index in rows)]  # fmt: skip
    pitch = float(np.clip(6.0 / len(rows), 0.115, 0.27))
    letters = 8.0 if pitch > 0.15 else 6.0
    with style():
        left = max(0.85, 0.15 + room_for(names, letters))
        height = pitch * len(rows) + 0.95
        figure, axes = canvas(8.6, height, left=left, right=0.6, top=0.4, bottom=0.55)
        _mark_phases(axes, evaluations.phases, clock, scale)
        if len(begins) <= ONE_BY_ONE:
            bars = np.stack([begins, row - 0.38, ends, row + 0.38], axis=1)
            by_unit = [bars[of_unit == index] for index in range(len(evaluations.units))]
        else:
            remarks.append(
                f"{len(begins):,} units are too many to draw one by one: the height of a colour"
                " is its part of that stretch of time"
            )
            by_unit = _summed_up(begins, ends, row, of_unit, len(rows), len(evaluations.units),
                                 clock.length / scale)  # fmt: skip
        for index, corners in enumerate(by_unit):
            if len(corners):
                patch = outline(corners)
                patch.set(facecolor=colours[index], gid=f"unit-{index}", zorder=3)
                axes.add_patch(patch)
        failed = evaluations.failed[drawn]
        if failed.any() and failed.sum() <= ONE_BY_ONE:
            marks = np.stack([begins, row + 0.2, ends, row + 0.48], axis=1)[failed]
            least = clock.length / scale * 0.002  # a unit that crashed at once shows as well
            marks[:, 2] = np.maximum(marks[:, 2], marks[:, 0] + least)
            patch = outline(marks)
            patch.set(facecolor=BAD, gid="failed", zorder=4)
            axes.add_patch(patch)
            remarks.append("a red edge marks a unit that failed")
        if len(rows) < len(evaluations.engines):
            remarks.append(f"{len(rows)} of {len(evaluations.engines)} engines are drawn")
        if len(times.sessions) > 1:
            pauses = counted(len(times.sessions) - 1, "pause")
            remarks.append(f"between launches the run rested; {pauses} left out")
        for index, engine in enumerate(rows):
            axes.annotate(
                f"{100 * times.engine_share[engine]:.0f}\u00a0%", (1, index),
                xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
                va="center", fontsize=letters, color=MUTED, annotation_clip=False,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), names, fontsize=letters)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, clock.length / scale)
        axes.xaxis.set_major_locator(MaxNLocator(9))
        axes.set_xlabel(f"time in progress [{unit}]")
        axes.spines["left"].set_visible(False)
        drawing = finish(
            figure,
            "timeline",
            f"Timeline: what {len(rows)} engines computed during {clock.length:.0f} seconds",
        )
    return drawing, tuple(remarks)


def balance(parts: Sequence[tuple[str, float, str]], size: Size = WIDE) -> Drawing:
    """Draw how engine time divides, as one bar.

    Parameters
    ----------
    parts : sequence of (str, float, str)
        Name, engine time [s], colour.
    """
    total = sum(seconds for _, seconds, _ in parts) or 1.0
    with style():
        figure, axes = canvas(size.width, 0.95, left=0.1, right=0.3, top=0.1, bottom=0.42)
        begin = 0.0
        for index, (_, seconds, colour) in enumerate(parts):
            share = seconds / total
            bar = axes.barh(0, share, left=begin, height=0.8, color=colour)[0]
            bar.set(gid=f"part-{index}", edgecolor=INK if colour == GRID else colour)
            if share >= 0.45 / size.width:
                axes.text(
                    begin + share / 2, 0, f"{100 * share:.0f}\u00a0%", ha="center", va="center",
                    color=INK if colour in (GRID, BAND) else "white", fontweight="bold",
                )  # fmt: skip
            begin += share
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.5, 0.5)
        axes.set_yticks([])
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.spines["left"].set_visible(False)
        told = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds, _ in parts)
        return finish(figure, f"balance{size.suffix}", f"Stacked bar: {told}")


def _rows(engines: int) -> NDArray[np.int64]:
    if engines <= MOST_ROWS:
        return np.arange(engines)
    return np.linspace(0, engines - 1, MOST_ROWS).round().astype(np.int64)


def _time_unit(seconds: float) -> tuple[float, str]:
    for scale, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 3 * scale:
            return scale, unit
    return 1.0, "s"


def _mark_phases(axes: Axes, phases: Sequence[Phase], clock: Clock, scale: float) -> None:
    """Shade every other generation's phases and write the generations' numbers above."""
    spans: dict[int, list[NDArray[np.float64]]] = {}
    for phase in phases:
        place = clock.place(np.array([phase.started, phase.ended])) / scale
        spans.setdefault(phase.generation, []).append(place)
    last_label = -np.inf
    for number, places in sorted(spans.items()):
        for begin, end in places:
            axes.axvspan(begin, end, facecolor=BAND if number % 2 else GRID, alpha=0.8, zorder=0)
        begin = min(place[0] for place in places)
        apart = 0.045 * clock.length / scale
        if begin - last_label > apart and begin < clock.length / scale - 1.2 * apart:
            label = f"{number}"
            axes.annotate(
                label, (begin, 1), xycoords=("data", "axes fraction"), xytext=(1, 4),
                textcoords="offset points", color=MUTED, fontsize=7.5, annotation_clip=False,
            )  # fmt: skip
            last_label = begin
    axes.annotate(
        "generation", (0, 1), xycoords="axes fraction", xytext=(-5, 4),
        textcoords="offset points", ha="right", color=MUTED, fontsize=7.5,
    )  # fmt: skip
    axes.annotate(
        "computing", (1, 1), xycoords="axes fraction", xytext=(40, 4),
        textcoords="offset points", ha="right", color=MUTED, fontsize=7.5,
    )  # fmt: skip


def _summed_up(
    begins: NDArray[np.float64],
    ends: NDArray[np.float64],
    row: NDArray[np.int64],
    of_unit: NDArray[np.int64],
    rows: int,
    units: int,
    length: float,
) -> list[NDArray[np.float64]]:
    """Return, for each unit, rectangles whose height is its part of a stretch of time."""
    columns = int(np.clip(CELLS // (rows * min(units, 4)), 40, 900))
    edges = np.linspace(0, length, columns + 1)
    base = np.zeros((rows, columns))
    order = np.lexsort((of_unit, row))
    begins, ends = begins[order], ends[order]
    group = (row * units + of_unit)[order]
    starts = np.searchsorted(group, np.arange(rows * units + 1))
    found = []
    for unit in range(units):
        part = np.zeros((rows, columns))
        for index in range(rows):
            chosen = slice(starts[index * units + unit], starts[index * units + unit + 1])
            if chosen.start < chosen.stop:
                part[index] = _covered(begins[chosen], ends[chosen], edges)
        # A twentieth is less than a pixel; equal neighbours become one rectangle.
        top = np.minimum(base + part, 1.0)
        found.append(_merged(np.round(base * 20) / 20, np.round(top * 20) / 20, edges))
        base = top
    return found


def _covered(
    begins: NDArray[np.float64], ends: NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the part of each stretch between edges that the intervals cover."""

    def until(moments: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of the lengths, to the left of each edge, of rays that begin at the moments."""
        moments = np.sort(moments)
        sums = np.concatenate([[0.0], np.cumsum(moments)])
        count = np.searchsorted(moments, edges)
        return np.asarray(count * edges - sums[count])

    return np.diff(until(begins) - until(ends)) / np.diff(edges)


def _merged(
    bottom: NDArray[np.float64], top: NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    corners = []
    for index in range(len(bottom)):
        changed = (np.diff(bottom[index]) != 0) | (np.diff(top[index]) != 0)
        cuts = np.concatenate([[0], np.flatnonzero(changed) + 1, [bottom.shape[1]]])
        low, high = bottom[index][cuts[:-1]], top[index][cuts[:-1]]
        block = np.stack(
            [edges[cuts[:-1]], index + 0.38 - 0.76 * low, edges[cuts[1:]],
             index + 0.38 - 0.76 * high],
            axis=1,
        )  # fmt: skip
        corners.append(block[high > low])
    return np.concatenate(corners)
