"""What a comparison of many runs shows: tables of values and of changes, and their figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calibrant.diagnosis.comparison import COMPARED, FAMILY_LEVEL, Comparison
from calibrant.report.figures import BAND, GREY, SERIES, plain, style
from calibrant.report.tables import HEADINGS, Table, interval, number, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHORT = {
    "accuracy": "acc",
    "conf_ece": "conf-ECE",
    "cw_ece": "cw-ECE",
    "nll": "NLL",
    "brier": "Brier",
    "auroc": "AUROC",
    "aurc": "AURC",
}
_ARROW = {1: "▲", -1: "▼", 0: ""}


def value_table(found: Comparison, test: str, *, title: str = "") -> Table:
    """Show every run's metrics on one test set, with marks and verdicts."""
    judged = found.verdicts[test]
    first = next(iter(judged.values()))
    rows = [(found.baseline, *(number(first.before[m].value) for m in COMPARED), "")]
    for run, v in judged.items():
        cells = [number(v.after[m].value) + _ARROW[found.marks[test][run][m]] for m in COMPARED]
        rows.append((run, *cells, v.label))
    return Table(
        columns=("run", *SHORT.values(), "verdict"),
        rows=tuple(rows),
        text_columns=(0, 1 + len(SHORT)),
        title=f"{title or test} (N = {first.n:,})",
        notes=(
            f"▲ better, ▼ worse than {found.baseline} by more than chance: Holm's procedure at "
            f"{number(FAMILY_LEVEL, 2)} over the {len(judged)} runs, for each metric.",
        ),
    )


def change_table(found: Comparison, test: str, *, title: str = "") -> Table:
    """Show every run's change from the baseline, paired, with 95 % intervals and marks."""
    judged = found.verdicts[test]
    rows = []
    for run, v in judged.items():
        cells = [
            f"{number(change.value)} {interval(change.low, change.high)}".strip()
            + _ARROW[found.marks[test][run][m]]
            for m, change in ((m, v.difference[m]) for m in COMPARED)
        ]
        rows.append((run, *cells))
    n = next(iter(judged.values())).n
    return Table(
        columns=("run", *SHORT.values()),
        rows=tuple(rows),
        title=f"{title or test}: change from {found.baseline}, 95 % intervals (N = {n:,})",
    )


@dataclass(frozen=True)
class Changes:
    """What the figure of a comparison shows.

    Attributes
    ----------
    baseline : str. runs, tests : names, in order.
    values : metric -> (run, test) -> (change, low, high, mark).
    """

    baseline: str
    runs: tuple[str, ...]
    tests: tuple[str, ...]
    values: dict[str, dict[tuple[str, str], tuple[float, float, float, int]]]


def prepare_changes(found: Comparison, tests: Sequence[str]) -> Changes:
    """Take from a comparison what `plot_changes` draws, for some of its test sets."""
    values: dict[str, dict[tuple[str, str], tuple[float, float, float, int]]] = {}
    for metric in COMPARED:
        values[metric] = {}
        for test in tests:
            for run, v in found.verdicts[test].items():
                d = v.difference[metric]
                mark = found.marks[test][run][metric]
                values[metric][run, test] = (d.value, d.low, d.high, mark)
    return Changes(found.baseline, found.runs, tuple(tests), values)


def plot_changes(data: Changes) -> Figure:
    """Draw every run's change of every metric with its 95 % interval, a panel for each metric.

    Filled marks are changes that are more than chance by Holm's procedure; the shaded half is the
    better one.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    with style():
        height = 0.9 + 2 * (0.55 + len(data.runs) * (0.14 + 0.09 * len(data.tests)))
        figure = Figure(figsize=(8.6, height), layout="constrained")
        panels: Any = figure.subplots(2, 4, sharey=True).flat
        for axes, metric in zip(panels, data.values, strict=False):
            _draw_changes(axes, data, metric)
        panels[0].set_ylim(len(data.runs) - 0.5, -0.5)
        panels[7].axis("off")
        handles = [
            Line2D([], [], color=colour, marker=marker, markersize=4.5, linewidth=1.2)
            for colour, marker in (SERIES[1 + i % 7] for i in range(len(data.tests)))
        ]
        handles += [
            Line2D([], [], color="black", marker="o", markersize=4.5, linestyle="", mfc=fill)
            for fill in ("black", "white")
        ]
        labels = [one_line(t, 26) for t in data.tests] + ["more than chance", "may be chance"]
        panels[7].legend(handles, labels, loc="center left", title="change, 95 % interval")
        figure.suptitle(f"Change from {one_line(data.baseline, 50)}", fontsize=9)
        return figure


def _draw_changes(axes: Axes, data: Changes, metric: str) -> None:
    n = len(data.tests)
    for i, run in enumerate(data.runs):
        for k, test in enumerate(data.tests):
            if (run, test) not in data.values[metric]:
                continue
            value, low, high, mark = data.values[metric][run, test]
            colour, marker = SERIES[1 + k % 7]
            y = i + (k - (n - 1) / 2) * 0.6 / max(n, 2)
            axes.plot((low, high), (y, y), color=colour, linewidth=1.2)
            axes.plot(
                value, y, color=colour, marker=marker, markersize=4.0,
                markerfacecolor=colour if mark else "white",
            )  # fmt: skip
    reach = max(map(abs, axes.get_xlim()))
    axes.set_xlim(-reach, reach)
    good = (0, reach) if COMPARED[metric] else (-reach, 0)
    axes.axvspan(*good, color=BAND, linewidth=0, zorder=0)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    axes.set_yticks(range(len(data.runs)), [one_line(run, 24) for run in data.runs])
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda value, _: plain(value))
    axes.set_title(HEADINGS[metric])
