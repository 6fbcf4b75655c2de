"""The page's figures: prepared data drawn as SVG, each with the numbers it shows.

The same data, colours and marks as `calibrant.report.figures` draws for files; here one panel at a
time, so that a page can lay them side by side or below each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from calibrant.report.figures import (
    BAND,
    BLUE,
    GREY,
    PALE,
    SERIES,
    VERMILION,
    ConfidenceHistogram,
    Floats,
    Interval,
    PlanePoint,
    Reliability,
    plain,
    prepare_plane,
)
from calibrant.report.svg import (
    BAR,
    DASH_DOT,
    DASHED,
    DOTTED,
    INK,
    PAPER,
    RUST,
    Axes,
    box_sample,
    drawing,
    even_ticks,
    hatch,
    legend,
    line_sample,
)
from calibrant.report.tables import Table, number, one_line

if TYPE_CHECKING:
    from calibrant.metrics.smooth import SmoothReliability
    from calibrant.report.collapse import StagePanels

WIDTH, LEFT, RIGHT = 340.0, 46.0, 12.0  # of a drawing and its margins
_INNER = WIDTH - LEFT - RIGHT
_TICKS, _LABELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), ("0", ".2", ".4", ".6", ".8", "1")
_CURVE_POINTS = 129  # of a smooth curve: every fourth of its grid
_RISK_POINTS = 100
_DIGITS = 6  # in the data of a figure


@dataclass(frozen=True)
class Picture:
    """One figure of the page.

    Attributes
    ----------
    name : of the saved files, and the beginning of every id inside; unique in the page.
    caption : what is seen. svg : the drawing. data : the numbers drawn, None where a table of the
        page has them.
    """

    name: str
    caption: str
    svg: Markup
    data: Table | None


class RiskCurve(NamedTuple):
    """Share of wrong answers among the most confident ones, by how many are given."""

    coverage: Floats  # (P,) rising to 1
    risk: Floats  # (P,)
    threshold: Floats  # (P,) the least confidence among them


def prepare_risk(confidence: Floats, correct: NDArray[np.bool_]) -> RiskCurve:
    """Thin the risk-coverage curve of N answers to what can be seen."""
    from calibrant.metrics.selective import risk_coverage_from_confidence

    curve = risk_coverage_from_confidence(confidence, correct)
    # Even in coverage, and the first answers one by one on a scale of their own.
    wanted = np.unique(
        np.searchsorted(curve.coverage, np.linspace(0, 1, _RISK_POINTS), side="left")
    )
    wanted = wanted[wanted < len(curve.coverage)]
    return RiskCurve(*(values[wanted] for values in curve))


# -- reliability ----------------------------------------------------------------------------


def draw_reliability(
    data: Reliability, curve: SmoothReliability | None, *, name: str, most: int
) -> Picture:
    """Draw accuracy against confidence with each bin's interval, and its count below.

    Parameters
    ----------
    most : the count that fills the height below; the same for figures side by side.
    """
    diagram = Axes(LEFT, _top(data.name, 34), _INNER, _INNER)
    counts = Axes(LEFT, diagram.top + diagram.height + 26, _INNER, 46)
    full = data.count > 0
    _facts(diagram, data)
    diagram.bars(data.edges, np.where(full, data.frequency, 0.0), fill=PALE)
    diagram.line((0, 1), (0, 1), stroke=GREY, width=1.0, dash=DASHED)
    if curve is not None:
        every = slice(None, None, (len(curve.grid) - 1) // (_CURVE_POINTS - 1))
        # Where hardly a question lies the curve is a guess; it is drawn over the data only.
        seen = np.where(curve.density > 0.02 * curve.density.max(), curve.accuracy, np.nan)
        diagram.line(curve.grid[every], seen[every], stroke=INK, width=1.2)
    for b in np.flatnonzero(full):
        colour, marker = (VERMILION, "D") if data.off[b] else (BLUE, "o")
        x, y = float(data.confidence[b]), float(data.frequency[b])
        diagram.reach((x, x), (float(data.low[b]), float(data.high[b])), stroke=colour)
        diagram.mark(x, y, colour=colour, marker=marker, title=_bin_text(data, int(b)))
    diagram.x_axis(_TICKS, None)
    diagram.y_axis(_TICKS, _LABELS, "accuracy")
    _counts(counts, data, most)
    entries = [(line_sample(BLUE, "", "o"), "bin, 95 % interval")]
    if data.off.any():
        entries.append((line_sample(VERMILION, "", "D"), "… misses the diagonal"))
    if curve is not None:
        entries.append((line_sample(INK), "smooth curve"))
    entries.append((line_sample(BLUE), "accuracy"))
    entries.append((line_sample(VERMILION, DOTTED), "mean confidence"))
    top = counts.top + counts.height + 46
    legend(counts, entries, top=top, columns=2)
    return Picture(
        name,
        f"{data.name or 'Reliability'}: accuracy against confidence; below, the questions a bin.",
        drawing(
            name,
            (diagram, counts),
            width=WIDTH,
            height=top + 17 * ((len(entries) + 1) // 2) - 4,
            title=f"Reliability diagram of {data.name}" if data.name else "Reliability diagram",
            description=_reliability_words(data),
        ),
        _bin_data(data),
    )


def _top(name: str, room: float) -> float:
    """Give the place of the axes under a heading, if there is one, and ``room`` more."""
    return room + (10 if name else -8)


def _heading(axes: Axes, name: str, width: int = 46) -> None:
    if name:
        axes.text(axes.left, 14, one_line(name, width), weight="600", size=12)


def _facts(axes: Axes, data: Reliability) -> None:
    reach = ""
    if data.interval is not None:
        reach = f" [{number(data.interval[0])}, {number(data.interval[1])}]"
    _heading(axes, data.name)
    facts = f"ECE {number(data.ece)}{reach} · accuracy {number(data.accuracy)} · N = {data.n:,}"
    axes.text(LEFT, axes.top - 13, facts)


def _counts(axes: Axes, data: Reliability, top: int) -> None:
    axes.y = (0, 1.3 * top)
    axes.bars(
        data.edges,
        data.count,
        fill=BAR,
        titles=[_bin_text(data, b) for b in range(len(data.count))],
    )
    if len(data.count) <= 12:
        for b in np.flatnonzero(data.count > 0):
            middle = (data.edges[b] + data.edges[b + 1]) / 2
            place = axes.py(float(data.count[b])) - 3
            axes.text(axes.px(middle), place, _short(int(data.count[b])), anchor="middle",
                      fill=GREY, size=9)  # fmt: skip
    axes.rule(x=data.accuracy, stroke=BLUE)
    axes.rule(x=data.mean_confidence, stroke=VERMILION, dash=DOTTED)
    axes.x_axis(_TICKS, _LABELS, "confidence")
    axes.y_axis((0, top), ("0", _short(top)), "questions")


def _short(count: int) -> str:
    """Write a count in at most five characters.

    Examples
    --------
    >>> [_short(n) for n in (7, 1234, 12345, 123456, 1234567)]
    ['7', '1,234', '12.3k', '123k', '1.2M']
    """
    if count < 10_000:
        return f"{count:,}"
    size, sign = (1e6, "M") if count >= 999_500 else (1e3, "k")
    return f"{count / size:.{1 if count < 99.95 * size else 0}f}{sign}"


def _bin_text(data: Reliability, b: int) -> str:
    return (
        f"confidence {plain(data.edges[b])} to {plain(data.edges[b + 1])}: {data.count[b]:,} "
        f"questions, mean confidence {number(data.confidence[b])}, accuracy "
        f"{number(data.frequency[b])} [{number(data.low[b])}, {number(data.high[b])}]"
    )


def _reliability_words(data: Reliability) -> str:
    off = int(data.off.sum())
    return (
        f"{data.n} questions in {int((data.count > 0).sum())} bins of confidence. Mean confidence "
        f"{number(data.mean_confidence)}, accuracy {number(data.accuracy)}, expected calibration "
        f"error {number(data.ece)}. In {off} bins the 95 % interval of the accuracy does not hold "
        "the mean confidence."
    )


def _bin_data(data: Reliability) -> Table:
    rows = [
        (
            f"{plain(data.edges[b])} to {plain(data.edges[b + 1])}",
            f"{data.count[b]}",
            *(_exact(v[b]) for v in (data.confidence, data.frequency, data.low, data.high)),
        )
        for b in range(len(data.count))
    ]
    columns = ("confidence", "questions", "mean confidence", "accuracy", "95 % low", "95 % high")
    return Table(columns, tuple(rows))


def _exact(value: float) -> str:
    return "" if not np.isfinite(value) else f"{value:.{_DIGITS}g}"


def draw_option(data: Reliability, *, name: str) -> Picture:
    """Draw how often an option is right against the probability it is given: a small panel."""
    axes = Axes(40, 34, 168, 168)
    full = data.count > 0
    axes.text(40, 13, one_line(data.name, 24), weight="600", size=12)
    axes.text(40, 28, f"error {number(data.ece)} · right {number(data.accuracy)}")
    axes.bars(data.edges, np.where(full, data.frequency, 0.0), fill=PALE)
    axes.line((0, 1), (0, 1), stroke=GREY, width=1.0, dash=DASHED)
    for b in np.flatnonzero(full):
        colour, marker = (VERMILION, "D") if data.off[b] else (BLUE, "o")
        x, y = float(data.confidence[b]), float(data.frequency[b])
        axes.reach((x, x), (float(data.low[b]), float(data.high[b])), stroke=colour, width=1.1)
        axes.mark(x, y, colour=colour, marker=marker, title=_bin_text(data, int(b)), size=0.8)
    axes.x_axis(_TICKS, _LABELS, "probability given")
    axes.y_axis(_TICKS, _LABELS, "share right")
    return Picture(
        name,
        f"{data.name}: how often it is the right answer, against the probability it is given.",
        drawing(
            name, (axes,), width=220, height=238, title=f"Reliability of {data.name}",
            description=_reliability_words(data),
        ),
        _bin_data(data),
    )  # fmt: skip


# -- confidence -----------------------------------------------------------------------------


def draw_confidence(data: ConfidenceHistogram, *, name: str, most: tuple[int, int]) -> Picture:
    """Draw right answers upwards and wrong ones downwards, by confidence.

    Parameters
    ----------
    most : counts that fill the height above and below; the same for figures side by side.
    """
    right, wrong = int(data.right.sum()), int(data.wrong.sum())
    up, down = 1.1 * max(most[0], 1), 1.1 * max(most[1], 1)
    up, down = max(up, 0.2 * down), max(down, 0.2 * up)
    axes = Axes(LEFT, _top(data.name, 34), _INNER, 190, y=(-down, up))
    defs, hatched = hatch(name)
    _heading(axes, data.name)
    span = [f"{plain(a)} to {plain(b)}" for a, b in zip(data.edges, data.edges[1:], strict=False)]
    axes.bars(
        data.edges, data.right, fill=BLUE,
        titles=[f"confidence {s}: {n:,} right" for s, n in zip(span, data.right, strict=True)],
    )  # fmt: skip
    axes.bars(
        data.edges, -data.wrong, fill=hatched, stroke=VERMILION,
        titles=[f"confidence {s}: {n:,} wrong" for s, n in zip(span, data.wrong, strict=True)],
    )  # fmt: skip
    axes.rule(y=0, stroke=GREY, width=0.8)
    axes.x_axis(_TICKS, _LABELS, "confidence")
    ticks = [t for t in even_ticks(-down, up, 8) if t == int(t)]
    axes.y_axis(ticks, [_short(abs(int(t))) for t in ticks], "questions")
    words = [
        f"{what}: {count:,}, mean confidence {number(mean)}"
        for what, count, mean in (
            ("right", right, data.mean_right),
            ("wrong", wrong, data.mean_wrong),
        )
    ]
    axes.text(LEFT, axes.top - 13, f"right: {right:,}, mean {number(data.mean_right)}", fill=BLUE)
    axes.text(LEFT + _INNER, axes.top - 13, f"wrong: {wrong:,}, mean {number(data.mean_wrong)}",
              anchor="end", fill=RUST)  # fmt: skip
    rows = [(s, f"{a}", f"{b}") for s, a, b in zip(span, data.right, data.wrong, strict=True)]
    return Picture(
        name,
        f"{data.name or 'Confidence'}: right answers above the line, wrong ones below it.",
        drawing(
            name, (axes,), width=WIDTH, height=axes.top + axes.height + 36, defs=defs,
            title=f"Confidence of right and wrong answers, {data.name}",
            description="; ".join(words) + ".",
        ),
        Table(("confidence", "right", "wrong"), tuple(rows)),
    )  # fmt: skip


def most_of(histograms: Iterable[ConfidenceHistogram]) -> tuple[int, int]:
    """Give the highest counts of right and of wrong answers among figures side by side."""
    tops = [(int(h.right.max()), int(h.wrong.max())) for h in histograms]
    return max(a for a, _ in tops), max(b for _, b in tops)


# -- risk and coverage ----------------------------------------------------------------------


def draw_risk(curves: Mapping[str, RiskCurve], *, name: str, title: str) -> Picture:
    """Draw the share of wrong answers against the share of questions answered."""
    # The first few answers are a lottery; they must not set the scale.
    top = max(float(c.risk[c.coverage >= min(0.05, c.coverage[-1])].max()) for c in curves.values())
    limit = min(1.0, max(1.12 * top, 0.05))
    axes = Axes(LEFT, _top(title, 18), _INNER, 190, y=(0, limit))
    _heading(axes, title)
    entries = []
    for (method, curve), (colour, marker) in zip(curves.items(), _looks(len(curves)), strict=True):
        axes.line(curve.coverage, curve.risk, stroke=colour, width=1.6)
        for k in np.searchsorted(curve.coverage, (0.25, 0.5, 0.75, 1.0)):
            k = min(int(k), len(curve.coverage) - 1)
            axes.mark(
                float(curve.coverage[k]), float(curve.risk[k]), colour=colour, marker=marker,
                title=f"{method}: answers with confidence from {number(curve.threshold[k])}: "
                f"{curve.coverage[k]:.0%} of the questions, {curve.risk[k]:.1%} wrong",
            )  # fmt: skip
        entries.append((line_sample(colour, "", marker), one_line(method, 22)))
    ticks = even_ticks(0, axes.y[1])
    axes.x_axis(_TICKS, _LABELS, "share answered, the most confident first")
    axes.y_axis(ticks, [plain(t) for t in ticks], "share wrong")
    bottom = axes.top + axes.height + 46
    height = axes.top + axes.height + 36
    if len(curves) > 1:
        legend(axes, entries, top=bottom, columns=2)
        height = bottom + 17 * ((len(entries) + 1) // 2) - 4
    rows = [
        (method, *map(_exact, point))
        for method, curve in curves.items()
        for point in zip(curve.coverage, curve.risk, curve.threshold, strict=True)
    ]
    last = "; ".join(
        f"{m}: {number(float(np.interp(0.5, c.coverage, c.risk)))} wrong of the more confident "
        f"half, {number(float(c.risk[-1]))} of all"
        for m, c in curves.items()
    )
    return Picture(
        name,
        f"{title or 'Risk'}: how many answers are wrong if only the most confident are given.",
        drawing(name, (axes,), width=WIDTH, height=height, title=f"Risk and coverage, {title}",
                description=last + "."),
        Table(("method", "coverage", "risk", "confidence from"), tuple(rows)),
    )  # fmt: skip


def _looks(n: int) -> list[tuple[str, str]]:
    """Colour and mark of each of n series; the first of one alone is blue, not the grey before."""
    return [BLUE_MARK] if n == 1 else [SERIES[i % len(SERIES)] for i in range(n)]


BLUE_MARK = (BLUE, "s")


# -- accuracy against ECE -------------------------------------------------------------------


def draw_plane(
    points: Sequence[PlanePoint],
    *,
    name: str,
    title: str,
    tolerance: float | None,
    trained: Sequence[PlanePoint] = (),
    critical: Interval | None = None,
) -> Picture:
    """Draw models by accuracy and ECE, with what bounds them.

    Parameters
    ----------
    points : on test questions. trained : the same names on their training questions, drawn open.
    tolerance : ECE up to which a model counts as calibrated.
    critical : bracket of the critical accuracy, which parts the two regimes.
    """
    everything = [*points, *trained]
    plane = prepare_plane(everything)
    x, y = plane.accuracy_limits, plane.ece_limit
    if critical is not None:
        x = (max(0.0, min(x[0], critical[0] - 0.03)), min(1.0, max(x[1], critical[1] + 0.06)))
    axes = Axes(LEFT + 6, 28, 420, 250, x=x, y=(0, y))
    names = list(dict.fromkeys(p.name for p in everything))
    looks = dict(zip(names, _looks(len(names)), strict=True))
    _heading(axes, title, 60)
    if critical is not None:
        axes.area(critical, (0, 0), (y, y), fill=BAND)
        for place, word, anchor in (
            (axes.px(critical[0]) - 5, "calibratable", "end"),
            (axes.px(critical[1]) + 5, "non-calibratable", "start"),
        ):
            axes.text(place, axes.top + 11, word, anchor=anchor, fill=GREY)
    if tolerance is not None:
        axes.area(x, (0, 0), (min(tolerance, y),) * 2, fill=BAND)
    # Confidence 1 throughout: the ECE is the share of wrong answers.
    ends = (max(x[0], 1 - y), x[1])
    if ends[0] < ends[1]:
        axes.line(ends, (1 - ends[0], 1 - ends[1]), stroke=INK, width=1, dash=DASH_DOT)
    starts = {p.name: p for p in trained}
    for point in points:
        if point.name in starts:
            start = starts[point.name]
            axes.line((start.accuracy, point.accuracy), (start.ece, point.ece), stroke=BAR,
                      width=1, dash=DOTTED)  # fmt: skip
    for point in everything:
        colour, marker = looks[point.name]
        at, reach = (point.accuracy, point.ece), (point.accuracy_interval, point.ece_interval)
        if reach[0] is not None:
            axes.reach(reach[0], (at[1], at[1]), stroke=colour, width=0.8)
        if reach[1] is not None:
            axes.reach((at[0], at[0]), reach[1], stroke=colour, width=0.8)
        axes.mark(
            *at, colour=colour, marker=marker, fill=PAPER if point in trained else None, size=1.2,
            title=f"{point.name}{', training questions' if point in trained else ''}: accuracy "
            f"{number(at[0])}, ECE {number(at[1])}",
        )  # fmt: skip
    across, up = even_ticks(*x), even_ticks(0, y)
    axes.x_axis(across, [plain(t) for t in across], "accuracy")
    axes.y_axis(up, [plain(t) for t in up], "conf-ECE")
    entries = [(line_sample(c, None, m), one_line(n, 30)) for n, (c, m) in looks.items()]
    if trained:
        entries.append((line_sample(INK, None, "o", PAPER), "open: training questions"))
    if ends[0] < ends[1]:
        entries.append((line_sample(INK, DASH_DOT), "confidence 1 throughout"))
    if tolerance is not None:
        entries.append((box_sample(BAND), f"ECE up to {number(tolerance, 2)}"))
    if critical is not None:
        entries.append((box_sample(BAND), "critical accuracy, bracket"))
    bottom = axes.top + axes.height + 46
    legend(axes, entries, top=bottom, columns=2)
    rows = [
        (
            p.name,
            "training" if p in trained else "test",
            *map(_exact, (p.accuracy, *(p.accuracy_interval or (np.nan,) * 2))),
            *map(_exact, (p.ece, *(p.ece_interval or (np.nan,) * 2))),
        )
        for p in everything
    ]
    return Picture(
        name,
        f"{title}: further right is more accurate, further down is better calibrated.",
        drawing(
            name, (axes,), width=axes.left + axes.width + RIGHT,
            height=bottom + 17 * ((len(entries) + 1) // 2) - 4, title=f"Accuracy and ECE, {title}",
            description="; ".join(
                f"{p.name}: accuracy {number(p.accuracy)}, ECE {number(p.ece)}" for p in points
            ) + ".",
        ),
        Table(
            ("model", "questions", "accuracy", "95 % low", "95 % high", "conf-ECE", "95 % low",
             "95 % high"),
            tuple(rows), text_columns=(0, 1),
        ),
    )  # fmt: skip


# -- collapse -------------------------------------------------------------------------------


def draw_entropy(stage: StagePanels, *, name: str, top: float) -> Picture:
    """Draw the entropy of a stage's answers, and the base's as a grey line."""
    axes = Axes(LEFT, 28, _INNER, 190, x=(0.0, float(stage.edges[-1])), y=(0, top))
    axes.text(LEFT, 14, one_line(stage.name, 46), weight="600", size=12)
    axes.bars(stage.edges, stage.entropy, fill=PALE, stroke=BLUE)
    paired = len(stage.scores) > 0
    words = f"mean {number(stage.mean_entropy, 2)}"
    if paired:
        outline = np.append(stage.base_entropy, stage.base_entropy[-1])
        axes.line(stage.edges, outline, stroke=GREY, width=1.5, step=True)
        words += f"; base {number(stage.mean_base_entropy, 2)} (grey line)"
    axes.text(LEFT + _INNER - 4, 40, words, anchor="end")
    across, up = even_ticks(0, axes.x[1]), even_ticks(0, top, 5)
    axes.x_axis(across, [plain(t) for t in across], "entropy of the answer, nats")
    axes.y_axis(up, [plain(t) for t in up], "share of questions")
    rows = [
        tuple(map(_exact, row))
        for row in zip(
            stage.edges[:-1], stage.edges[1:], stage.entropy, stage.base_entropy, strict=True
        )
    ]
    return Picture(
        name,
        f"{stage.name}: how undecided the answers are; 0 is certain.",
        drawing(name, (axes,), width=WIDTH, height=axes.top + axes.height + 36,
                title=f"Entropy, {stage.name}", description=words + "."),
        Table(("from, nats", "to", "share", "share of the base"), tuple(rows), text_columns=()),
    )  # fmt: skip


def draw_scores(stage: StagePanels, *, name: str, across: float, up: float) -> Picture:
    """Draw a stage's log-probabilities against the base's: the slope is the sharpening."""
    axes = Axes(LEFT, 28, _INNER, 190, x=(-across, across), y=(-up, up))
    axes.text(LEFT, 14, one_line(stage.name, 46), weight="600", size=12)
    ends = np.array([-across, across])
    axes.dots(stage.base_scores, stage.scores, colour=BLUE)
    for slope, stroke, dash, width in (
        (1.0, GREY, DASHED, 1.0),
        (stage.slope, VERMILION, None, 1.6),
    ):
        reach = ends if abs(slope) * across <= up else np.array([-up, up]) / slope
        axes.line(reach, slope * reach, stroke=stroke, dash=dash, width=width)
    axes.text(LEFT + 6, 40, f"slope {number(stage.slope, 2)}", fill=RUST)
    axes.text(LEFT + _INNER - 4, axes.top + axes.height - 6, "dashed: unchanged", anchor="end",
              fill=GREY)  # fmt: skip
    xs, ys = even_ticks(-across, across, 5), even_ticks(-up, up, 5)
    axes.x_axis(xs, [plain(t) for t in xs], "centred log-probability of the base")
    axes.y_axis(ys, [plain(t) for t in ys], "… of this stage")
    rows = [tuple(map(_exact, p)) for p in zip(stage.base_scores, stage.scores, strict=True)]
    return Picture(
        name,
        f"{stage.name}: log-probabilities against the base's; steeper than the dashed line is "
        "sharper.",
        drawing(name, (axes,), width=WIDTH, height=axes.top + axes.height + 36,
                title=f"Log-probabilities against the base, {stage.name}",
                description=f"slope {number(stage.slope, 2)}; 1 is unchanged."),
        Table(("base", "stage"), tuple(rows[:400]), text_columns=()),
    )  # fmt: skip
