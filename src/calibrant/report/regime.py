"""Whether a model can be calibrated: the tables and files of `calibrant diagnose`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from calibrant.files import write_text
from calibrant.report.tables import Table, interval, number

if TYPE_CHECKING:
    from calibrant.diagnosis.regime import RegimeReport

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


def write_regime(folder: str | os.PathLike[str], report: RegimeReport) -> None:
    """Write ``regime.json`` and ``report.md``."""
    path = Path(folder)
    report.save(path / "regime.json")
    write_text(path / "report.md", regime_table(report).to_markdown())
