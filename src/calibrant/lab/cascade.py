"""The cascades of RCFT, bare: confidences moved by the calibration term alone.

RCFT pulls each confidence c towards g(c), an estimate of P(right | c). Where g comes from decides
what happens. Here nothing else happens: no network, no cross-entropy. A question's true log-odds
are ``x = |N(0, 1.8²)|``; its predicted option is right with probability ``r = σ(x)``, and the model
says ``c = σ(2.6 x)``, which is too much. Every step moves each c down the gradient of ½(c − g(c))²,

    c ← c − rate · (c − g(c)),

with g the E-step of the real training (`calibrant.training.targets.ConfidenceMap`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from calibrant.errors import InputError
from calibrant.metrics import conf_ece_from_confidence
from calibrant.training.targets import ConfidenceMap

# Where g comes from -> what figures and tables call it.
SOURCES = {
    "frozen": "accuracies measured once, current bin (released)",
    "frozen-bins": "accuracies and bins both measured once",
    "re-estimated": "accuracies measured at every step",
    "memorised": "the same, from labels that are being memorised",
}
_SPREAD, _SHARPNESS = 1.8, 2.6
_EVERY = 10


@dataclass(frozen=True, eq=False)
class Cascade:
    """What became of the confidences.

    Attributes
    ----------
    source : of the accuracies, one of `SOURCES`.
    steps : (M,) int64, the steps at which was measured: every tenth.
    conf_ece, mean_confidence, confidence_sd : (M,) float64; conf-ECE is on labels g never sees.
    accuracy : float, of those.
    """

    source: str
    steps: NDArray[np.int64]
    conf_ece: NDArray[np.float64]
    mean_confidence: NDArray[np.float64]
    confidence_sd: NDArray[np.float64]
    accuracy: float


@cache  # the story tells it, and draws it
def cascade(
    source: str, seed: int = 0, *, n: int = 20_000, steps: int = 400, rate: float = 0.05
) -> Cascade:
    """Move n confidences by the calibration term alone.

    Parameters
    ----------
    source : what g is made of. "frozen": accuracies of ten bins, measured before the first step; a
        question takes that of the bin it is in *now*. "frozen-bins": of the bin it was in then.
        "re-estimated": accuracies measured at every step. "memorised": at every step, from training
        labels of which ever more are known by heart, all of them at half of the steps.
    n : questions. steps, rate : of the descent.

    Raises
    ------
    InputError
        If there is no such source.

    Examples
    --------
    >>> for source in ("re-estimated", "frozen"):
    ...     found = cascade(source, n=5000, steps=200)
    ...     print([round(float(x), 2) for x in found.conf_ece[[0, 2, -1]]])
    [0.13, 0.05, 0.01]
    [0.13, 0.03, 0.22]
    """
    if source not in SOURCES:
        raise InputError(f"source {source!r}, expected one of {', '.join(SOURCES)}")
    rng = np.random.default_rng(seed)
    logit = np.abs(rng.normal(scale=_SPREAD, size=n))
    right, fresh = rng.random((2, n)) < 1 / (1 + np.exp(-logit))
    known_from = rng.random(n) * steps / 2
    c = torch.tensor(1 / (1 + np.exp(-_SHARPNESS * logit)))  # (n,) float64
    start = c.clone()
    g = ConfidenceMap(shrinkage=0.0, decay=0.0)
    measured = []
    for step in range(steps + 1):
        confidence = c.numpy()
        if step % _EVERY == 0:
            ece = conf_ece_from_confidence(confidence, fresh)
            measured.append((ece, confidence.mean(), confidence.std()))
        if source == "memorised":
            g.update(confidence, right | (known_from <= step))
        elif source == "re-estimated" or step == 0:
            g.update(confidence, right)
        target = g(start if source == "frozen-bins" else c).double()
        c = c - rate * (c - target)
    at = np.arange(0, steps + 1, _EVERY)
    return Cascade(source, at, *np.array(measured).T, accuracy=float(fresh.mean()))
