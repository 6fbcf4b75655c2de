"""The temperature that brings scores nearest to target probabilities, and how sure it is."""

from __future__ import annotations

import math

import numpy as np

from calibrant.metrics._input import Floats


def nearest_temperature(z: Floats, target: Floats) -> float:
    r"""T > 0 that minimises the mean of KL(target ‖ softmax(z / T)) over questions.

    Convex in β = 1/T, with derivative E_p[z] − E_target[z]; found by Brent's method in log β.

    Parameters
    ----------
    z, target : (N, K), log-probabilities and probabilities; z finite wherever the target is not 0.

    Returns
    -------
    T; infinity or 0 where the divergence falls without end as T rises or falls.
    """
    from scipy.optimize import brentq

    def slope(log_beta: float) -> float:
        return float(newton_terms(z, target, math.exp(log_beta))[0].mean())

    low, high = -20.0, 20.0
    if slope(low) >= 0:
        return math.inf
    if slope(high) <= 0:
        return 0.0
    return math.exp(-float(brentq(slope, low, high, xtol=1e-12)))


def newton_terms(z: Floats, target: Floats, beta: float) -> tuple[Floats, Floats]:
    """Each question's derivative of the divergence in β, and the second one, (N,) both.

    For a resample with weights w the optimum is one Newton step away: log β − Σwg / (β Σwh).
    """
    z = z - z.max(axis=1, keepdims=True)
    weight = np.exp(beta * z)
    p = weight / weight.sum(axis=1, keepdims=True)
    held = np.where(np.isfinite(z), z, 0.0)
    mean = (p * held).sum(axis=1)
    spread = (p * held**2).sum(axis=1) - mean**2
    return mean - (target * held).sum(axis=1), np.maximum(spread, 0.0)
