"""`collapse`: what alignment did to a model's option probabilities.

`docs/diagnosis.md` says what each quantity means and how it is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibrant.answers import AnswerTable
from calibrant.diagnosis._tempering import newton_terms
from calibrant.diagnosis.report import SATURATED
from calibrant.diagnosis.verdict import _joint_groups
from calibrant.errors import InputError
from calibrant.files import JsonFile
from calibrant.metrics._input import Bools, Floats, Ints
from calibrant.metrics._intervals import effective_rows
from calibrant.metrics._resampling import weight_blocks
from calibrant.metrics.inference import (
    INTERVAL_STEPS,
    Estimate,
    bootstrap_intervals,
    clusters,
    wilson_interval,
)
from calibrant.permutations import one_row_each, own_orders, question_priors
from calibrant.posthoc.reference import BaseKL
from calibrant.progress import step

STEPS = INTERVAL_STEPS + 4  # of `collapse` with a base model, as `step` counts them
LEVEL = 0.95
_TAILS = (0.025, 0.975)


@dataclass(frozen=True, eq=False)
class CollapseReport(JsonFile):
    """What one stage of training did to the option probabilities.

    Attributes
    ----------
    n : int, questions. paired : bool, whether there was a base model to compare with.
    estimates : dict from quantity to `Estimate`; ``report["collapse_index"]`` is short for it.
    letter_bias : K estimates, the constant added to each option's log-probability by its place;
        they sum to 0. Empty without a base model.
    predicted_shares : K estimates, how often the option shown at each place is predicted.
    letter_prior : dict from number of options K to K estimates that sum to 1: how likely the model
        finds each letter whatever the option (PriDe). Empty without balanced permutations.
    notes : tuple of sentences: what was left out and why.
    settings : dict: ``n_resamples``, ``seed``, ``level``.

    Examples
    --------
    >>> base = AnswerTable.from_probs([[0.6, 0.4], [0.3, 0.7]] * 50, [0, 1, 0, 0] * 25)
    >>> sharp = base.with_logprobs(3 * base.logprobs)
    >>> report = collapse(base, sharp, n_resamples=100)
    >>> print(report["effective_slope"])
    3.0000 [3.0000, 3.0000]
    >>> CollapseReport.from_json(report.to_json()).to_dict() == report.to_dict()
    True
    """

    what = "collapse report"

    n: int
    paired: bool
    estimates: dict[str, Estimate]
    letter_bias: tuple[Estimate, ...]
    predicted_shares: tuple[Estimate, ...]
    letter_prior: dict[int, tuple[Estimate, ...]]
    notes: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Estimate:
        if name not in self.estimates:
            raise KeyError(f"no quantity {name!r} in this report; it has {list(self.estimates)}")
        return self.estimates[name]

    def __contains__(self, name: object) -> bool:
        return name in self.estimates

    def __iter__(self) -> Iterator[str]:
        return iter(self.estimates)

    def __repr__(self) -> str:
        index = self["collapse_index"]
        return f"<CollapseReport: {self.n} questions, collapse index {index}>"

    def to_dict(self) -> dict[str, Any]:
        """Give plain lists and numbers, ready for JSON."""
        return {
            "format_version": self.format_version,
            "n": self.n,
            "paired": self.paired,
            "estimates": {name: e.to_dict() for name, e in self.estimates.items()},
            "letter_bias": [e.to_dict() for e in self.letter_bias],
            "predicted_shares": [e.to_dict() for e in self.predicted_shares],
            "letter_prior": {
                str(k): [e.to_dict() for e in prior] for k, prior in self.letter_prior.items()
            },
            "notes": list(self.notes),
            "settings": self.settings,
        }

    @classmethod
    def _of(cls, values: dict[str, Any]) -> CollapseReport:
        return cls(
            n=int(values["n"]),
            paired=bool(values["paired"]),
            estimates={k: Estimate.from_dict(v) for k, v in values["estimates"].items()},
            letter_bias=tuple(map(Estimate.from_dict, values["letter_bias"])),
            predicted_shares=tuple(map(Estimate.from_dict, values["predicted_shares"])),
            letter_prior={
                int(k): tuple(map(Estimate.from_dict, prior))
                for k, prior in values["letter_prior"].items()
            },
            notes=tuple(values["notes"]),
            settings=dict(values["settings"]),
        )


def collapse(
    base: AnswerTable | None,
    aligned: AnswerTable,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> CollapseReport:
    r"""Quantify preference collapse: over-confidence, sharpening, drift and letter bias.

    Of the aligned model alone: ``accuracy``, ``mean_confidence``, ``conf_ece``;
    ``confidence_right``, ``confidence_wrong`` (E[c | right], E[c | wrong]) and ``confidence_gap``
    between them; ``collapse_index``, the mean over wrong answers of (c − 1/K)/(1 − 1/K), 1 when
    every wrong answer is certain; ``share_saturated`` (c > .99), also ``_right`` and ``_wrong``;
    ``entropy`` (nats). ``recall_std`` (RStd), the standard deviation over the letters of the share
    of right answers among the questions whose right option stands there. From a table of
    permutations, whose probabilities are averaged for everything else, also ``flip_rate``, the
    share of questions whose predicted option changes with the order, and the letter prior.

    Against the base model on the questions both answered (nats): ``entropy_change``;
    ``kl``, KL(aligned ‖ base); ``js``, Jensen-Shannon, at most ln 2; ``agreement_drift``, the mean
    change of confidence where both predict the same option; ``disagreement``, the share of the
    other questions; ``disagreement_accuracy_gap``, the change of accuracy on those;
    ``effective_slope`` s of z_aligned = s·z_base + bias by place + residual, by least squares over
    log-probabilities centred within each question, with ``slope_residual`` (its standard
    deviation) and ``slope_r2``; ``temperature`` and ``temperature_agreement``,
    argmin_T KL(base ‖ softmax(z_aligned / T)) on all questions and on those that agree.

    Questions may differ in K: each is centred over its own options, and the bias of a place comes
    from the questions that have it. Options of probability 0 in either model have no log-odds and
    are left out of the slope. NaN marks what is undefined, as E[c | wrong] when all are right.

    Parameters
    ----------
    base : AnswerTable or None; without it only the quantities of the aligned model are given.
    aligned : AnswerTable; with a base, the questions both share are used. Either may hold several
        orders of a question's options.
    n_resamples : draws behind each interval. seed : int.

    Returns
    -------
    CollapseReport, each quantity with its 95 % interval over questions (exact duplicates are one):
    Wilson for shares; for ``recall_std``, which noise lifts above 0, an inversion that allows for
    it; otherwise the percentile bootstrap, questions of both models drawn together.

    Raises
    ------
    InputError
        If the tables share no question or disagree on one, or ``n_resamples`` is below 1.

    References
    ----------
    `docs/diagnosis.md`; Xiao et al. 2024 (arXiv 2405.16455) for preference collapse.

    Examples
    --------
    >>> aligned = AnswerTable.from_probs([[0.97, 0.01, 0.01, 0.01]] * 100, [0] * 60 + [1] * 40)
    >>> report = collapse(None, aligned)
    >>> round(report["confidence_wrong"].value, 4), round(report["collapse_index"].value, 4)
    (0.97, 0.96)
    """
    if n_resamples < 1:
        raise InputError(f"n_resamples is {n_resamples}, expected at least 1")
    shown = aligned
    aligned = one_row_each(aligned)
    groups: Sequence[str] = aligned.groups
    if base is not None:
        base = one_row_each(base)
        base, aligned = base.align(aligned)
        groups = _joint_groups(base, aligned)
    n = len(aligned)
    cluster = clusters(groups, n)
    known = bootstrap_intervals(
        aligned.probs(),
        aligned.labels,
        n_options=aligned.n_options,
        groups=groups,
        metrics=("accuracy", "mean_confidence", "conf_ece"),
        n_resamples=n_resamples,
        seed=seed,
    )
    resamples = _Resamples(cluster, n, n_resamples, seed)
    notes: list[str] = []
    letters = _letters(shown, aligned, resamples, notes)
    found = known | _own(aligned, resamples) | letters.estimates
    step()
    bias: list[Estimate] = []
    if base is not None:
        found |= _change(base, aligned, resamples)
        step()
        slope, bias = _slope(base, aligned, resamples, notes)
        step()
        found |= slope | _temperatures(base, aligned, resamples, notes)
        step()
    return CollapseReport(
        n=n,
        paired=base is not None,
        estimates=found,
        letter_bias=tuple(bias),
        predicted_shares=letters.predicted_shares,
        letter_prior=letters.prior,
        notes=tuple(notes),
        settings={"n_resamples": n_resamples, "seed": seed, "level": LEVEL},
    )


# -- sums over resampled questions --------------------------------------------------------------


class _Resamples:
    """The sample and its resamples; every quantity is a function of sums over questions."""

    def __init__(self, cluster: Ints | None, n: int, n_resamples: int, seed: int) -> None:
        self.cluster, self.n, self.n_resamples, self.seed = cluster, n, n_resamples, seed

    def sums(self, columns: dict[str, NDArray[Any]]) -> dict[str, Floats]:
        """Sum each column (N,) or (N, ...): the sample's own sum first, (1 + R, ...).

        The resamples are the same at every call. A column that is not finite gives its own sum,
        and NaN for the resamples.
        """
        flat = {name: v.reshape(self.n, -1).astype(np.float64) for name, v in columns.items()}
        table = np.concatenate(list(flat.values()), axis=1)
        own = table.sum(axis=0)
        finite = np.isfinite(own)
        table = np.where(finite, table, 0.0)
        if self.cluster is not None:
            whole = np.zeros((int(self.cluster.max()) + 1, table.shape[1]))
            np.add.at(whole, self.cluster, table)
            table = whole
        rng = np.random.default_rng((self.seed, 2))
        blocks = weight_blocks(self.n, self.cluster, self.n_resamples, rng)
        drawn = np.concatenate([own[None], *(weights @ table for weights in blocks)])
        drawn[1:, ~finite] = np.nan
        ends = np.cumsum([v.shape[1] for v in flat.values()])[:-1]
        parts = np.split(drawn, ends, axis=1)
        return {
            name: part.reshape(len(part), *v.shape[1:])
            for (name, v), part in zip(columns.items(), parts, strict=True)
        }

    def estimate(self, name: str, values: Floats) -> Estimate:
        """Percentile interval of a quantity, from its value in the sample and the resamples."""
        value, draws = float(values[0]), values[1:][np.isfinite(values[1:])]
        low = high = math.nan
        if math.isfinite(value) and len(draws):
            low, high = (float(x) for x in np.quantile(draws, _TAILS))
        return Estimate(name, value, low, high, self.n, LEVEL, method="percentile bootstrap")

    def spread(self, name: str, values: Floats) -> Estimate:
        """Standard deviation of K numbers, (1 + R, K), with an interval that noise does not lift.

        Noise alone gives a positive one. The interval holds u·sd for the u ≥ 0 under which an sd
        as large, or as small, as the observed one is not surprising: the numbers' deviations from
        their mean times u, plus the noise of the resamples.
        """
        own = values[0][np.isfinite(values[0])]
        noise = (values[1:] - values[0])[:, np.isfinite(values[0])]
        noise = noise[np.isfinite(noise).all(axis=1)]
        deviation, value = own - own.mean(), float(own.std())

        def below(u: float) -> float:
            return float(np.mean((u * deviation + noise).std(axis=1) <= value + 1e-12))

        low = high = math.nan
        if len(noise):
            low, high = (value * _fall(below, level) for level in _TAILS[::-1])
        return Estimate(name, value, low, high, self.n, LEVEL, method="inverted norm")

    def share(self, name: str, hits: Floats, among: Floats) -> Estimate:
        """Wilson interval of a proportion, with as many rows as leave it as unsure as it is."""
        values = _ratio(hits, among)
        share, draws = float(values[0]), values[1:][np.isfinite(values[1:])]
        if not math.isfinite(share):
            return self.estimate(name, values)
        rows = effective_rows(share, float(draws.std()) if len(draws) else 0.0, int(among[0]))
        low, high = wilson_interval(share * rows, rows, LEVEL)
        return Estimate(name, share, low, high, self.n, LEVEL, method="Wilson")


def _fall(f: Callable[[float], float], level: float) -> float:
    """Find where a function that falls from u = 0 on crosses the level; 0 if it starts below."""
    low, high = 0.0, 1.0
    if f(low) <= level:
        return 0.0
    while f(high) > level and high < 2**10:
        low, high = high, 2 * high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) > level else (low, middle)
    return (low + high) / 2


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    ratio = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio


# -- the aligned model alone --------------------------------------------------------------------


def _own(aligned: AnswerTable, resamples: _Resamples) -> dict[str, Estimate]:
    c, right = aligned.confidence, aligned.correct
    certain, chance = c > SATURATED, 1 / aligned.n_options
    s = resamples.sums(
        {
            "all": np.ones(len(c)),
            "right": right,
            "wrong": ~right,
            "c right": c * right,
            "c wrong": c * ~right,
            "index": (c - chance) / (1 - chance) * ~right,
            "certain right": certain & right,
            "certain wrong": certain & ~right,
            "entropy": _entropy(aligned.probs()),
        }
    )
    of_right, of_wrong = _ratio(s["c right"], s["right"]), _ratio(s["c wrong"], s["wrong"])
    means = {
        "confidence_right": of_right,
        "confidence_wrong": of_wrong,
        "confidence_gap": of_right - of_wrong,
        "collapse_index": _ratio(s["index"], s["wrong"]),
    }
    shares = {
        "share_saturated": (s["certain right"] + s["certain wrong"], s["all"]),
        "share_saturated_right": (s["certain right"], s["right"]),
        "share_saturated_wrong": (s["certain wrong"], s["wrong"]),
    }
    return (
        {name: resamples.estimate(name, values) for name, values in means.items()}
        | {name: resamples.share(name, *parts) for name, parts in shares.items()}
        | {"entropy": resamples.estimate("entropy", s["entropy"] / s["all"])}
    )


# -- letters ------------------------------------------------------------------------------------


class _Letters(NamedTuple):
    estimates: dict[str, Estimate]
    predicted_shares: tuple[Estimate, ...]
    prior: dict[int, tuple[Estimate, ...]]


def _letters(
    shown: AnswerTable, aligned: AnswerTable, resamples: _Resamples, notes: list[str]
) -> _Letters:
    """Give the letter bias of the rows as they were shown; resampled are their questions."""
    place = {name: i for i, name in enumerate(aligned.ids)}
    kept = sorted((place[name], i) for i, name in enumerate(shown.questions) if name in place)
    question, rows = np.array(kept).T  # (rows,) both, in the questions' order
    shown = shown.select(rows)
    orders = own_orders(shown)
    width = orders.shape[1]
    right_at, predicted_at = (
        orders == option[:, None] for option in (shown.labels, shown.predictions)
    )

    def by_question(values: NDArray[Any]) -> Floats:
        total = np.zeros((resamples.n, *values.shape[1:]))
        np.add.at(total, question, values)
        return total

    s = resamples.sums(
        {
            "rows": by_question(np.ones(len(shown))),
            "predicted": by_question(predicted_at),
            "right at": by_question(right_at),
            "recalled": by_question(right_at & shown.correct[:, None]),
        }
    )
    shares = tuple(
        resamples.share(f"predicted_{k}", s["predicted"][:, k], s["rows"]) for k in range(width)
    )
    recall = _ratio(s["recalled"], s["right at"])
    found = {"recall_std": resamples.spread("recall_std", recall)}
    if shown.orders is None or len(shown) == resamples.n:
        return _Letters(found, shares, {})
    first = shown.predictions[np.unique(question, return_index=True)[1]]  # (N,)
    flips = by_question(shown.predictions != first[question]) > 0
    s = resamples.sums({"flips": flips, "all": np.ones(resamples.n)})
    found["flip_rate"] = resamples.share("flip_rate", s["flips"], s["all"])
    return _Letters(found, shares, _prior(shown, resamples, notes))


def _prior(
    shown: AnswerTable, resamples: _Resamples, notes: list[str]
) -> dict[int, tuple[Estimate, ...]]:
    try:
        own, n_options = question_priors(shown)
    except InputError as error:
        notes.append(f"no letter prior: {error}")
        return {}
    found = {}
    for k in np.unique(n_options):
        among = n_options == k
        s = resamples.sums({"prior": own[:, :k] * among[:, None], "all": among})
        mean = _ratio(s["prior"], s["all"][:, None])
        found[int(k)] = tuple(
            resamples.estimate(f"prior_{j}", values) for j, values in enumerate(mean.T)
        )
    return found


# -- against the base model ---------------------------------------------------------------------


def _entropy(p: Floats) -> Floats:
    return -_divergence(p, np.ones_like(p))


def _divergence(p: Floats, q: Floats) -> Floats:
    """Σ_k p log(p/q) of each row, (N,); infinite where q is 0 and p is not."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
    total: Floats = terms.sum(axis=1)
    return total


def _change(base: AnswerTable, aligned: AnswerTable, resamples: _Resamples) -> dict[str, Estimate]:
    p, q = aligned.probs(), base.probs()
    middle = (p + q) / 2
    agree = aligned.predictions == base.predictions
    s = resamples.sums(
        {
            "all": np.ones(len(p)),
            "entropy_change": _entropy(p) - _entropy(q),
            "kl": _divergence(p, q),
            "js": (_divergence(p, middle) + _divergence(q, middle)) / 2,
            "agree": agree,
            "differ": ~agree,
            "drift": (aligned.confidence - base.confidence) * agree,
            "gain": (aligned.correct.astype(np.float64) - base.correct) * ~agree,
        }
    )
    means = {name: s[name] / s["all"] for name in ("entropy_change", "kl", "js")}
    means["agreement_drift"] = _ratio(s["drift"], s["agree"])
    means["disagreement_accuracy_gap"] = _ratio(s["gain"], s["differ"])
    found = {name: resamples.estimate(name, values) for name, values in means.items()}
    return found | {"disagreement": resamples.share("disagreement", s["differ"], s["all"])}


def _temperatures(
    base: AnswerTable, aligned: AnswerTable, resamples: _Resamples, notes: list[str]
) -> dict[str, Estimate]:
    possible = np.logical_not((np.isneginf(aligned.logprobs) & (base.probs() > 0)).any(axis=1))
    if not possible.all():
        notes.append(
            f"{np.count_nonzero(~possible)} questions have an option to which the aligned model "
            "gives probability 0 and the base model does not: no temperature brings it back; "
            "they are left out of the temperatures"
        )
    agree = aligned.predictions == base.predictions
    found = {}
    for name, rows in (("temperature", possible), ("temperature_agreement", possible & agree)):
        try:
            found[name] = _temperature(name, base, aligned, rows, resamples)
        except InputError as error:  # no optimum, or no such question
            notes.append(f"{name} is undefined: {error}")
            found[name] = resamples.estimate(name, np.array([math.nan]))
    return found


def _temperature(
    name: str, base: AnswerTable, aligned: AnswerTable, rows: Bools, resamples: _Resamples
) -> Estimate:
    """T and its interval; each resample's optimum is one Newton step from the sample's."""
    if not rows.any():
        raise InputError("there is no question to fit it on")
    here, there = aligned.select(rows), base.select(rows)
    best = BaseKL().fit(here, there).temperature
    first, second = np.zeros(len(rows)), np.zeros(len(rows))
    first[rows], second[rows] = newton_terms(here.logprobs, there.probs(), best)
    s = resamples.sums({"first": first, "second": second})
    step = _ratio(s["first"] * best, s["second"])
    return resamples.estimate(name, best * np.exp(np.clip(step, -50, 50)))


def _slope(
    base: AnswerTable, aligned: AnswerTable, resamples: _Resamples, notes: list[str]
) -> tuple[dict[str, Estimate], list[Estimate]]:
    """Least squares of centred log-probabilities, the places' biases solved for first."""
    real = np.arange(base.logprobs.shape[1]) < base.n_options[:, None]  # (N, K)
    usable = np.isfinite(base.logprobs) & np.isfinite(aligned.logprobs)
    if lost := int((real & ~usable).sum()):
        notes.append(
            f"{lost} of {int(real.sum())} options have probability 0 in a model and no log-odds: "
            "they are left out of the slope"
        )
    x, y = _centred(base.logprobs, usable), _centred(aligned.logprobs, usable)
    held = usable.sum(axis=1)
    eye = np.eye(x.shape[1])
    each = usable[:, :, None] * eye - usable[:, :, None] * usable[:, None, :] / np.maximum(
        held, 1
    ).reshape(-1, 1, 1)
    s = resamples.sums(
        {
            "xx": (x**2).sum(axis=1),
            "xy": (x * y).sum(axis=1),
            "yy": (y**2).sum(axis=1),
            "cells": held,
            "x": x,
            "y": y,
            "places": each,
        }
    )
    inverse = np.linalg.pinv(s["places"], rcond=1e-9, hermitian=True)  # (1 + R, K, K)
    by_x, by_y = (np.einsum("rkl,rl->rk", inverse, s[name]) for name in ("x", "y"))
    own = s["xx"] - (s["x"] * by_x).sum(axis=1)
    slope = _ratio(s["xy"] - (s["x"] * by_y).sum(axis=1), own)
    bias = by_y - slope[:, None] * by_x
    left = np.maximum(s["yy"] - slope * s["xy"] - (bias * s["y"]).sum(axis=1), 0.0)
    values = {
        "effective_slope": slope,
        "slope_residual": np.sqrt(_ratio(left, s["cells"])),
        "slope_r2": 1 - _ratio(left, s["yy"]),
    }
    found = {name: resamples.estimate(name, v) for name, v in values.items()}
    return found, [resamples.estimate(f"bias_{k}", v) for k, v in enumerate(bias.T)]


def _centred(scores: Floats, usable: Bools) -> Floats:
    """Subtract each question's mean over its usable options; 0 elsewhere, (N, K)."""
    held = np.where(usable, scores, 0.0)
    mean = held.sum(axis=1, keepdims=True) / np.maximum(usable.sum(axis=1, keepdims=True), 1)
    centred: Floats = np.where(usable, held - mean, 0.0)
    return centred
