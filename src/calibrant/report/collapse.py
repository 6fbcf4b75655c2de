"""What alignment did, stage by stage: tables, figure and files of `calibrant collapse`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibrant.files import write_json, write_text
from calibrant.permutations import one_row_each
from calibrant.report.figures import (
    BLUE,
    GREY,
    PALE,
    VERMILION,
    ConfidenceHistogram,
    Floats,
    plain,
    prepare_confidence,
    save_figure,
    style,
    unit_axis,
)
from calibrant.report.tables import Table, escape_markdown, interval, number, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from calibrant.answers import AnswerTable
    from calibrant.diagnosis.collapse import CollapseReport
    from calibrant.metrics.inference import Estimate
    from calibrant.report.page import Section

# Quantity of a collapse report -> heading, in the order to show.
HEADINGS = {
    "accuracy": "accuracy",
    "mean_confidence": "mean confidence",
    "conf_ece": "conf-ECE",
    "confidence_right": "confidence when right",
    "confidence_wrong": "confidence when wrong",
    "confidence_gap": "right − wrong",
    "collapse_index": "collapse index",
    "share_saturated": "confidence > .99, share",
    "share_saturated_right": "… of right answers",
    "share_saturated_wrong": "… of wrong answers",
    "entropy": "entropy, nats",
    "recall_std": "RStd (letter bias)",
    "flip_rate": "flip rate under permutation",
    "entropy_change": "change of entropy",
    "kl": "KL(aligned ‖ base)",
    "js": "Jensen-Shannon divergence",
    "agreement_drift": "drift of confidence where both agree",
    "disagreement": "disagreement, share",
    "disagreement_accuracy_gap": "change of accuracy there",
    "effective_slope": "effective slope s",
    "slope_residual": "residual of the slope",
    "slope_r2": "R² of the slope",
    "temperature": "temperature to base, all",
    "temperature_agreement": "temperature to base, agreement",
}
_POINTS = 1500  # log-probabilities drawn in a scatter
_ENTROPY_BINS = 24
_NOTES = (
    "collapse index: mean over wrong answers of (c − 1/K)/(1 − 1/K), 1 when each is certain",
    "slope: centred log-probabilities of the stage on those of the base; above 1 is sharpening",
)


def collapse_table(reports: Mapping[str, CollapseReport]) -> Table:
    """Show stages side by side, the base first; paired quantities are against the base.

    Parameters
    ----------
    reports : stage -> report, in the order to show.
    """
    present = [name for name in HEADINGS if any(name in report for report in reports.values())]
    rows = [
        (HEADINGS[name], *(_cell(report, name) for report in reports.values())) for name in present
    ]
    sizes = sorted({report.n for report in reports.values()})
    return Table(
        columns=("quantity", *reports),
        rows=tuple(rows),
        title=f"What each stage did (N = {', '.join(f'{n:,}' for n in sizes)})",
        notes=(
            *_NOTES,
            *(f"{k}: {note}" for k, report in reports.items() for note in report.notes),
        ),
    )


def letter_table(reports: Mapping[str, CollapseReport]) -> Table:
    """Show what each letter gets: predictions, log-probability, and the prior where known."""
    width = max(len(report.predicted_shares) for report in reports.values())
    rows: list[tuple[str, ...]] = []
    for name, report in reports.items():
        parts: list[tuple[str, Sequence[Estimate]]] = [
            ("predicted, share", report.predicted_shares),
            ("log-probability added to the base's", report.letter_bias),
            *((f"prior, {k} options", prior) for k, prior in report.letter_prior.items()),
        ]
        for what, values in parts:
            if values:
                cells = [_estimate(e) for e in values]
                rows.append((name, what, *cells, *[""] * (width - len(cells))))
    return Table(
        columns=("stage", "letters", *(chr(ord("A") + k) for k in range(width))),
        rows=tuple(rows),
        text_columns=(0, 1),
        title="Letters",
    )


def _cell(report: CollapseReport, name: str) -> str:
    return _estimate(report[name]) if name in report else "–"


def _estimate(estimate: Estimate) -> str:
    return f"{number(estimate.value)} {interval(estimate.low, estimate.high)}".strip()


# -- figure ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class StagePanels:
    """What the figure shows of one stage.

    Attributes
    ----------
    name : str. confidence : counts of right and wrong answers by confidence.
    entropy, base_entropy : (bins,) share of the questions; edges : (bins + 1,) nats.
    mean_entropy, mean_base_entropy : float.
    base_scores, scores : (M,) centred log-probabilities of some options; empty for the base.
    slope : float, NaN for the base.
    """

    name: str
    confidence: ConfidenceHistogram
    edges: Floats
    entropy: Floats
    base_entropy: Floats
    mean_entropy: float
    mean_base_entropy: float
    base_scores: Floats
    scores: Floats
    slope: float


def prepare_collapse(
    base: AnswerTable | None, stage: AnswerTable, report: CollapseReport, *, name: str
) -> StagePanels:
    """Compute what `plot_collapse` draws of one stage, from the tables its report is about."""
    start = stage = one_row_each(stage)
    if base is not None:
        start, stage = one_row_each(base).align(stage)
    entropy, base_entropy = _entropy(stage.probs()), _entropy(start.probs())
    edges = np.linspace(0, math.log(int(stage.n_options.max())) + 1e-9, _ENTROPY_BINS + 1)
    x, y = np.empty(0), np.empty(0)
    if base is not None:
        usable = np.isfinite(start.logprobs) & np.isfinite(stage.logprobs)
        x, y = (_centred(t.logprobs, usable) for t in (start, stage))
        drawn = np.random.default_rng(0).permutation(len(x))[:_POINTS]
        x, y = x[drawn], y[drawn]
    return StagePanels(
        name=name,
        confidence=prepare_confidence(stage.confidence, stage.correct, name=name),
        edges=edges,
        entropy=np.histogram(entropy, edges)[0] / len(entropy),
        base_entropy=np.histogram(base_entropy, edges)[0] / len(entropy),
        mean_entropy=float(entropy.mean()),
        mean_base_entropy=float(base_entropy.mean()),
        base_scores=x,
        scores=y,
        slope=report["effective_slope"].value if "effective_slope" in report else math.nan,
    )


def _entropy(p: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, -p * np.log(p), 0.0)
    total: Floats = terms.sum(axis=1)
    return total


def _centred(scores: Floats, usable: Any) -> Floats:
    held = np.where(usable, scores, 0.0)
    mean = held.sum(axis=1, keepdims=True) / np.maximum(usable.sum(axis=1, keepdims=True), 1)
    centred: Floats = (held - mean)[usable]
    return centred


def plot_collapse(stages: Sequence[StagePanels]) -> Figure:
    """Draw one row per stage: confidence by correctness, entropy, and scores against the base's."""
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(8.6, 0.5 + 2.3 * len(stages)), layout="constrained")
        axes = figure.subplots(len(stages), 3, squeeze=False)
        top = 1.15 * max(float(np.concatenate([s.entropy, s.base_entropy]).max()) for s in stages)
        limits = (_reach([s.base_scores for s in stages]), _reach([s.scores for s in stages]))
        for row, stage in zip(axes, stages, strict=True):
            _draw_confidence(row[0], stage)
            _draw_entropy(row[1], stage, top)
            _draw_scores(row[2], stage, *limits)
        for ax, label in zip(
            axes[-1],
            ("confidence", "entropy, nats", "centred log-probability of the base"),
            strict=True,
        ):
            ax.set_xlabel(label)
        return figure


def _draw_confidence(axes: Axes, stage: StagePanels) -> None:
    data = stage.confidence
    width, left = np.diff(data.edges), data.edges[:-1]
    right, wrong = (counts / max(int(counts.sum()), 1) for counts in (data.right, data.wrong))
    axes.bar(left, right, width, align="edge", color=BLUE, edgecolor="white", linewidth=0.5)
    axes.bar(
        left, -wrong, width, align="edge", color="#f2c9ae", edgecolor=VERMILION, linewidth=0.4,
        hatch="////",
    )  # fmt: skip
    axes.axhline(0, color=GREY, linewidth=0.8)
    limit = 1.35 * max(float(right.max()), float(wrong.max()), 0.05)
    axes.set(xlim=(0, 1), ylim=(-limit, limit), ylabel=one_line(stage.name, 28))
    axes.set_yticks(())
    axes.yaxis.label.set_fontweight("bold")
    unit_axis(axes.xaxis)
    for y, va, word, mean, colour in (
        (0.98, "top", "right", data.mean_right, BLUE),
        (0.02, "bottom", "wrong", data.mean_wrong, VERMILION),
    ):
        axes.text(
            0.02, y, f"{word}: mean {number(mean, 2)}", va=va, transform=axes.transAxes,
            color=colour, fontsize=8,
        )  # fmt: skip


def _draw_entropy(axes: Axes, stage: StagePanels, top: float) -> None:
    width = np.diff(stage.edges)
    axes.bar(
        stage.edges[:-1], stage.entropy, width, align="edge", color=PALE, edgecolor=BLUE, lw=0.5
    )
    paired = len(stage.scores) > 0
    if paired:
        axes.stairs(stage.base_entropy, stage.edges, color=GREY, linewidth=1.2)
    axes.set(xlim=(0, stage.edges[-1]), ylim=(0, top), ylabel="share of questions")
    axes.xaxis.set_major_formatter(lambda value, _: plain(value))
    axes.yaxis.set_major_formatter(lambda value, _: plain(value))
    text = f"mean {number(stage.mean_entropy, 2)}"
    if paired:
        text += f"\nbase {number(stage.mean_base_entropy, 2)} (grey line)"
    axes.text(0.97, 0.97, text, ha="right", va="top", transform=axes.transAxes, fontsize=8)


def _reach(scores: Sequence[Floats]) -> float:
    """Half the width of an axis that holds nearly all of the scores."""
    found = [float(np.quantile(np.abs(x), 0.998)) for x in scores if len(x)]
    return 1.05 * max(found, default=0.0) or 1.0


def _draw_scores(axes: Axes, stage: StagePanels, across: float, up: float) -> None:
    if not len(stage.scores):
        axes.set_axis_off()
        axes.text(0.5, 0.5, "the stage the others\nare compared with", ha="center", va="center",
                  color=GREY, transform=axes.transAxes)  # fmt: skip
        return
    ends = np.array([-across, across])
    axes.plot(ends, ends, color=GREY, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.scatter(stage.base_scores, stage.scores, s=4, color=BLUE, alpha=0.25, linewidths=0)
    axes.plot(ends, stage.slope * ends, color=VERMILION, linewidth=1.4)
    axes.set(xlim=(-across, across), ylim=(-up, up), ylabel="… of this stage")
    for y, va, text, colour in (
        (0.97, "top", f"slope {number(stage.slope, 2)}", VERMILION),
        (0.02, "bottom", "dashed: unchanged", GREY),
    ):
        x, ha = (0.03, "left") if va == "top" else (0.98, "right")
        axes.text(x, y, text, ha=ha, va=va, transform=axes.transAxes, color=colour, fontsize=8)


# -- files ----------------------------------------------------------------------------------


def write_collapse(
    folder: str | os.PathLike[str],
    *,
    tables: Mapping[str, AnswerTable],
    reports: Mapping[str, CollapseReport],
) -> None:
    """Write ``collapse.json``, ``report.html``, ``report.md`` and ``collapse.svg``/``.png``.

    Parameters
    ----------
    tables, reports : stage -> answers and report, the base first.
    """
    from calibrant.report.folder import how_made
    from calibrant.report.page import Claim, Page, write_page

    path = Path(folder)
    base, *others = tables
    stages = _panels(tables, reports)
    save_figure(plot_collapse(stages), path / "collapse")
    text = [
        "# " + escape_markdown(" → ".join(reports)),
        "",
        collapse_table(reports).to_markdown(),
        letter_table(reports).to_markdown(),
        "![confidence, entropy and scores by stage](collapse.png)",
        "",
    ]
    write_text(path / "report.md", "\n".join(text))
    write_json(path / "collapse.json", collapse_content(reports))
    page = Page(
        title="What alignment did: " + " → ".join(reports),
        subtitle=f"{reports[base].n:,} questions; every stage is compared with {base}",
        claims=tuple(Claim(*in_words(reports[base], reports[name]), name) for name in others),
        sections=(*collapse_sections(tables, reports), how_made(path)),
        warnings=tuple(f"{k}: {note}" for k, report in reports.items() for note in report.notes),
        headline="What happened",
    )
    write_page(path / "report.html", page)


def collapse_content(reports: Mapping[str, CollapseReport]) -> dict[str, Any]:
    """Give the content of ``collapse.json``; the base is the first."""
    return {"base": next(iter(reports)), "stages": {k: r.to_dict() for k, r in reports.items()}}


def in_words(base: CollapseReport, stage: CollapseReport) -> tuple[str, str]:
    """Say in one word what a stage did to confidence, and the numbers that show it."""
    drift = stage["agreement_drift"]
    if drift.low > 0:
        label = "more confident"
    elif drift.high < 0:
        label = "less confident"
    else:
        label = "confidence unchanged"
    parts = [
        f"where both give the same answer, confidence moved by {_signed(drift)}",
        f"log-odds are {_estimate(stage['effective_slope'])} times the base's",
        *(
            f"{HEADINGS[name]} {number(base[name].value)} → {number(stage[name].value)}"
            for name in ("accuracy", "conf_ece", "confidence_wrong")
        ),
    ]
    return label, "; ".join(parts) + "."


def _signed(estimate: Estimate) -> str:
    sign = "+" if estimate.value > 0 else ""
    return f"{sign}{_estimate(estimate)}"


def _panels(
    tables: Mapping[str, AnswerTable], reports: Mapping[str, CollapseReport]
) -> list[StagePanels]:
    base, *_ = tables
    return [
        prepare_collapse(None if name == base else tables[base], tables[name], report, name=name)
        for name, report in reports.items()
    ]


def collapse_sections(
    tables: Mapping[str, AnswerTable], reports: Mapping[str, CollapseReport]
) -> list[Section]:
    """Build the page's figures and tables of stages, the base first."""
    from calibrant.report.drawings import draw_confidence, draw_entropy, draw_scores, most_of
    from calibrant.report.page import Section, slug

    stages = _panels(tables, reports)
    top = 1.15 * max(float(np.concatenate([s.entropy, s.base_entropy]).max()) for s in stages)
    across, up = _reach([s.base_scores for s in stages]), _reach([s.scores for s in stages])
    most = most_of(s.confidence for s in stages)
    keys = {s.name: f"{i + 1}-{slug(s.name)}" for i, s in enumerate(stages)}
    pictures = {
        "Confidence when right and when wrong": [
            draw_confidence(s.confidence, name=f"stage-confidence-{keys[s.name]}", most=most)
            for s in stages
        ],
        "Entropy": [draw_entropy(s, name=f"entropy-{keys[s.name]}", top=top) for s in stages],
        "Sharpening": [
            draw_scores(s, name=f"sharpening-{keys[s.name]}", across=across, up=up)
            for s in stages
            if len(s.scores)
        ],
    }
    text = (
        "Alignment that only sharpens multiplies the log-probabilities: the cloud turns steeper, "
        "entropy goes to 0, and wrong answers become as confident as right ones."
    )
    return [
        Section("Collapse", (text,), pictures),
        Section("Collapse in numbers", tables=(collapse_table(reports), letter_table(reports))),
    ]
