"""Temperatures that bring a model back to a reference, the model before alignment: no labels."""

from __future__ import annotations

from typing import Self

import numpy as np

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.posthoc.temperature import Temperature, least_cross_entropy, scores_below_top


class BaseKL(Temperature):
    r"""Divide every option score by the T > 0 that brings the answers nearest to a reference's.

    ``T = argmin_T mean_i KL(p_ref,i ‖ softmax(z_i / T))`` over the questions both tables hold;
    convex in 1/T. No label is used: the reference, usually the model before alignment, stands in
    for them. Where it differs in more than sharpness, T carries that difference, too. Accuracy and
    the order of options never change.

    Attributes
    ----------
    temperature : float, T; > 1 softens.
    n_questions : int, questions it was fitted on.

    References
    ----------
    He et al., "Investigating Uncertainty Calibration of Aligned Language Models under the
    Multiple-Choice Setting", 2023, arXiv 2310.11732.

    Examples
    --------
    >>> aligned = AnswerTable.from_probs([[0.9, 0.1], [0.1, 0.9]], [0, 0])
    >>> base = AnswerTable.from_probs([[0.75, 0.25], [0.25, 0.75]], [0, 0])
    >>> round(BaseKL().fit(aligned, base).temperature, 6)  # log 9 / log 3
    2.0
    """

    kind = "base-kl"

    def fit(self, answers: AnswerTable, reference: AnswerTable | None = None) -> Self:
        """Fit T on the questions that both tables hold; labels are not used.

        Parameters
        ----------
        reference : answers of the reference model. Required.

        Raises
        ------
        NoOptimumError
            If the reference is surer than any T (T → 0), or on average opposes the scores (T → ∞).
        InputError
            If there is no reference, the tables share no question or hold several permutations of
            one, or an option has probability 0 here and not in the reference.
        """
        if reference is None:
            raise InputError(
                f"{self.kind}: fit without a reference; expected the answers of the base model"
            )
        answers.refuse_permutations()
        reference.refuse_permutations()
        answers, reference = self._compared(*answers.align(reference))
        z, q = scores_below_top(answers), reference.probs().T  # (K, N)
        impossible = (np.isneginf(answers.logprobs.T) & (q > 0)).any(axis=0)
        if impossible.any():
            row = int(np.flatnonzero(impossible)[0])
            raise InputError(
                f"{self.kind}: question {answers.ids[row]!r}: an option has probability 0 but not "
                "in the reference, expected a positive one"
            )
        n = len(answers)
        self.temperature = least_cross_entropy(
            z,
            np.einsum("kn,kn->n", q, z),
            sharp=f"{self.kind}: on these {n} questions the reference puts all its probability on "
            "the options that score best here; expected one that is less sure",
            flat=f"{self.kind}: on these {n} questions the reference prefers the options that "
            "score low here, so no temperature is better than uniform probabilities; expected a "
            "reference that agrees more often than not",
        )
        self.n_questions = n
        return self

    def _compared(
        self, answers: AnswerTable, reference: AnswerTable
    ) -> tuple[AnswerTable, AnswerTable]:
        return answers, reference


class DACA(BaseKL):
    r"""Base-KL temperature on the questions where both models predict the same option.

    ``T = argmin_T mean_{i: ŷ_i = ŷ_ref,i} KL(p_ref,i ‖ softmax(z_i / T))`` (disagreement-aware
    confidence alignment). Where the two disagree, the reference's confidence says little about how
    often the aligned model is right, and pulls T up. No label is used; accuracy and the order of
    options never change.

    Attributes
    ----------
    temperature : float, T; > 1 softens.
    n_questions : int, questions of agreement it was fitted on.

    References
    ----------
    Luo et al., "Your Pre-trained LLM is Secretly an Unsupervised Confidence Calibrator", 2025,
    arXiv 2505.16690.

    Examples
    --------
    >>> aligned = AnswerTable.from_probs([[0.9, 0.1], [0.9, 0.1]], [0, 0])
    >>> base = AnswerTable.from_probs([[0.75, 0.25], [0.4, 0.6]], [0, 0])
    >>> scaling = DACA().fit(aligned, base)
    >>> round(scaling.temperature, 6), scaling.n_questions
    (2.0, 1)
    """

    kind = "daca"

    def _compared(
        self, answers: AnswerTable, reference: AnswerTable
    ) -> tuple[AnswerTable, AnswerTable]:
        agree = answers.predictions == reference.predictions
        if not agree.any():
            raise InputError(
                f"{self.kind}: the two models predict the same option for none of {len(agree)} "
                "questions; expected at least one"
            )
        return answers.select(agree), reference.select(agree)
