"""Expectation consistency: the temperature at which mean confidence equals accuracy."""

from __future__ import annotations

from typing import Self

import numpy as np

from calibrant.answers import AnswerTable
from calibrant.posthoc.calibrator import NoOptimumError
from calibrant.posthoc.temperature import Temperature, log_ratio, root, scores_below_top


class ExpectationConsistency(Temperature):
    r"""Divide every option score by the T > 0 at which mean confidence equals accuracy.

    ``mean_i max_k softmax(z_i / T)_k = accuracy`` on the fitting questions. Mean confidence falls
    from 1 to the mean of 1/K as T rises, so there is exactly one such T when the accuracy lies
    between them. Uses only how many answers are right, so it needs fewer labels than likelihood,
    and says less. Accuracy and the order of options never change.

    Attributes
    ----------
    temperature : float, T; > 1 softens.
    n_questions : int, questions it was fitted on.

    References
    ----------
    Clarté et al., "Expectation consistency for calibration of neural networks", UAI 2023.

    Examples
    --------
    >>> table = AnswerTable.from_probs([[0.9, 0.1]] * 4, [0, 0, 0, 1])
    >>> scaling = ExpectationConsistency().fit(table)
    >>> round(scaling.temperature, 6), scaling.transform(table).confidence.round(6).tolist()
    (2.0, [0.75, 0.75, 0.75, 0.75])
    """

    kind = "expectation-consistency"

    def fit(self, answers: AnswerTable, reference: AnswerTable | None = None) -> Self:
        """Fit T on labelled answers.

        Parameters
        ----------
        reference : ignored; here so that every calibrator is called alike.

        Raises
        ------
        NoOptimumError
            If accuracy is not above the mean of 1/K, or not below the greatest mean confidence
            any T gives: 1, or less where options tie for the best.
        InputError
            If the table holds several permutations of one question.
        """
        answers.refuse_permutations()
        z = scores_below_top(answers)  # (K, N)
        n, accuracy = len(answers), float(answers.correct.mean())
        greatest = float((1 / (z == 0).sum(axis=0)).mean())
        not_sharper = (
            f"{self.kind}: accuracy on these {n} questions is {accuracy:.4g} and mean confidence "
            f"reaches at most {greatest:.4g} (T → 0); expected a lower accuracy"
        )
        if accuracy >= greatest:
            raise NoOptimumError(not_sharper)

        def excess(beta: float) -> tuple[float, float]:
            """Log of the lacking accuracy over the lacking confidence, rising in β = 1/T."""
            weight = np.exp(beta * z)  # (K, N)
            total = weight.sum(axis=0)
            lacking = float((1 - 1 / total).mean()) - (1 - greatest)
            slope = -float((np.einsum("kn,kn->n", weight, z) / total**2).mean())
            return log_ratio(greatest - accuracy, lacking), slope / lacking if lacking else np.inf

        beta = root(
            excess,
            flat=f"{self.kind}: accuracy on these {n} questions is {accuracy:.4g}, not above "
            "chance (the mean of 1/K), where mean confidence ends as T → ∞; expected a higher one",
            sharp=not_sharper,
        )
        self.temperature, self.n_questions = 1 / beta, n
        return self
