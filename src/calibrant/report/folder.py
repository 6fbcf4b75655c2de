"""What a run folder shows a person: ``report.md`` and its figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from calibrant.files import write_text
from calibrant.report.tables import Table, comparison_tables, number, one_line, report_table

if TYPE_CHECKING:
    from calibrant.diagnosis.report import CalibrationReport
    from calibrant.diagnosis.verdict import Verdict

DOMAINS = {"in": "in domain", "out": "out of domain", "train": "training questions"}


def write_evaluation(
    folder: str | os.PathLike[str],
    report: CalibrationReport,
    *,
    title: str,
    more: Sequence[Table] = (),
) -> None:
    """Write ``report.json``, ``report.md`` and ``reliability.svg``/``.png`` of one report.

    Parameters
    ----------
    more : tables shown below the report.
    """
    from calibrant.report.figures import plot_reliability, reliability_of_report, save_figure

    path = Path(folder)
    report.save(path / "report.json")
    save_figure(plot_reliability(reliability_of_report(report, title)), path / "reliability")
    text = report_table(report, title=title).to_markdown()
    for table in more:
        text += "\n" + table.to_markdown()
    write_text(path / "report.md", f"{text}\n![reliability diagram](reliability.png)\n")


def restoration_tables(
    reports: Mapping[str, Mapping[str, CalibrationReport]],
    verdicts: Mapping[str, Mapping[str, Verdict]],
    domains: Mapping[str, str],
    *,
    intervals: bool,
) -> list[Table]:
    """One table per test set, test sets first and the training sample last.

    Parameters
    ----------
    reports, verdicts : method -> set -> report or verdict, as `calibrant.restore` gives them.
    domains : set -> "in", "out" or "train".
    """
    by_set = {
        f"{name}, {DOMAINS[domain]}": {m: parts[name] for m, parts in reports.items()}
        for name, domain in domains.items()
    }
    judged = {
        f"{name}, {DOMAINS[domain]}": {m: v[name] for m, v in verdicts.items() if name in v}
        for name, domain in domains.items()
    }
    return comparison_tables(by_set, judged, intervals=intervals)


def write_restoration(
    folder: str | os.PathLike[str],
    *,
    title: str,
    reports: Mapping[str, Mapping[str, CalibrationReport]],
    verdicts: Mapping[str, Mapping[str, Verdict]],
    domains: Mapping[str, str],
    costs: Mapping[str, Mapping[str, float]],
    notes: Sequence[str] = (),
) -> None:
    """Write ``report.md``, ``reliability.svg``/``.png`` and ``plane.svg``/``.png``."""
    from calibrant.report.figures import (
        plot_plane,
        plot_reliability_grid,
        point_of_report,
        prepare_plane,
        reliability_of_report,
        save_figure,
    )

    path = Path(folder)
    tests = [name for name, domain in domains.items() if domain != "train"]
    methods = list(reports)
    cells = [[reliability_of_report(reports[m][s]) for m in methods] for s in tests]
    save_figure(plot_reliability_grid(cells, rows=tests, columns=methods), path / "reliability")
    points = [point_of_report(reports[m][s], m, s) for s in tests for m in methods]
    save_figure(plot_plane(prepare_plane(points)), path / "plane")
    lines = [f"# {one_line(title)}", ""]
    for table in restoration_tables(reports, verdicts, domains, intervals=True):
        lines.append(table.to_markdown())
    lines += [cost_table(costs).to_markdown(), *(f"- {one_line(note)}" for note in notes), ""]
    lines += ["![reliability diagrams](reliability.png)", "", "![accuracy and ECE](plane.png)", ""]
    write_text(path / "report.md", "\n".join(lines))


def cost_table(costs: Mapping[str, Mapping[str, float]]) -> Table:
    """Show what each method cost: labels, seconds, rates and peak memory.

    ``peak memory`` is the whole process's highest so far, in 10⁹ bytes.
    """
    rows = []
    for method, cost in costs.items():
        seconds, questions = cost.get("scoring_seconds"), cost.get("scored_questions")
        rate = questions / seconds if seconds and questions else None
        tokens = cost.get("scored_tokens")
        token_rate = tokens / seconds if seconds and tokens else None
        rows.append(
            (
                method,
                f"{cost['labels']:,.0f}" if "labels" in cost else "–",
                _plain(cost.get("training_seconds")),
                number(rate, 1),
                _plain(token_rate),
                number(cost.get("peak_memory_gb"), 2),
            )
        )
    return Table(
        columns=("method", "labels", "fit, s", "scored, q/s", "tokens/s", "peak GB"),
        rows=tuple(rows),
        title="Cost",
    )


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
