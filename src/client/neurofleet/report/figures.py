"""What the optimisation found: fitness, scores, parameters, traces."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from neurofleet.engine.outcome import Parameter
from neurofleet.report.drawing import (
    ACCENT,
    BAD,
    BAND,
    INK,
    MUTED,
    PALETTE,
    SOFT,
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
from neurofleet.report.record import Progress, Trace

#: Points of all traces together; more only cost space.
TRACE_POINTS = 60_000
#: Values of one parameter that can be told apart in the figure.
STRIP_STEPS = 400
#: Fitness that spans more than this is drawn on a logarithmic axis.
LOG_SPAN = 20.0


@dataclass(frozen=True)
class Score:
    """One objective's score of the best individual.

    Attributes
    ----------
    name, group : str
        The objective and the protocol that it is of (may be empty).
    label : str
        The name without the group.
    score : float
        Lower is better.
    penalty : float
        What it would be if nothing could be recorded.
    """

    name: str
    group: str
    label: str
    score: float
    penalty: float

    @property
    def penalised(self) -> bool:
        """Whether it is as bad as if nothing had been recorded."""
        return not math.isfinite(self.score) or self.score >= self.penalty * (1 - 1e-9)


def fitness(progress: Progress, size: Size = WIDE) -> Drawing:
    """Draw minimum, mean, spread and maximum over the generations."""
    with style():
        figure, axes = canvas(
            size.width, 3.5 if size is WIDE else 2.9, left=0.7, right=0.2, top=0.55, bottom=0.55
        )
        x = progress.generation
        marker = "o" if len(x) <= 40 else ""
        mean, std = _finite(progress.mean), _finite(progress.std)
        lowest, highest = _finite(progress.minimum), _finite(progress.maximum)
        logarithmic = _is_wide(lowest, highest)
        low = mean - std
        if logarithmic:
            low = np.where(low > 0, np.maximum(low, lowest), lowest)
        band: dict[str, Any] = {"color": SOFT, "alpha": 0.45, "linewidth": 0}
        if len(x) == 1:
            axes.errorbar(x, mean, yerr=[mean - low, std], color=SOFT, linewidth=6, alpha=0.6)
        else:
            axes.fill_between(x, low, mean + std, label="mean ± 1 std", **band)
        line: dict[str, Any] = {"marker": marker, "markersize": 3.2}
        axes.plot(x, highest, color=MUTED, linewidth=0.9, linestyle=":", label="maximum", **line)
        axes.plot(x, mean, color=ACCENT, linewidth=1.2, linestyle="--", label="mean", **line)
        axes.plot(x, lowest, color=ACCENT, linewidth=2.0, label="minimum", gid="minimum", **line)
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.grid(axis="y")
        beside = max(0.5 if len(x) < 3 else 0.0, 0.015 * (x[-1] - x[0]))
        axes.set_xlim(x[0] - beside, x[-1] + beside)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("generation")
        axes.set_ylabel("fitness (sum of scores)")
        _legend_above(axes, 4 if size is WIDE else 2)
        return finish(
            figure,
            f"fitness{size.suffix}",
            f"Line chart: minimum, mean and maximum fitness over {len(x)} generations",
        )


def scores(items: Sequence[Score], unit: str, size: Size = WIDE) -> Drawing:
    """Draw a bar for each objective, grouped; penalties reach over the whole width."""
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(item.group, []).append(index)
    names = [shortened(item.label, size.name) for item in items]
    named = any(groups)
    titles = {group: shortened(group or "other", size.name) for group in groups}
    rows = len(items) + (1.4 * len(groups) if named else 0)
    with style():
        left = 0.15 + room_for([*names, *titles.values()])
        height = 0.19 * rows + 0.75
        figure, axes = canvas(size.width, height, left=left, right=0.45, top=0.15, bottom=0.55)
        limit = max((item.score for item in items if not item.penalised), default=0.0)
        limit = max(1.0, limit * 1.05)
        y = -0.5 if named else 0.0
        for group, members in groups.items():
            if named:
                y += 1.45
                axes.annotate(
                    titles[group], (0, y), xytext=(-5, 0),
                    textcoords="offset points", ha="right", va="center", fontweight="bold",
                    annotation_clip=False,
                )  # fmt: skip
                y -= 0.05
            members = sorted(members, key=lambda i: (-_rank(items[i].score), items[i].name))
            for index in members:
                y += 1
                item = items[index]
                colour = BAD if item.penalised else ACCENT
                width = limit if item.penalised else max(item.score, 0.0)
                bar = axes.barh(y, width, height=0.66, color=colour)[0]
                bar.set_gid(f"bar-{index}")
                told = f"{item.score:.3g}" if math.isfinite(item.score) else f"{item.score}"
                axes.annotate(
                    told, (width, y), xytext=(3, 0), textcoords="offset points", va="center",
                    color=colour if item.penalised else MUTED, fontsize=7.5,
                    annotation_clip=False,
                )  # fmt: skip
                axes.annotate(
                    names[index], (0, y), xytext=(-5, 0), textcoords="offset points",
                    ha="right", va="center", annotation_clip=False,
                )  # fmt: skip
        axes.set_ylim(y + 0.7, 0.3 if not named else 0.4)
        axes.set_xlim(0, limit)
        axes.set_yticks([])
        axes.spines["left"].set_color(MUTED)
        axes.grid(axis="x")
        axes.set_xlabel(unit)
        bad = sum(item.penalised for item in items)
        return finish(
            figure,
            f"scores{size.suffix}",
            f"Bar chart: the best individual's score in {len(items)} objectives"
            + (f", {bad} of them at or above the penalty" if bad else ""),
        )


def parameters(
    items: Sequence[Parameter],
    population: NDArray[np.float64],
    best: Sequence[float],
    size: Size = WIDE,
) -> Drawing:
    """Draw each parameter's values in the population between its bounds."""
    names = [shortened(item.name, size.name) for item in items]
    with style():
        left = max(0.5, 0.15 + room_for(names))
        height = 0.24 * len(items) + 0.85
        figure, axes = canvas(size.width, height, left=left, right=0.45, top=0.4, bottom=0.45)
        rows = np.arange(len(items), dtype=np.float64)
        tracks = np.stack(
            [np.zeros_like(rows), rows - 0.34, np.ones_like(rows), rows + 0.34], axis=1
        )
        track = outline(tracks)
        track.set(facecolor=BAND, gid="tracks")
        axes.add_patch(track)
        ticks = np.concatenate(
            [_strip(index, item, population[:, index]) for index, item in enumerate(items)]
        )
        strip = outline(ticks)
        strip.set(facecolor=ACCENT, alpha=0.5, gid="population")
        axes.add_patch(strip)
        places = [_normalised(item, value) for item, value in zip(items, best, strict=True)]
        axes.plot(
            places, rows, linestyle="", marker="D", markersize=5.2, color=PALETTE[1],
            markeredgecolor=INK, markeredgewidth=0.6, clip_on=False, gid="best", zorder=5,
        )  # fmt: skip
        axes.set_yticks(rows, names)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(len(items) - 0.4, -0.6)
        axes.set_xlim(-0.012, 1.012)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["lower", "¼", "½", "¾", "upper"])
        one = axes.plot([], [], linestyle="", marker="|", color=ACCENT, markersize=8)[0]
        top = axes.plot([], [], linestyle="", marker="D", color=PALETTE[1], markersize=5)[0]
        axes.legend(
            [one, top], [f"population ({len(population)})", "best"],
            loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2,
            handletextpad=0.3,
        )  # fmt: skip
        return finish(
            figure,
            f"parameters{size.suffix}",
            f"Strip plot: values of {len(items)} parameters in the population, between bounds",
        )


def traces(name: str, title: str, recordings: Mapping[str, Trace], points: int) -> Drawing:
    """Draw one protocol's recordings.

    Parameters
    ----------
    name : str
        Id of the drawing.
    title : str
        The protocol.
    recordings : mapping
        By the label that the legend shows.
    points : int
        Points that each may take.
    """
    with style():
        rows = -(-len(recordings) // 3)
        figure, axes = canvas(
            4.4, 2.45 + 0.17 * rows, left=0.62, right=0.12, top=0.1 + 0.17 * rows, bottom=0.5
        )
        for index, (label, (times, levels)) in enumerate(recordings.items()):
            x, y = decimated(times, levels, points)
            axes.plot(
                x, y, color=PALETTE[index % len(PALETTE)], linewidth=0.9,
                label=shortened(label, 20), gid=f"trace-{index}",
            )  # fmt: skip
        axes.margins(x=0.01)
        axes.grid(axis="y")
        axes.set_xlabel("time [ms]")
        voltage = all(label == "v" or label.endswith(".v") for label in recordings)
        axes.set_ylabel("membrane voltage [mV]" if voltage else "recorded value")
        axes.yaxis.set_major_locator(MaxNLocator(6))
        _legend_above(axes, 3)
        return finish(
            figure, name, f"Line chart: {len(recordings)} recording(s) of {title} over time"
        )


def decimated(
    x: NDArray[np.float64], y: NDArray[np.float64], points: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Thin a trace out, keeping the least and the greatest value of each stretch."""
    if len(x) <= points:
        return x, y
    edges = np.unique(np.linspace(0, len(x), max(2, points // 2) + 1).astype(np.int64))
    keep = {0, len(x) - 1}
    for begin, end in itertools.pairwise(edges.tolist()):
        keep.add(begin + int(np.argmin(y[begin:end])))
        keep.add(begin + int(np.argmax(y[begin:end])))
    chosen = np.array(sorted(keep))
    return x[chosen], y[chosen]


def _strip(row: int, item: Parameter, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a tick for each distinct value, the taller the more individuals have it."""
    places = np.array([_normalised(item, value) for value in values.tolist()])
    places = places[np.isfinite(places)]
    steps, counts = np.unique(np.round(places * STRIP_STEPS), return_counts=True)
    middle = steps / STRIP_STEPS
    half = 0.16 + 0.18 * np.sqrt(counts / counts.max(initial=1))
    return np.stack([middle - 0.0018, row - half, middle + 0.0018, row + half], axis=1)


def _normalised(item: Parameter, value: float) -> float:
    """Return where a value lies between the bounds, 0 to 1; a little beyond if outside."""
    width = item.upper - item.lower
    if not (math.isfinite(width) and width > 0 and math.isfinite(value)):
        return 0.5 if width == 0 else math.nan
    return min(1.01, max(-0.01, (value - item.lower) / width))


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isfinite(values), values, np.nan)


def _is_wide(lowest: NDArray[np.float64], highest: NDArray[np.float64]) -> bool:
    low, high = lowest[np.isfinite(lowest)], highest[np.isfinite(highest)]
    if not len(low) or not len(high) or low.min() <= 0:
        return False
    return bool(high.max() > LOG_SPAN * low.min())


def _rank(score: float) -> float:
    return score if math.isfinite(score) else math.inf


def _legend_above(axes: Axes, columns: int) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2,
            handlelength=1.8, columnspacing=1.4,
        )  # fmt: skip
