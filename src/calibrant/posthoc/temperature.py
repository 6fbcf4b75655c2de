"""Temperature scaling: one number, fitted exactly."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.files import write_text


class NoOptimumError(InputError):
    """The likelihood has no maximum at a finite positive temperature."""


class TemperatureScaling:
    r"""Divide every option score by one temperature T > 0, fitted by maximum likelihood.

    ``T = argmin_T mean_i −log softmax(z_i / T)[y_i]``. In β = 1/T this is convex, so the optimum
    is the root of ``mean_i (E_p[z_i] − z_i[y_i])``, found by Brent's method in log β, float64.
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

    def __init__(self) -> None:
        self.temperature = math.nan
        self.n_questions = 0

    def fit(self, answers: AnswerTable) -> TemperatureScaling:
        """Fit T on labelled answers.

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
        z = answers.logprobs - answers.logprobs.max(axis=1, keepdims=True)  # (N, K) ≤ 0
        at_label = z[np.arange(len(z)), answers.labels]
        if np.isneginf(at_label).any():
            row = int(np.flatnonzero(np.isneginf(at_label))[0])
            raise InputError(
                f"temperature scaling: question {answers.ids[row]!r}: the right answer has "
                "probability 0, expected a positive one"
            )
        option = np.isfinite(z)
        z = np.where(option, z, 0.0)

        def slope(log_beta: float) -> float:
            """Derivative of the mean NLL with respect to β."""
            weight: NDArray[np.float64] = np.where(option, np.exp(math.exp(log_beta) * z), 0.0)
            expected = (weight * z).sum(axis=1) / weight.sum(axis=1)
            return float((expected - at_label).mean())

        if not (at_label < 0).any():
            raise NoOptimumError(
                f"temperature scaling: all {len(z)} questions are answered right, so the "
                "likelihood grows without end as T falls to 0; expected at least one wrong answer"
            )
        flat = float((z.sum(axis=1) / option.sum(axis=1) - at_label).mean())
        if flat >= 0:
            raise NoOptimumError(
                f"temperature scaling: on these {len(z)} questions right answers score no higher "
                "than wrong ones, so the likelihood grows without end as T rises (uniform "
                "probabilities fit best); expected scores that carry some information"
            )
        self.temperature = math.exp(-_root(slope))
        self.n_questions = len(z)
        return self

    def transform(self, answers: AnswerTable) -> AnswerTable:
        """Return the table with scores divided by T.

        Raises
        ------
        InputError
            If `fit` has not been called.
        """
        if not self.n_questions:
            raise InputError("temperature scaling: transform before fit; call fit(answers) first")
        return answers.with_logprobs(
            answers.logprobs / self.temperature, temperature=self.temperature
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able content of the calibrator."""
        return {
            "kind": "temperature",
            "temperature": self.temperature,
            "n_questions": self.n_questions,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``calibrator.json``, complete or not at all."""
        write_text(path, json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TemperatureScaling:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            If the file is not a temperature calibrator, or T is not a positive number.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as JSON: {error}") from error
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind != "temperature":
            raise InputError(f"{path}: kind {kind!r}, expected 'temperature'")
        temperature, n = content.get("temperature"), content.get("n_questions")
        if not isinstance(temperature, float | int) or not 0 < temperature < math.inf:
            raise InputError(f"{path}: temperature {temperature!r}, expected a positive number")
        if not isinstance(n, int) or n < 1:
            raise InputError(f"{path}: n_questions {n!r}, expected a positive whole number")
        scaling = cls()
        scaling.temperature, scaling.n_questions = float(temperature), n
        return scaling


def _root(slope: Any) -> float:
    """Log β at which the slope, which rises from < 0 to > 0, is zero."""
    from scipy.optimize import brentq

    low, high = -1.0, 1.0
    while slope(low) > 0:
        low *= 2
    while slope(high) < 0:
        high *= 2
        if high > 512:  # β beyond e^512: nothing left but the wrong answers' rounding
            raise NoOptimumError("temperature scaling: no optimum at any T > 0")
    root: float = brentq(slope, low, high, xtol=1e-13, rtol=1e-14)
    return root
