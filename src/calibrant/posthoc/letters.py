"""Letter-prior debiasing: take out what the model thinks of a letter whatever stands there."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.permutations import debias, letter_prior
from calibrant.posthoc.calibrator import Calibrator, Fields, Floats


class PriDe(Calibrator):
    r"""Divide every option's probability by the prior of the letter it stood at.

    ``p̃_k ∝ p_k / P(letter of k)``, P estimated from permuted options (`letter_prior`), one for each
    number of options; no labels are used. It takes back a preference for letters, not
    over-confidence: fit a temperature to its result for that. Predictions may change.

    Attributes
    ----------
    prior : K -> (K,) float64, sum 1: the prior of the first K letters.
    n_questions : int, questions it was fitted on, each in several orders.

    References
    ----------
    Zheng et al., "Large Language Models Are Not Robust Multiple Choice Selectors", ICLR 2024,
    arXiv 2309.03882.

    Examples
    --------
    An option that is right by content at .8, and a letter A that is 3 times as likely as B:

    >>> from dataclasses import replace
    >>> table = AnswerTable.from_probs([[2.4 / 2.6, 0.2 / 2.6], [0.8 / 1.4, 0.6 / 1.4]], [0, 0],
    ...                                ids=["q#0", "q#1"])
    >>> scaling = PriDe().fit(replace(table, orders=[[0, 1], [1, 0]]))
    >>> other = AnswerTable.from_probs([[0.5, 0.5]], [1])
    >>> scaling.transform(other).probs().round(4).tolist()
    [[0.25, 0.75]]
    """

    kind = "pride"

    def __init__(self) -> None:
        super().__init__()
        self.prior: dict[int, Floats] = {}

    def fit(self, answers: AnswerTable, reference: AnswerTable | None = None) -> Self:
        """Estimate the prior on questions asked in cyclic or all orders of their options.

        Parameters
        ----------
        reference : ignored; here so that every calibrator is called alike.

        Raises
        ------
        InputError
            If options do not stand at every letter equally often, or one has probability 0.
        """
        self.prior = letter_prior(answers)
        self.n_questions = len(set(answers.questions))
        return self

    def _scores(self, answers: AnswerTable) -> Floats:
        return debias(answers, self.prior).logprobs

    def _parameters(self) -> dict[str, Any]:
        return {"prior": {str(k): prior.tolist() for k, prior in self.prior.items()}}

    def _read(self, fields: Fields) -> None:
        priors = fields.mapping("prior")
        for name in priors.content:
            k = int(name) if name.isdecimal() and len(name) < 9 else 0
            self.prior[k] = priors.array(name, k)
            if k < 2 or not (self.prior[k] > 0).all() or not np.isclose(self.prior[k].sum(), 1):
                raise InputError(
                    f"{fields.path}: prior of {name} options, expected as many positive numbers "
                    "that sum to 1"
                )
