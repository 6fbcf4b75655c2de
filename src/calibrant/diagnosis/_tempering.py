"""How a fitted temperature moves with the questions it was fitted on."""

from __future__ import annotations

import numpy as np

from calibrant.metrics._input import Floats


def newton_terms(z: Floats, target: Floats, temperature: float) -> tuple[Floats, Floats]:
    """Each question's first and second derivative of KL(target ‖ softmax(β z)) at β = 1/T.

    For a resample with weights w the optimum is one Newton step away: T · exp(T Σwg / Σwh).

    Parameters
    ----------
    z, target : (N, K), log-probabilities and probabilities; z finite wherever the target is not 0.

    Returns
    -------
    g, h : (N,) float64, the mean of z under the model less that under the target; its variance.
    """
    z = z - z.max(axis=1, keepdims=True)
    weight = np.exp(z / temperature)
    p = weight / weight.sum(axis=1, keepdims=True)
    held = np.where(np.isfinite(z), z, 0.0)
    mean = (p * held).sum(axis=1)
    spread = (p * held**2).sum(axis=1) - mean**2
    return mean - (target * held).sum(axis=1), np.maximum(spread, 0.0)
