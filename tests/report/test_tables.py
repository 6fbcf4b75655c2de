"""Tables: the numbers of the report, readable in 80 columns, and safe with untrusted text."""

from __future__ import annotations

import numpy as np
import pytest
from rich.cells import cell_len

from calibrant.answers import AnswerTable
from calibrant.diagnosis.report import CalibrationReport, evaluate
from calibrant.diagnosis.verdict import verdict
from calibrant.report import (
    Table,
    comparison_tables,
    point_of_report,
    reliability_of_report,
    report_table,
)
from calibrant.report.tables import (
    HEADINGS,
    difference_table,
    interval,
    number,
    one_line,
    subject_table,
)


def tables(n: int) -> tuple[AnswerTable, AnswerTable]:
    rng = np.random.default_rng(n)
    p = rng.dirichlet([0.5] * 4, n)
    labels = (rng.random((n, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)
    sharp = p**3 / (p**3).sum(axis=1, keepdims=True)
    return AnswerTable.from_probs(sharp, labels), AnswerTable.from_probs(p, labels)


@pytest.fixture(scope="module")
def before_after() -> tuple[AnswerTable, AnswerTable]:
    return tables(400)


@pytest.fixture(scope="module")
def reports(before_after) -> dict[str, CalibrationReport]:
    before, after = before_after
    return {
        "before": evaluate(before, n_resamples=100),
        "RCFT (λ = 10)": evaluate(after, n_resamples=100),
    }


def test_report_table_shows_every_metric_with_its_interval(reports):
    report = reports["before"]
    table = report_table(report, title="SmolLM2")
    assert table.title == "SmolLM2 (N = 400)"
    assert len(table.rows) == len(report.metrics)
    assert {row[0] for row in table.rows} >= {"accuracy ↑", "conf-ECE ↓", "NLL ↓"}
    row = next(row for row in table.rows if row[0] == "conf-ECE ↓")
    estimate, floor = report["conf_ece"], report.floors["conf_ece"]
    assert row[1] == number(estimate.value)
    assert row[2] == interval(estimate.low, estimate.high)
    assert row[3].startswith(f"{number(floor.mean)}, 95 % {number(floor.q95)}, p ")
    assert not any("{" in row[0] for row in table.rows)
    assert set(report.metrics) == set(HEADINGS)  # a new metric deserves a heading
    assert set(report.warnings) <= set(table.notes)


def test_value_above_its_interval_is_marked_and_explained(reports):
    report = reports["before"]
    names = list(report.metrics)
    low = [type(report[name])(name, 0.5, 0.1, 0.4 + 0.2 * (name != "mce"), 400) for name in names]
    odd = CalibrationReport.from_dict(
        {**report.to_dict(), "metrics": {e.name: e.to_dict() for e in low}}
    )
    table = report_table(odd)
    assert [row[0] for row in table.rows if row[1] == ".500*"] == ["largest bin error ↓"]
    assert table.notes[-1].startswith("* above its interval")
    plain = report_table(reports["before"])
    marked = any(row[1].endswith("*") for row in plain.rows)
    assert any(note.startswith("*") for note in plain.notes) == marked


def test_comparison_has_one_table_per_data_set(reports, before_after):
    method = "RCFT (λ = 10)"
    found = verdict(*before_after, n_resamples=100)
    first, second = comparison_tables(
        {"ARC-Easy test": reports, "MMLU": {"before": reports["before"]}},
        {"ARC-Easy test": {method: found}},
    )
    assert first.title == "ARC-Easy test (N = 400)"
    assert first.columns == (
        "method", "acc", "conf-ECE", "cw-ECE", "NLL", "Brier", "AUROC", "verdict",
    )  # fmt: skip
    assert [row[0] for row in first.rows] == ["before", method]
    assert [row[-1] for row in first.rows] == ["", found.label]
    ece = reports["before"]["conf_ece"]
    assert first.rows[0][2] == f"{number(ece.value)} {interval(ece.low, ece.high)}"
    assert first.notes == (f"{method}: {found}",)
    assert second.columns[-1] == "AUROC"


def test_comparison_of_different_sizes_shows_n(reports):
    small = evaluate(tables(1500)[0], n_resamples=50)
    (table,) = comparison_tables({"x": {"a": reports["before"], "b": small}})
    assert table.title == "x"
    assert table.columns[1] == "N"
    assert [row[1] for row in table.rows] == ["400", "1,500"]


def test_text_fits_80_columns(reports):
    class Labelled:
        label = "already calibrated"

        def __str__(self):
            return "already calibrated: " + "numbers " * 30

    verdicts = {"a data set": dict.fromkeys(reports, Labelled())}
    texts = [report_table(report, title="t" * 100).to_text() for report in reports.values()]
    texts += [table.to_text() for table in comparison_tables({"a data set": reports}, verdicts)]
    for text in texts:
        assert max(cell_len(line) for line in text.split("\n")) <= 80
        assert "…" not in text
        assert "\x1b" not in text
    assert number(reports["before"]["auroc"].value) in texts[-1]


def test_one_answer_gives_tables_with_dashes():
    report = evaluate(AnswerTable.from_probs([[0.9, 0.1]], [1]), n_resamples=20)
    table = report_table(report)
    values = {row[0]: row[1] for row in table.rows}
    assert values["NLL ↓"] == "2.303"
    assert values["AUROC ↑"] == "–"
    table.to_text()
    comparison_tables({"x": {"a": report}})[0].to_markdown()
    assert reliability_of_report(report).n == 1
    assert point_of_report(report, "a").accuracy == 0.0


EVIL = "[red]a|b\n`c` *d* _e_ <script>x</script> ![i](http://x) &lt; \x1b[31m\u202e~~f~~\\"


def test_untrusted_text_stays_text_in_markdown():
    text = Table(("a", "b"), ((EVIL, ".1"),), title=EVIL, notes=(EVIL,)).to_markdown()
    plain = (
        r"\[red\]a\|b \`c\` \*d\* \_e\_ \<script\>x\</script\> !\[i\](http://x) \&lt; "
        r"\[31m\~\~f\~\~\\"
    )
    assert text == f"**{plain}**\n\n| a | b |\n|:---|---:|\n| {plain} | .1 |\n\n- {plain}\n"


def test_untrusted_text_stays_text_in_the_terminal():
    text = Table(("method", "x"), ((EVIL, ".1"),), title=EVIL, notes=(EVIL,)).to_text(200)
    assert text.count("[red]a|b `c` *d* _e_ <script>") == 3
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_numbers_and_intervals_need_no_escapes():
    cells = (".120 [.091, .150]", "[.091, .150]", "-.050", "–", "1,172", "∞")
    text = Table(("a",) * 6, (cells,)).to_markdown()
    assert text.splitlines()[-1] == "| " + " | ".join(cells) + " |"
    assert r"\[1\](2)" in Table(("a",), (("[1](2)",),)).to_markdown()


def test_one_line_shortens_in_the_middle():
    assert one_line("a" * 30 + "b" * 30, 11) == "aaaaa…bbbbb"
    assert one_line("short", 5) == "short"
    assert len(one_line("x" * 99, 12)) == 12


def test_no_color_is_respected(monkeypatch):
    import io

    from rich.console import Console

    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    Console(file=file, force_terminal=True).print(Table(("a",), (("b",),), title="t").to_rich())
    assert not any(f"[{code}m" in file.getvalue() for code in range(30, 50))


def test_a_paired_comparison_marks_only_changes_clear_of_zero():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.5] * 4, 1500)
    labels = (rng.random((1500, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)
    sharp = p**4 / (p**4).sum(axis=1, keepdims=True)
    judged = verdict(
        AnswerTable.from_probs(sharp, labels), AnswerTable.from_probs(p, labels), n_resamples=200
    )
    table = difference_table(judged, name="set", before="a|b", after="c")
    by_metric = {row[0]: row for row in table.rows}
    assert table.columns == ("metric", "before", "after", "change", "95 % interval")
    assert by_metric["conf-ECE ↓"][3].endswith("*")
    assert by_metric["conf-ECE ↓"][3].startswith("-")
    assert by_metric["accuracy ↑"][3] == ".000"  # the same predictions
    assert table.notes[0].startswith(judged.label)
    assert "N = 1,500" in table.title
    # The ECE of the second is noise: its change is larger than the columns say, and that is told.
    shown = float(by_metric["conf-ECE ↓"][2]) - float(by_metric["conf-ECE ↓"][1])
    assert judged.difference["conf_ece"].value < shown - 0.005
    assert "not the difference of its columns" in table.notes[-1]


def test_csv_keeps_numbers_with_intervals_and_guards_formulas():
    table = Table(("run", "change"), (("=1+1", "-.050 [-.100, .001]"), ("-x", "-.2▼")))
    assert table.to_csv() == "run,change\n'=1+1,\"-.050 [-.100, .001]\"\n'-x,-.2▼\n"


def by_subject(seed, bad=(), n=60):
    """Answers to 30 subjects of n questions, calibrated but for some, which are over-confident."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(30), n)
    confidence = rng.uniform(0.5, 1, len(subject))
    right = rng.random(len(subject)) < np.where(np.isin(subject, bad), 0.5, confidence)
    probs = np.stack([confidence, 1 - confidence], axis=1)
    tasks = [f"{name:02d}" for name in subject]
    return AnswerTable.from_probs(probs, np.where(right, 0, 1), tasks=tasks)


def p_values(table, column=-1):
    return np.array([float(row[column]) for row in table.rows])


def test_p_of_subjects_allows_for_their_number():
    """Of 20 calibrated models one shows any p below .05, not most of them."""
    tables = [subject_table({"m": by_subject(seed)}) for seed in range(20)]
    assert sum(p_values(table).min() < 0.05 for table in tables) <= 3
    assert "corrected for the 30 subjects (Holm)" in tables[0].notes[0]


def test_a_subject_that_is_off_is_found_among_many():
    table = subject_table({"before": by_subject(0, [7], 200), "after": by_subject(1)})
    assert table.columns[2:] == (
        "before: accuracy",
        "conf-ECE",
        "p",
        "after: accuracy",
        "conf-ECE",
        "p",
    )
    assert np.flatnonzero(p_values(table, 4) < 0.05).tolist() == [7]
    assert (p_values(table, 7) >= 0.05).all()
