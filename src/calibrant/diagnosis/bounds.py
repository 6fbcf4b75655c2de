"""`bounds`: what the theory says of a model when the true option probabilities are known.

In the laboratory the target distribution p* is known, so every statement of the theory can be
tested on every checkpoint. `docs/diagnosis.md` states the theorems.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from calibrant.errors import InputError
from calibrant.metrics._input import Floats, Ints, read_rows, top_of_rows, whole_numbers
from calibrant.metrics.binned import bin_index, conf_ece_from_confidence


@dataclass(frozen=True)
class Bounds:
    r"""Calibration against a known target p*, and the bounds it must obey.

    With prediction ŷ, confidence c and r = p*_ŷ of each of N questions; E is the mean over them.

    Attributes
    ----------
    n : int.
    accuracy : A, share of right answers. expected_accuracy : E r.
    critical_accuracy : ACC* = E max_k p*_k. mean_confidence : E c.
    conf_ece, lower_bound : ECE of the labels, and what it cannot be below: |A − E c|.
    tce : target calibration error E|c − r|.
    excess_accuracy : A − ACC*, which is at most conf_ece + tce (T2). Above 0 the model is out of
        the calibratable regime on these questions: if its confidence follows the target, its ECE
        is at least this.
    target_conf_ece, target_cw_ece : ECE with the target in place of the labels.
    max_distance, l1_distance : E‖p̂ − p*‖_∞ and E‖p̂ − p*‖₁.
    cw_bound : Σ‖p̂ − p*‖₁ / ΣK, at least target_cw_ece (T1).
    ece_ceiling : E max(r − 1/K, 1 − r), the largest ECE with these predictions (T3).
    z, p_value : Z = Σ(correct − r)/√Σ r(1 − r) and its one-sided p-value (T4): small means more
        right answers than the target allows, that is memorised or leaked questions.
    matching_temperature : T at which mean confidence is A (T6), NaN if there is none.
    """

    n: int
    accuracy: float
    expected_accuracy: float
    critical_accuracy: float
    mean_confidence: float
    conf_ece: float
    lower_bound: float
    tce: float
    excess_accuracy: float
    target_conf_ece: float
    target_cw_ece: float
    max_distance: float
    l1_distance: float
    cw_bound: float
    ece_ceiling: float
    z: float
    p_value: float
    matching_temperature: float

    def violations(self) -> dict[str, float]:
        """By how much each inequality fails, by its name; empty if the theory holds.

        T1, T2 and T3 hold exactly on any sample. T4 is a matter of chance (see ``z``) and is not
        judged here.
        """
        claims = {
            "T1: ECE <= TCE": (self.target_conf_ece, self.tce),
            "T1: TCE <= E max-norm": (self.tce, self.max_distance),
            "T1: cw-ECE <= L1 / K": (self.target_cw_ece, self.cw_bound),
            "T1: ACC <= ACC*": (self.expected_accuracy, self.critical_accuracy),
            "T1: ACC* - ACC <= E L1-norm": (
                self.critical_accuracy - self.expected_accuracy,
                self.l1_distance,
            ),
            "T2: A - ACC* <= ECE + TCE": (self.excess_accuracy, self.conf_ece + self.tce),
            "T2: |A - mean confidence| <= ECE": (self.lower_bound, self.conf_ece),
            "T3: ECE <= its ceiling": (self.target_conf_ece, self.ece_ceiling),
        }
        return {name: a - b for name, (a, b) in claims.items() if a > b + 1e-9}

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers, ready for JSON; None where undefined."""
        return {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Bounds:
        """Read what `to_dict` gave; undefined numbers come back as NaN."""
        known: dict[str, Any] = {k: math.nan if v is None else v for k, v in values.items()}
        return cls(**known)


def bounds(
    probs: ArrayLike,
    labels: ArrayLike,
    target_probs: ArrayLike,
    *,
    n_options: ArrayLike | None = None,
    n_bins: int = 10,
) -> Bounds:
    r"""Measure a model against the true option probabilities (T1 to T4 and T6).

    Parameters
    ----------
    probs, target_probs : (N, K) floats, rows sum to 1: the model's p̂ and the true p*.
    labels : (N,) integers. n_options : (N,) integers or None, K of each question.
    n_bins : B >= 1, equal-width bins of every ECE.

    Returns
    -------
    Bounds

    Raises
    ------
    InputError
        As `calibrant.metrics.bin_table`, for either array, or if their shapes differ.

    References
    ----------
    `docs/diagnosis.md`; Xiao et al. 2025 (arXiv 2505.01997) for the critical accuracy.

    Examples
    --------
    Two coins of p* = (.6, .4), answered with confidence .9 where the target is .6; both right:

    >>> b = bounds([[0.9, 0.1]] * 2, [0, 0], [[0.6, 0.4]] * 2)
    >>> round(b.critical_accuracy, 4), round(b.tce, 4), round(b.target_conf_ece, 4)
    (0.6, 0.3, 0.3)
    >>> round(b.excess_accuracy, 4), round(b.conf_ece, 4)  # .4 <= .1 + .3
    (0.4, 0.1)
    >>> b.violations()
    {}
    """
    rows = read_rows(probs, labels, n_options)
    target = read_rows(target_probs, labels, n_options)
    if target.probs.shape != rows.probs.shape:
        raise InputError(
            f"target_probs has shape {target.probs.shape} and probs {rows.probs.shape}, expected "
            "the same"
        )
    confidence, correct = top_of_rows(rows)
    ceiling, _ = top_of_rows(target)
    p, q = rows.probs.astype(np.float64), target.probs.astype(np.float64)
    n, width = p.shape
    options = np.full(n, width) if n_options is None else whole_numbers(n_options, "n_options", n)
    r = q[np.arange(n), p.argmax(axis=1)]
    distance = np.abs(p - q)
    accuracy, mean_confidence = float(correct.mean()), float(confidence.mean())
    critical = float(ceiling.mean())
    z = _z_score(correct - r, r)
    return Bounds(
        n=n,
        accuracy=accuracy,
        expected_accuracy=float(r.mean()),
        critical_accuracy=critical,
        mean_confidence=mean_confidence,
        conf_ece=conf_ece_from_confidence(confidence, correct, n_bins=n_bins),
        lower_bound=abs(accuracy - mean_confidence),
        tce=float(np.abs(confidence - r).mean()),
        excess_accuracy=accuracy - critical,
        target_conf_ece=_l1(bin_index(confidence, n_bins), r - confidence, n_bins) / n,
        target_cw_ece=_classwise(p, q, options, n_bins),
        max_distance=float(distance.max(axis=1).mean()),
        l1_distance=float(distance.sum(axis=1).mean()),
        cw_bound=float(distance.sum() / options.sum()),
        ece_ceiling=float(np.maximum(r - 1 / options, 1 - r).mean()),
        z=z,
        p_value=math.erfc(z / math.sqrt(2)) / 2,
        matching_temperature=_matching_temperature(p, options, accuracy),
    )


def _z_score(excess: Floats, r: Floats) -> float:
    spread = math.sqrt(float((r * (1 - r)).sum()))
    total = float(excess.sum())
    if spread > 0:
        return total / spread
    return 0.0 if abs(total) < 1e-9 else math.copysign(math.inf, total)


def _l1(index: Ints, residual: Floats, size: int) -> float:
    return float(np.abs(np.bincount(index, weights=residual, minlength=size)).sum())


def _classwise(p: Floats, q: Floats, options: Ints, n_bins: int) -> float:
    """cw-ECE with the target's probability of every option in place of the label."""
    real = np.arange(p.shape[1]) < options[:, None]
    total = sum(
        _l1(bin_index(p[has, k], n_bins), (q - p)[has, k], n_bins)
        for k, has in enumerate(real.T)
        if has.any()
    )
    return total / int(options.sum())


def _matching_temperature(p: Floats, options: Ints, accuracy: float) -> float:
    """T > 0 with mean confidence equal to the accuracy; NaN where none is (T6)."""
    from scipy.optimize import brentq

    with np.errstate(divide="ignore"):
        z = np.log(p) - np.log(p.max(axis=1, keepdims=True))  # (N, K) <= 0

    def gap(log_beta: float) -> float:
        weight = np.exp(np.where(np.isneginf(z), -np.inf, math.exp(log_beta) * z))
        return float((1 / weight.sum(axis=1)).mean()) - accuracy

    low, high = -20.0, 20.0
    if gap(low) >= 0 or gap(high) <= 0:  # at or below chance, or all right
        return math.nan
    return math.exp(-float(brentq(gap, low, high, xtol=1e-12)))
