"""Tables of results: one `Table` of plain text cells, printed by rich or written as Markdown."""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from calibrant.foreign import no_formula

if TYPE_CHECKING:
    import rich.table

    from calibrant.answers import AnswerTable
    from calibrant.diagnosis.report import CalibrationReport
    from calibrant.diagnosis.verdict import Verdict

# Metric of a report -> heading; the arrow says which way is better.
HEADINGS = {
    "accuracy": "accuracy ↑",
    "mean_confidence": "mean confidence",
    "signed_gap": "confidence − accuracy",
    "conf_ece": "conf-ECE ↓",
    "cw_ece": "cw-ECE ↓",
    "debiased_ece": "debiased ECE ↓",
    "conf_ece_quantile": "equal-mass ECE ↓",
    "smooth_ece": "smooth ECE ↓",
    "rmsce": "RMS calibration error ↓",
    "mce": "largest bin error ↓",
    "overconfidence": "over-confident part ↓",
    "underconfidence": "under-confident part ↓",
    "nll": "NLL ↓",
    "brier": "Brier, all options ↓",
    "top_brier": "Brier, top option ↓",
    "mcb": "top option: miscalibration ↓",
    "dsc": "top option: discrimination ↑",
    "unc": "top option: uncertainty",
    "auroc": "AUROC ↑",
    "aurc": "AURC ↓",
    "eaurc": "excess AURC ↓",
    "augrc": "AUGRC ↓",
    "coverage_at_risk": "coverage at risk {risk} ↑",
    "accuracy_at_coverage": "accuracy at coverage {coverage} ↑",
}
COMPARED = {
    "accuracy": "acc",
    "conf_ece": "conf-ECE",
    "cw_ece": "cw-ECE",
    "nll": "NLL",
    "brier": "Brier",
    "auroc": "AUROC",
}
_ABOVE = "* above its interval: noise raises the value; the interval allows for it."
_SEEN = 5e-4  # a difference that numbers of three decimals show
_MOST_DRAWS = 300_000_000  # simulated answers behind a table of subjects, some seconds
# A number, an interval, or both: needs no escaping and keeps the source readable.
_PLAIN_CELL = re.compile(r"[-–∞.,\d]*( ?\[[-∞.\d]+, [-∞.\d]+\])?[▲▼]?")


@dataclass(frozen=True)
class Table:
    """A table of text: what is shown, not yet how.

    Attributes
    ----------
    columns : C headings. rows : rows of C cells. text_columns : indices of left-aligned columns;
    the others hold numbers and are right-aligned. title, notes : text above and below.

    Examples
    --------
    >>> print(Table(("run", "ECE"), (("before|after", ".120"),), title="ARC").to_markdown())
    **ARC**
    <BLANKLINE>
    | run | ECE |
    |:---|---:|
    | before\\|after | .120 |
    <BLANKLINE>
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: tuple[int, ...] = (0,)
    title: str = ""
    notes: tuple[str, ...] = ()

    def to_rich(self) -> rich.table.Table:
        """Build the table for the terminal; cells are text, never markup."""
        import rich.box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            box=rich.box.SIMPLE_HEAD,
            title=Text(one_line(self.title), style="bold") if self.title else None,
            title_justify="left",
            caption=Text("\n".join(one_line(note) for note in self.notes)) if self.notes else None,
            caption_justify="left",
            caption_style="",
            pad_edge=False,
            padding=0 if any(" [" in cell for row in self.rows for cell in row) else (0, 1, 0, 0),
        )
        for k, name in enumerate(self.columns):
            cells = [name, *(row[k] for row in self.rows)]
            # A long name gives way, not a number; a number's interval goes to the next line.
            words = [word for cell in cells for word in cell.split()]
            table.add_column(
                Text(one_line(name)),
                justify="left" if k in self.text_columns else "right",
                # Rich would rather hide a column than break a number.
                no_wrap=not any(" " in cell for cell in cells),
                min_width=min(12, max(map(len, words), default=0)),
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*(Text(one_line(cell)) for cell in row))
        return table

    def to_text(self, width: int = 80) -> str:
        """Write the table as plain text of at most ``width`` columns."""
        from rich.console import Console

        file = io.StringIO()
        Console(file=file, width=width, color_system=None).print(self.to_rich())
        return "\n".join(line.rstrip() for line in file.getvalue().split("\n"))

    def to_csv(self) -> str:
        """Write CSV; text that a spreadsheet would take for a formula begins with an apostrophe."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([no_formula(one_line(name)) for name in self.columns])
        writer.writerows(
            [cell if _PLAIN_CELL.fullmatch(cell) else no_formula(one_line(cell)) for cell in row]
            for row in self.rows
        )
        return file.getvalue()

    def to_markdown(self) -> str:
        """Write GitHub Markdown, ending with a line feed."""
        lines = [f"**{escape_markdown(self.title)}**", ""] if self.title else []
        rule = [":---" if k in self.text_columns else "---:" for k in range(len(self.columns))]
        lines += [_markdown_row(self.columns), "|" + "|".join(rule) + "|"]
        lines += [_markdown_row(row) for row in self.rows]
        if self.notes:
            lines += ["", *(f"- {escape_markdown(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"


def _markdown_row(cells: tuple[str, ...]) -> str:
    plain = [cell if _PLAIN_CELL.fullmatch(cell) else escape_markdown(cell) for cell in cells]
    return "| " + " | ".join(plain) + " |"


def escape_markdown(text: str) -> str:
    """Make untrusted text plain in Markdown: no cell ends, emphasis, link texts, images or HTML."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>&|~" else c for c in one_line(text))


# -- reports --------------------------------------------------------------------------------


def report_table(report: CalibrationReport, *, title: str = "Calibration") -> Table:
    """Show one report: every metric with its value, interval and noise floor.

    The last column is what a perfectly calibrated model with the same confidences shows by chance:
    the mean, the 95 % quantile, and how often it is at least the value (p).
    """
    rows = [
        (_heading(report, name), _value(report, name), _reach(report, name), _chance(report, name))
        for name in _names(report)
    ]
    notes = list(report.warnings)
    if any(row[1].endswith("*") for row in rows):
        notes.append(_ABOVE)
    level = 100 * float(report.settings.get("level", 0.95))
    return Table(
        columns=("metric", "value", f"{level:g} % interval", "by chance alone"),
        rows=tuple(rows),
        text_columns=(0, 3),
        title=f"{title} (N = {report.n:,})",
        notes=tuple(notes),
    )


def reports_table(reports: Mapping[str, CalibrationReport], *, title: str) -> Table:
    """Show several reports side by side: every metric with its interval, chance in rows below.

    Parameters
    ----------
    reports : method -> its report on the same questions.
    """
    first = next(iter(reports.values()))
    rows = []
    for name in _names(first):
        cells = [
            f"{_value(r, name)} {_reach(r, name)}".strip() if name in r else "–"
            for r in reports.values()
        ]
        rows.append((_heading(first, name), *cells))
        if name in first.floors:
            rows.append(("… by chance alone", *(_chance(r, name) for r in reports.values())))
    notes = [f"{m}: {warning}" for m, r in reports.items() for warning in r.warnings]
    if any("*" in cell for row in rows for cell in row[1:]):
        notes.append(_ABOVE)
    sizes = sorted({r.n for r in reports.values()})
    n = ", ".join(f"{size:,}" for size in sizes)
    return Table(("metric", *reports), tuple(rows), title=f"{title} (N = {n})", notes=tuple(notes))


def _names(report: CalibrationReport) -> list[str]:
    known = [name for name in HEADINGS if name in report]
    return known + [name for name in report if name not in HEADINGS]


def _heading(report: CalibrationReport, name: str) -> str:
    heading = HEADINGS.get(name, name)
    for setting in ("risk", "coverage"):
        heading = heading.replace(f"{{{setting}}}", number(report.settings.get(setting), digits=2))
    return heading


def _value(report: CalibrationReport, name: str) -> str:
    estimate = report[name]
    return number(estimate.value) + "*" * (estimate.value > estimate.high)


def _reach(report: CalibrationReport, name: str) -> str:
    return interval(report[name].low, report[name].high)


def _chance(report: CalibrationReport, name: str) -> str:
    floor = report.floors.get(name)
    if floor is None:
        return ""
    return f"{number(floor.mean)}, 95 % {number(floor.q95)}, p {number(floor.p_value)}"


def subject_table(
    methods: Mapping[str, AnswerTable], *, title: str = "Subjects", seed: int = 0
) -> Table:
    """Show each subject's accuracy, confidence and conf-ECE, beside what chance alone gives.

    p-values are corrected for the number of subjects, for each method, by Holm's procedure.

    Parameters
    ----------
    methods : method -> answers to the same questions; each has its own columns, fewer of them if
        there are several methods.
    """
    several = len(methods) > 1
    first, *_ = methods.values()
    names = sorted(set(first.tasks))
    sizes = Counter(first.tasks)
    rows = [[name or "–", f"{sizes[name]:,}"] for name in names]
    columns: list[str] = []
    for method, answers in methods.items():
        found = _by_subject(answers, names, seed)
        shown = (0, 2, 4) if several else range(5)
        for row, numbers in zip(rows, found, strict=True):
            row += [number(numbers[k]) for k in shown]
        if several:
            columns += [f"{method}: accuracy", "conf-ECE", "p"]
        else:
            columns += ["accuracy", "confidence", "conf-ECE", "by chance", "p"]
    return Table(
        columns=("subject", "N", *columns),
        rows=tuple(tuple(row) for row in rows),
        title=title,
        notes=(
            f"p is corrected for the {len(names)} subjects (Holm): of calibrated models, one in "
            "twenty would show any p below .05.",
        ),
    )


def _by_subject(answers: AnswerTable, names: list[str], seed: int) -> list[list[float]]:
    """Accuracy, confidence, conf-ECE, what chance gives, and corrected p of each subject."""
    from calibrant.diagnosis.comparison import holm_p_values
    from calibrant.metrics.inference import noise_floor_from_confidence

    # A corrected p can only be small if p has so many digits; where that is too much work, it is
    # larger than it need be.
    draws = max(1000, min(100 * len(names), _MOST_DRAWS // len(answers)))
    tasks, confidence, correct = np.array(answers.tasks), answers.confidence, answers.correct
    found = []
    for name in names:
        at = tasks == name
        if not at.any():
            found.append([math.nan] * 5)
            continue
        c, hit = confidence[at], correct[at]
        floor = noise_floor_from_confidence(c, hit, n_simulations=draws, seed=seed)
        found.append([hit.mean(), c.mean(), floor.observed, floor.mean, floor.p_value])
    for row, p in zip(found, holm_p_values([row[4] for row in found]), strict=True):
        row[4] = p
    return found


def comparison_tables(
    runs: Mapping[str, Mapping[str, CalibrationReport]],
    verdicts: Mapping[str, Mapping[str, Verdict]] | None = None,
) -> list[Table]:
    """Compare methods, one table per data set.

    Parameters
    ----------
    runs : data set -> method -> report, in the order to show; the first method is usually before.
    verdicts : data set -> method -> verdict, for those that have one; their reasons become notes.
    """
    return [
        _comparison(name, reports, (verdicts or {}).get(name, {})) for name, reports in runs.items()
    ]


def _comparison(
    name: str,
    reports: Mapping[str, CalibrationReport],
    verdicts: Mapping[str, Verdict],
) -> Table:
    sizes = {report.n for report in reports.values()}
    columns = ["method", *COMPARED.values()]
    if len(sizes) > 1:
        columns.insert(1, "N")
    if verdicts:
        columns.append("verdict")
    rows = []
    for method, report in reports.items():
        cells = [method, *(_cell(report, metric) for metric in COMPARED)]
        if len(sizes) > 1:
            cells.insert(1, f"{report.n:,}")
        if verdicts:
            cells.append(verdicts[method].label if method in verdicts else "")
        rows.append(tuple(cells))
    return Table(
        columns=tuple(columns),
        rows=tuple(rows),
        text_columns=(0, len(columns) - 1) if verdicts else (0,),
        title=f"{name} (N = {sizes.pop():,})" if len(sizes) == 1 else name,
        notes=tuple(f"{method}: {verdict}" for method, verdict in verdicts.items()),
    )


def _cell(report: CalibrationReport, metric: str) -> str:
    if metric not in report:
        return "–"
    estimate = report[metric]
    return f"{number(estimate.value)} {interval(estimate.low, estimate.high)}".strip()


def difference_table(verdict: Verdict, *, name: str, before: str, after: str) -> Table:
    """Show a paired comparison: each metric before, after, and the change with its interval.

    A star marks a change whose 95 % interval lies on one side of 0.
    """
    rows, corrected = [], False
    for metric, change in verdict.difference.items():
        clear = change.low > 0 or change.high < 0
        plain = verdict.after[metric].value - verdict.before[metric].value
        corrected |= abs(change.value - plain) > _SEEN
        rows.append(
            (
                HEADINGS.get(metric, metric),
                number(verdict.before[metric].value),
                number(verdict.after[metric].value),
                number(change.value) + "*" * clear,
                interval(change.low, change.high),
            )
        )
    notes = [str(verdict), "* the interval lies on one side of 0."]
    if corrected:
        notes.append(
            "A change of a calibration error is not the difference of its columns: noise raises "
            "both, the smaller one more; the change allows for it."
        )
    return Table(
        columns=("metric", "before", "after", "change", "95 % interval"),
        rows=tuple(rows),
        title=f"{name}: {before} → {after} (N = {verdict.n:,})",
        notes=tuple(notes),
    )


# -- pieces of text -------------------------------------------------------------------------


def one_line(text: str, width: int | None = None) -> str:
    """Put text on one printable line, with an ellipsis in the middle if it exceeds ``width``.

    Examples
    --------
    >>> one_line("a\\nvery\\x1b long name", 12)
    'a very… name'
    """
    # Other controls (escape sequences, bidirectional overrides) could repaint a terminal.
    kept = (c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    line = " ".join("".join(kept).split())
    if width is None or len(line) <= width:
        return line
    tail = (width - 1) // 2
    return f"{line[: width - 1 - tail]}…{line[len(line) - tail :]}"


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with fixed decimals and no leading zero; an en dash if there is none.

    Examples
    --------
    >>> [number(x) for x in (0.12345, -0.05, 1.4404, 0.0, float("inf"), float("nan"), None)]
    ['.123', '-.050', '1.440', '.000', '∞', '–', '–']
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """Format an interval, nothing if there is none.

    Examples
    --------
    >>> interval(0.0913, 0.15), interval(None, None)
    ('[.091, .150]', '')
    """
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f"[{number(low, digits)}, {number(high, digits)}]"
