"""Answers and hostile questions for tests of the page."""

import dataclasses

import numpy as np
import yaml

from calibrant.answers import AnswerTable
from calibrant.diagnosis.report import evaluate
from calibrant.diagnosis.verdict import verdict
from calibrant.questions import Question
from calibrant.report.folder import write_restoration

EVIL = "=<script>alert(1)</script>&amp;\"'>{{ 7*7 }}\u202eabc\x1b[31m<b id=x>]]>"
# A space without width, marks of direction, a soft hyphen, line separators, tags: all unseen.
UNSEEN = "\u200b\u200e\u200f\u061c\xad\u2028\u2029\ufeff\U000e0041"
OPTIONS = (
    "<script>alert(1)</script>",
    "مرحبا \u202egnissim\u202c <img src=x onerror=alert(1)>",
    "a\x00b\x1b[2J</td></table></svg><style>*{display:none}</style>",
    "x" * 10_000,
)


def made_up(n, *, power=1.0, seed=0):
    """Answers whose log-odds are ``power`` times the true ones, in twelve subjects."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([0.5] * 4, n)
    labels = (rng.random((n, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)
    sharp = p**power / (p**power).sum(axis=1, keepdims=True)
    return AnswerTable.from_probs(sharp, labels, tasks=[f"subject {i % 12}" for i in range(n)])


def evil_questions(n=60):
    """Questions that try everything."""
    return [
        Question(f"{EVIL}{i}", f"{OPTIONS[i % 3]}\nsecond line {i} {UNSEEN}", OPTIONS, i % 4)
        for i in range(n)
    ]


def evil_table(n=60, *, power=2.0):
    """Answers to them, over-confident."""
    rng = np.random.default_rng(1)
    z = power * rng.normal(size=(n, 4))
    questions = evil_questions(n)
    return AnswerTable(
        ids=[q.id for q in questions],
        logprobs=z,
        labels=[q.answer for q in questions],
        n_options=[4] * n,
        option_mass=np.full(n, np.nan),
        tasks=[f"{EVIL} {i % 2}" for i in range(n)],
        groups=[q.id for q in questions],
    )


def open_folder(folder):
    """Give a folder the ``config.yaml`` of a run."""
    config = {"command": "evaluate", "settings": {"name": EVIL}, "versions": {"python": "3"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def restoration(folder, *, methods, sets, n, subjects=12):
    """Write the page of a restoration: so many methods besides before, so many test sets."""
    names = ["before", *(f"method-{i} (2,000 labels)" for i in range(1, methods))]
    domains = {f"set-{k}": "in" if k == 0 else "out" for k in range(sets)} | {"sample": "train"}
    questions, tables = {}, {m: {} for m in names}
    for k, name in enumerate(domains):
        questions[name] = [
            Question(str(i), f"Question {i} of {name}? " + "It has some words. " * 9,
                     tuple(f"{c} is an option of some length" for c in "ABCD"), i % 4)
            for i in range(n)
        ]  # fmt: skip
        for i, method in enumerate(names):
            table = made_up(n, power=2.5 - 1.5 * i / methods, seed=k)
            tasks = [f"subject {j % subjects}" for j in range(n)]
            tables[method][name] = dataclasses.replace(table, tasks=tasks)
    reports = {
        m: {s: evaluate(t, n_resamples=20) for s, t in by_set.items()}
        for m, by_set in tables.items()
    }
    verdicts = {
        m: {s: verdict(tables["before"][s], tables[m][s], n_resamples=20) for s in domains}
        for m in names[1:]
    }
    write_restoration(
        open_folder(folder), title="model: calibration before and after", tables=tables,
        reports=reports, verdicts=verdicts, domains=domains, questions=questions,
        costs={m: {"labels": 2000.0, "training_seconds": 81.0} for m in names},
        notes=("sample is what method-1 was fitted on.",),
    )  # fmt: skip
    return folder / "report.html"
