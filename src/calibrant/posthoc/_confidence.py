"""Giving the predicted option another confidence, and the others what is left."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibrant.answers import AnswerTable
from calibrant.posthoc.calibrator import Floats

_AHEAD = 1e-9  # nats by which the prediction stays above the runner-up
_LEAST_REST = 1e-6  # of the probability is left to the options that do not tie for the best


def with_confidence(answers: AnswerTable, confidence: Floats) -> Floats:
    r"""Option scores whose prediction has a given probability.

    Kept: the prediction, the order of the options, ties. The other options share what is left in
    their old ratios, as long as that leaves the prediction at least 1e-9 nats ahead of the
    runner-up. A confidence too low for that is reached by a temperature of the question's own
    instead: scores ``β z``, 0 < β < 1, so all ratios come nearer to 1. Where no such scores have
    the confidence, they have the nearest that some have:

    * just above 1/K for one at or below 1/K: options within 2e-9 nats, the prediction 1e-9 ahead
      (K counts the options whose probability is not 0, except as below);
    * ``(1 − 1e-6) / m`` at most, where m options tie for the best and all get it.

    Where all other options have probability 0, ratios are unknown and they share alike.

    Parameters
    ----------
    confidence : (N,) float64 in (0, 1).

    Returns
    -------
    (N, K) float64, log-probabilities up to a constant of each row.
    """
    z = answers.logprobs - answers.logprobs.max(axis=1, keepdims=True)  # (N, K) ≤ 0
    best: NDArray[np.bool_] = z == 0
    other = np.where(best, -np.inf, z)
    # All of it on the best options: nothing tells the others apart.
    real = np.arange(z.shape[1]) < answers.n_options[:, None]
    other[np.isneginf(other).all(axis=1, keepdims=True) & real & ~best] = -1.0
    tied = best.sum(axis=1)
    mass = np.minimum(tied * confidence, 1 - _LEAST_REST)
    second = other.max(axis=1)  # -inf where all options tie
    scores = other - np.where(np.isfinite(second), second, 0.0)[:, None]
    scores += (np.log(1 - mass) - np.maximum(_log_sum(scores), 0.0))[:, None]
    top = np.log(mass / tied)
    low = top < scores.max(axis=1) + _AHEAD  # the runner-up would be level, or win
    beta = sharpness(np.where(best, 0.0, -other)[low], np.exp(top[low]))
    scores[low] = beta[:, None] * other[low]
    top[low] = np.maximum(0.0, scores[low].max(axis=1) + _AHEAD)
    return np.where(best, top[:, None], scores)


def sharpness(gap: Floats, top: Floats) -> Floats:
    r"""β of each row at which the best option of ``softmax(−β · gap)`` has a given probability.

    ``Σ_k exp(−β gap_k) = 1 / top``. The sum falls from the number of finite gaps at β = 0 to m,
    the options that tie for the best, as β grows. Bisection on log β, to 1e-15 of β however far
    apart the gaps are; between the β at which the widest finite gap is 1e-9 and the one at which
    the narrowest is 64, which are given for what lies beyond.

    Parameters
    ----------
    gap : (N, K) float64, score of the best option less each option's: 0 for the best, ``inf`` for
        those of probability 0.
    top : (N,) float64, above 0.

    Returns
    -------
    (N,) float64, above 0; of no meaning where all finite gaps are 0.
    """
    other = np.isfinite(gap) & (gap > 0)
    widest = np.where(other, gap, 0.0).max(axis=1).clip(1e-300, 1e300)
    narrowest = np.where(other, gap, np.inf).min(axis=1).clip(1e-300, 1e300)
    low, high = np.log(_AHEAD) - np.log(widest), np.log(64) - np.log(narrowest)
    for _ in range(60):
        middle = (low + high) / 2
        too_flat = np.exp(-np.exp(middle)[:, None] * gap).sum(axis=1) > 1 / top
        low, high = np.where(too_flat, middle, low), np.where(too_flat, high, middle)
    beta: Floats = np.exp(high)
    return beta


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
