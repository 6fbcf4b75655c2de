"""Does confidence tell right from wrong? Selective prediction, and over- and under-confidence.

Rows of equal confidence are one group everywhere: no result depends on the order of the rows. Where
a quantity needs an order inside a group, it is the expectation over all orders, which is linear in
the number of rows taken.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from calibrant.errors import InputError
from calibrant.metrics._input import Bools, Floats, Ints, checked_confidence, top
from calibrant.metrics.binned import (
    BinTable,
    Closed,
    Strategy,
    bin_table,
    bin_table_from_confidence,
)


def auroc(probs: Any, labels: Any, *, n_options: Any = None) -> float:
    r"""Area under the ROC curve of confidence as a predictor of correctness.

    :math:`P(c_{right} > c_{wrong}) + \frac12 P(c_{right} = c_{wrong})` over pairs of a right and a
    wrong answer; .5 is no discrimination.

    Parameters
    ----------
    probs : (N, K) floats, rows sum to 1. labels : (N,) integers. n_options : (N,) integers.

    Returns
    -------
    float in [0, 1]; NaN when all answers are right or all wrong: there is no pair.

    Raises
    ------
    InputError
        As `bin_table`.

    Examples
    --------
    >>> auroc([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]], [0, 1, 0])
    1.0
    """
    return _auroc(_ranked(*top(probs, labels, n_options)))


def aurc(probs: Any, labels: Any, *, n_options: Any = None) -> float:
    r"""Area under the risk-coverage curve: :math:`\frac1N \sum_{i=1}^N risk(i)`.

    risk(i) is the share of wrong answers among the i most confident rows; ties by expectation.

    Parameters
    ----------
    probs : (N, K) floats, rows sum to 1. labels : (N,) integers. n_options : (N,) integers.

    Returns
    -------
    float in [0, 1]; lower is better.

    Raises
    ------
    InputError
        As `bin_table`.

    References
    ----------
    Geifman, Uziel and El-Yaniv 2019 (arXiv 1805.08206).

    Examples
    --------
    >>> round(aurc([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]], [0, 1, 0]), 6)
    0.111111
    """
    return _aurc(_ranked(*top(probs, labels, n_options)))


def eaurc(probs: Any, labels: Any, *, n_options: Any = None) -> float:
    r"""Excess AURC: `aurc` less that of the best order of the same answers (wrong ones last).

    The best is the finite sum :math:`\frac1N \sum_i \max(0, i - N_{right}) / i`, not its large-N
    approximation :math:`r + (1 - r) \ln(1 - r)`.

    Parameters
    ----------
    probs : (N, K) floats, rows sum to 1. labels : (N,) integers. n_options : (N,) integers.

    Returns
    -------
    float in [0, 1]; 0 when every right answer is more confident than every wrong one.

    Raises
    ------
    InputError
        As `bin_table`.

    References
    ----------
    Geifman, Uziel and El-Yaniv 2019 (arXiv 1805.08206).

    Examples
    --------
    >>> round(eaurc([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]], [1, 0, 0]), 6)
    0.5
    """
    return _eaurc(_ranked(*top(probs, labels, n_options)))


def augrc(probs: Any, labels: Any, *, n_options: Any = None) -> float:
    r"""Area under the generalised risk-coverage curve.

    :math:`\int_0^1 P(\text{wrong and covered})\, d\,coverage`, by the trapezium rule over the
    groups of equal confidence, from (0, 0). It equals
    :math:`(1 - AUROC)\, a (1 - a) + (1 - a)^2 / 2` with accuracy a.

    Parameters
    ----------
    probs : (N, K) floats, rows sum to 1. labels : (N,) integers. n_options : (N,) integers.

    Returns
    -------
    float in [0, 1/2]; lower is better.

    Raises
    ------
    InputError
        As `bin_table`.

    References
    ----------
    Traub et al. 2024 (arXiv 2407.01032).

    Examples
    --------
    >>> round(augrc([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]], [0, 1, 0]), 6)
    0.055556
    """
    return _augrc(_ranked(*top(probs, labels, n_options)))


def coverage_at_risk(probs: Any, labels: Any, *, risk: float, n_options: Any = None) -> float:
    """Largest share of questions that can be answered with at most ``risk`` of them wrong.

    Over thresholds on the confidence, which takes or leaves rows of equal confidence together.

    Parameters
    ----------
    probs : (N, K) floats, rows sum to 1. labels : (N,) integers. n_options : (N,) integers.
    risk : share of wrong answers allowed, in [0, 1].

    Returns
    -------
    float in [0, 1]; 0 if no threshold does it. The risk is that of these rows: a promise about
    new questions needs a margin.

    Raises
    ------
    InputError
        As `bin_table`, or a risk outside [0, 1].

    References
    ----------
    Geifman and El-Yaniv 2017 (arXiv 1705.08500).

    Examples
    --------
    >>> round(coverage_at_risk([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]], [0, 1, 0], risk=0.1), 4)
    0.6667
    """
    return _coverage_at_risk(_ranked(*top(probs, labels, n_options)), risk)


class RiskThreshold(NamedTuple):
    """Confidence from which on answers may be trusted; see `threshold_at_risk`.

    Attributes
    ----------
    threshold : float. Answer where confidence > threshold; ``inf`` if no threshold could be shown
        to keep the promise, ``-inf`` if all questions may be answered.
    risk : the share of wrong answers promised at most. level : how sure the promise is.
    coverage : share of the held-out questions above the threshold.
    wrong, n_answered : of the held-out questions above the threshold.
    n : held-out questions.
    """

    threshold: float
    risk: float
    level: float
    coverage: float
    wrong: int
    n_answered: int
    n: int


def threshold_at_risk(
    probs: Any, labels: Any, *, risk: float, level: float = 0.95, n_options: Any = None
) -> RiskThreshold:
    r"""Lowest confidence threshold that holds the error rate on *new* questions.

    With probability at least ``level`` over the draw of the held-out questions, a new question like
    them whose confidence is above the threshold t is answered wrongly with probability at most
    ``risk``: :math:`P(\hat y \ne y \mid c > t) \le risk`. Nothing is assumed about the model: it
    need not be calibrated.

    Of G = 20 ranks fixed in advance, evenly spaced from the fewest rows that can show anything to
    all N, each gives the threshold below its m most confident rows. Given the threshold those rows
    are a sample of all questions above it, so the hypothesis "the risk there exceeds ``risk``" has
    the exact p-value P(Bin(m, risk) <= wrong). The lowest threshold with p <= (1 - level) / G is
    taken (Bonferroni). Rows tied with the threshold are left out.

    Parameters
    ----------
    probs : (N, K) floats, rows sum to 1. labels : (N,) integers. n_options : (N,) integers.
        Held out: neither trained on nor used to fit the calibrator, and independent of each other
        (of exact duplicates take one).
    risk : in (0, 1). level : in (0, 1).

    Returns
    -------
    RiskThreshold

    Raises
    ------
    InputError
        As `bin_table`, or a risk or level outside (0, 1).

    References
    ----------
    Geifman and El-Yaniv 2017 (arXiv 1705.08500), with the union over ranks instead of a search;
    Angelopoulos et al. 2021 (arXiv 2110.01052), "learn then test".

    Examples
    --------
    >>> probs = [[0.9, 0.1]] * 300 + [[0.6, 0.4]] * 300
    >>> found = threshold_at_risk(probs, [0] * 300 + [0, 1] * 150, risk=0.05)
    >>> found.threshold, found.coverage, found.wrong
    (0.6, 0.5, 0)
    >>> threshold_at_risk(probs[:60], [0] * 60, risk=0.05).threshold  # too few to show it
    inf
    """
    return _threshold_at_risk(*top(probs, labels, n_options), risk, level)


def accuracy_at_coverage(
    probs: Any, labels: Any, *, coverage: float, n_options: Any = None
) -> float:
    """Accuracy on the ``ceil(coverage * N)`` most confident questions; ties by expectation.

    Parameters
    ----------
    probs : (N, K) floats, rows sum to 1. labels : (N,) integers. n_options : (N,) integers.
    coverage : share of the questions answered, in (0, 1].

    Returns
    -------
    float in [0, 1].

    Raises
    ------
    InputError
        As `bin_table`, or a coverage outside (0, 1].

    Examples
    --------
    >>> accuracy_at_coverage([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]], [0, 1, 0], coverage=0.5)
    1.0
    """
    return _accuracy_at_coverage(_ranked(*top(probs, labels, n_options)), coverage)


class RiskCoverage(NamedTuple):
    """The risk-coverage curve at every place where the answers given may end."""

    coverage: Floats  # (G,) share of the rows given, rising to 1; G different confidences
    risk: Floats  # (G,) share of wrong answers among them
    threshold: Floats  # (G,) the least confidence among them


def risk_coverage(probs: Any, labels: Any, *, n_options: Any = None) -> RiskCoverage:
    r"""Risk-coverage curve: the share of wrong answers among the most confident rows.

    Rows of equal confidence are given together.

    Parameters
    ----------
    probs : (N, K) floats, rows sum to 1. labels : (N,) integers. n_options : (N,) integers.

    Returns
    -------
    RiskCoverage, one point for each different confidence, the highest first.

    Raises
    ------
    InputError
        As `bin_table`.

    References
    ----------
    Geifman and El-Yaniv 2017 (arXiv 1705.08500).

    Examples
    --------
    >>> curve = risk_coverage([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4]], [0, 1, 0])
    >>> curve.coverage.round(3).tolist(), curve.risk.round(3).tolist(), curve.threshold.tolist()
    ([0.333, 1.0], [0.0, 0.333], [0.9, 0.6])
    """
    return _risk_coverage(*top(probs, labels, n_options))


def signed_gap(probs: Any, labels: Any, *, n_options: Any = None) -> float:
    """Mean confidence less accuracy: > 0 is over-confident.

    Parameters
    ----------
    probs : (N, K) floats, rows sum to 1. labels : (N,) integers. n_options : (N,) integers.

    Returns
    -------
    float in [-1, 1]; its size never exceeds `conf_ece`, whatever the bins.

    Raises
    ------
    InputError
        As `bin_table`.

    Examples
    --------
    >>> round(signed_gap([[0.9, 0.1], [0.6, 0.4]], [0, 1]), 6)
    0.25
    """
    return _signed_gap(*top(probs, labels, n_options))


def overconfidence(
    probs: Any,
    labels: Any,
    *,
    n_options: Any = None,
    n_bins: int = 10,
    strategy: Strategy = "uniform",
    closed: Closed = "left",
) -> float:
    r"""Over-confident part of `conf_ece`: :math:`\sum_b \frac{n_b}N \max(0, conf_b - acc_b)`.

    With `underconfidence`: the sum is `conf_ece`, the difference `signed_gap`.

    Parameters
    ----------
    probs : (N, K) floats, rows sum to 1. labels : (N,) integers. n_options : (N,) integers.
    n_bins, strategy, closed : as in `bin_table`.

    Returns
    -------
    float in [0, 1].

    Raises
    ------
    InputError
        As `bin_table`.

    Examples
    --------
    >>> round(overconfidence([[0.9, 0.1], [0.6, 0.4]], [0, 1]), 6)
    0.3
    """
    table = bin_table(
        probs, labels, n_options=n_options, n_bins=n_bins, strategy=strategy, closed=closed
    )
    return _one_side(table, 1)


def underconfidence(
    probs: Any,
    labels: Any,
    *,
    n_options: Any = None,
    n_bins: int = 10,
    strategy: Strategy = "uniform",
    closed: Closed = "left",
) -> float:
    r"""Under-confident part of `conf_ece`: :math:`\sum_b \frac{n_b}N \max(0, acc_b - conf_b)`.

    With `overconfidence`: the sum is `conf_ece`, the difference `signed_gap`.

    Parameters
    ----------
    probs : (N, K) floats, rows sum to 1. labels : (N,) integers. n_options : (N,) integers.
    n_bins, strategy, closed : as in `bin_table`.

    Returns
    -------
    float in [0, 1].

    Raises
    ------
    InputError
        As `bin_table`.

    Examples
    --------
    >>> round(underconfidence([[0.9, 0.1], [0.6, 0.4]], [0, 1]), 6)
    0.05
    """
    table = bin_table(
        probs, labels, n_options=n_options, n_bins=n_bins, strategy=strategy, closed=closed
    )
    return _one_side(table, -1)


# -- the same from confidences --------------------------------------------------------------------


def auroc_from_confidence(confidence: Any, correct: Any) -> float:
    """AUROC of confidence for correctness; see `auroc`.

    Parameters
    ----------
    confidence : (N,) floats in [0, 1]. correct : (N,) bool or 0/1.

    Returns
    -------
    float in [0, 1], or NaN when all answers are right or all wrong.

    Raises
    ------
    InputError
        As `bin_table_from_confidence`.

    Examples
    --------
    >>> auroc_from_confidence([0.9, 0.6, 0.6], [1, 0, 1])
    0.75
    """
    return _auroc(_ranked(*checked_confidence(confidence, correct)))


def aurc_from_confidence(confidence: Any, correct: Any) -> float:
    """Area under the risk-coverage curve; see `aurc`.

    Parameters
    ----------
    confidence : (N,) floats in [0, 1]. correct : (N,) bool or 0/1.

    Returns
    -------
    float in [0, 1].

    Raises
    ------
    InputError
        As `bin_table_from_confidence`.

    Examples
    --------
    >>> round(aurc_from_confidence([0.9, 0.6, 0.6], [1, 0, 1]), 6)
    0.194444
    """
    return _aurc(_ranked(*checked_confidence(confidence, correct)))


def eaurc_from_confidence(confidence: Any, correct: Any) -> float:
    """Excess AURC; see `eaurc`.

    Parameters
    ----------
    confidence : (N,) floats in [0, 1]. correct : (N,) bool or 0/1.

    Returns
    -------
    float in [0, 1].

    Raises
    ------
    InputError
        As `bin_table_from_confidence`.

    Examples
    --------
    >>> round(eaurc_from_confidence([0.9, 0.6, 0.6], [1, 0, 1]), 6)
    0.083333
    """
    return _eaurc(_ranked(*checked_confidence(confidence, correct)))


def augrc_from_confidence(confidence: Any, correct: Any) -> float:
    """Area under the generalised risk-coverage curve; see `augrc`.

    Parameters
    ----------
    confidence : (N,) floats in [0, 1]. correct : (N,) bool or 0/1.

    Returns
    -------
    float in [0, 1/2].

    Raises
    ------
    InputError
        As `bin_table_from_confidence`.

    Examples
    --------
    >>> round(augrc_from_confidence([0.9, 0.6, 0.6], [1, 0, 1]), 6)
    0.111111
    """
    return _augrc(_ranked(*checked_confidence(confidence, correct)))


def coverage_at_risk_from_confidence(confidence: Any, correct: Any, *, risk: float) -> float:
    """Largest coverage with at most ``risk`` wrong; see `coverage_at_risk`.

    Parameters
    ----------
    confidence : (N,) floats in [0, 1]. correct : (N,) bool or 0/1. risk : in [0, 1].

    Returns
    -------
    float in [0, 1].

    Raises
    ------
    InputError
        As `bin_table_from_confidence`, or a risk outside [0, 1].

    Examples
    --------
    >>> round(coverage_at_risk_from_confidence([0.9, 0.6, 0.6], [1, 0, 1], risk=0.2), 4)
    0.3333
    """
    return _coverage_at_risk(_ranked(*checked_confidence(confidence, correct)), risk)


def threshold_at_risk_from_confidence(
    confidence: Any, correct: Any, *, risk: float, level: float = 0.95
) -> RiskThreshold:
    """Confidence threshold that holds the error rate on new questions; see `threshold_at_risk`.

    Parameters
    ----------
    confidence : (N,) floats in [0, 1]. correct : (N,) bool or 0/1. risk, level : in (0, 1).

    Returns
    -------
    RiskThreshold

    Raises
    ------
    InputError
        As `bin_table_from_confidence`, or a risk or level outside (0, 1).

    Examples
    --------
    >>> found = threshold_at_risk_from_confidence([0.8] * 400, [1] * 390 + [0] * 10, risk=0.1)
    >>> found.threshold, found.coverage
    (-inf, 1.0)
    """
    return _threshold_at_risk(*checked_confidence(confidence, correct), risk, level)


def accuracy_at_coverage_from_confidence(
    confidence: Any, correct: Any, *, coverage: float
) -> float:
    """Accuracy on the most confident share; see `accuracy_at_coverage`.

    Parameters
    ----------
    confidence : (N,) floats in [0, 1]. correct : (N,) bool or 0/1. coverage : in (0, 1].

    Returns
    -------
    float in [0, 1].

    Raises
    ------
    InputError
        As `bin_table_from_confidence`, or a coverage outside (0, 1].

    Examples
    --------
    >>> accuracy_at_coverage_from_confidence([0.9, 0.6, 0.6], [1, 0, 1], coverage=0.5)
    0.75
    """
    return _accuracy_at_coverage(_ranked(*checked_confidence(confidence, correct)), coverage)


def risk_coverage_from_confidence(confidence: Any, correct: Any) -> RiskCoverage:
    """Risk-coverage curve from confidences; see `risk_coverage`.

    Parameters
    ----------
    confidence : (N,) floats in [0, 1]. correct : (N,) bool or 0/1.

    Returns
    -------
    RiskCoverage.

    Raises
    ------
    InputError
        As `bin_table_from_confidence`.

    Examples
    --------
    >>> risk_coverage_from_confidence([0.9, 0.6, 0.6], [1, 0, 1]).risk.round(3).tolist()
    [0.0, 0.333]
    """
    return _risk_coverage(*checked_confidence(confidence, correct))


def signed_gap_from_confidence(confidence: Any, correct: Any) -> float:
    """Mean confidence less accuracy; see `signed_gap`.

    Parameters
    ----------
    confidence : (N,) floats in [0, 1]. correct : (N,) bool or 0/1.

    Returns
    -------
    float in [-1, 1].

    Raises
    ------
    InputError
        As `bin_table_from_confidence`.

    Examples
    --------
    >>> round(signed_gap_from_confidence([0.9, 0.6], [1, 0]), 6)
    0.25
    """
    return _signed_gap(*checked_confidence(confidence, correct))


def overconfidence_from_confidence(
    confidence: Any,
    correct: Any,
    *,
    n_bins: int = 10,
    strategy: Strategy = "uniform",
    closed: Closed = "left",
) -> float:
    """Over-confident part of the calibration error; see `overconfidence`.

    Parameters
    ----------
    confidence : (N,) floats in [0, 1]. correct : (N,) bool or 0/1.

    Returns
    -------
    float in [0, 1].

    Raises
    ------
    InputError
        As `bin_table_from_confidence`.

    Examples
    --------
    >>> round(overconfidence_from_confidence([0.9, 0.6], [1, 0]), 6)
    0.3
    """
    table = bin_table_from_confidence(
        confidence, correct, n_bins=n_bins, strategy=strategy, closed=closed
    )
    return _one_side(table, 1)


def underconfidence_from_confidence(
    confidence: Any,
    correct: Any,
    *,
    n_bins: int = 10,
    strategy: Strategy = "uniform",
    closed: Closed = "left",
) -> float:
    """Under-confident part of the calibration error; see `underconfidence`.

    Parameters
    ----------
    confidence : (N,) floats in [0, 1]. correct : (N,) bool or 0/1.

    Returns
    -------
    float in [0, 1].

    Raises
    ------
    InputError
        As `bin_table_from_confidence`.

    Examples
    --------
    >>> round(underconfidence_from_confidence([0.9, 0.6], [1, 0]), 6)
    0.05
    """
    table = bin_table_from_confidence(
        confidence, correct, n_bins=n_bins, strategy=strategy, closed=closed
    )
    return _one_side(table, -1)


# -- inside -------------------------------------------------------------------------------------


class _Ranked(NamedTuple):
    """Groups of equal confidence, the most confident first."""

    rows: Ints  # (G,) rows in the group
    wrong: Ints  # (G,) of them wrong


def _ranked(confidence: Any, correct: Bools) -> _Ranked:
    order = np.argsort(confidence)[::-1]
    c, wrong = confidence[order], ~correct[order]
    starts = np.flatnonzero(np.concatenate([[True], c[1:] != c[:-1]]))
    rows = np.diff(np.append(starts, len(c)))
    return _Ranked(rows, np.add.reduceat(wrong.astype(np.int64), starts))


def _auroc(ranked: _Ranked) -> float:
    rows, wrong = ranked
    right = rows - wrong
    pairs = int(right.sum()) * int(wrong.sum())
    if pairs == 0:
        return math.nan
    wrong_below = wrong.sum() - np.cumsum(wrong)
    # Twice the number of won pairs: whole numbers, exact.
    return int((right * (2 * wrong_below + wrong)).sum()) / (2 * pairs)


def _wrong_among(ranked: _Ranked) -> Floats:
    """Expected number of wrong answers among the i most confident rows, (N,) for i = 1..N."""
    ends = np.concatenate([[0], np.cumsum(ranked.rows)])
    wrong = np.concatenate([[0], np.cumsum(ranked.wrong)])
    taken = np.arange(1, ends[-1] + 1)
    expected: Floats = np.interp(taken, ends, wrong)
    return expected


def _aurc(ranked: _Ranked) -> float:
    wrong = _wrong_among(ranked)
    return float((wrong / np.arange(1, len(wrong) + 1)).mean())


def _eaurc(ranked: _Ranked) -> float:
    n, n_wrong = int(ranked.rows.sum()), int(ranked.wrong.sum())
    taken = np.arange(1, n + 1)
    best = float((np.maximum(0, taken - (n - n_wrong)) / taken).mean())
    return max(0.0, _aurc(ranked) - best)  # never negative but for rounding


def _augrc(ranked: _Ranked) -> float:
    after = np.cumsum(ranked.wrong)
    n = int(ranked.rows.sum())
    return int((ranked.rows * (2 * after - ranked.wrong)).sum()) / (2 * n * n)


def _coverage_at_risk(ranked: _Ranked, risk: float) -> float:
    if not 0 <= risk <= 1:
        raise InputError(f"risk is {risk}, expected a number in [0, 1]")
    taken = np.cumsum(ranked.rows)
    met = np.cumsum(ranked.wrong) <= risk * taken * (1 + 1e-12)  # 0.1 * 30 is not 3 in binary
    return int(taken[met].max(initial=0)) / int(taken[-1])


_RANKS = 20  # thresholds tried: fewer cost coverage, more cost certainty


def _threshold_at_risk(confidence: Any, correct: Bools, risk: float, level: float) -> RiskThreshold:
    from scipy.special import bdtr

    for name, value in (("risk", risk), ("level", level)):
        if not 0 < value < 1:
            raise InputError(f"{name} is {value}, expected a number in (0, 1)")
    tail = (1 - level) / _RANKS
    order = np.argsort(confidence)[::-1]
    c = np.asarray(confidence, dtype=np.float64)[order]
    wrong = np.concatenate([[0], np.cumsum(~correct[order])])
    n = len(c)
    fewest = math.ceil(math.log(tail) / math.log1p(-risk))  # all right, and p is at most the tail
    best = RiskThreshold(math.inf, risk, level, 0.0, 0, 0, n)
    if fewest > n:
        return best
    for rank in np.linspace(fewest, n, _RANKS).round().astype(int).tolist():
        below = c[rank] if rank < n else -math.inf
        m = int(np.searchsorted(-c, -below, side="left"))  # rows strictly above
        if m and bdtr(int(wrong[m]), m, risk) <= tail:
            best = RiskThreshold(float(below), risk, level, m / n, int(wrong[m]), m, n)
    return best


def _risk_coverage(confidence: Any, correct: Bools) -> RiskCoverage:
    rows, wrong = _ranked(confidence, correct)
    taken = np.cumsum(rows)
    levels = np.unique(np.asarray(confidence, dtype=np.float64))[::-1]
    return RiskCoverage(taken / taken[-1], np.cumsum(wrong) / taken, levels)


def _accuracy_at_coverage(ranked: _Ranked, coverage: float) -> float:
    if not 0 < coverage <= 1:
        raise InputError(f"coverage is {coverage}, expected a number in (0, 1]")
    n = int(ranked.rows.sum())
    taken = max(1, math.ceil(coverage * n * (1 - 1e-12)))  # 0.07 * 100 is above 7 in binary
    ends = np.concatenate([[0], np.cumsum(ranked.rows)])
    wrong = np.concatenate([[0], np.cumsum(ranked.wrong)])
    return 1 - float(np.interp(taken, ends, wrong)) / taken


def _signed_gap(confidence: Any, correct: Bools) -> float:
    total = float(np.sum(confidence, dtype=np.float64))
    return (total - int(np.count_nonzero(correct))) / len(correct)


def _one_side(table: BinTable, sign: int) -> float:
    excess = sign * (table.sum_confidence - table.sum_correct)
    return float(np.maximum(excess, 0).sum()) / table.n
