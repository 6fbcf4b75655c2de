"""Several runs against one, on the same questions: which changes are more than chance?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from calibrant.answers import AnswerTable
from calibrant.diagnosis.verdict import Verdict, verdict
from calibrant.errors import InputError
from calibrant.metrics.inference import Estimate

# Metric -> whether more of it is better.
COMPARED = {
    "accuracy": True,
    "conf_ece": False,
    "cw_ece": False,
    "nll": False,
    "brier": False,
    "auroc": True,
    "aurc": False,
}
FAMILY_LEVEL = 0.05
_ROUNDING = 1e-9  # a change below this is none: the same tables, other arithmetic


@dataclass(frozen=True, eq=False)
class Comparison:
    r"""Runs against one baseline, paired on the questions of each test set.

    Attributes
    ----------
    baseline : str, the run the others are compared with. runs : the others, in order.
    verdicts : test set -> run -> `Verdict` against the baseline.
    p_values : test set -> run -> metric -> p-value of the change, see `p_value`.
    marks : likewise, 1 if the change is for the better, -1 if for the worse, 0 if it may be chance,
        by Holm's procedure at .05 over the runs, for each test set and metric: the chance of even
        one false mark among them is at most .05.
    """

    baseline: str
    runs: tuple[str, ...]
    verdicts: dict[str, dict[str, Verdict]]
    p_values: dict[str, dict[str, dict[str, float]]]
    marks: dict[str, dict[str, dict[str, int]]]


def compare(
    baseline: Mapping[str, AnswerTable],
    runs: Mapping[str, Mapping[str, AnswerTable]],
    *,
    name: str = "before",
    tolerance: float = 0.03,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare runs with a baseline on every test set they share with it.

    Parameters
    ----------
    baseline : test set -> answer table. runs : run -> test set -> answer table.
    name : of the baseline. The others are those of `calibrant.diagnosis.verdict.verdict`.

    Raises
    ------
    InputError
        If there is no run, or one shares no test set with the baseline.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> p = rng.dirichlet([0.5] * 4, 2000)
    >>> labels = (rng.random((2000, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)
    >>> sharp, right, same = (
    ...     {"test": AnswerTable.from_probs(x / x.sum(axis=1, keepdims=True), labels)}
    ...     for x in (p**3, p, p**3)
    ... )
    >>> found = compare(sharp, {"fitted": right, "copy": same}, n_resamples=200)
    >>> found.marks["test"]["fitted"]["conf_ece"], found.marks["test"]["copy"]["conf_ece"]
    (1, 0)
    """
    if not runs:
        raise InputError("nothing to compare with the baseline; expected at least one other run")
    verdicts: dict[str, dict[str, Verdict]] = {}
    for run, tables in runs.items():
        common = [s for s in baseline if s in tables]
        if not common:
            raise InputError(
                f"{run} shares no test set with {name} ({', '.join(tables)} and "
                f"{', '.join(baseline)}); expected runs on the same questions"
            )
        for s in common:
            verdicts.setdefault(s, {})[run] = verdict(
                baseline[s], tables[s], tolerance=tolerance, n_resamples=n_resamples, seed=seed
            )
    p_values = {
        s: {
            run: {metric: p_value(v.difference[metric]) for metric in COMPARED}
            for run, v in judged.items()
        }
        for s, judged in verdicts.items()
    }
    return Comparison(name, tuple(runs), verdicts, p_values, _marks(verdicts, p_values))


def _marks(
    verdicts: Mapping[str, Mapping[str, Verdict]],
    p_values: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, dict[str, int]]]:
    marks: dict[str, dict[str, dict[str, int]]] = {}
    for s, judged in verdicts.items():
        marks[s] = {run: {} for run in judged}
        for metric, more_is_better in COMPARED.items():
            sure = holm([p_values[s][run][metric] for run in judged])
            for run, clear in zip(judged, sure, strict=True):
                rises = judged[run].difference[metric].value > 0
                marks[s][run][metric] = (1 if rises == more_is_better else -1) if clear else 0
    return marks


def p_value(change: Estimate) -> float:
    r"""Two-sided p-value of a change, read off its 95 % interval.

    ``2 Φ(−z)`` with ``z = 1.96 · |change| / |change − bound|``, the bound being the one on the side
    of 0: p < .05 exactly where the interval leaves out 0, and smaller p continue as a normal
    distribution would. NaN without an interval or for an infinite change; 1 for no change.

    Examples
    --------
    >>> round(p_value(Estimate("nll", -0.2, -0.4, 0.0, n=100)), 3)
    0.05
    >>> round(p_value(Estimate("nll", 0.3, 0.1, 0.45, n=100)), 4)
    0.0033
    """
    value, bound = change.value, change.low if change.value > 0 else change.high
    if math.isnan(value) or math.isnan(bound):
        return math.nan
    reach = abs(value - bound)
    if abs(value) < _ROUNDING:
        return 1.0
    if reach == 0:
        return 0.0
    return math.erfc(1.959964 * abs(value) / reach / math.sqrt(2))


def holm(p_values: Sequence[float], level: float = FAMILY_LEVEL) -> list[bool]:
    """Tell which hypotheses Holm's step-down procedure rejects; NaN is no hypothesis.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03, 0.005])
    [True, False, False, True]
    """
    return [p <= level for p in holm_p_values(p_values)]


def holm_p_values(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down procedure; NaN is no hypothesis.

    The smallest of m is multiplied by m, the next by m − 1, and so on, and none becomes smaller
    than one before it or larger than 1. The chance that any true hypothesis gets less than x is at
    most x, whatever the dependence.

    References
    ----------
    Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scand. J. Statist. 6, 1979.

    Examples
    --------
    >>> [round(p, 2) for p in holm_p_values([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    real = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(real, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[i] * (len(real) - rank)))
        corrected[i] = largest
    return corrected


def pooled(tables: Mapping[str, AnswerTable]) -> AnswerTable:
    """Pool test sets into one table; ids become ``set:id``, tasks the sets.

    Examples
    --------
    >>> part = AnswerTable.from_probs([[0.7, 0.3]], [0], ids=["1"])
    >>> pooled({"law": part, "art": part}).ids
    ('law:1', 'art:1')
    """
    return AnswerTable.pool(
        [
            replace(t, ids=tuple(f"{s}:{i}" for i in t.ids), tasks=(s,) * len(t))
            for s, t in tables.items()
        ]
    )
