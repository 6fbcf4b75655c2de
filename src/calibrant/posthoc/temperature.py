"""Temperature scaling: one number, fitted exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.posthoc.calibrator import Calibrator, Fields, Floats, NoOptimumError

_FAR = 340.0  # |log β| beyond which nothing but rounding is left
_MISSING = -1e155  # score of an option that cannot be chosen: finite, but weight 0 at every β


class Temperature(Calibrator):
    """A calibrator that divides every option score by one temperature T > 0.

    Accuracy and the order of options never change.

    Attributes
    ----------
    temperature : float, T; > 1 softens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.temperature = math.nan

    def _scores(self, answers: AnswerTable) -> Floats:
        return answers.logprobs / self.temperature

    def _parameters(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    def _read(self, fields: Fields) -> None:
        self.temperature = fields.number("temperature", low=0)

    def _provenance(self) -> dict[str, Any]:
        return {**super()._provenance(), "temperature": self.temperature}


class TemperatureScaling(Temperature):
    r"""Divide every option score by the temperature T > 0 of maximum likelihood.

    ``T = argmin_T mean_i −log softmax(z_i / T)[y_i]``. In β = 1/T this is convex, so the optimum
    is the root of ``mean_i (E_p[z_i] − z_i[y_i])``, found by bracketed Newton steps, float64.
    Accuracy and the order of options never change.

    Attributes
    ----------
    temperature : float, T; > 1 softens.
    n_questions : int, questions it was fitted on.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

    Examples
    --------
    >>> table = AnswerTable.from_probs([[0.9, 0.1]] * 4, [0, 0, 0, 1])
    >>> scaling = TemperatureScaling().fit(table)
    >>> round(scaling.temperature, 6)  # from .9 to .75: log 9 / log 3
    2.0
    >>> scaling.transform(table).confidence.round(6).tolist()
    [0.75, 0.75, 0.75, 0.75]
    """

    kind = "temperature"

    def fit(self, answers: AnswerTable, reference: AnswerTable | None = None) -> Self:
        """Fit T on labelled answers.

        Parameters
        ----------
        reference : ignored; here so that every calibrator is called alike.

        Raises
        ------
        NoOptimumError
            If every question is right (T → 0), or the scores hold no information about the answer
            (T → ∞: uniform probabilities are likelier than any temperature's).
        InputError
            If a right answer has probability 0, or the table holds several permutations of one
            question.
        """
        answers.refuse_permutations()
        z = scores_below_top(answers)  # (K, N) ≤ 0
        n = len(answers)
        at_label = z[answers.labels, np.arange(n)]
        if (at_label == _MISSING).any():
            row = int(np.flatnonzero(at_label == _MISSING)[0])
            raise InputError(
                f"{self.kind}: question {answers.ids[row]!r}: the right answer has probability 0, "
                "expected a positive one"
            )
        self.temperature = least_cross_entropy(
            z,
            at_label,
            sharp=f"{self.kind}: all {n} questions are answered right, so the likelihood grows "
            "without end as T falls to 0; expected at least one wrong answer",
            flat=f"{self.kind}: on these {n} questions right answers score no higher than wrong "
            "ones, so the likelihood grows without end as T rises (uniform probabilities fit "
            "best); expected scores that carry some information",
        )
        self.n_questions = n
        return self


def scores_below_top(answers: AnswerTable) -> Floats:
    """Option scores less the best one's, (K, N) ≤ 0: sums over options then run over whole rows."""
    z = np.array(answers.logprobs.T, order="C")  # a copy: tables are read-only
    z -= z.max(axis=0)
    z[np.isneginf(z)] = _MISSING
    return z


def least_cross_entropy(z: Floats, expected: Floats, *, sharp: str, flat: str) -> float:
    """T that minimises the mean of ``−Σ_k q_k log softmax(z / T)_k`` for some target q.

    Parameters
    ----------
    z : (K, N), of `scores_below_top`.
    expected : (N,) float64, ``Σ_k q_k z_k``.
    sharp, flat : what to say when the minimum is at T = 0 or at T = ∞.

    Raises
    ------
    NoOptimumError
        If it is.
    """
    total = float(expected.mean())
    if not total < 0:
        raise NoOptimumError(sharp)

    def excess(beta: float) -> tuple[float, float]:
        """Log of the target's mean score over the model's, which is nearly linear in β = 1/T."""
        weight = np.exp(beta * z)  # (K, N)
        weight /= weight.sum(axis=0)
        first = weight * z
        mean = first.sum(axis=0)
        variance = float((np.einsum("kn,kn->n", first, z) - mean**2).mean())
        model = float(mean.mean())
        return log_ratio(total, model), -variance / model if model else math.inf

    return 1 / root(excess, flat=flat, sharp=sharp)


def root(rising: Callable[[float], tuple[float, float]], *, flat: str, sharp: str) -> float:
    """β > 0 at which a rising function is zero, to about 1e-13 of β.

    Newton's method from β ≈ 0; a step that leaves the bracket or does not halve the function is
    replaced by a bisection.

    Parameters
    ----------
    rising : β -> the function and its derivative.
    flat, sharp : what to say when the zero is at β = 0 or at β = ∞.

    Raises
    ------
    NoOptimumError
        If it is.
    """
    low, high = -_FAR, _FAR  # log β
    beta, last = math.exp(low), math.inf
    value, derivative = rising(beta)
    if value >= -1e-13:  # no gain that is more than rounding
        raise NoOptimumError(flat)
    while high - low > 1e-14:
        step = -value / derivative if derivative > 0 else math.inf
        if abs(step) <= 1e-13 * beta:
            return beta + step
        low, high = (math.log(beta), high) if value < 0 else (low, math.log(beta))
        inside = math.exp(low) < beta + step < math.exp(high)
        beta = beta + step if inside and abs(value) <= last / 2 else math.exp((low + high) / 2)
        last = abs(value)
        value, derivative = rising(beta)
    if high >= _FAR - 1:
        raise NoOptimumError(sharp)
    return beta


def log_ratio(a: float, b: float) -> float:
    """``log(a / b)`` of two numbers of one sign; ∞ if b is 0."""
    return math.log(a / b) if b else math.inf
