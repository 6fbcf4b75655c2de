"""What a run folder shows a person: ``report.html``, ``report.md`` and their figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrant.files import read_yaml, write_text
from calibrant.report.page import Claim, Page, Section, write_page
from calibrant.report.sections import (
    Measured,
    making_section,
    measured_sections,
    numbers_section,
    report_tables,
    texts_of,
)
from calibrant.report.tables import (
    Table,
    comparison_tables,
    escape_markdown,
    number,
    report_table,
)

if TYPE_CHECKING:
    from calibrant.answers import AnswerTable
    from calibrant.diagnosis.collapse import CollapseReport
    from calibrant.diagnosis.report import CalibrationReport
    from calibrant.diagnosis.verdict import Verdict
    from calibrant.questions import Question

DOMAINS = {"in": "in domain", "out": "out of domain", "train": "training questions"}


def how_made(folder: Path) -> Section:
    """Settings, data and versions of a run, from its ``config.yaml``."""
    config = read_yaml(folder / "config.yaml")
    settings: dict[str, Any] = {"command": config["command"], **config["settings"]}
    if config.get("data"):
        settings["data"] = config["data"]
    return making_section(settings, config["versions"])


def write_evaluation(
    folder: str | os.PathLike[str],
    report: CalibrationReport,
    *,
    title: str,
    answers: AnswerTable,
    questions: Sequence[Question] | None = None,
    base: tuple[AnswerTable, Verdict] | None = None,
    subjects: Table | None = None,
    more: Sequence[Table] = (),
) -> None:
    """Write ``report.html``, ``report.json``, ``report.md`` and ``reliability.svg``/``.png``.

    Parameters
    ----------
    answers : what the report is about. questions : its questions, if their texts are at hand.
    base : answers of the model before tuning, and the verdict on what became of them.
    subjects : table of subjects, if there are several.
    more : tables shown below these in ``report.md``.
    """
    from calibrant.report.figures import plot_reliability, reliability_of_report, save_figure

    path = Path(folder)
    report.save(path / "report.json")
    save_figure(plot_reliability(reliability_of_report(report, title)), path / "reliability")
    text = report_table(report, title=title).to_markdown()
    for table in (*([] if subjects is None else [subjects]), *more):
        text += "\n" + table.to_markdown()
    write_text(path / "report.md", f"{text}\n![reliability diagram](reliability.png)\n")
    runs = {title: {"this model": Measured(answers, report)}}
    texts = {} if questions is None else {title: texts_of(questions)}
    claims = [Claim(*report.finding())]
    by_set = {} if subjects is None else {title: replace(subjects, title=title)}
    sections = measured_sections(runs, questions=texts, plane=False, subjects=by_set)
    if base is not None:
        claims.append(Claim(base[1].label, base[1].reason, "against the model before tuning"))
        names = ("before tuning", "this model")
        seed = int(report.settings["seed"])
        sections += _against_base(base[0], answers, names=names, seed=seed)
    sections += [numbers_section(report_tables(runs)), how_made(path)]
    page = Page(
        title=f"Calibration of {title}",
        subtitle=f"{report.n:,} questions",
        claims=tuple(claims),
        sections=tuple(sections),
        warnings=report.warnings,
    )
    write_page(path / "report.html", page)


def _against_base(
    base: AnswerTable, answers: AnswerTable, *, names: tuple[str, str], seed: int
) -> list[Section]:
    from calibrant.diagnosis.collapse import collapse
    from calibrant.report.collapse import collapse_sections

    reports: dict[str, CollapseReport] = {
        names[0]: collapse(None, base, seed=seed),
        names[1]: collapse(base, answers, seed=seed),
    }
    return collapse_sections(dict(zip(names, (base, answers), strict=True)), reports)


def write_comparison(
    folder: str | os.PathLike[str],
    runs: Mapping[str, Mapping[str, Measured]],
    verdicts: Mapping[str, Mapping[str, Verdict]],
    tables: Sequence[Table],
    *,
    title: str,
    questions: Mapping[str, Sequence[Question]],
    tolerance: float,
) -> None:
    """Write ``report.html`` and ``report.md`` of a paired comparison.

    Parameters
    ----------
    runs : set -> run -> what was measured, the run before first. verdicts : set -> run -> verdict.
    tables : the differences. questions : set -> questions whose texts are at hand.
    """
    path = Path(folder)
    write_text(path / "report.md", "\n".join(table.to_markdown() for table in tables))
    claims = [
        Claim(judged.label, judged.reason, f"{run}, {name}" if len(runs) > 1 else run)
        for name, by_run in verdicts.items()
        for run, judged in by_run.items()
    ]
    sections = measured_sections(
        runs,
        questions={name: texts_of(part) for name, part in questions.items()},
        tolerance=tolerance,
    )
    numbers = [*tables, *report_tables(runs)]
    page = Page(
        title=title,
        subtitle=_sizes(runs),
        claims=tuple(claims),
        sections=(*sections, numbers_section(numbers), how_made(path)),
    )
    write_page(path / "report.html", page)


def _sizes(runs: Mapping[str, Mapping[str, Measured]]) -> str:
    parts = []
    for name, methods in runs.items():
        sizes = sorted({one.report.n for one in methods.values()})
        parts.append(f"{name}: {' and '.join(f'{n:,}' for n in sizes)} questions")
    return "; ".join(parts)


def restoration_tables(
    reports: Mapping[str, Mapping[str, CalibrationReport]],
    verdicts: Mapping[str, Mapping[str, Verdict]],
    domains: Mapping[str, str],
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
    return comparison_tables(by_set, judged)


def write_restoration(
    folder: str | os.PathLike[str],
    *,
    title: str,
    tables: Mapping[str, Mapping[str, AnswerTable]],
    reports: Mapping[str, Mapping[str, CalibrationReport]],
    verdicts: Mapping[str, Mapping[str, Verdict]],
    domains: Mapping[str, str],
    costs: Mapping[str, Mapping[str, float]],
    questions: Mapping[str, Sequence[Question]],
    notes: Sequence[str] = (),
    tolerance: float = 0.03,
    alignment: tuple[AnswerTable, AnswerTable] | None = None,
) -> None:
    """Write ``report.html``, ``report.md``, ``reliability`` and ``plane`` as ``.svg`` and ``.png``.

    Parameters
    ----------
    tables, reports, verdicts : method -> set -> answers, report, verdict against before.
    domains : set -> "in", "out" or "train". questions : set -> questions, for their texts.
    alignment : answers of the model before alignment, and of the one to restore, to the same
        questions: what alignment did is shown.
    """
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
    compared = restoration_tables(reports, verdicts, domains)
    costs_table = cost_table(costs)
    lines = [f"# {escape_markdown(title)}", "", *(table.to_markdown() for table in compared)]
    lines += [costs_table.to_markdown(), *(f"- {escape_markdown(note)}" for note in notes), ""]
    lines += ["![reliability diagrams](reliability.png)", "", "![accuracy and ECE](plane.png)", ""]
    write_text(path / "report.md", "\n".join(lines))

    called = {name: f"{name}, {DOMAINS[domain]}" for name, domain in domains.items()}
    runs = {called[s]: {m: Measured(tables[m][s], reports[m][s]) for m in methods} for s in tests}
    trained = {
        m: Measured(tables[m][s], reports[m][s])
        for s, domain in domains.items()
        if domain == "train"
        for m in methods
    }
    claims = [
        Claim(verdicts[m][s].label, verdicts[m][s].reason, f"{m}, {called[s]}")
        for s in tests
        for m in methods
        if s in verdicts.get(m, {})
    ]
    sections = measured_sections(
        runs,
        questions={called[s]: texts_of(questions[s]) for s in tests if s in questions},
        tolerance=tolerance,
        trained=trained,
    )
    if alignment is not None:
        seed = int(reports[methods[0]][tests[0]].settings["seed"])
        names = ("before alignment", "before")
        sections += _against_base(*alignment, names=names, seed=seed)
    first = Section("Methods side by side", tables=(*map(_without_notes, compared), costs_table))
    page = Page(
        title=title,
        subtitle=_sizes(runs),
        claims=tuple(claims),
        sections=(first, *sections, numbers_section(report_tables(runs)), how_made(path)),
        warnings=tuple(notes),
    )
    write_page(path / "report.html", page)


def _without_notes(table: Table) -> Table:
    """Leave out the verdicts' reasons: the page has them at its head."""
    return replace(table, notes=())


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
