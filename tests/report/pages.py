"""Answers and hostile questions for tests of the page."""

import numpy as np
import yaml

from calibrant.answers import AnswerTable
from calibrant.questions import Question

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
