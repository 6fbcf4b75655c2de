"""Diagrams of calibration: `prepare_*` computes what is drawn, `plot_*` draws it.

One visual language throughout: blue is right or calibrated, vermilion is wrong or off, grey is the
ideal and the scale; colours are Okabe and Ito's, and a mark that differs in colour differs in
shape or hatching too. Figures are plain `Figure` objects: pyplot and its global state are not used.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibrant.errors import InputError
from calibrant.files import replacing
from calibrant.report.tables import number, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from calibrant.diagnosis.report import CalibrationReport
    from calibrant.metrics.binned import BinTable

Floats = NDArray[np.float64]
Interval = tuple[float, float]

BLUE, VERMILION, GREY, PALE = "#0072B2", "#D55E00", "#6e6e6e", "#cfe3f0"
BAND = "#e8e8e8"
# Okabe and Ito (2008) without yellow, which is too pale on white; one marker for each.
SERIES = (
    (GREY, "o"),
    (BLUE, "s"),
    (VERMILION, "D"),
    ("#009E73", "^"),
    ("#CC79A7", "v"),
    ("#E69F00", "P"),
    ("#56B4E9", "X"),
    ("#000000", "*"),
)
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "calibrant",
    "svg.fonttype": "path",
    "text.parse_math": False,
}
_DOTTED = (0, (2, 1.5))
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_TICK_LABELS = ("0", ".2", ".4", ".6", ".8", "1")


@contextmanager
def style() -> Iterator[None]:
    """Draw in the project's visual language whatever a user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change a report
        matplotlib.rcParams.update(_STYLE)
        yield


# -- reliability ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reliability:
    """What a reliability diagram shows.

    Attributes
    ----------
    name : str, the title.
    edges : (B + 1,) float64. count : (B,) int64, questions per bin.
    confidence, frequency : (B,) float64, mean confidence and accuracy per bin; NaN if empty.
    low, high : (B,) float64, 95 % Wilson interval of the accuracy of each bin.
    ece : float, with its 95 % interval if known.
    """

    name: str
    edges: Floats
    count: NDArray[np.int64]
    confidence: Floats
    frequency: Floats
    low: Floats
    high: Floats
    ece: float
    interval: Interval | None = None

    @property
    def n(self) -> int:
        """Number of questions."""
        return int(self.count.sum())

    @property
    def accuracy(self) -> float:
        """Share of all questions answered right."""
        return self._mean(self.frequency)

    @property
    def mean_confidence(self) -> float:
        """Mean confidence over all questions."""
        return self._mean(self.confidence)

    def _mean(self, values: Floats) -> float:
        return float(np.nansum(values * self.count) / self.n)

    @property
    def off(self) -> NDArray[np.bool_]:
        """Bins whose interval does not hold their mean confidence, (B,) bool; empty bins do."""
        inside = (self.low <= self.confidence) & (self.confidence <= self.high)
        return ~inside & (self.count > 0)


def prepare_reliability(
    table: BinTable, *, name: str = "", ece: float | None = None, interval: Interval | None = None
) -> Reliability:
    """Compute what `plot_reliability` draws from a bin table of one row.

    Parameters
    ----------
    table : confidence bins (R = 1), as `calibrant.metrics.bin_table` counts them.
    name : title, usually model or method and data set.
    ece, interval : the ECE to print and its 95 % interval; by default the table's plug-in value
        and no interval.

    Raises
    ------
    InputError
        If the table is class-wise or empty.
    """
    from calibrant.metrics.inference import wilson_interval

    if table.count.shape[0] != 1 or table.n == 0:
        raise InputError(
            f"reliability diagram: a bin table with {table.count.shape[0]} rows and {table.n} "
            "questions, expected one row (confidence bins) and at least one question"
        )
    count = table.count[0]
    low, high = wilson_interval(table.sum_correct[0], count)
    return Reliability(
        name=name,
        edges=table.edges[0],
        count=count,
        confidence=table.mean_confidence[0],
        frequency=table.frequency[0],
        low=low,
        high=high,
        ece=table.ece() if ece is None else ece,
        interval=interval,
    )


def reliability_of_report(report: CalibrationReport, name: str = "") -> Reliability:
    """Compute the diagram of a report, with its conf-ECE and interval."""
    estimate = report["conf_ece"]
    return prepare_reliability(
        report.bins, name=name, ece=estimate.value, interval=_known(estimate.low, estimate.high)
    )


def _known(low: float, high: float) -> Interval | None:
    return (low, high) if np.isfinite([low, high]).all() else None


def plot_reliability(data: Reliability) -> Figure:
    """Draw one reliability diagram with the histogram of confidence under it."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(4.2, 5.3), layout="constrained")
        grid = figure.add_gridspec(2, 1, height_ratios=(4.2, 1), hspace=0.02)
        diagram = figure.add_subplot(grid[0])
        counts = figure.add_subplot(grid[1], sharex=diagram)
        _draw_diagram(diagram, data)
        _draw_counts(counts, data, top=None)
        diagram.set_ylabel("accuracy")
        counts.set_ylabel("questions")
        counts.set_xlabel("confidence")
        title = one_line(data.name, 58)
        facts = f"{_ece_text(data)} · accuracy {number(data.accuracy)} · N = {data.n:,}"
        figure.suptitle(f"{title}\n{facts}" if title else facts, fontsize=9)
        _legend(figure, [data], columns=2)
        return figure


def plot_reliability_grid(
    cells: Sequence[Sequence[Reliability | None]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
) -> Figure:
    """Draw reliability diagrams side by side on shared axes.

    Parameters
    ----------
    cells : one list per row (data set) with one diagram per column (before, then each method);
        None where a combination was not run.
    rows, columns : their titles.

    Raises
    ------
    InputError
        If the cells are not as many as the titles say.
    """
    from matplotlib.figure import Figure

    if not rows or not columns or [len(row) for row in cells] != [len(columns)] * len(rows):
        raise InputError(
            f"reliability grid: rows of {[len(row) for row in cells]} cells, expected "
            f"{len(rows)} rows of {len(columns)}"
        )
    with style():
        figure = Figure(
            figsize=(0.7 + 2.1 * len(columns), 0.9 + 2.85 * len(rows)), layout="constrained"
        )
        grid = figure.add_gridspec(
            2 * len(rows), len(columns), height_ratios=(4, 1) * len(rows), hspace=0.02, wspace=0.02
        )
        drawn = [data for row in cells for data in row if data is not None]
        top = max((float((d.count / d.n).max()) for d in drawn), default=1.0)
        for i, row in enumerate(cells):
            for j, data in enumerate(row):
                diagram = figure.add_subplot(grid[2 * i, j])
                counts = figure.add_subplot(grid[2 * i + 1, j])
                _draw_cell(diagram, counts, data, top)
                if i == 0:
                    diagram.annotate(
                        one_line(columns[j], 24), (0.5, 1), (0, 26), ha="center", va="bottom",
                        xycoords="axes fraction", textcoords="offset points", fontweight="bold",
                    )  # fmt: skip
                if j == 0:
                    diagram.set_ylabel(f"{one_line(rows[i], 26)}\naccuracy")
                    counts.set_ylabel("share")
                else:
                    diagram.tick_params(labelleft=False)
                    counts.tick_params(labelleft=False)
                if i == len(rows) - 1:
                    counts.set_xlabel("confidence")
                else:
                    counts.tick_params(labelbottom=False)
        if drawn:
            _legend(figure, drawn, columns=4 if len(columns) > 2 else min(len(columns), 2))
        return figure


def _draw_cell(diagram: Axes, counts: Axes, data: Reliability | None, top: float) -> None:
    if data is None:
        for axes in (diagram, counts):
            axes.set(xlim=(0, 1), ylim=(0, 1))
            unit_axis(axes.xaxis)
            axes.set_yticks(())
            axes.spines["left"].set_visible(False)
        diagram.tick_params(labelbottom=False)
        diagram.text(0.5, 0.5, "not run", ha="center", va="center", color=GREY)
        return
    _draw_diagram(diagram, data)
    _draw_counts(counts, data, top=top)
    facts = f"{_ece_text(data)}\naccuracy {number(data.accuracy)}, N {data.n:,}"
    diagram.set_title(facts, fontsize=7.5)


def _ece_text(data: Reliability) -> str:
    text = f"ECE {number(data.ece)}"
    if data.interval is not None:
        text += f" [{number(data.interval[0])}, {number(data.interval[1])}]"
    return text


def _draw_diagram(axes: Axes, data: Reliability) -> None:
    full = data.count > 0
    left, right = data.edges[:-1], data.edges[1:]
    axes.bar(
        left[full], data.frequency[full], width=(right - left)[full], align="edge",
        color=PALE, edgecolor="white", linewidth=0.5,
    )  # fmt: skip
    axes.plot((0, 1), (0, 1), color=GREY, linewidth=1.0, linestyle=(0, (4, 3)), zorder=2)
    for chosen, colour, marker in (
        (full & ~data.off, BLUE, "o"),
        (data.off, VERMILION, "D"),
    ):
        if not chosen.any():
            continue
        x, y = data.confidence[chosen], data.frequency[chosen]
        reach = np.array([y - data.low[chosen], data.high[chosen] - y])
        axes.errorbar(
            x, y, yerr=reach, fmt=marker, color=colour, markersize=4.5, capsize=2.0,
            linewidth=1.2, zorder=4, clip_on=False,
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1))
    unit_axis(axes.xaxis)
    unit_axis(axes.yaxis)
    axes.tick_params(labelbottom=False)


def _draw_counts(axes: Axes, data: Reliability, top: float | None) -> None:
    heights = data.count if top is None else data.count / data.n
    axes.bar(
        data.edges[:-1], heights, width=np.diff(data.edges), align="edge",
        color="#8c8c8c", edgecolor="white", linewidth=0.5,
    )  # fmt: skip
    limit = float(heights.max()) if top is None else top
    axes.set(xlim=(0, 1), ylim=(0, 1.12 * limit))
    unit_axis(axes.xaxis)
    if top is None:
        ticks = (0, int(data.count.max()))
        axes.set_yticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    else:
        axes.set_yticks((0, top), labels=("0", plain(round(top, 2))))
    for value, colour, dash in (
        (data.accuracy, BLUE, "-"),
        (data.mean_confidence, VERMILION, _DOTTED),
    ):
        axes.axvline(value, color=colour, linewidth=1.4, linestyle=dash, clip_on=False)


def unit_axis(axis: Any) -> None:
    """Ticks of an axis from 0 to 1."""
    axis.set_ticks(_TICKS, labels=_TICK_LABELS)


def _legend(figure: Figure, drawn: Sequence[Reliability], columns: int) -> None:
    from matplotlib.lines import Line2D

    entries = []
    if any((~data.off & (data.count > 0)).any() for data in drawn):
        mark = Line2D([], [], color=BLUE, marker="o", markersize=4.5, linewidth=1.2)
        entries.append((mark, "bin with 95 % interval"))
    if any(data.off.any() for data in drawn):
        mark = Line2D([], [], color=VERMILION, marker="D", markersize=4.5, linewidth=1.2)
        entries.append((mark, "interval misses the diagonal"))
    entries.append((Line2D([], [], color=BLUE, linewidth=1.4), "accuracy"))
    dotted = Line2D([], [], color=VERMILION, linewidth=1.4, linestyle=_DOTTED)
    entries.append((dotted, "mean confidence"))
    handles, labels = zip(*entries, strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


# -- confidence, by whether the answer was right --------------------------------------------


@dataclass(frozen=True, eq=False)
class ConfidenceHistogram:
    """What a confidence histogram shows: counts of right and wrong answers per bin.

    Attributes
    ----------
    name : str. edges : (B + 1,) float64. right, wrong : (B,) int64.
    mean_right, mean_wrong : float, mean confidence; NaN if there is no such answer.
    """

    name: str
    edges: Floats
    right: NDArray[np.int64]
    wrong: NDArray[np.int64]
    mean_right: float
    mean_wrong: float


def prepare_confidence(
    confidence: ArrayLike, correct: ArrayLike, *, n_bins: int = 20, name: str = ""
) -> ConfidenceHistogram:
    """Count right and wrong answers by confidence.

    Parameters
    ----------
    confidence : (N,) floats in [0, 1]. correct : (N,) bool or 0/1.
    n_bins : B, equal widths, by the bin rule of `calibrant.metrics`.

    Raises
    ------
    InputError
        On empty input, NaN, or numbers outside these ranges, naming the first bad row.
    """
    from calibrant.metrics.binned import bin_table_from_confidence

    table = bin_table_from_confidence(confidence, correct, n_bins=n_bins)
    c, hit = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    right = table.sum_correct[0].astype(np.int64)
    return ConfidenceHistogram(
        name=name,
        edges=table.edges[0],
        right=right,
        wrong=table.count[0] - right,
        mean_right=float(c[hit].mean()) if hit.any() else float("nan"),
        mean_wrong=float(c[~hit].mean()) if not hit.all() else float("nan"),
    )


def plot_confidence(data: ConfidenceHistogram) -> Figure:
    """Draw right and wrong answers by confidence: right upwards, wrong downwards."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with style():
        figure = Figure(figsize=(4.6, 3.3), layout="constrained")
        axes = figure.add_subplot()
        width, left = np.diff(data.edges), data.edges[:-1]
        axes.bar(left, data.right, width, align="edge", color=BLUE, edgecolor="white", lw=0.8)
        axes.bar(
            left, -data.wrong, width, align="edge", color="#f2c9ae", edgecolor=VERMILION, lw=0.4,
            hatch="////",
        )  # fmt: skip
        axes.axhline(0, color=GREY, linewidth=0.8)
        top, bottom = 1.3 * max(int(data.right.max()), 1), 1.3 * max(int(data.wrong.max()), 1)
        # A side without answers keeps room for its label.
        axes.set(xlim=(0, 1), ylim=(-max(bottom, 0.25 * top), max(top, 0.25 * bottom)))
        unit_axis(axes.xaxis)
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):,.0f}"))
        axes.set(xlabel="confidence", ylabel="questions")
        for y, va, word, counts, mean, colour in (
            (0.98, "top", "right", data.right, data.mean_right, BLUE),
            (0.02, "bottom", "wrong", data.wrong, data.mean_wrong, VERMILION),
        ):
            axes.text(
                0.02, y, f"{word}: {counts.sum():,}, mean confidence {number(mean)}", va=va,
                transform=axes.transAxes, color=colour, fontsize=8,
            )  # fmt: skip
        if data.name:
            figure.suptitle(one_line(data.name, 62), fontsize=9)
        return figure


# -- accuracy against ECE -------------------------------------------------------------------


@dataclass(frozen=True)
class PlanePoint:
    """One model in the accuracy-ECE plane; intervals are 95 %, None if unknown."""

    name: str
    accuracy: float
    ece: float
    group: str = ""
    accuracy_interval: Interval | None = None
    ece_interval: Interval | None = None


def point_of_report(report: CalibrationReport, name: str, group: str = "") -> PlanePoint:
    """Place a report in the plane by its accuracy and conf-ECE, with their intervals."""
    accuracy, ece = report["accuracy"], report["conf_ece"]
    return PlanePoint(
        name, accuracy.value, ece.value, group,
        _known(accuracy.low, accuracy.high), _known(ece.low, ece.high),
    )  # fmt: skip


@dataclass(frozen=True)
class Plane:
    """What the accuracy-ECE plane shows: its points and the limits of its axes."""

    points: tuple[PlanePoint, ...]
    accuracy_limits: Interval
    ece_limit: float


def prepare_plane(points: Sequence[PlanePoint]) -> Plane:
    """Choose the limits that hold every point and interval, with some air.

    Raises
    ------
    InputError
        If there is no point, or a value is not a finite number.
    """
    if not points:
        raise InputError("accuracy-ECE plane: no points, expected at least one")
    accuracies, errors = [], []
    for point in points:
        accuracies += [point.accuracy, *(point.accuracy_interval or ())]
        errors += [point.ece, *(point.ece_interval or ())]
        if not np.isfinite([accuracies[-1], errors[-1], point.accuracy, point.ece]).all():
            raise InputError(f"accuracy-ECE plane: {point} is not finite, expected numbers")
    air = max(0.15 * (max(accuracies) - min(accuracies)), 0.05)
    limits = max(min(accuracies) - air, 0.0), min(max(accuracies) + air, 1.0)
    return Plane(tuple(points), limits, max(1.12 * max(errors), 0.06))


def plot_plane(data: Plane, *, tolerance: float | None = 0.03) -> Figure:
    """Draw models by accuracy (right is better) and ECE (down is better).

    Colour and marker tell the model or method, filled or open the data set; the band marks the
    tolerance under which a model counts as calibrated.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(point.name for point in data.points))
    groups = list(dict.fromkeys(point.group for point in data.points))
    looks = {name: SERIES[i % len(SERIES)] for i, name in enumerate(names)}
    fills = ("full", "none", "left", "top", "right", "bottom")
    with style():
        figure = Figure(figsize=(5.6, 3.9), layout="constrained")
        axes = figure.add_subplot()
        if tolerance is not None:
            axes.axhspan(0, tolerance, color=BAND, linewidth=0, zorder=0)
        for group in groups:  # thin lines lead from the first point on the same data to the others
            start, *others = [point for point in data.points if point.group == group]
            for end in others:
                axes.plot(
                    (start.accuracy, end.accuracy), (start.ece, end.ece), color="#a8a8a8",
                    linewidth=1.0, linestyle=":", zorder=1,
                )  # fmt: skip
        for point in data.points:
            colour, marker = looks[point.name]
            axes.errorbar(
                point.accuracy, point.ece, xerr=_reach(point.accuracy, point.accuracy_interval),
                yerr=_reach(point.ece, point.ece_interval), color=colour, fmt="none", alpha=0.6,
                linewidth=0.9, zorder=2, clip_on=False,
            )  # fmt: skip
            fill = _fill(fills[groups.index(point.group) % len(fills)], colour)
            axes.plot(
                point.accuracy, point.ece, color=colour, marker=marker, markersize=6.5, zorder=3,
                clip_on=False, **fill,
            )  # fmt: skip
        axes.set(xlim=data.accuracy_limits, ylim=(0, data.ece_limit))
        axes.set(xlabel="accuracy (right is better)", ylabel="ECE (down is better)")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(lambda value, _: plain(value))
        axes.yaxis.set_major_formatter(lambda value, _: plain(value))
        handles: list[Any] = [
            Line2D([], [], linestyle="", color=colour, marker=marker, markersize=6)
            for colour, marker in looks.values()
        ]
        labels = list(names)
        if len(groups) > 1:
            handles += [
                Line2D([], [], linestyle="", color="black", marker="o", markersize=6,
                       **_fill(fills[i % len(fills)], "black"))
                for i in range(len(groups))
            ]  # fmt: skip
            labels += groups
        if tolerance is not None:
            handles.append(Patch(color=BAND))
            labels.append(f"ECE up to {number(tolerance, 2)}")
        figure.legend(handles, [_legend_text(label) for label in labels], loc="outside right upper")
        return figure


def _fill(style: str, colour: str) -> dict[str, Any]:
    if style == "none":  # white inside, so that no error bar shows through
        return {"markerfacecolor": "white"}
    return {"fillstyle": style, "markerfacecolor": colour, "markerfacecoloralt": "white"}


def _reach(value: float, interval: Interval | None) -> list[list[float]] | None:
    if interval is None:
        return None
    return [[max(value - interval[0], 0.0)], [max(interval[1] - value, 0.0)]]


def plain(value: float) -> str:
    """Tick label: up to three decimals, no leading or trailing zeros."""
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    return text.replace("0.", ".", 1) if 0 < abs(value) < 1 else text


def _legend_text(label: str) -> str:
    text = one_line(label, 30)
    # Before matplotlib 3.10 a leading underscore hides an entry.
    return f"\N{NO-BREAK SPACE}{text}" if text.startswith("_") else text


# -- files ----------------------------------------------------------------------------------


def svg_text(figure: Figure) -> str:
    """Render as SVG, the same text every time, without the XML prolog: ready for a web page."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode()
    return text[text.index("<svg") :]


def save_figure(
    figure: Figure, path: str | os.PathLike[str], *, formats: Sequence[str] = ("svg", "png")
) -> list[Path]:
    """Write ``path.svg`` and ``path.png``; each appears complete or not at all.

    Parameters
    ----------
    path : without suffix. The folder must exist.
    formats : "svg", "png" or "pdf".

    Returns
    -------
    list of Path, the files written.
    """
    written = []
    engine = figure.get_layout_engine()
    try:
        for kind in formats:
            target = Path(f"{os.fspath(path)}.{kind}")
            with replacing(target) as draft, style():
                figure.savefig(draft, format=kind, dpi=150, metadata=_NO_DATE[kind])
            written.append(target)
            figure.set_layout_engine("none")  # laid out once, for all its files
    finally:
        figure.set_layout_engine(engine)
    return written


_NO_DATE: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
