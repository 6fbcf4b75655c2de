"""Giving the predicted option another confidence, and the others what is left."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibrant.answers import AnswerTable
from calibrant.posthoc.calibrator import Floats

_AHEAD = 1e-9  # nats by which the prediction stays above the runner-up
_LEAST_REST = 1e-6  # of the probability is left to the options that do not tie for the best


def with_confidence(answers: AnswerTable, confidence: Floats) -> Floats:
    r"""Option scores whose prediction has a given probability, the others in unchanged ratios.

    Kept exactly: the ratios among the options below the best, ties, and the prediction. Two wishes
    can conflict with that, and give way:

    * a confidence below what the runner-up would then get: the prediction stays ahead by 1e-9
      nats, so its probability is ``p₂ / (1 − c + p₂)`` (c, p₂: its own and the runner-up's before);
    * m options that tie for the best all get it, so at most ``(1 − 1e-6) / m`` each.

    Where all other options have probability 0, ratios are unknown and they share alike.

    Parameters
    ----------
    confidence : (N,) float64 in (0, 1).

    Returns
    -------
    (N, K) float64, log-probabilities up to a constant of each row.
    """
    logp = log_probs(answers)
    real = np.arange(logp.shape[1]) < answers.n_options[:, None]
    best: NDArray[np.bool_] = np.equal(logp, logp.max(axis=1, keepdims=True))
    other = np.where(best, -np.inf, logp)
    # All of it on the best options: nothing tells the others apart.
    unknown = np.isneginf(other).all(axis=1, keepdims=True) & real & ~best
    other[unknown] = 0.0
    mass = np.minimum(best.sum(axis=1) * confidence, 1 - _LEAST_REST)
    with np.errstate(divide="ignore", invalid="ignore"):  # rows where all options tie
        rest = np.log(1 - mass) - _log_sum(other)
        scores = other + np.where(np.isfinite(rest), rest, 0.0)[:, None]
    top = np.log(mass / best.sum(axis=1))
    top = np.maximum(top, scores.max(axis=1) + _AHEAD)
    return np.where(best, top[:, None], scores)


def log_probs(answers: AnswerTable) -> Floats:
    """Log-probabilities of the options, (N, K), rows normalised."""
    scores = answers.logprobs
    return scores - _log_sum(scores)[:, None]


def log_odds(answers: AnswerTable) -> Floats:
    """``log(c / (1 − c))`` of the confidence c, (N,), clipped where 1 − c < 1e-12."""
    logp = log_probs(answers)
    rows, first = np.arange(len(logp)), answers.predictions
    top = logp[rows, first].copy()
    logp[rows, first] = -np.inf
    with np.errstate(divide="ignore"):
        return np.asarray(np.clip(top - _log_sum(logp), None, np.log(1e12)))


def _log_sum(scores: Floats) -> Floats:
    """Log of the sum of exponentials of each row, -inf for a row of -inf."""
    top = scores.max(axis=1)
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        total: Floats = np.log(np.exp(scores - shift[:, None]).sum(axis=1)) + shift
    return total
