"""Vector and Dirichlet scaling: a linear map of log-probabilities, weights for each letter."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.posthoc._confidence import log_probs
from calibrant.posthoc._optimum import minimum
from calibrant.posthoc.calibrator import Calibrator, Fields, Floats

_MOST_OPTIONS = 1000  # a small file could ask for a matrix of any size


class _LinearScaling(Calibrator):
    diagonal: ClassVar[bool]  # whether W is

    def __init__(self, l2: float = 1.0) -> None:
        super().__init__()
        if not 0 <= l2 < np.inf:
            raise InputError(f"{self.kind}: l2 {l2}, expected a number from 0 up")
        self.l2 = l2
        self.weight: Floats = np.empty((0, 0))
        self.bias: Floats = np.empty(0)

    def fit(self, answers: AnswerTable, reference: AnswerTable | None = None) -> Self:
        """Fit W and b on labelled answers.

        Parameters
        ----------
        reference : ignored; here so that every calibrator is called alike.

        Raises
        ------
        NoOptimumError
            If some weights explain every label, so that larger ones always explain them better,
            or the scores are the same for all questions.
        InputError
            If the number of options varies, an option has probability 0, or options were shown in
            several orders.
        """
        k = int(answers.n_options[0])
        logp = self._features(answers, k)
        center, spread = float(logp.mean()), float(logp.std()) or 1.0
        off_diagonal = ~np.eye(k, k + 1, dtype=bool)  # of [W b]
        free = np.ones((k, k + 1), dtype=bool)
        if self.diagonal:
            free[:, :k] = np.eye(k, dtype=bool)
        x = np.column_stack(((logp - center) / spread, np.ones(len(logp))))  # (N, K + 1)
        found = minimum(
            _penalised_nll(x, answers.labels, free, self.l2 * off_diagonal),
            np.eye(k, k + 1)[free] * spread,
            none=f"{self.kind}: on these {len(logp)} questions the likelihood grows without end "
            "with the weights, or does not depend on them; expected more questions, wrong answers "
            "among them, and scores that differ",
        )
        whole = np.zeros((k, k + 1))
        whole[free] = found
        self.weight = whole[:, :k] / spread
        self.bias = whole[:, k] - self.weight.sum(axis=1) * center
        self.n_questions = len(logp)
        return self

    def _features(self, answers: AnswerTable, k: int) -> Floats:
        """Log-probabilities, (N, K), if every question has K options of positive probability."""
        if answers.orders is not None:
            raise InputError(
                f"{self.kind}: the options were shown in several orders, expected one row per "
                "question in its own order: each letter has its own weights"
            )
        where = f"{self.kind}: question "
        if (answers.n_options != k).any():
            row = int(np.flatnonzero(answers.n_options != k)[0])
            raise InputError(
                f"{where}{answers.ids[row]!r} has {answers.n_options[row]} options, expected {k} "
                "for every question: each letter has its own weights"
            )
        logp = log_probs(answers)
        if np.isneginf(logp).any():
            row = int(np.flatnonzero(np.isneginf(logp).any(axis=1))[0])
            raise InputError(
                f"{where}{answers.ids[row]!r}: an option has probability 0, expected positive ones"
            )
        return logp

    def _scores(self, answers: AnswerTable) -> Floats:
        logp = self._features(answers, len(self.bias))
        scores: Floats = logp @ self.weight.T + self.bias
        return scores

    def _parameters(self) -> dict[str, Any]:
        weight = np.diag(self.weight) if self.diagonal else self.weight
        return {"l2": self.l2, "weight": weight.tolist(), "bias": self.bias.tolist()}

    def _read(self, fields: Fields) -> None:
        self.l2 = fields.number("l2")
        self.bias = fields.array("bias", -1)
        k = len(self.bias)
        if not 2 <= k <= _MOST_OPTIONS:
            raise InputError(f"{fields.path}: bias of {k} options, expected 2 to {_MOST_OPTIONS:,}")
        if self.diagonal:
            self.weight = np.diag(fields.array("weight", k))
        else:
            self.weight = fields.array("weight", k, k)


class VectorScaling(_LinearScaling):
    r"""Give each letter its own slope and offset: ``softmax(w ⊙ ln p + b)``.

    ``min_{w,b} Σ_i −log softmax(w ⊙ ln p_i + b)[y_i] + (l2 / 2) Σ_k b_k²``, convex, solved to
    machine precision. ln p is normalised, as the scores of a table are free up to a constant a
    question. The penalty holds for log-probabilities less their mean, over their standard
    deviation (one mean and one deviation for all letters), so it means the same for a sure and
    an unsure model. Predictions may change; the letters are told apart by position, and every
    question must have the same number of options.

    Parameters
    ----------
    l2 : penalty in nats, from 0 up.

    Attributes
    ----------
    weight : (K, K) float64, diagonal: w.
    bias : (K,) float64, b for plain log-probabilities.
    n_questions : int, questions it was fitted on.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, §4.2.

    Examples
    --------
    >>> labels = [0] * 7 + [1] * 3 + [0] * 4 + [1] * 6
    >>> table = AnswerTable.from_probs([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10, labels)
    >>> VectorScaling().fit(table).transform(table).probs()[[0, 10]].round(3).tolist()
    [[0.7, 0.3], [0.4, 0.6]]
    """

    kind = "vector"
    diagonal = True


class DirichletScaling(_LinearScaling):
    r"""Map log-probabilities by a full matrix: ``softmax(W ln p + b)``.

    ``min_{W,b} Σ_i −log softmax(W ln p_i + b)[y_i] + (l2 / 2) (Σ_{j≠k} W_jk² + Σ_k b_k²)``: the
    off-diagonal and intercept regularisation (ODIR) of the reference with one weight for both.
    Standardisation, convexity and what may change are as in `VectorScaling`; K² + K numbers, so
    with few labels it over-fits first.

    Parameters
    ----------
    l2 : penalty in nats, from 0 up.

    Attributes
    ----------
    weight : (K, K) float64, W.
    bias : (K,) float64, b for plain log-probabilities.
    n_questions : int, questions it was fitted on.

    References
    ----------
    Kull et al., "Beyond temperature scaling: Obtaining well-calibrated multi-class probabilities
    with Dirichlet calibration", NeurIPS 2019.

    Examples
    --------
    >>> labels = [0] * 7 + [1] * 3 + [0] * 4 + [1] * 6
    >>> table = AnswerTable.from_probs([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10, labels)
    >>> DirichletScaling().fit(table).transform(table).probs()[[0, 10]].round(3).tolist()
    [[0.7, 0.3], [0.4, 0.6]]
    """

    kind = "dirichlet"
    diagonal = False


def _penalised_nll(
    x: Floats, labels: NDArray[np.int64], free: NDArray[np.bool_], penalty: Floats
) -> Any:
    """NLL and penalty, per question, with derivatives, as a function of the free entries of [W b].

    A constant added to b, or to a column of W, changes no probability. The penalty is least where
    what it counts in each column sums to 0; adding the square of that sum therefore moves no
    optimum, and leaves a single one without a penalty, too.
    """
    n, k = len(x), len(free)
    hit = np.zeros((n, k))
    hit[np.arange(n), labels] = 1.0
    which = np.flatnonzero(free)
    counted = free & ~np.eye(k, k + 1, dtype=bool)
    sums = np.stack([np.where(np.arange(k + 1) == j, counted, False)[free] for j in range(k + 1)])
    sums = sums.astype(np.float64)  # (K + 1, P): rows times the free entries are those sums

    def at(entries: Floats) -> tuple[float, Floats, Floats]:
        theta = np.zeros(free.shape)
        theta[free] = entries
        s = x @ theta.T  # (N, K)
        s -= s.max(axis=1, keepdims=True)
        p = np.exp(s)
        total = p.sum(axis=1, keepdims=True)
        p /= total
        nll = (np.log(total[:, 0]) - (hit * s).sum(axis=1)).sum()
        value = (nll + (penalty * theta**2).sum() / 2) / n + np.square(sums @ entries).sum() / 2
        gradient = ((p - hit).T @ x + penalty * theta)[free] / n + sums.T @ (sums @ entries)
        hessian = np.empty((*free.shape, *free.shape))
        for a in range(k):
            for b in range(a, k):
                block = (x * (p[:, a] * ((a == b) - p[:, b]))[:, None]).T @ x
                hessian[a, :, b, :] = hessian[b, :, a, :] = block
        flat = hessian.reshape(free.size, free.size)[np.ix_(which, which)]
        return float(value), gradient, (flat + np.diag(penalty[free])) / n + sums.T @ sums

    return at
