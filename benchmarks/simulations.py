"""Check the statistics by simulation: coverage, floors, bias, verdicts, how many questions.

    python benchmarks/simulations.py --write docs/statistics.md   # all: an hour or two, one core
    python benchmarks/simulations.py --section errors --replications 100
    python benchmarks/simulations.py --section regime --write docs/diagnosis.md

Questions come from a world in which the true probabilities q of the four options are known. The
model reports p = q distorted, labels are drawn from q, and population values are computed from q on
a million questions.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

import calibrant as cal
from calibrant.diagnosis import regime as regimes
from calibrant.diagnosis.verdict import LABELS
from calibrant.files import replace_block, write_text
from calibrant.metrics import inference as inf
from calibrant.metrics._intervals import MEANS, ORDERED, PARTS
from calibrant.metrics.binned import bin_index, debiased_ece_from_confidence

BINS = 10
POPULATION = 1_000_000
SIZES = (300, 1000, 5000)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def draw_labels(q, rng):
    return (rng.random((len(q), 1)) > q.cumsum(axis=1)[:, :-1]).sum(axis=1)


class World(NamedTuple):
    """How sure the truth is, and what the model makes of it (its logits are those of p)."""

    name: str
    spread: float  # of the model's logits: 1.6 gives typical 4-option softmax confidences
    shape: str  # "power": q = softmax(a z); "cross": a falls with confidence, crossing the diagonal
    a: float

    def draw(self, n, rng):
        """Give the model's p and the true q, (n, 4) each."""
        z = self.spread * rng.normal(size=(n, 4)) * np.exp(0.5 * rng.normal(size=(n, 1)))
        p = softmax(z)
        if self.shape == "power":
            return p, softmax(self.a * z)
        return p, softmax(np.exp(4 * self.a * (0.68 - p.max(axis=1, keepdims=True))) * z)


WORLDS = (
    World("calibrated", 1.6, "power", 1.0),
    World("slightly over-confident", 1.6, "power", 0.9),
    World("over-confident", 1.6, "power", 0.7),
    World("very over-confident", 1.6, "power", 0.5),
    World("crossing, mild", 1.6, "cross", 0.25),
    World("crossing", 1.6, "cross", 0.6),
    World("crossing, strong", 1.6, "cross", 1.0),
    World("aligned: sure and over-confident", 4.0, "power", 0.4),
)


# -- population values --------------------------------------------------------------------------


def binned(p, q, classwise=False):
    """Mean residual of every bin, (options, BINS), and the share of rows in it."""
    n = len(p)
    if not classwise:
        rows, top = np.arange(n), p.argmax(axis=1)
        p, q = p[rows, top][:, None], q[rows, top][:, None]
    gaps, shares = [], []
    for k in range(p.shape[1]):
        index = bin_index(p[:, k], BINS)
        gaps.append(np.bincount(index, weights=q[:, k] - p[:, k], minlength=BINS) / n)
        shares.append(np.bincount(index, minlength=BINS) / n)
    return np.array(gaps) / p.shape[1], np.array(shares)


def population(world):
    rng = np.random.default_rng(12345)
    p, q = world.draw(POPULATION, rng)
    gap, share = binned(p, q)
    held = share > 0
    rows, top = np.arange(len(p)), p.argmax(axis=1)
    labels = draw_labels(q, rng)
    options = {"metrics": MEANS + ORDERED + PARTS, "n_resamples": 1}
    values = {k: e.value for k, e in inf.bootstrap_intervals(p, labels, **options).items()}
    values |= {
        "accuracy": q[rows, top].mean(),
        "signed_gap": (p - q)[rows, top].mean(),
        "nll": -(q * np.log(p)).sum(axis=1).mean(),
        "brier": (1 + (p**2).sum(axis=1) - 2 * (p * q).sum(axis=1)).mean(),
        "conf_ece": np.abs(gap).sum(),
        "debiased_ece": np.abs(gap).sum(),
        "cw_ece": np.abs(binned(p, q, classwise=True)[0]).sum(),
        "overconfidence": np.maximum(-gap, 0).sum(),
        "underconfidence": np.maximum(gap, 0).sum(),
        "rmsce": np.sqrt((gap[held] ** 2 / share[held]).sum()),
    }
    return values


# -- sections: each yields Markdown lines -------------------------------------------------------

SCORES = (
    *("accuracy", "nll", "brier", "signed_gap", "auroc", "aurc", "eaurc", "augrc"),
    *("accuracy_at_coverage", "coverage_at_risk", "mcb", "dsc"),
)
ERRORS = ("conf_ece", "cw_ece", "rmsce", "overconfidence", "underconfidence")


def scores(replications, seed):
    yield "### Coverage of the other intervals, %, nominal 95"
    yield from _coverage_table(SCORES, *_cover_all(_cover_scores, replications, seed))


def errors(replications, seed):
    rows, truths = _cover_all(_cover_errors, replications, seed)
    for metric in ("conf_ece", "cw_ece"):
        yield f"### {metric}: population value, noise floor, coverage of its interval"
        yield ""
        yield (
            "| world | N | population | floor | in floors | coverage | truth below | truth above "
            "| one-sided bound | width | percentile bootstrap |"
        )
        yield "|---" * 11 + "|"
        for (name, n), (_, more) in rows.items():
            m, t = more[metric], truths[name][metric]
            yield (
                f"| {name} | {n} | {t:.4f} | {m['floor']:.4f} | {t / m['floor']:.1f} | "
                f"{100 * (1 - m['below'] - m['above']):.1f} | {100 * m['below']:.1f} | "
                f"{100 * m['above']:.1f} | {100 * m['upper']:.1f} | {m['width']:.3f} | "
                f"{100 * m['percentile']:.1f} |"
            )
        yield ""
    yield "### Other calibration errors: coverage, %"
    yield from _coverage_table(ERRORS[2:], rows, truths)


def _cover_all(cover, replications, seed):
    rows, truths = {}, {}
    for w, world in enumerate(WORLDS):
        truths[world.name] = population(world)
        for n in SIZES:
            rng = np.random.default_rng((seed, w, n))
            rows[world.name, n] = cover(world, truths[world.name], n, replications, rng)
            print(f"{cover.__name__}: {world.name}, N = {n}", file=sys.stderr, flush=True)
    return rows, truths


def _coverage_table(names, rows, truths):
    yield ""
    yield "| world | N | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 2) + "|"
    for (name, n), (cover, _) in rows.items():
        yield f"| {name} | {n} | " + " | ".join(f"{100 * cover[k]:.1f}" for k in names) + " |"
    for n in SIZES:
        mean = {k: np.mean([rows[name, n][0][k] for name in truths]) for k in names}
        yield f"| mean of all | {n} | " + " | ".join(f"{100 * mean[k]:.1f}" for k in names) + " |"


def _sampled(world, n, rng):
    p, q = world.draw(n, rng)
    return p, draw_labels(q, rng), int(rng.integers(1 << 30))


def _holds(estimate, truth):
    return estimate.low <= truth + 1e-12 and truth <= estimate.high + 1e-12


def _cover_scores(world, truth, n, replications, rng):
    hits = Counter()
    for _ in range(replications):
        p, labels, s = _sampled(world, n, rng)
        found = inf.bootstrap_intervals(p, labels, metrics=SCORES, n_resamples=500, seed=s)
        for k in SCORES:
            hits[k] += _holds(found[k], truth[k]) / replications
    return hits, None


def _cover_errors(world, truth, n, replications, rng):
    """Count hits; the less used errors in every other replication, extras in every eighth."""
    hits = Counter()
    more = {k: Counter() for k in ERRORS[:2]}
    for r in range(replications):
        p, labels, s = _sampled(world, n, rng)
        names = ERRORS if r % 2 == 0 else ERRORS[:2]
        found = inf.bootstrap_intervals(p, labels, metrics=names, n_resamples=300, seed=s)
        for k in names[2:]:
            hits[k] += _holds(found[k], truth[k]) / len(range(0, replications, 2))
        for k, m in more.items():
            e = found[k]
            m["below"] += (truth[k] < e.low - 1e-12) / replications
            m["above"] += (truth[k] > e.high) / replications
            m["upper"] += (truth[k] <= e.upper) / replications
            m["width"] += (e.high - e.low) / replications
            if r % 8 == 0:
                share = 1 / len(range(0, replications, 8))
                floor = inf.noise_floor(p, labels, metric=k, n_simulations=50)
                m["floor"] += floor.mean * share
                m["percentile"] += _percentile_covers(p, labels, truth[k], k, rng) * share
    return hits, more


def _percentile_covers(p, labels, truth, metric, rng):
    """Whether the textbook percentile bootstrap of the plug-in covers, for comparison."""
    n = len(p)
    f = cal.metrics.conf_ece if metric == "conf_ece" else cal.metrics.cw_ece
    draws = []
    for _ in range(100):
        rows = rng.integers(0, n, n)
        draws.append(f(p[rows], labels[rows]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return low <= truth <= high


def floors(replications, seed):
    yield "### Noise-floor p-values of a calibrated model: share at most x, % (uniform: x)"
    yield ""
    marks = (0.01, 0.05, 0.1, 0.25, 0.5, 0.9)
    yield "| metric | N | " + " | ".join(f"{x:g}" for x in marks) + " | KS distance | 5 % limit |"
    yield "|---" * (len(marks) + 4) + "|"
    count = 2 * replications
    for metric in ("conf_ece", "cw_ece"):
        for n in SIZES:
            rng = np.random.default_rng((seed, n, 1))
            values = []
            for r in range(count):
                p, q = WORLDS[0].draw(n, rng)
                labels = draw_labels(q, rng)
                floor = inf.noise_floor(p, labels, metric=metric, n_simulations=499, seed=r)
                values.append(floor.p_value)
            found = np.sort(values)
            distance = np.abs(found - (np.arange(count) + 0.5) / count).max() + 0.5 / count
            shares = " | ".join(f"{100 * (found <= x).mean():.1f}" for x in marks)
            yield f"| {metric} | {n} | {shares} | {distance:.3f} | {1.36 / count**0.5:.3f} |"
            print(f"floors: {metric}, N = {n}", file=sys.stderr, flush=True)


def bias(replications, seed):
    yield "### Bias of conf-ECE estimators (mean estimate - population value)"
    yield ""
    yield "| world | N | population | plug-in | debiased, l1 | rms error: plug-in | debiased |"
    yield "|---" * 7 + "|"
    for w, world in enumerate(WORLDS):
        truth = population(world)["conf_ece"]
        for n in SIZES:
            rng = np.random.default_rng((seed, w, n, 2))
            off = []
            for _ in range(2 * replications):
                p, q = world.draw(n, rng)
                top = p.argmax(axis=1)
                c, hit = p.max(axis=1), top == draw_labels(q, rng)
                plug_in = cal.metrics.conf_ece_from_confidence(c, hit)
                off.append((plug_in - truth, debiased_ece_from_confidence(c, hit) - truth))
            mean, rms = np.mean(off, axis=0), np.sqrt(np.mean(np.square(off), axis=0))
            yield (
                f"| {world.name} | {n} | {truth:.4f} | {mean[0]:+.4f} | {mean[1]:+.4f} | "
                f"{rms[0]:.4f} | {rms[1]:.4f} |"
            )


class Story(NamedTuple):
    """Two models of the same questions, from the true logits z."""

    name: str
    before: object
    after: object


def _noisy(scale, amount):
    return lambda z, labels, rng: softmax(scale * (z + amount * rng.normal(size=z.shape)))


def _constant(z, labels, rng):
    """The same predictions as `before`, each with the accuracy as its confidence."""
    top = z.argmax(axis=1)
    accuracy = (top == labels).mean()
    p = np.full(z.shape, (1 - accuracy) / (z.shape[1] - 1))
    p[np.arange(len(z)), top] = accuracy
    return p


def _learned(z, labels, rng):
    """Another model: calibrated, and right 95 % of the time."""
    evidence = 2.9 * rng.normal(size=z.shape)
    evidence[np.arange(len(z)), labels] += 2.9**2
    return softmax(evidence)


def _sharp(z, labels, rng):
    return softmax(2 * z)


STORIES = (
    Story("temperature fix", _sharp, lambda z, labels, rng: softmax(z)),
    Story("much more accurate, calibrated", _sharp, _learned),
    Story("constant base rate", _sharp, _constant),
    Story("half-way fix", _sharp, lambda z, labels, rng: softmax(1.4 * z)),
    Story("noise alone, nearly calibrated", _noisy(1.0, 0.2), _noisy(1.0, 0.2)),
    Story("noise alone, over-confident", _noisy(1.5, 0.2), _noisy(1.5, 0.2)),
    Story("noise alone, independent models", _noisy(1.0, 1.0), _noisy(1.0, 1.0)),
    Story("over- to equally under-confident", _noisy(1.3, 0.0), _noisy(0.785, 0.0)),
    Story("calibrated to over-confident", lambda z, labels, rng: softmax(z), _sharp),
)


def verdicts(replications, seed):
    yield "### Verdicts, % of simulations"
    yield ""
    yield "| story | N | " + " | ".join(LABELS) + " |"
    yield "|---" * (len(LABELS) + 2) + "|"
    for s, story in enumerate(STORIES):
        for n in (300, 1000, 3000):
            rng = np.random.default_rng((seed, s, n, 3))
            found = Counter(_tell(story, n, rng) for _ in range(max(20, replications // 4)))
            total = sum(found.values())
            shares = " | ".join(f"{100 * found[k] / total:.0f}" for k in LABELS)
            yield f"| {story.name} | {n} | {shares} |"
            print(f"verdicts: {story.name}, N = {n}", file=sys.stderr, flush=True)


def _tell(story, n, rng):
    _, q = WORLDS[0].draw(n, rng)
    labels, z = draw_labels(q, rng), np.log(q)
    tables = [
        cal.AnswerTable.from_probs(f(z, labels, rng), labels) for f in (story.before, story.after)
    ]
    return cal.verdict(*tables, n_resamples=300, seed=int(rng.integers(1 << 30))).label


def planning(replications, seed):
    yield "### How often a truly calibrated model's upper bound of conf-ECE is at most .03, %"
    yield ""
    sizes = (500, 1000, 1500, 2000, 2500, 3000, 4000, 6000)
    yield "| confidences | " + " | ".join(f"N = {n}" for n in sizes) + " |"
    yield "|---" * (len(sizes) + 1) + "|"
    for name, spread in (
        ("typical, accuracy .63", 1.6),
        ("sure, .81", 4.0),
        ("very sure, .92", 10),
    ):
        world = World(name, spread, "power", 1.0)
        shares = []
        for n in sizes:
            rng = np.random.default_rng((seed, n, 4))
            met = []
            for _ in range(replications):
                p, q = world.draw(n, rng)
                found = inf.bootstrap_interval(p, draw_labels(q, rng), n_resamples=400)
                met.append(found.upper <= 0.03)
            shares.append(100 * np.mean(met))
        yield f"| {name} | " + " | ".join(f"{s:.0f}" for s in shares) + " |"
        print(f"planning: {name}", file=sys.stderr, flush=True)


class Training(NamedTuple):
    """A model made from the true logits z: softmax(slope (z + noise)), labels memorised on train.

    excess: train accuracy minus critical accuracy to be reached by memorising (None: nothing is
    memorised); how: "some" training answers wholly, or "all" a little.
    """

    name: str
    slope: float = 1.0
    noise: float = 0.0
    excess: float | None = None
    how: str = "some"

    def answers(self, z, rng):
        return self.slope * (z + self.noise * rng.normal(size=z.shape))


TRAININGS = (
    Training("calibrated"),
    Training("sharpened", 2.5),
    Training("flattened", 0.5),
    Training("weak, over-confident", 2.5, 1.2),
    Training("weak, under-confident", 0.3, 1.2),
    Training("memorised, +.02", 1.5, 0.0, 0.02),
    Training("memorised, +.06", 1.5, 0.0, 0.06),
    Training("memorised, +.06, all a little", 1.5, 0.0, 0.06, "all"),
    Training("memorised, +.10, weaker", 2.0, 0.8, 0.10),
    Training("memorised, +.20, all a little", 1.0, 0.4, 0.20, "all"),
    Training("memorised nearly all", 2.0, 0.8, 0.30),
    Training("weak, half memorised, -.06", 2.0, 1.6, -0.06),
)
REFERENCES = (
    Training("none"),
    Training("perfect"),
    Training("over-confident", 2.5, 0.2),
    Training("weaker", 1.5, 1.0),
)
OPTIONS = {"2": (2,), "4": (4,), "5": (5,), "2 to 5": (2, 3, 4, 5)}
MARGIN = 0.05


def truths(options, n, rng):
    """True logits of n questions, -inf beyond a question's options, (n, max K)."""
    k = rng.choice(options, n)
    z = 1.6 * rng.normal(size=(n, max(options))) * np.exp(0.5 * rng.normal(size=(n, 1)))
    z[np.arange(max(options)) >= k[:, None]] = -np.inf
    return z


def memorise(scores, labels, strength, how, rng):
    """Scores after training on for accuracy: a share of the answers, or every one somewhat."""
    chosen = rng.random(len(labels)) < strength if how == "some" else np.full(len(labels), True)
    add = 12.0 if how == "some" else strength
    out = scores.copy()
    out[chosen, labels[chosen]] += add
    return out


@cache
def strength_for(training, options):
    """How much to memorise for the excess wanted, on 100,000 questions."""
    rng = np.random.default_rng(7)
    z = truths(options, 100_000, rng)
    q, labels = softmax(z), draw_labels(softmax(z), rng)
    scores = training.answers(z, rng)
    wanted = q.max(axis=1).mean() + training.excess
    low, high = 0.0, 1.0 if training.how == "some" else 12.0
    for _ in range(14):
        middle = (low + high) / 2
        learnt = memorise(scores, labels, middle, training.how, np.random.default_rng(8))
        low, high = (
            (middle, high) if (learnt.argmax(1) == labels).mean() < wanted else (low, middle)
        )
    return (low + high) / 2


def regime_tables(training, options, n, rng):
    """Train and test tables of a model, and the true logits and labels of the test questions."""
    tables = []
    for part in ("train", "test"):
        z = truths(options, n, rng)
        labels = draw_labels(softmax(z), rng)
        scores = training.answers(z, rng)
        if part == "train" and training.excess is not None:
            strength = strength_for(training, options)
            scores = memorise(scores, labels, strength, training.how, rng)
        tables.append(_table(softmax(scores), labels, z, part))
    return *tables, z, labels


def _table(p, labels, z, name):
    ids = [f"{name}{i}" for i in range(len(p))]
    return cal.AnswerTable.from_probs(p, labels, ids=ids, n_options=np.isfinite(z).sum(axis=1))


def regime(replications, seed):
    """Tables of docs/diagnosis.md: what the worlds are, and how often the rule is right."""
    trials = max(10, replications // 4)
    yield from _regime_worlds()
    yield ""
    yield from _regime_brackets()
    yield ""
    tally = {}
    yield f"### Verdicts, K = 4, % of {trials}: calibratable / non-calibratable / cannot tell"
    yield ""
    yield "| model | truth | N | " + " | ".join(f"reference: {r.name}" for r in REFERENCES) + " |"
    yield "|---" * (3 + len(REFERENCES)) + "|"
    for t, training in enumerate(TRAININGS):
        for n in (300, 1000, 3000):
            rng = np.random.default_rng((seed, t, n, 5))
            world = (training, OPTIONS["4"], n, rng)
            found = _tell_regimes(world, REFERENCES, trials)
            tally[training, n] = found
            cells = " | ".join(_regime_cell(c, trials) for c in found)
            yield f"| {training.name} | {_truth(training, '4')} | {n} | {cells} |"
            print(f"regime: {training.name}, N = {n}", file=sys.stderr, flush=True)
    yield from _regime_rates(tally, trials)


def regime_options(replications, seed):
    trials = max(10, replications // 4)
    yield f"### Verdicts at N = 3,000 for other K, % of {trials}"
    yield ""
    others = [k for k in OPTIONS if k != "4"]
    used = REFERENCES[:2]
    heads = [f"K = {k}, reference: {r.name}" for k in others for r in used]
    yield "| model | " + " | ".join(heads) + " |"
    yield "|---" * (1 + len(heads)) + "|"
    for t, training in enumerate(TRAININGS):
        cells = []
        for k in others:
            rng = np.random.default_rng((seed, t, OPTIONS[k][0], len(k), 6))
            world = (training, OPTIONS[k], 3000, rng)
            found = _tell_regimes(world, used, trials)
            cells += [f"{_truth(training, k)}: {_regime_cell(c, trials)}" for c in found]
        yield f"| {training.name} | " + " | ".join(cells) + " |"
        print(f"regime: {training.name}, other K", file=sys.stderr, flush=True)


def _regime_worlds():
    yield "### The models, K = 4, on 100,000 questions each"
    yield ""
    yield (
        "| model | A_tr − ACC* | A_te − ACC* | c̄_tr − A_tr | A_tr − A_te | −(c̄_tr − c̄_te) "
        "| = c̄_te − A_te | test ECE |"
    )
    yield "|---" * 8 + "|"
    for training in TRAININGS:
        top, a, c, ece = _population_of(training, OPTIONS["4"])
        yield (
            f"| {training.name} | {a[0] - top:+.3f} | {a[1] - top:+.3f} | {c[0] - a[0]:+.3f} | "
            f"{a[0] - a[1]:+.3f} | {c[1] - c[0]:+.3f} | {c[1] - a[1]:+.3f} | {ece:.3f} |"
        )


def _regime_rates(tally, trials):
    """Sum up the models outside the margin, but for the last, which no rule can tell."""
    yield ""
    yield "| outside the margin, without the last model | N = 300 | 1,000 | 3,000 |"
    yield "|---" * 4 + "|"
    label = {"cal": regimes.LABELS[0], "non-cal": regimes.LABELS[1]}
    other = {"cal": "non-cal", "non-cal": "cal"}
    rows = {"right, %, all cells": [], "… worst cell": [], "wrong, %, all cells": [], "… worst": []}
    for n in (300, 1000, 3000):
        right, wrong = [], []
        for training in TRAININGS[:-1]:
            truth = _truth(training, "4")
            if truth != "either":
                right += [c[label[truth]] / trials for c in tally[training, n]]
                wrong += [c[label[other[truth]]] / trials for c in tally[training, n]]
        values = (np.mean(right), np.min(right), np.mean(wrong), np.max(wrong))
        for row, value in zip(rows.values(), values, strict=True):
            row.append(f"{100 * value:.1f}")
    for name, values in rows.items():
        yield f"| {name} | " + " | ".join(values) + " |"
    yield ""


def _regime_brackets():
    yield "### The bracket of ACC*, K = 4, on 100,000 questions, less the true ACC*"
    yield ""
    yield "| reference | its accuracy | its mean confidence | recalibrated |"
    yield "|---" * 4 + "|"
    for reference in REFERENCES[1:]:
        rng = np.random.default_rng(12)
        z = truths(OPTIONS["4"], 100_000, rng)
        labels = draw_labels(softmax(z), rng)
        table = _table(softmax(reference.answers(z, rng)), labels, z, "")
        scaled = cal.posthoc.TemperatureScaling().fit(table).transform(table)
        top = softmax(z).max(axis=1).mean()
        found = [t.mean() - top for t in (table.correct, table.confidence, scaled.confidence)]
        yield f"| {reference.name} | " + " | ".join(f"{x:+.3f}" for x in found) + " |"


def _population_of(training, options):
    rng = np.random.default_rng(11)
    train, test, z, labels = regime_tables(training, options, 100_000, rng)
    tables = (train, test)
    return (
        softmax(z).max(axis=1).mean(),
        [t.correct.mean() for t in tables],
        [t.confidence.mean() for t in tables],
        cal.metrics.conf_ece(test.probs(), labels, n_options=test.n_options),
    )


@cache
def _truth(training, k):
    """Say which verdict is right, or that the world lies within the margin of the boundary."""
    if training.excess is not None:
        excess = training.excess
    else:
        top, a, _, _ = _population_of(training, OPTIONS[k])
        excess = a[0] - top
    if abs(excess) < MARGIN:
        return "either"
    return "cal" if excess < 0 else "non-cal"


def _tell_regimes(world, references, trials):
    """Count the verdicts of each reference on the same tables."""
    training, options, n, rng = world
    counts = [Counter() for _ in references]
    for trial in range(trials):
        train, test, z, labels = regime_tables(training, options, n, rng)
        accuracies = _accuracies(train, test)
        for reference, count in zip(references, counts, strict=True):
            table = None
            if reference.name != "none":
                table = _table(softmax(reference.answers(z, rng)), labels, z, "test")
            evidence = regimes._evidence(dict(accuracies), test, table, {"n_resamples": 1}, [])
            label = regimes._label(evidence, MARGIN)
            if trial == 0:  # the whole diagnosis, which takes longer, says the same
                assert regimes.regime(train, test, table, n_resamples=1).label == label
            count[label] += 1
    return counts


def _accuracies(train, test):
    """What the rule needs of the model's own tables."""
    a, b = (
        inf.bootstrap_interval(t.probs(), t.labels, metric="accuracy", n_resamples=1)
        for t in (train, test)
    )
    gap = replace(regimes._minus(a, b), name="generalisation_gap")
    return {"train_accuracy": a, "test_accuracy": b, "generalisation_gap": gap}


def _regime_cell(count, trials):
    return " / ".join(f"{100 * count[label] / trials:.0f}" for label in regimes.LABELS)


SECTIONS = {
    f.__name__: f
    for f in (planning, bias, floors, verdicts, errors, scores, regime, regime_options)
}


def _counts(name, replications):
    """How many simulations a cell of the section's tables is made of."""
    n, every = replications, {k: len(range(0, replications, k)) for k in (2, 8)}
    return {
        "planning": f": {n} simulations a cell",
        "bias": f": {2 * n} simulations a cell",
        "floors": f": {2 * n} simulations a cell",
        "verdicts": f": {max(20, n // 4)} simulations a cell",
        "errors": f": {n} simulations a cell; {every[8]} for floor and percentile bootstrap, "
        f"{every[2]} for the other calibration errors",
        "scores": f": {n} simulations a cell",
    }.get(name, "")  # the tables of the regimes say it themselves


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section", choices=SECTIONS, action="append")
    parser.add_argument("--replications", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", help="put each table between its markers in this file")
    args = parser.parse_args()
    for name in args.section or SECTIONS:
        lines = list(SECTIONS[name](args.replications, args.seed))
        note = f"`--section {name} --replications {args.replications} --seed {args.seed}`"
        note += _counts(name, args.replications)
        text = "\n".join([*lines, "", note])
        print(text, flush=True)
        if args.write:
            path = Path(args.write)
            write_text(path, replace_block(path.read_text(encoding="utf-8"), name, text))


if __name__ == "__main__":
    main()
