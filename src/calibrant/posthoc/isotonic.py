"""Isotonic calibration of the confidence."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.posthoc._confidence import with_confidence
from calibrant.posthoc.calibrator import Calibrator, Fields, Floats


class IsotonicCalibration(Calibrator):
    r"""Map confidence to the best rising estimate of the share of right answers.

    ``g = argmin_{g rising} Σ_i (correct_i − g(c_i))²`` by pooling adjacent violators, linear
    between the fitted confidences and constant beyond them. Values are kept within
    ``[1/(N+2), (N+1)/(N+2)]``: otherwise a run of right answers would give the other options
    probability 0. The prediction gets g(c), the other options share the rest in their old ratios,
    or, where the runner-up would then get more, the question gets a temperature of its own at which
    its confidence is g(c).

    What is kept: the prediction, hence accuracy; the order of the options; ties; where g(c) is high
    enough, the ratios among the other options. Confidence stays just above 1/K where g(c) is not.
    Confidences that g maps to one value become indistinguishable, which can lower AUROC.

    Attributes
    ----------
    thresholds : (M,) float64, rising confidences.
    values : (M,) float64, g there.
    n_questions : int, questions it was fitted on.

    References
    ----------
    Zadrozny & Elkan, "Transforming classifier scores into accurate multiclass probability
    estimates", KDD 2002; here on the confidence only.

    Examples
    --------
    >>> probs = [[0.6, 0.4]] * 3 + [[0.9, 0.1]] * 4
    >>> table = AnswerTable.from_probs(probs, [0, 0, 1] + [0, 0, 0, 1])
    >>> scaling = IsotonicCalibration().fit(table)
    >>> scaling.thresholds.round(4).tolist(), scaling.values.round(4).tolist()
    ([0.6, 0.9], [0.6667, 0.75])
    """

    kind = "isotonic"

    def __init__(self) -> None:
        super().__init__()
        self.thresholds: Floats = np.empty(0)
        self.values: Floats = np.empty(0)

    def fit(self, answers: AnswerTable, reference: AnswerTable | None = None) -> Self:
        """Fit g on labelled answers.

        Parameters
        ----------
        reference : ignored; here so that every calibrator is called alike.

        Raises
        ------
        InputError
            If the table holds several permutations of one question.
        """
        from scipy.optimize import isotonic_regression

        answers.refuse_permutations()
        at, which, count = np.unique(answers.confidence, return_inverse=True, return_counts=True)
        right = np.bincount(which, weights=answers.correct)
        fitted = isotonic_regression(right / count, weights=count).x
        n = len(answers)
        # Only the ends of each flat piece are needed.
        turn = np.concatenate(([True], fitted[1:] != fitted[:-1]))
        keep = turn | np.concatenate((turn[1:], [True]))
        self.thresholds = at[keep]
        self.values = np.clip(fitted[keep], 1 / (n + 2), (n + 1) / (n + 2))
        self.n_questions = n
        return self

    def _scores(self, answers: AnswerTable) -> Floats:
        return with_confidence(answers, np.interp(answers.confidence, self.thresholds, self.values))

    def _parameters(self) -> dict[str, Any]:
        return {"thresholds": self.thresholds.tolist(), "values": self.values.tolist()}

    def _read(self, fields: Fields) -> None:
        self.thresholds = fields.array("thresholds", -1)
        self.values = fields.array("values", len(self.thresholds))
        inside = ((self.values > 0) & (self.values < 1)).all()
        if not len(self.values) or not inside or (np.diff(self.values) < 0).any():
            raise InputError(f"{fields.path}: values, expected rising numbers between 0 and 1")
        if (np.diff(self.thresholds) <= 0).any():
            raise InputError(f"{fields.path}: thresholds, expected rising confidences")
