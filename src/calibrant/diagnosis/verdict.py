"""`verdict`: was calibration restored, or does it only look so?

The rule and its simulated error rates are in `docs/statistics.md`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.files import JsonFile
from calibrant.metrics.inference import (
    INTERVAL_STEPS,
    Estimate,
    agresti_min,
    calibrated_upper_bounds,
    clusters,
    compare_intervals,
)
from calibrant.progress import step

STEPS = INTERVAL_STEPS + 1  # of `verdict`, as `step` counts them
LABELS = ("already calibrated", "harmed", "gamed", "fully restored", "improved", "not restored")
METRICS = ("accuracy", "nll", "brier", "conf_ece", "cw_ece", "auroc", "aurc", "dsc", "signed_gap")
MARGINS = {"nll": 0.01, "brier": 0.005}  # rises that count: of many questions the least is shown
_ROUNDING = 1e-9  # a change below this is none: the same tables, other arithmetic


@dataclass(frozen=True, eq=False)
class Verdict(JsonFile):
    """What became of calibration between two models on the same questions.

    Attributes
    ----------
    label : one of "already calibrated", "harmed", "gamed", "fully restored", "improved",
        "not restored".
    reason : str, the numbers it rests on and N.
    n : int, questions compared.
    before, after, difference : dicts from metric to `Estimate`; difference is after - before.
    settings : dict: ``tolerance``, ``accuracy_margin``, ``n_bins``, ``n_resamples``, ``seed``.
    calibrated_upper : float. Median upper bound of conf-ECE that a perfectly calibrated model with
        the confidences of after reaches at this N: what could be shown at best.

    Examples
    --------
    >>> import numpy as np
    >>> from calibrant.answers import AnswerTable
    >>> rng = np.random.default_rng(0)
    >>> p = rng.dirichlet([0.5] * 4, 4000)
    >>> labels = (rng.random((4000, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)
    >>> sharp = p**3 / (p**3).sum(axis=1, keepdims=True)
    >>> before, after = (AnswerTable.from_probs(x, labels) for x in (sharp, p))
    >>> verdict(before, after, n_resamples=200).label
    'fully restored'
    """

    what = "verdict"

    label: str
    reason: str
    n: int
    before: dict[str, Estimate]
    after: dict[str, Estimate]
    difference: dict[str, Estimate]
    calibrated_upper: float
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.label}: {self.reason}"

    def __repr__(self) -> str:
        return f"<Verdict: {self.label}, {self.n} questions>"

    def to_dict(self) -> dict[str, Any]:
        """Give plain lists and numbers, ready for JSON."""
        parts = {"before": self.before, "after": self.after, "difference": self.difference}
        return {
            "format_version": self.format_version,
            "label": self.label,
            "reason": self.reason,
            "n": self.n,
            **{k: {name: e.to_dict() for name, e in v.items()} for k, v in parts.items()},
            "calibrated_upper": self.calibrated_upper,
            "settings": self.settings,
        }

    @classmethod
    def _of(cls, values: dict[str, Any]) -> Verdict:
        parts = {
            part: {k: Estimate.from_dict(v) for k, v in values[part].items()}
            for part in ("before", "after", "difference")
        }
        return cls(
            label=str(values["label"]),
            reason=str(values["reason"]),
            n=int(values["n"]),
            calibrated_upper=float(values["calibrated_upper"]),
            settings=dict(values["settings"]),
            **parts,
        )


def verdict(
    before: AnswerTable,
    after: AnswerTable,
    *,
    tolerance: float = 0.03,
    accuracy_margin: float = 0.01,
    n_bins: int = 10,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Verdict:
    """Decide what became of calibration, paired on the questions both tables share.

    "Worse" and "better" mean that the 95 % interval of the difference lies beyond 0. In order:

    1. *harmed*: accuracy worse by more than the margin (one-sided, 95 %).
    2. *gamed*: conf-ECE better, but AURC worse, or Brier by more than its margin; or conf-ECE
       better, AUROC and DSC worse, and accuracy not higher by more than the margin.
    3. *harmed*: NLL or Brier worse by more than their margins, 0.01 nats and 0.005.
    4. *already calibrated*: the one-sided 95 % upper bound of before's conf-ECE is at most the
       tolerance, and conf-ECE changed neither way.
    5. *fully restored*: conf-ECE better, and after's upper bound is at most the tolerance.
    6. *improved*: conf-ECE better.
    7. *not restored* otherwise.

    Parameters
    ----------
    before, after : AnswerTables that share question ids; only shared questions are used.
    tolerance : population conf-ECE that counts as calibrated. accuracy_margin : share.
    n_bins, n_resamples, seed : as in `evaluate`.

    Returns
    -------
    Verdict

    Raises
    ------
    InputError
        If the tables share no question, or disagree on one; tolerance or margin out of [0, 1]; or
        a table holds several permutations of one question.

    Examples
    --------
    >>> from calibrant.answers import AnswerTable
    >>> labels = [0] * 60 + [1] * 40
    >>> before = AnswerTable.from_probs([[0.99, 0.01]] * 100, labels)
    >>> print(verdict(before, before).label)
    not restored
    """
    for name, value in (("tolerance", tolerance), ("accuracy_margin", accuracy_margin)):
        if not 0 <= value <= 1:
            raise InputError(f"{name} is {value}, expected a number in [0, 1]")
    before.refuse_permutations()
    after.refuse_permutations()
    a, b = before.align(after)
    data: dict[str, Any] = {"n_options": a.n_options, "n_bins": n_bins, "seed": seed}
    options: dict[str, Any] = {**data, "groups": _joint_groups(a, b), "n_resamples": n_resamples}
    p, q = a.probs(), b.probs()
    first, last, change = compare_intervals(p, q, a.labels, metrics=METRICS, **options)
    bounds = calibrated_upper_bounds(q, n_bins=n_bins, seed=seed)
    step()
    best, good = (float(np.quantile(bounds, share)) for share in (0.5, 0.8))
    loss = _loss(a, b)
    case = _Case(len(a), first, last, change, tolerance, accuracy_margin, best, good, loss)
    label, reason = _decide(case)
    return Verdict(
        label=label,
        reason=reason,
        n=len(a),
        before=first,
        after=last,
        difference=change,
        calibrated_upper=best,
        settings={
            "tolerance": tolerance,
            "accuracy_margin": accuracy_margin,
            "n_bins": n_bins,
            "n_resamples": n_resamples,
            "seed": seed,
        },
    )


# -- the rule -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    n: int
    before: dict[str, Estimate]
    after: dict[str, Estimate]
    change: dict[str, Estimate]
    tolerance: float
    margin: float
    best: float  # upper bound of conf-ECE a calibrated model typically reaches at this N
    good: float  # ... and reaches 4 times in 5
    accuracy_upper: float  # one-sided 95 % upper bound of the change of accuracy

    def higher(self, name: str) -> bool:
        return self.change[name].low > MARGINS.get(name, _ROUNDING)

    def lower(self, name: str) -> bool:
        return self.change[name].high < -_ROUNDING

    @property
    def ece(self) -> str:
        return "conf-ECE " + _arrow(self, "conf_ece")


def _decide(case: _Case) -> tuple[str, str]:
    at = f"N = {case.n}."
    better = case.lower("conf_ece")
    if case.accuracy_upper < -case.margin:
        return "harmed", (
            f"accuracy {_arrow(case, 'accuracy')}, a loss of more than {case.margin:g} (one-sided "
            f"95 % bound {case.accuracy_upper:+.3f}); {case.ece}; {at}"
        )
    if better and (cost := _discrimination_lost(case)):
        return "gamed", (
            f"{case.ece}, but {cost}: the model tells right from wrong less well; {at}"
        )
    if worse := [name for name in ("nll", "brier") if case.higher(name)]:
        costs = " and ".join(f"{_NAMES[name]} {_arrow(case, name)}" for name in worse)
        return "harmed", f"{costs} got worse; {case.ece}; {at}"
    start, end = _upper(case.before), _upper(case.after)
    if start <= case.tolerance and not better and not case.higher("conf_ece"):
        return "already calibrated", (
            f"conf-ECE was at most {start:.3f} before (95 % bound, tolerance "
            f"{case.tolerance:g}) and did not change: {case.ece}; {at}"
        )
    fell = f"; AUROC {_arrow(case, 'auroc')}" if case.lower("auroc") else ""
    if better and end <= case.tolerance:
        return "fully restored", (
            f"{case.ece}; its 95 % upper bound {end:.3f} is within the tolerance "
            f"{case.tolerance:g}; accuracy {_arrow(case, 'accuracy')}{fell}; {at}"
        )
    if better:
        return "improved", f"{case.ece}; {_not_shown(case, end)}{fell}; {at}"
    return "not restored", f"{case.ece}: {_no_improvement(case, start)}; {at}"


def _no_improvement(case: _Case, start: float) -> str:
    if case.higher("conf_ece"):
        return "it rose"
    text = "no improvement is shown"
    if case.before["conf_ece"].low == 0 and start > case.tolerance:
        text += (
            f"; before could not be told from a calibrated model either, but its 95 % upper bound "
            f"{start:.3f} is above the tolerance {case.tolerance:g}"
        )
    return text


def _discrimination_lost(case: _Case) -> str:
    """Say what a lower conf-ECE was paid with, "" if nothing."""
    worse = [name for name in ("aurc", "brier") if case.higher(name)]
    flat = case.change["accuracy"].value <= case.margin
    if not worse and flat and case.lower("auroc") and case.lower("dsc"):
        worse = ["auroc", "dsc"]
    return " and ".join(f"{_NAMES[name]} {_arrow(case, name)}" for name in worse)


def _not_shown(case: _Case, end: float) -> str:
    text = f"its 95 % upper bound {end:.3f} is above the tolerance {case.tolerance:g}"
    if case.best <= case.tolerance:
        return text
    return (
        f"{text}. N too small to show more: even a perfectly calibrated model would typically "
        f"reach {case.best:.3f}" + _questions_needed(case)
    )


def _questions_needed(case: _Case) -> str:
    if case.tolerance == 0:
        return ""
    enough = math.ceil(case.n * (case.good / case.tolerance) ** 2 / 100) * 100
    return f"; about {enough} questions would show it 4 times in 5"


_NAMES = {"nll": "NLL", "brier": "Brier", "aurc": "AURC", "auroc": "AUROC", "dsc": "DSC"}


def _arrow(case: _Case, name: str) -> str:
    a, b, d = case.before[name], case.after[name], case.change[name]
    return f"{a.value:.3f} -> {b.value:.3f} (change {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}])"


def _upper(estimates: dict[str, Estimate]) -> float:
    bound = estimates["conf_ece"].upper
    return math.inf if bound is None else bound


def _loss(a: AnswerTable, b: AnswerTable) -> float:
    """One-sided 95 % upper bound of the change of accuracy."""
    cluster = clusters(_joint_groups(a, b), len(a))
    return agresti_min(b.correct.astype(np.float64) - a.correct, 0.9, cluster)[1]


def _joint_groups(a: AnswerTable, b: AnswerTable) -> Sequence[str]:
    """Give the groups of duplicates; both tables hold the same questions in the same order."""
    return a.groups if len(set(a.groups)) <= len(set(b.groups)) else b.groups
