"""`plan`: how many labelled questions it takes to show something about calibration.

By simulation with the very intervals and bounds that `evaluate` and `verdict` use, on questions
whose truth is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.metrics.inference import calibrated_ece_bounds, ece_change_highs
from calibrant.progress import Advance, progress

Floats = NDArray[np.float64]

_POOL = 20_000  # questions of the population that samples are drawn from
_MOST = 1_000_000  # more labels than anybody has: "cannot be shown"
_DRAWS = (80, 200)  # samples behind a step of the search, the more the smaller they are
_SHARPEST = 1e3  # factor of the log-odds of a model that is certain of everything
_STEPS = 24  # of the search, at most
_NEAR = 1.2  # ratio of two N between which it ends


@dataclass(frozen=True)
class LabelPlan:
    """Labelled questions needed, see `plan`.

    Attributes
    ----------
    questions : int, N to label; None if a million would not do.
    shows : str, what they show.
    power : float, how often a sample of N shows it, where it is so.
    accuracy : float, of the model assumed. ece_before, ece_after : float, its conf-ECE.
    """

    questions: int | None
    shows: str
    power: float
    accuracy: float
    ece_before: float
    ece_after: float

    def __str__(self) -> str:
        n = "more than 1,000,000" if self.questions is None else f"about {self.questions:,}"
        return f"{n} questions show {self.shows}, {self.power:.0%} of the time"

    def to_dict(self) -> dict[str, Any]:
        """Give plain numbers, ready for JSON."""
        return asdict(self)


def plan(
    *,
    ece_change: float | None = None,
    tolerance: float | None = None,
    ece_before: float | None = None,
    answers: AnswerTable | None = None,
    accuracy: float = 0.6,
    n_options: int = 4,
    power: float = 0.8,
    n_bins: int = 10,
    seed: int = 0,
    show_progress: bool = False,
) -> LabelPlan:
    """Find how many labelled questions show a change of conf-ECE, or that it is within a tolerance.

    The change is one of confidence alone, as a calibrator makes: where the predictions change too,
    as in fine-tuning, it takes more. So does a model that is over-confident here and
    under-confident there.

    Parameters
    ----------
    ece_change : fall of conf-ECE to be shown: the 95 % interval of the change, paired on the same
        questions, lies below 0 (the verdict's "better").
    tolerance : conf-ECE of a truly calibrated model to be shown to be at most this: its one-sided
        95 % upper bound is (the verdict's "fully restored"). Give this or ``ece_change``.
    ece_before : conf-ECE before the change; by default ``ece_change``, so that the model after it
        is calibrated. That is the hardest case: far from 0 the noise of both errors is the same,
        and cancels; near 0 an error is biased by its own noise.
    answers : a table of the model at hand; its confidences, softened until their mean is its
        accuracy, are taken for the truth. Without one, `accuracy` and `n_options` describe a
        typical model.
    accuracy : in (1 / n_options, 1). n_options : at least 2.
    power : share of samples of N that show it, in (0, 1).
    show_progress : draw a progress bar on standard error.

    Returns
    -------
    LabelPlan, N rounded up to two digits.

    Raises
    ------
    InputError
        If not exactly one of the two aims is given, or a number cannot be.

    References
    ----------
    ``docs/statistics.md``, "How many questions?".

    Examples
    --------
    >>> found = plan(tolerance=0.05, accuracy=0.6)
    >>> 900 < found.questions < 1500
    True
    """
    if (ece_change is None) == (tolerance is None):
        raise InputError("expected either an ECE change or a tolerance to plan for")
    if not 0 < power < 1:
        raise InputError(f"power is {power}, expected a number between 0 and 1")
    aim = ece_change if ece_change is not None else tolerance
    if aim is None or not 0 < aim < 1:
        raise InputError(f"ECE change or tolerance is {aim}, expected a number between 0 and 1")
    truth = _typical(accuracy, n_options, seed) if answers is None else _calibrated(answers, seed)
    right = truth.max(axis=1)
    rng = np.random.default_rng((seed, 5))
    if ece_change is None:
        before = after = 0.0
        shows = f"that a calibrated model's conf-ECE is at most {aim:.3f}"

        def met(n: int) -> float:
            rows = right[rng.integers(len(right), size=(_draws(n), n))]
            return float(
                np.mean([calibrated_ece_bounds(c, 1, n_bins, rng)[0] <= aim for c in rows])
            )
    else:
        before = ece_change if ece_before is None else ece_before
        after = before - ece_change
        if not after >= -1e-12:
            raise InputError(
                f"ECE before is {before:g}, expected at least the change of {ece_change:g}"
            )
        after = max(0.0, after)
        first, last = (_sharpened(truth, ece, n_bins) for ece in (before, after))
        shows = f"conf-ECE falling from {before:.3f} to {after:.3f}"

        def met(n: int) -> float:
            highs = ece_change_highs(first, last, right, n, _draws(n), n_bins, rng)
            return float(np.mean(highs < 0))

    with progress("simulating", _STEPS, "steps", show=show_progress) as advance:
        n = _smallest(met, power, max(50, math.ceil(0.5 / aim**2)), advance)
    return LabelPlan(n, shows, power, float(right.mean()), before, after)


def _smallest(
    met: Callable[[int], float], power: float, start: int, advance: Advance
) -> int | None:
    """N at which a share ``power`` of samples succeed, which grows with N, sometimes in one step.

    Bisection of log N between the largest N that falls short and the smallest that does not, then
    between the two along the z-score of their shares.
    """
    from scipy.special import ndtri

    short: tuple[float, float] | None = None  # N and z-score of its share
    enough: tuple[float, float] | None = None
    n, aim = float(start), float(ndtri(power))
    for _ in range(_STEPS):
        # Half a sample more on either side keeps the z-score finite.
        draws = _draws(round(n))
        z = float(ndtri((met(round(n)) * draws + 0.5) / (draws + 1)))
        advance(1)
        if z < aim:
            short = (n, z)
        else:
            enough = (n, z)
        if short is None:
            n /= 2
            if n < 2:
                return 2
        elif enough is None:
            n *= 2
            if n > _MOST:
                return None
        elif enough[0] / short[0] < _NEAR:
            break
        else:
            n = math.sqrt(short[0] * enough[0])
    if enough is None:
        return None
    if short is not None:
        share = (aim - short[1]) / (enough[1] - short[1])
        n = short[0] * (enough[0] / short[0]) ** share
    digits: int = 10 ** max(0, math.floor(math.log10(n)) - 1)
    return math.ceil(n / digits) * digits


def _draws(n: int) -> int:
    return min(max(_DRAWS[0], 100_000 // n), _DRAWS[1])


def _typical(accuracy: float, n_options: int, seed: int) -> Floats:
    """True probabilities like a language model's: normal logits of varying size, (N, K)."""
    if n_options < 2 or not 1 / n_options < accuracy < 1:
        raise InputError(
            f"accuracy is {accuracy} with {n_options} options, expected at least 2 options and an "
            f"accuracy between {1 / max(n_options, 2):.3g} and 1"
        )
    rng = np.random.default_rng((seed, 6))
    z = rng.normal(size=(_POOL, n_options)) * np.exp(0.5 * rng.normal(size=(_POOL, 1)))
    spread = _root(lambda s: float(_softmax(s * z).max(axis=1).mean()), accuracy, 1e-3, 1e3)
    return _softmax(spread * z)


def _calibrated(answers: AnswerTable, seed: int) -> Floats:
    """Probabilities of a table, of the temperature at which they are as sure as right."""
    from calibrant.posthoc import ExpectationConsistency

    probs = ExpectationConsistency().fit(answers).transform(answers).probs()
    return probs[np.random.default_rng((seed, 6)).integers(len(probs), size=_POOL)]


def _sharpened(truth: Floats, ece: float, n_bins: int) -> Floats:
    """Confidences of an over-confident model with this population conf-ECE, (N,)."""
    right: Floats = truth.max(axis=1)
    if ece == 0:
        return right
    with np.errstate(divide="ignore"):
        z = np.log(truth)

    def error(slope: float) -> float:
        return float((_softmax(slope * z).max(axis=1) - right).mean())

    if ece >= (most := error(_SHARPEST)):
        raise InputError(f"ECE is {ece:g}, expected less than 1 - accuracy, {most:.3f}")
    # All are over-confident alike, so the bins' gaps have one sign and conf-ECE is their mean.
    confidence: Floats = _softmax(_root(error, ece, 1.0, _SHARPEST) * z).max(axis=1)
    return confidence


def _root(rising: Callable[[float], float], value: float, low: float, high: float) -> float:
    from scipy.optimize import brentq

    found = brentq(lambda x: rising(math.exp(x)) - value, math.log(low), math.log(high))
    return math.exp(found)


def _softmax(z: Floats) -> Floats:
    weights = np.exp(z - z.max(axis=1, keepdims=True))
    probs: Floats = weights / weights.sum(axis=1, keepdims=True)
    return probs
