"""Whether a model can be calibrated: the tables and files of `calibrant diagnose`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from calibrant.files import write_text
from calibrant.report.page import Claim, Page, Section, write_page
from calibrant.report.tables import Table, interval, number

if TYPE_CHECKING:
    from calibrant.diagnosis.regime import RegimeReport
    from calibrant.questions import Question
    from calibrant.report.sections import Measured

# Quantity of a regime report -> heading, in the order to show.
HEADINGS = {
    "train_accuracy": "accuracy on train",
    "test_accuracy": "accuracy on test",
    "train_confidence": "mean confidence on train",
    "test_confidence": "mean confidence on test",
    "train_conf_ece": "conf-ECE on train",
    "test_conf_ece": "conf-ECE on test",
    "test_conf_ece_tempered": "… with temperature, cross-fitted",
    "test_gap": "confidence − accuracy on test",
    "in_sample_gap": "= confidence − accuracy on train",
    "generalisation_gap": "+ train accuracy − test accuracy",
    "shrinkage": "− (train confidence − test confidence)",
    "bracket_low": "critical accuracy, at least",
    "bracket_high": "critical accuracy, estimate",
    "reference_accuracy": "accuracy of the reference",
    "above_reference": "train accuracy − the reference's",
    "above_bracket": "train accuracy − that estimate",
    "excess_accuracy": "train accuracy − known critical accuracy",
}


def regime_table(report: RegimeReport) -> Table:
    """Show what the verdict rests on: every quantity with its 95 % interval."""
    rows = [
        (heading, number(report[name].value), interval(report[name].low, report[name].high))
        for name, heading in HEADINGS.items()
        if name in report
    ]
    rows += [
        (f"Z, right answers on {name} beyond the target", number(b.z, 1), "")
        for name, b in report.bounds.items()
    ]
    sizes = f"N = {report.n_train:,} train, {report.n_test:,} test"
    if report.n_reference:
        sizes += f", {report.n_reference:,} reference"
    return Table(
        columns=("quantity", "value", "95 % interval"),
        rows=tuple(rows),
        title=f"{report.label} ({sizes})",
        notes=(f"{report.label}: {report.reason}", report.recommendation, *report.notes),
    )


def write_regime(
    folder: str | os.PathLike[str],
    report: RegimeReport,
    *,
    test: Measured,
    train: Measured,
    reference: Measured | None = None,
    questions: Sequence[Question] | None = None,
) -> None:
    """Write ``regime.json``, ``report.html`` and ``report.md``.

    Parameters
    ----------
    test, train, reference : the answers the report is about, and their calibration.
    questions : the test questions, if their texts are at hand.
    """
    from calibrant.report.folder import how_made
    from calibrant.report.sections import measured_sections, texts_of

    path = Path(folder)
    report.save(path / "regime.json")
    table = regime_table(report)
    write_text(path / "report.md", table.to_markdown())
    name = "test questions"
    methods = {"this model": test}
    if reference is not None:
        methods["reference"] = reference
    critical = None
    if "bracket_low" in report and "bracket_high" in report:
        ends = sorted((report["bracket_low"].value, report["bracket_high"].value))
        critical = (ends[0], ends[1])
    sections = measured_sections(
        {name: methods},
        questions={} if questions is None else {name: texts_of(questions)},
        trained={"this model": train},
        critical=critical,
    )
    page = Page(
        title="Can this model be calibrated at its accuracy?",
        subtitle=f"{report.n_train:,} training questions, {report.n_test:,} test questions",
        claims=(Claim(report.label, f"{report.reason} {report.recommendation}"),),
        sections=(
            Section("The evidence", tables=(replace(table, title="", notes=()),)),
            *sections,
            how_made(path),
        ),
        warnings=report.notes,
    )
    write_page(path / "report.html", page)
