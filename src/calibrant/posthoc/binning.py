"""Scaling-binning: a logistic curve, then equal-mass bins of what it says."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.posthoc._confidence import log_odds, with_confidence
from calibrant.posthoc._optimum import minimum
from calibrant.posthoc.calibrator import Calibrator, Fields, Floats


class ScalingBinning(Calibrator):
    r"""Fit a logistic curve to confidence, cut it into bins, and let each bin say one number.

    ``g(c) = σ(slope · logit(c) + intercept)`` is fitted to right and wrong by maximum likelihood;
    its values are cut into ``n_bins`` bins of equal count; confidence becomes the mean of g over
    the fitting questions of its bin. The output takes few values, so its calibration error can be
    measured without bias, and as means of g, not of labels, they vary little. All three steps use
    the same questions, as the authors' code does. logit(c) is clipped at 1 − c = 1e-12, as there.

    The other options share the rest in their old ratios, or, where the runner-up would then get
    more than the prediction, the question gets a temperature of its own at which its confidence is
    the bin's value.

    What is kept: the prediction, hence accuracy; the order of the options; ties; where the bin's
    value is high enough, the ratios among the other options. Confidence stays just above 1/K where
    the value is not. Confidences in one bin become indistinguishable, which can lower AUROC.

    Parameters
    ----------
    n_bins : B, at least 1.

    Attributes
    ----------
    slope, intercept : float, of the logistic curve.
    edges : (M − 1,) float64, values of g between the M ≤ B bins; a bin holds its upper edge.
    values : (M,) float64, confidence of each bin.
    n_questions : int, questions it was fitted on.

    References
    ----------
    Kumar, Liang & Ma, "Verified Uncertainty Calibration", NeurIPS 2019.

    Examples
    --------
    >>> probs = [[0.6, 0.4]] * 5 + [[0.9, 0.1]] * 5
    >>> table = AnswerTable.from_probs(probs, [0, 0, 0, 1, 1] + [0, 0, 0, 0, 1])
    >>> scaling = ScalingBinning(n_bins=2).fit(table)
    >>> scaling.values.round(4).tolist()  # two confidences: the curve meets both shares
    [0.6, 0.8]
    """

    kind = "scaling-binning"

    def __init__(self, n_bins: int = 10) -> None:
        super().__init__()
        if n_bins < 1:
            raise InputError(f"{self.kind}: n_bins {n_bins}, expected at least 1")
        self.n_bins = n_bins
        self.slope = self.intercept = np.nan
        self.edges: Floats = np.empty(0)
        self.values: Floats = np.empty(0)

    def fit(self, answers: AnswerTable, reference: AnswerTable | None = None) -> Self:
        """Fit curve and bins on labelled answers.

        Parameters
        ----------
        reference : ignored; here so that every calibrator is called alike.

        Raises
        ------
        NoOptimumError
            If all answers are right or all wrong, some confidence parts the right from the
            wrong, or all confidences are equal: then no curve is the likeliest.
        InputError
            If the table holds several permutations of one question.
        """
        answers.refuse_permutations()
        x, correct = log_odds(answers), answers.correct
        self.slope, self.intercept = _logistic_curve(
            x,
            correct,
            none=f"{self.kind}: {int(correct.sum())} of {len(x)} answers are right, and no "
            "logistic curve of confidence is the likeliest; expected right and wrong answers at "
            "overlapping, unequal confidences",
        )
        curve = self._curve(x)
        self.edges = _equal_mass_edges(curve, self.n_bins)
        index = np.searchsorted(self.edges, curve)
        self.values = np.bincount(index, weights=curve) / np.bincount(index)
        self.n_questions = len(x)
        return self

    def _curve(self, x: Floats) -> Floats:
        from scipy.special import expit

        curve: Floats = expit(self.slope * x + self.intercept)
        return curve

    def _scores(self, answers: AnswerTable) -> Floats:
        index = np.searchsorted(self.edges, self._curve(log_odds(answers)))
        return with_confidence(answers, self.values[index])

    def _parameters(self) -> dict[str, Any]:
        return {
            "n_bins": self.n_bins,
            "slope": self.slope,
            "intercept": self.intercept,
            "edges": self.edges.tolist(),
            "values": self.values.tolist(),
        }

    def _read(self, fields: Fields) -> None:
        self.n_bins = fields.count("n_bins")
        self.slope, self.intercept = fields.number("slope"), fields.number("intercept")
        self.values = fields.array("values", -1)
        self.edges = fields.array("edges", max(len(self.values) - 1, 0))
        if not len(self.values) or not ((self.values > 0) & (self.values < 1)).all():
            raise InputError(f"{fields.path}: values, expected numbers between 0 and 1")
        if (np.diff(self.edges) <= 0).any():
            raise InputError(f"{fields.path}: edges, expected rising numbers")


def _logistic_curve(x: Floats, correct: NDArray[np.bool_], none: str) -> tuple[float, float]:
    """Slope and intercept of maximum likelihood."""
    from scipy.special import expit

    center, spread = x.mean(), x.std() or 1.0
    design = np.stack(((x - center) / spread, np.ones_like(x)))  # (2, N)

    def nll(weights: Floats) -> tuple[float, Floats, Floats]:
        s = weights @ design
        p = expit(s)
        value = (np.logaddexp(0, s) - correct * s).mean()
        hessian = (design * (p * (1 - p))) @ design.T / len(x)
        return float(value), design @ (p - correct) / len(x), hessian

    slope, intercept = minimum(nll, np.zeros(2), none=none)
    return slope / spread, intercept - slope * center / spread


def _equal_mass_edges(curve: Floats, n_bins: int) -> Floats:
    """Midpoints between bins of equal count; equal values are never parted."""
    parts = np.array_split(np.sort(curve), min(n_bins, len(curve)))
    edges = [(a[-1] + b[0]) / 2 for a, b in pairwise(parts)]
    rising: Floats = np.unique(edges)
    # Ties over several parts leave bins without a value; each bin that has some keeps its top.
    used = np.unique(np.searchsorted(rising, curve))
    tops: Floats = rising[used[:-1]]
    return tops
