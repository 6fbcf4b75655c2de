"""Cheap ways to serve both domains after fine-tuning, on the answers that the protocol has kept.

usage: python examples/search.py [--write]

A temperature fitted in domain makes a fine-tuned model too unsure of easier questions elsewhere.
Tried here, for SmolLM2-135M-Instruct: log T linear in what the answer itself shows of a question,
fitted on the same labels as the temperature; and the mean of three seeds. Seconds; --write puts the
table into docs/rcft.md.
"""

import argparse
import json

import numpy as np
from protocol import BEFORE, REPOSITORY, SEED, SETUPS
from protocol_page import by_set, pools, read_scores, read_whole, with_scores
from scipy.optimize import minimize
from scipy.special import log_softmax

from calibrant.answers import AnswerTable
from calibrant.files import replace_block, write_text
from calibrant.metrics import accuracy, conf_ece, nll
from calibrant.report.tables import Table, number

UNITS = REPOSITORY / "docs/results/protocol"
SETUP = SETUPS["smollm2"]
SEEDS = (0, 1, 2)
# Of the options' mean log-probabilities a token: their mean, largest, log of the spread, log of the
# distance of the first two.
FEATURES = {
    "T": (),
    "T of the mean score": ("mean",),
    "T of the best score": ("best",),
    "T of the spread": ("spread",),
    "T of the lead": ("lead",),
    "T of mean and spread": ("mean", "spread"),
}


def features(table: AnswerTable, names: tuple[str, ...]) -> np.ndarray:
    """(N, F) numbers that say something of each question, 1 in the first column."""
    scores = np.where(np.isfinite(table.logprobs), table.logprobs, np.nan)
    ordered = np.sort(np.where(np.isfinite(table.logprobs), table.logprobs, -np.inf), axis=1)
    every = {
        "mean": np.nanmean(scores, axis=1),
        "best": ordered[:, -1],
        "spread": np.log(np.nanstd(scores, axis=1) + 1e-3),
        "lead": np.log(ordered[:, -1] - ordered[:, -2] + 1e-2),
    }
    return np.column_stack([np.ones(len(table.ids)), *(every[n] for n in names)])


def fitted(table: AnswerTable, names: tuple[str, ...]):
    """Log-linear temperature of maximum likelihood; give what tempers another table by it."""
    x = features(table, names)
    centre, scale = x.mean(axis=0), x.std(axis=0)
    centre[0], scale[0] = 0.0, 1.0

    def tempered(t: AnswerTable, weights: np.ndarray) -> np.ndarray:
        beta = np.exp((features(t, names) - centre) / scale @ weights)[:, None]
        return log_softmax(np.where(np.isfinite(t.logprobs), beta * t.logprobs, -np.inf), axis=1)

    rows, labels = np.arange(len(table.ids)), np.asarray(table.labels)
    found = minimize(
        lambda w: -tempered(table, w)[rows, labels].mean(), np.zeros(x.shape[1]), method="BFGS"
    )
    return lambda t: t.with_logprobs(tempered(t, found.x))


def row(name: str, table: AnswerTable) -> tuple[str, ...]:
    cells = []
    for t in pools(by_set(table)).values():
        p, y = t.probs(), t.labels
        scores = accuracy(p, y), conf_ece(p, y), nll(p, y, n_options=t.n_options)
        cells += [number(s) for s in scores]
    return (name, *cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/rcft.md")
    write = parser.parse_args().write

    def unit(method: str, seed: int = SEED):
        return UNITS / SETUP.name / f"{method}-n{SETUP.labels}-s{seed}"

    def answers(method: str, seed: int = SEED) -> AnswerTable:
        return with_scores(tests, read_scores(unit(method, seed) / "tests.parquet"))

    pool = read_whole(unit(BEFORE) / "train.parquet")
    tests = read_whole(unit(BEFORE) / "tests.parquet")
    rows = [row(f"before, {name}", fitted(pool, f)(tests)) for name, f in FEATURES.items()]
    for method in ("cft", "rcft"):
        online = json.loads((unit(method) / "online.json").read_text(encoding="utf-8"))
        last = max(step for step, _ in online.values())
        late = {name: scores for name, (step, scores) in online.items() if step > last / 2}
        labelled = with_scores(pool, late)
        rows.append(row(method, answers(method)))
        rows += [
            row(f"{method}, {name}", fitted(labelled, f)(answers(method)))
            for name, f in FEATURES.items()
        ]
        mean = np.mean([answers(method, seed).probs() for seed in SEEDS], axis=0)
        with np.errstate(divide="ignore"):
            rows.append(row(f"{method}, mean of {len(SEEDS)}", tests.with_logprobs(np.log(mean))))
    columns = ("", "in: acc", "conf-ECE", "NLL", "out: acc", "conf-ECE", "NLL")
    text = Table(columns, tuple(rows)).to_markdown()
    print(text)
    if write:
        page = REPOSITORY / "docs/rcft.md"
        write_text(page, replace_block(page.read_text(encoding="utf-8"), "search", text))


if __name__ == "__main__":
    main()
