"""Parts of the page that every command shares: what answer tables and their reports show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from calibrant.metrics.inference import wilson_interval
from calibrant.metrics.smooth import smooth_reliability_from_confidence
from calibrant.report.drawings import (
    Picture,
    draw_confidence,
    draw_option,
    draw_plane,
    draw_reliability,
    draw_risk,
    most_of,
    prepare_risk,
)
from calibrant.report.figures import (
    Interval,
    Reliability,
    point_of_report,
    prepare_confidence,
    reliability_of_report,
)
from calibrant.report.page import MISTAKES, Section, facts, slug, worst_mistakes
from calibrant.report.tables import Table, report_table, reports_table, subject_table

if TYPE_CHECKING:
    from calibrant.answers import AnswerTable
    from calibrant.diagnosis.report import CalibrationReport
    from calibrant.metrics.binned import BinTable
    from calibrant.questions import Question

_OPTIONS = 8  # of a class-wise figure: later letters are rare
_ACROSS = 4  # methods side by side in a table of subjects
# Diagrams of a kind, and methods drawn of a set: more than people look at. Tables have them all.
_FIGURES, _DRAWN = 16, (3, 12)
_OF_MANY = (
    "Drawn are the first method and those with the lowest NLL over all sets; the tables and the "
    "figure of accuracy and ECE have them all."
)
Texts = Mapping[str, "Question"]  # id -> question


@dataclass(frozen=True)
class Measured:
    """Answers to one set of questions by one method, and their report."""

    answers: AnswerTable
    report: CalibrationReport


# Test set -> method -> what was measured; the first method is usually before.
Runs = Mapping[str, Mapping[str, Measured]]


def texts_of(questions: Sequence[Question]) -> dict[str, Question]:
    """Index questions by their id."""
    return {q.id: q for q in questions}


def measured_sections(
    runs: Runs,
    *,
    questions: Mapping[str, Texts],
    tolerance: float | None = None,
    trained: Mapping[str, Measured] | None = None,
    critical: Interval | None = None,
    plane: bool = True,
    subjects: Mapping[str, Table] | None = None,
) -> list[Section]:
    """Build figures, subjects and mistakes of one or several methods on one or several sets.

    Parameters
    ----------
    runs : what to show. questions : set -> the texts of its questions, where they are at hand.
    tolerance : ECE that counts as calibrated. trained : method -> its training questions.
    critical : bracket of the critical accuracy.
    plane : whether the accuracy-ECE plane is shown.
    subjects : set -> its table of subjects, where it is made already.
    """
    shown = _shown(runs)
    parts = [reliability_section(shown), confidence_section(shown), risk_section(shown)]
    if shown != runs:
        parts = [replace(part, text=(*part.text, _OF_MANY)) for part in parts]
    if _alone(runs):
        row = [picture for part in parts for row in part.pictures.values() for picture in row]
        words = tuple(text for part in parts for text in part.text)
        parts = [Section("Confidence against truth", words, {"": row})]
    options = options_section(runs)
    sections = [*parts[:2], options, *parts[2:]]
    if plane:
        sections.append(plane_section(runs, tolerance, trained or {}, critical))
    by_subject = [
        table
        for name, methods in runs.items()
        if len(set(_first(methods).answers.tasks)) > 1
        for table in _subject_tables(name, methods, (subjects or {}).get(name))
    ]
    if by_subject:
        text = (
            "p: how often a calibrated model with these confidences would show at least this "
            "conf-ECE by chance, corrected for the number of subjects. Few questions say little "
            "about a subject. Headings sort."
        )
        sections.append(Section("Subjects", (text,), tables=tuple(by_subject)))
    sections.append(mistakes_section(shown, questions))
    return sections


def _subject_tables(
    name: str, methods: Mapping[str, Measured], made: Table | None
) -> Iterator[Table]:
    """Subjects of a set, a few methods a table: more are wider than a sheet of paper."""
    if made is not None:
        yield made
        return
    seed = int(_first(methods).report.settings.get("seed", 0))
    names = list(methods)
    for part in _parts(names):
        answers = {m: methods[m].answers for m in part}
        yield subject_table(answers, title=_part_of(name, part, names), seed=seed)


def _parts(names: list[str]) -> Iterator[list[str]]:
    """Methods a table can have side by side; the last is not alone, as it would lack its name."""
    for start in range(0, len(names), _ACROSS):
        alone = start + 1 == len(names) and start > 0
        yield names[start - alone : start + _ACROSS]


def _part_of(title: str, part: list[str], names: list[str]) -> str:
    if len(part) == len(names):
        return title
    first = names.index(part[0]) + 1
    return f"{title}, methods {first} to {first + len(part) - 1} of {len(names)}"


def _alone(runs: Runs) -> bool:
    """Whether there is one set and one method, which need no name."""
    return len(runs) == 1 and all(len(methods) == 1 for methods in runs.values())


def _first(methods: Mapping[str, Measured]) -> Measured:
    return next(iter(methods.values()))


def _shown(runs: Runs) -> Runs:
    """Leave out what would be too many figures: all but the first and the lowest NLL over all sets.

    The methods are the same for every set, and in the same order.
    """
    names = list(dict.fromkeys(method for methods in runs.values() for method in methods))
    fewest, most = _DRAWN
    room = max(fewest, min(most, _FIGURES // len(runs)))
    if len(names) <= room:
        return runs

    def loss(method: str) -> float:
        there = [methods[method] for methods in runs.values() if method in methods]
        lacking = len(runs) - len(there)
        return lacking * 1e6 + float(np.mean([one.report["nll"].value for one in there]))

    kept = {names[0], *sorted(names[1:], key=loss)[: room - 1]}
    return {
        name: {method: one for method, one in methods.items() if method in kept}
        for name, methods in runs.items()
    }


def _name(methods: Mapping[str, Measured], method: str) -> str:
    return method if len(methods) > 1 else ""


def _key(kind: str, i: int, name: str, method: str) -> str:
    """Name of a figure's files: unique by its place, readable by its words."""
    return "-".join((kind, str(i + 1), slug(name), *([slug(method)] if method else [])))


def reliability_section(runs: Runs) -> Section:
    """Reliability diagrams with smooth curves, side by side on the same axes."""
    pictures: dict[str, list[Picture]] = {}
    i = 0
    for name, methods in runs.items():
        row = pictures.setdefault(name if len(runs) > 1 else "", [])
        most = max(int(one.report.bins.count.max()) for one in methods.values())
        for method, one in methods.items():
            title = _name(methods, method)
            curve = smooth_reliability_from_confidence(one.answers.confidence, one.answers.correct)
            data = reliability_of_report(one.report, title)
            key = _key("reliability", i, name, title)
            row.append(draw_reliability(data, curve, name=key, most=most))
            i += 1
    text = (
        "Questions are put in bins by the model's confidence. A calibrated model is right as often "
        "as its confidence says: its bins lie on the dashed line. Below the line it is "
        "over-confident. The bars underneath say how many questions each bin rests on."
    )
    return Section("Reliability", (text,), pictures)


def confidence_section(runs: Runs) -> Section:
    """Histograms of confidence, right and wrong answers apart."""
    pictures: dict[str, list[Picture]] = {}
    i = 0
    for name, methods in runs.items():
        row = pictures.setdefault(name if len(runs) > 1 else "", [])
        drawn = [
            prepare_confidence(
                one.answers.confidence, one.answers.correct, name=_name(methods, method)
            )
            for method, one in methods.items()
        ]
        for data in drawn:
            key = _key("confidence", i, name, data.name)
            row.append(draw_confidence(data, name=key, most=most_of(drawn)))
            i += 1
    text = (
        "A useful model is confident when it is right and hesitates when it is wrong: mass on the "
        "right above the line, on the left below it."
    )
    return Section("Confidence when right and when wrong", (text,), pictures)


def options_section(runs: Runs) -> Section:
    """Class-wise panels of the first set, before and the best method after."""
    name, methods = next(iter(runs.items()))
    before, *others = methods
    chosen = [before]
    if others:
        chosen.append(min(others, key=lambda m: methods[m].report["conf_ece"].value))
    pictures: dict[str, list[Picture]] = {}
    for i, method in enumerate(chosen):
        table = methods[method].report.class_bins
        title = _name(methods, method)
        pictures[title] = [
            draw_option(_option(table, k), name=_key("option", i, chr(ord("a") + k), title))
            for k in range(min(_OPTIONS, len(table.count)))
            if table.count[k].any()
        ]
    text = "Each option on its own: of the questions that give it some probability, how often it "
    text += "is the right answer."
    if not _alone(runs):
        text += f" {name}."
    if len(chosen) > 1:
        text += " Before, and the method with the lowest conf-ECE."
    return Section("Options, one by one", (text,), pictures, size="small")


def _option(table: BinTable, k: int) -> Reliability:
    count, hits = table.count[k], table.sum_correct[k]
    low, high = wilson_interval(hits, count)
    gaps = np.abs(hits - table.sum_confidence[k]).sum()
    return Reliability(
        name=f"option {chr(ord('A') + k) if k < 26 else k + 1}",
        edges=table.edges[k],
        count=count,
        confidence=table.mean_confidence[k],
        frequency=table.frequency[k],
        low=low,
        high=high,
        ece=float(gaps / count.sum()),
    )


def risk_section(runs: Runs) -> Section:
    """Risk-coverage curves, every method of a set in one figure."""
    pictures = []
    for i, (name, methods) in enumerate(runs.items()):
        curves = {
            m: prepare_risk(one.answers.confidence, one.answers.correct)
            for m, one in methods.items()
        }
        title = "" if _alone(runs) else name
        pictures.append(draw_risk(curves, name=_key("risk", i, name, ""), title=title))
    text = (
        "If the model answers only where it is confident, how many of its answers are wrong? "
        "Lower is better; a flat line means that confidence does not tell right from wrong. The "
        "data give the confidence to ask for."
    )
    return Section("Answering only when confident", (text,), {"": pictures})


def plane_section(
    runs: Runs,
    tolerance: float | None,
    trained: Mapping[str, Measured],
    critical: Interval | None,
) -> Section:
    """Accuracy and ECE of every method, one figure a set, with what bounds them."""
    pictures = []
    for i, (name, methods) in enumerate(runs.items()):
        points = [point_of_report(one.report, m) for m, one in methods.items()]
        open_ = [point_of_report(one.report, m) for m, one in trained.items() if m in methods]
        pictures.append(
            draw_plane(
                points, name=_key("plane", i, name, ""), title=name, tolerance=tolerance,
                trained=open_ if i == 0 else (), critical=critical,
            )
        )  # fmt: skip
    text = (
        "Calibration is not bought with accuracy: the aim is the lower right. A model that is "
        "always certain lies on the dash-dotted line."
    )
    if trained:
        text += (
            " An open mark is the same model on the questions it was tuned on; where it lies far "
            "right of its test mark, the model has memorised answers, and its confidence cannot "
            "follow the truth there: the non-calibratable regime."
        )
    return Section("Accuracy and ECE", (text,), {"": pictures}, size="large")


def mistakes_section(runs: Runs, questions: Mapping[str, Texts]) -> Section:
    """The most over-confident mistakes of the first set's first method, with their questions."""
    name, methods = next(iter(runs.items()))
    tables = {m: one.answers for m, one in methods.items()}
    first, *_ = tables
    found = worst_mistakes(tables, questions.get(name))
    wrong = int((~_first(methods).answers.correct).sum())
    if not found:
        table = _mistake_table(_first(methods).answers)
        text = f"{wrong:,} answers are wrong."
        if wrong:
            text += " The most confident ones; the questions' texts were not at hand"
            text += " (give the file with --questions)."
        return Section("Most confident mistakes", (text,), tables=(table,) if table.rows else ())
    text = f"{wrong:,} of {len(tables[first]):,} answers are wrong"
    text += f" ({name}{f', {first}' if len(tables) > 1 else ''}); these are the {len(found)} given "
    text += "with the highest confidence."
    return Section("Most confident mistakes", (text,), mistakes=found)


def _mistake_table(answers: AnswerTable) -> Table:
    confidence = np.where(answers.correct, -1.0, answers.confidence)
    order = [i for i in np.argsort(-confidence, kind="stable")[:MISTAKES] if confidence[i] >= 0]
    probs = answers.probs()
    letters = [chr(ord("A") + k) if k < 26 else str(k + 1) for k in range(probs.shape[1])]
    rows = tuple(
        (
            answers.ids[i],
            answers.tasks[i] or "–",
            letters[answers.predictions[i]],
            f"{confidence[i]:.3f}",
            letters[answers.labels[i]],
            f"{probs[i, answers.labels[i]]:.3f}",
        )
        for i in order
    )
    columns = ("question", "subject", "given", "confidence", "right", "probability of it")
    return Table(columns, rows, text_columns=(0, 1, 2, 4))


def numbers_section(tables: Sequence[Table]) -> Section:
    """Every number, in tables."""
    text = (
        "Intervals are 95 %, over questions. By chance: what a perfectly calibrated model with the "
        "same confidences shows because the questions are few."
    )
    return Section("All numbers", (text,), tables=tuple(tables))


def report_tables(runs: Runs) -> list[Table]:
    """Every metric of every method and set, several methods side by side."""
    tables = []
    for name, methods in runs.items():
        if len(methods) == 1:
            tables.append(report_table(_first(methods).report, title=name))
            continue
        for part in _parts(list(methods)):
            reports = {method: methods[method].report for method in part}
            tables.append(reports_table(reports, title=_part_of(name, part, list(methods))))
    return tables


def making_section(settings: Mapping[str, Any], versions: Mapping[str, Any]) -> Section:
    """Settings and versions: how to make this page again."""
    return Section(
        "How this was made",
        tables=(
            facts(settings, title="Settings"),
            facts(versions, title="Versions"),
        ),
    )
