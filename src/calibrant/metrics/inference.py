r"""How sure is a calibration number? Noise floors, intervals and paired comparisons.

Three kinds of metric need three methods; `docs/statistics.md` has their measured coverage.

* Calibration errors (norms of binned residuals) are biased upwards, most of all near 0, where the
  percentile bootstrap never covers the truth: their intervals invert the norm (`_cells.py`). The
  estimand is the *population* error with the same bins.
* Means (NLL, Brier, ...): studentised bootstrap; accuracy: Wilson.
* Functions of the order of confidence (AUROC, AURC, ...): percentile bootstrap.

The unit is the question; exact duplicates (``groups``) are drawn together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from calibrant.errors import InputError
from calibrant.metrics._cells import invert, moments
from calibrant.metrics._input import Floats, checked_confidence, read_rows
from calibrant.metrics._intervals import (
    DEFAULTS,
    METRICS,
    ORDERED,
    PAIRED,
    PARTS,
    Estimate,
    Found,
    NoiseFloor,
    Plan,
    add_error_changes,
    add_errors,
    add_mean_changes,
    add_means,
    add_ordered,
    add_ordered_changes,
    agresti_min,
    cells_of,
    error_change_high,
    l1_norm,
    read,
    simulate_floor,
    span,
    span_of_change,
    top_cells,
    wilson_interval,
)
from calibrant.metrics._resampling import Settings, clusters
from calibrant.metrics.binned import bin_index
from calibrant.progress import step

__all__ = [
    "DEFAULTS",
    "METRICS",
    "PAIRED",
    "Comparison",
    "Estimate",
    "NoiseFloor",
    "Settings",
    "agresti_min",
    "bootstrap_interval",
    "bootstrap_intervals",
    "calibrated_upper_bounds",
    "clusters",
    "compare_intervals",
    "noise_floor",
    "noise_floor_from_confidence",
    "paired_bootstrap",
    "wilson_interval",
]

INTERVAL_STEPS = 5  # of `bootstrap_intervals` and `compare_intervals`, as `progress.step` counts


def noise_floor(
    probs: Any,
    labels: Any,
    *,
    n_options: Any = None,
    metric: Literal["conf_ece", "cw_ece"] = "conf_ece",
    n_bins: int = 10,
    n_simulations: int = 1000,
    seed: int = 0,
) -> NoiseFloor:
    r"""Calibration error to expect from noise alone, and the p-value of the observed one.

    Labels are drawn from the model's own probabilities, ``y ~ Categorical(p)`` ("conf_ece":
    correct ~ Bernoulli(c)), and the plug-in error is computed anew. The mean is about
    :math:`\sqrt{2/(\pi N)} \sum_b \sqrt{w_b \overline{p(1-p)}_b}`. Up to 20,000 rows are
    simulated one by one; above, the cells' sums are drawn from their normal limit.

    Parameters
    ----------
    probs : (N, K) floats, rows sum to 1. labels : (N,) integers. n_options : (N,) integers.
    metric : "conf_ece" or "cw_ece", uniform bins, norm l1. n_bins : B >= 1.
    n_simulations : R >= 1. seed : int.

    Returns
    -------
    NoiseFloor

    Raises
    ------
    InputError
        As `bin_table`, or for another metric.

    References
    ----------
    Vaicenavicius et al. 2019 (arXiv 1902.06977), section 5 (consistency resampling).

    Examples
    --------
    >>> floor = noise_floor([[0.8, 0.2]] * 50, [0] * 40 + [1] * 10)
    >>> round(floor.observed, 4), round(floor.mean, 2), floor.p_value
    (0.0, 0.05, 1.0)
    """
    answers = read(probs, labels, n_options)
    if metric not in ("conf_ece", "cw_ece"):
        raise InputError(f"metric is {metric!r}, expected 'conf_ece' or 'cw_ece'")
    return simulate_floor(cells_of(answers, metric, n_bins), metric, n_bins, n_simulations, seed)


def noise_floor_from_confidence(
    confidence: Any, correct: Any, *, n_bins: int = 10, n_simulations: int = 1000, seed: int = 0
) -> NoiseFloor:
    """Noise floor of the confidence calibration error; see `noise_floor`.

    Parameters
    ----------
    confidence : (N,) floats in [0, 1]. correct : (N,) bool or 0/1.

    Returns
    -------
    NoiseFloor

    Raises
    ------
    InputError
        As `bin_table_from_confidence`.

    Examples
    --------
    >>> floor = noise_floor_from_confidence([0.9] * 100, [1] * 50 + [0] * 50)
    >>> round(floor.observed, 4), floor.p_value < 0.01
    (0.4, True)
    """
    c, hit = checked_confidence(confidence, correct)
    cells = top_cells(c.astype(np.float64), hit, bin_index(c, n_bins), n_bins)
    return simulate_floor(cells, "conf_ece", n_bins, n_simulations, seed)


def bootstrap_interval(
    probs: Any, labels: Any, *, metric: str = "conf_ece", **options: Any
) -> Estimate:
    """Interval of one metric; see `bootstrap_intervals`, whose options it takes.

    Raises
    ------
    InputError
        As `bootstrap_intervals`.

    Examples
    --------
    >>> p, y = [[0.8, 0.2]] * 50, [0] * 40 + [1] * 10
    >>> print(bootstrap_interval(p, y, metric="accuracy"))
    0.8000 [0.6696, 0.8876]
    >>> bootstrap_interval(p, y, metric="conf_ece").low
    0.0
    """
    return bootstrap_intervals(probs, labels, metrics=(metric,), **options)[metric]


def bootstrap_intervals(
    probs: Any,
    labels: Any,
    *,
    n_options: Any = None,
    groups: Sequence[Any] | None = None,
    metrics: Sequence[str] = METRICS,
    n_bins: int = 10,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    settings: Settings = DEFAULTS,
) -> dict[str, Estimate]:
    r"""Intervals of many metrics from one set of resamples.

    Parameters
    ----------
    probs : (N, K) floats, rows sum to 1. labels : (N,) integers. n_options : (N,) integers.
    groups : N hashables or None; rows of one group are one unit (exact duplicates).
    metrics : names out of `METRICS`. n_bins : B >= 1.
    n_resamples : R, draws behind each interval. level : in (0, 1). seed : int.
    settings : risk for "coverage_at_risk", coverage for "accuracy_at_coverage".

    Returns
    -------
    dict from name to Estimate. The interval of a calibration error includes 0 whenever its noise
    floor has p >= 1 - level. NaN bounds: no interval can be given (one row; all right for AUROC).

    Raises
    ------
    InputError
        As `bin_table`, or for an unknown metric, or groups of another length.

    References
    ----------
    `docs/statistics.md`; Efron and Tibshirani 1993, chapter 12 (studentised bootstrap).

    Examples
    --------
    >>> p, y = [[0.8, 0.2]] * 60 + [[0.4, 0.6]] * 40, [0] * 80 + [1] * 20
    >>> for estimate in bootstrap_intervals(p, y, metrics=("nll", "auroc")).values():
    ...     print(estimate.name, round(estimate.value, 4), estimate.low < estimate.high)
    nll 0.4193 True
    auroc 0.875 True
    """
    _refuse_unknown(metrics, METRICS)
    answers = read(probs, labels, n_options)
    cluster = clusters(groups, answers.n)
    plan = Plan(cluster, metrics, n_bins, n_resamples, level, seed, settings)
    found: Found = {}
    add_means(found, answers, plan)
    step()
    add_errors(found, answers, plan)
    step()
    if set(metrics) & set(ORDERED + PARTS):
        add_ordered(found, answers, plan)
    step(INTERVAL_STEPS - 2)
    return {name: _within(found[name], *span(name)) for name in metrics}


def calibrated_upper_bounds(
    probs: Any, *, n_options: Any = None, n_bins: int = 10, n_draws: int = 25, seed: int = 0
) -> Floats:
    """Upper bounds of conf-ECE that a calibrated model with these confidences would get.

    Labels are drawn from the model's own probabilities, and the one-sided 95 % upper bound of
    `bootstrap_intervals` is taken each time: what N questions can show at best. The bounds fall
    as 1/sqrt(N).

    Parameters
    ----------
    probs : (N, K) floats, rows sum to 1. n_draws : labellings tried.

    Returns
    -------
    (n_draws,) float64, sorted.

    Raises
    ------
    InputError
        As `bin_table`.

    Examples
    --------
    >>> few, many = ([[0.6, 0.4]] * n for n in (400, 1600))
    >>> [round(float(np.median(calibrated_upper_bounds(p))), 2) for p in (few, many)]
    [0.06, 0.03]
    """
    rows = read_rows(probs, np.zeros(len(probs), dtype=np.int64), n_options)
    confidence = rows.probs.max(axis=1).astype(np.float64)
    rng = np.random.default_rng((seed, 4))
    return np.sort(calibrated_ece_bounds(confidence, n_draws, n_bins, rng))


def calibrated_ece_bounds(
    confidence: Floats, n_draws: int, n_bins: int, rng: np.random.Generator
) -> Floats:
    """`calibrated_upper_bounds` of confidences, in the order drawn."""
    index = bin_index(confidence, n_bins)
    bounds = []
    for _ in range(n_draws):
        hit = rng.random(len(confidence)) < confidence
        m = moments(top_cells(confidence, hit, index, n_bins), None)
        bounds += invert(m, m.draws(rng, 400), l1_norm, [0.05], shrink=False, counted=True)
    return np.array(bounds)


def ece_change_highs(
    before: Floats,
    after: Floats,
    right: Floats,
    n: int,
    n_draws: int,
    n_bins: int,
    rng: np.random.Generator,
) -> Floats:
    """Upper ends of 95 % intervals of a change of conf-ECE, in samples of a known population.

    Parameters
    ----------
    before, after : (M,) float64. Confidences of two models in the same prediction.
    right : (M,) float64. True probability that it is right.
    n : questions of a sample, drawn with replacement. n_draws : samples.

    Returns
    -------
    (n_draws,) float64, as ``high`` of `compare_intervals`.
    """
    plan = Plan(None, (), n_bins, 400, 0.95, 0, DEFAULTS)
    highs = []
    for seed in range(n_draws):
        rows = rng.integers(len(right), size=n)
        hit = rng.random(n) < right[rows]
        first, last = (
            top_cells(c, hit, bin_index(c, n_bins), n_bins) for c in (before[rows], after[rows])
        )
        highs.append(error_change_high(first, last, plan._replace(seed=seed)))
    return np.array(highs)


def paired_bootstrap(
    before: Any, after: Any, labels: Any, *, metric: str = "conf_ece", **options: Any
) -> Estimate:
    """Interval of ``metric(after) - metric(before)``; see `compare_intervals`.

    Raises
    ------
    InputError
        As `compare_intervals`.

    Examples
    --------
    >>> before, after = [[0.99, 0.01]] * 100, [[0.6, 0.4]] * 100
    >>> change = paired_bootstrap(before, after, [0] * 60 + [1] * 40)
    >>> round(change.value, 2), change.high < 0
    (-0.39, True)
    """
    found = compare_intervals(before, after, labels, metrics=(metric,), **options)
    return found.difference[metric]


class Comparison(NamedTuple):
    """Estimates of two models on the same questions, by metric."""

    before: dict[str, Estimate]
    after: dict[str, Estimate]
    difference: dict[str, Estimate]  # after - before


def compare_intervals(
    before: Any,
    after: Any,
    labels: Any,
    *,
    n_options: Any = None,
    groups: Sequence[Any] | None = None,
    metrics: Sequence[str] = PAIRED,
    n_bins: int = 10,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    settings: Settings = DEFAULTS,
) -> Comparison:
    """Intervals of metrics of two models on the same questions, and of their changes.

    Parameters
    ----------
    before, after : (N, K) floats, rows sum to 1, row i of both about question i.
    labels : (N,) integers. The other arguments are those of `bootstrap_intervals`, ``metrics``
        out of `PAIRED`: "smooth_ece", "conf_ece_quantile", "debiased_ece", "rmsce" and "mce" have
        no paired interval.

    Returns
    -------
    Comparison. For calibration errors the value of the difference is median-unbiased: the noise
    bias of both plug-ins is taken off, so it is not the difference of the two values. Accuracy:
    Agresti-Min.

    Raises
    ------
    InputError
        As `bootstrap_intervals`, or if the two differ in rows.

    References
    ----------
    `docs/statistics.md`; Agresti and Min 2005 (matched pairs).

    Examples
    --------
    >>> before, after = [[0.99, 0.01]] * 100, [[0.6, 0.4]] * 100
    >>> found = compare_intervals(before, after, [0] * 60 + [1] * 40, metrics=("accuracy", "nll"))
    >>> found.before["accuracy"].value, found.difference["accuracy"].value
    (0.6, 0.0)
    >>> round(found.difference["nll"].value, 4)
    -1.1751
    """
    _refuse_unknown(metrics, PAIRED)
    a, b = (read(p, labels, n_options) for p in (before, after))
    cluster = clusters(groups, a.n)
    plan = Plan(cluster, metrics, n_bins, n_resamples, level, seed, settings)
    found: tuple[Found, Found, Found] = ({}, {}, {})
    for table, into in ((a, found[0]), (b, found[1])):
        add_means(into, table, plan)
        add_errors(into, table, plan)
        step()
    add_mean_changes(found[2], a, b, plan)
    add_error_changes(found[2], a, b, plan)
    if set(metrics) & set(ORDERED + PARTS):
        add_ordered_changes(found, a, b, plan)
    step(INTERVAL_STEPS - 2)
    first, last = ({name: _within(f[name], *span(name)) for name in metrics} for f in found[:2])
    change = {name: _within(found[2][name], *span_of_change(name)) for name in metrics}
    return Comparison(first, last, change)


def _within(found: Estimate, lowest: float, highest: float) -> Estimate:
    """Cut an interval to what the metric can be: that of a few questions may reach beyond."""

    def cut(bound: float) -> float:
        return bound if math.isnan(bound) else min(max(bound, lowest), highest)

    upper = None if found.upper is None else cut(found.upper)
    return replace(found, low=cut(found.low), high=cut(found.high), upper=upper)


def _refuse_unknown(metrics: Sequence[str], known: Sequence[str]) -> None:
    for name in metrics:
        if name not in known:
            raise InputError(f"metric is {name!r}, expected one of {', '.join(known)}")
