"""`regime`: can confidence be calibrated at this accuracy, or has training gone past that?

`docs/diagnosis.md` gives the theory, the rule's simulated error rates, and what no rule can tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibrant.answers import AnswerTable
from calibrant.diagnosis._tempering import newton_terms
from calibrant.diagnosis.bounds import Bounds, bounds
from calibrant.errors import InputError
from calibrant.files import JsonFile
from calibrant.metrics._input import Floats
from calibrant.metrics.inference import INTERVAL_STEPS, Estimate, bootstrap_intervals, clusters
from calibrant.permutations import one_row_each
from calibrant.posthoc.temperature import TemperatureScaling

STEPS = 4 * INTERVAL_STEPS  # of `regime` with a reference, as `progress.step` counts them
LEVEL = 0.95
LABELS = ("calibratable", "non-calibratable", "cannot tell")
TOLERANCE = 0.03  # conf-ECE that counts as calibrated, as in `verdict`
_NORMAL = 1.959963984540054  # quantile of .975


@dataclass(frozen=True, eq=False)
class RegimeReport(JsonFile):
    """Where a model stands between train accuracy, test accuracy and critical accuracy.

    Attributes
    ----------
    label : "calibratable", "non-calibratable" or "cannot tell" (at this N).
    reason : str, one paragraph: the numbers it rests on and N.
    method : "none", "temperature", "cft" or "rcft", what to do next; recommendation : str, why.
    n_train, n_test, n_reference : int, questions; n_reference is 0 without a reference.
    estimates : dict from quantity to `Estimate`; ``report["generalisation_gap"]`` is short for it.
    bounds : dict with the `Bounds` of "train" and "test" where the true target was given.
    notes : tuple of sentences to beware of.
    settings : dict: ``margin``, ``n_resamples``, ``seed``, ``level``.
    """

    what = "regime report"

    label: str
    reason: str
    method: str
    recommendation: str
    n_train: int
    n_test: int
    n_reference: int
    estimates: dict[str, Estimate]
    bounds: dict[str, Bounds]
    notes: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Estimate:
        if name not in self.estimates:
            raise KeyError(f"no quantity {name!r} in this report; it has {list(self.estimates)}")
        return self.estimates[name]

    def __contains__(self, name: object) -> bool:
        return name in self.estimates

    def __str__(self) -> str:
        return f"{self.label}: {self.reason} {self.recommendation}"

    def __repr__(self) -> str:
        return f"<RegimeReport: {self.label}, {self.n_train} train, {self.n_test} test questions>"

    def to_dict(self) -> dict[str, Any]:
        """Give plain lists and numbers, ready for JSON."""
        return {
            "format_version": self.format_version,
            "label": self.label,
            "reason": self.reason,
            "method": self.method,
            "recommendation": self.recommendation,
            "n_train": self.n_train,
            "n_test": self.n_test,
            "n_reference": self.n_reference,
            "estimates": {name: e.to_dict() for name, e in self.estimates.items()},
            "bounds": {name: b.to_dict() for name, b in self.bounds.items()},
            "notes": list(self.notes),
            "settings": self.settings,
        }

    @classmethod
    def _of(cls, values: dict[str, Any]) -> RegimeReport:
        return cls(
            label=str(values["label"]),
            reason=str(values["reason"]),
            method=str(values["method"]),
            recommendation=str(values["recommendation"]),
            n_train=int(values["n_train"]),
            n_test=int(values["n_test"]),
            n_reference=int(values["n_reference"]),
            estimates={k: Estimate.from_dict(v) for k, v in values["estimates"].items()},
            bounds={k: Bounds.from_dict(v) for k, v in values["bounds"].items()},
            notes=tuple(values["notes"]),
            settings=dict(values["settings"]),
        )


def regime(
    train: AnswerTable,
    test: AnswerTable,
    reference: AnswerTable | None = None,
    *,
    target_probs: tuple[ArrayLike, ArrayLike] | None = None,
    margin: float = 0.05,
    n_resamples: int = 1000,
    seed: int = 0,
) -> RegimeReport:
    r"""Decide whether train accuracy lies below or above the critical accuracy ACC*.

    ACC* = E max_k p*_k is what the true probabilities allow on fresh questions. It is unknown, but
    accuracy on fresh questions never exceeds it, whoever answers: test accuracy A_te and the
    reference's accuracy are lower bounds. The mean confidence of the recalibrated reference (of the
    recalibrated model itself without one) estimates it, but is no bound: a weak model's lies below.

    * *calibratable*: the 95 % interval of A_tr − A_te, or of A_tr − the reference's accuracy,
      lies below ``margin``. Sound: A_tr then exceeds ACC* by less than the margin.
    * *non-calibratable*: otherwise, and the intervals of A_tr minus A_te, minus the reference's
      accuracy and minus the bracket's upper end all lie above 0. It supposes that one of these
      comes within the margin of ACC*; nothing in such tables can show that it does.
    * *cannot tell* otherwise, with how many questions it would take.

    The estimates hold ``train_accuracy``, ``train_confidence`` and so on, ``bracket_low`` and
    ``bracket_high`` (of ACC*), and the exact decomposition ``test_gap`` (c̄_te − A_te) =
    ``in_sample_gap`` (c̄_tr − A_tr) + ``generalisation_gap`` (A_tr − A_te) − ``shrinkage``
    (c̄_tr − c̄_te).

    Parameters
    ----------
    train : the model on questions it was tuned on. test : on fresh questions like them.
    reference : another model, on questions like them that it was not tuned on: the same test
        questions, or the training questions where they were kept from it.
    target_probs : p* of the train and of the test questions, (N, K) floats each, where known. ACC*
        is then no longer estimated, the verdict compares A_tr with it, and `Bounds` are given.
        Any table may hold several orders of a question's options: they are averaged.
    margin : how far A_tr may lie above a lower bound of ACC* and still count as calibratable.
    n_resamples : draws behind each bootstrapped interval. seed : int.

    Returns
    -------
    RegimeReport

    Raises
    ------
    InputError
        If ``margin`` is not in (0, 1), or a target does not fit its table.

    References
    ----------
    `docs/diagnosis.md`, T1 to T6; Xiao et al. 2025 (arXiv 2505.01997) for the two regimes.

    Examples
    --------
    A model that answers 95 % of its training questions right, and 60 % of fresh ones:

    >>> sure = [[0.9, 0.1]] * 1000
    >>> train = AnswerTable.from_probs(sure, [0] * 950 + [1] * 50)
    >>> test = AnswerTable.from_probs(sure, [0] * 600 + [1] * 400)
    >>> found = regime(train, test, n_resamples=100)
    >>> found.label, found.method, round(found["generalisation_gap"].value, 4)
    ('non-calibratable', 'rcft', 0.35)
    """
    if not 0 < margin < 1:
        raise InputError(f"margin is {margin}, expected a number between 0 and 1")
    train, test = one_row_each(train), one_row_each(test)
    reference = None if reference is None else one_row_each(reference)
    options: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed}
    notes = list(_warnings(train, test))
    found = _terms(train, test, options)
    evidence = _evidence(found, test, reference, options, notes)
    known: dict[str, Bounds] = {}
    if target_probs is not None:
        for name, table, target in zip(("train", "test"), (train, test), target_probs, strict=True):
            known[name] = bounds(table.probs(), table.labels, target, n_options=table.n_options)
        excess = _excess(train, np.asarray(target_probs[0], dtype=np.float64))
        found["excess_accuracy"] = excess
        evidence = _Evidence([excess], [])
    label = _label(evidence, margin)
    if (tempered := _tempered_error(test, options)) is not None:
        found["test_conf_ece_tempered"] = tempered
    method, recommendation = _recommend(label, found)
    return RegimeReport(
        label=label,
        reason=_reason(label, found, evidence, margin),
        method=method,
        recommendation=recommendation,
        n_train=len(train),
        n_test=len(test),
        n_reference=0 if reference is None else len(reference),
        estimates=found,
        bounds=known,
        notes=tuple(notes),
        settings={"margin": margin, "level": LEVEL, **options},
    )


# -- what is measured ---------------------------------------------------------------------------


class _Evidence(NamedTuple):
    """How far train accuracy lies above what fresh accuracy supports."""

    above_bounds: list[Estimate]  # A_tr minus lower bounds of ACC*
    above_guesses: list[Estimate]  # A_tr minus estimates that may lie on either side of ACC*


def _warnings(train: AnswerTable, test: AnswerTable) -> Iterator[str]:
    if shared := len(set(train.ids) & set(test.ids)):
        yield (
            f"{shared} question ids occur in the train and in the test table; expected disjoint "
            "questions: test accuracy counts as fresh"
        )


def _measured(
    table: AnswerTable, metrics: tuple[str, ...], options: dict[str, Any]
) -> dict[str, Estimate]:
    return bootstrap_intervals(
        table.probs(),
        table.labels,
        n_options=table.n_options,
        groups=table.groups,
        metrics=metrics,
        **options,
    )


def _terms(train: AnswerTable, test: AnswerTable, options: dict[str, Any]) -> dict[str, Estimate]:
    """Give the parts of T5: the test gap and where it comes from."""
    metrics = ("accuracy", "mean_confidence", "signed_gap", "conf_ece")
    a, b = (_measured(table, metrics, options) for table in (train, test))
    found = {
        "train_accuracy": a["accuracy"],
        "test_accuracy": b["accuracy"],
        "train_confidence": a["mean_confidence"],
        "test_confidence": b["mean_confidence"],
        "train_conf_ece": a["conf_ece"],
        "test_conf_ece": b["conf_ece"],
        "test_gap": b["signed_gap"],
        "in_sample_gap": a["signed_gap"],
        "generalisation_gap": _minus(a["accuracy"], b["accuracy"]),
        "shrinkage": _minus(a["mean_confidence"], b["mean_confidence"]),
    }
    return {name: replace(e, name=name) for name, e in found.items()}


def _minus(a: Estimate, b: Estimate) -> Estimate:
    """Difference of two independent estimates, its interval from theirs (MOVER).

    References
    ----------
    Newcombe 1998, Statistics in Medicine 17 (method 10, for Wilson intervals); Zou and Donner
    2008, Statistics in Medicine 27.
    """
    value = a.value - b.value
    low = value - math.hypot(a.value - a.low, b.high - b.value)
    high = value + math.hypot(a.high - a.value, b.value - b.low)
    return Estimate("", value, low, high, min(a.n, b.n), LEVEL, method="MOVER")


def _evidence(
    found: dict[str, Estimate],
    test: AnswerTable,
    reference: AnswerTable | None,
    options: dict[str, Any],
    notes: list[str],
) -> _Evidence:
    """Add the bracket of ACC* to what was found, and compare train accuracy with its ends."""
    top = found["train_accuracy"]
    lower = [found["test_accuracy"]]
    gaps = [found["generalisation_gap"]]
    if reference is not None:
        fresh = _measured(reference, ("accuracy",), options)["accuracy"]
        lower.append(replace(fresh, name="reference_accuracy"))
        gaps.append(replace(_minus(top, lower[1]), name="above_reference"))
        found |= {e.name: e for e in (lower[1], gaps[1])}
    found["bracket_low"] = replace(max(lower, key=lambda e: e.value), name="bracket_low")
    ceiling = _recalibrated_confidence(test if reference is None else reference, notes)
    if ceiling is None:
        return _Evidence(gaps, [])
    above = replace(_minus(top, ceiling), name="above_bracket")
    found |= {e.name: e for e in (ceiling, above)}
    return _Evidence(gaps, [above])


def _recalibrated_confidence(table: AnswerTable, notes: list[str]) -> Estimate | None:
    """Mean confidence at the fitted temperature; the interval allows for the fit."""
    try:
        temperature = TemperatureScaling().fit(table).temperature
    except InputError as error:
        notes.append(f"no upper end of the bracket: {error}")
        return None
    z = table.logprobs - table.logprobs.max(axis=1, keepdims=True)
    weight = np.exp(z / temperature)
    p = weight / weight.sum(axis=1, keepdims=True)
    confidence = p.max(axis=1)
    turn = -confidence * (p * np.where(np.isfinite(z), z, 0.0)).sum(axis=1)  # dc/dβ, β = 1/T
    first, second = newton_terms(z, np.eye(z.shape[1])[table.labels], temperature)
    influence = confidence - turn.mean() * first / second.mean()
    return _mean("bracket_high", influence, table.groups)


def _mean(name: str, influence: Floats, groups: Sequence[str]) -> Estimate:
    """Mean of a statistic's influence values with its normal interval, duplicates as one."""
    value = float(influence.mean())
    cluster = clusters(groups, len(influence))
    off: NDArray[Any] = influence - value
    if cluster is not None:
        off = np.bincount(cluster, weights=off)
    half = _NORMAL * math.sqrt(float(off @ off)) / len(influence)
    return Estimate(name, value, value - half, value + half, len(influence), LEVEL, method="normal")


def _excess(train: AnswerTable, target: Floats) -> Estimate:
    """A_tr − ACC* where the target is known."""
    return _mean("excess_accuracy", train.correct - target.max(axis=1), train.groups)


def _tempered_error(test: AnswerTable, options: dict[str, Any]) -> Estimate | None:
    """conf-ECE on test with each half at the temperature of the other; None if none fits."""
    cluster = clusters(test.groups, len(test))
    half = (np.arange(len(test)) if cluster is None else cluster) % 2 == 0
    if half.all() or not half.any():
        return None
    scores = np.empty_like(test.logprobs)
    try:
        for here in (half, ~half):
            fitted = TemperatureScaling().fit(test.select(~here))
            scores[here] = test.logprobs[here] / fitted.temperature
    except InputError:
        return None
    tempered = _measured(test.with_logprobs(scores), ("conf_ece",), options)["conf_ece"]
    return replace(tempered, name="test_conf_ece_tempered")


# -- the rule -----------------------------------------------------------------------------------


def _label(evidence: _Evidence, margin: float) -> str:
    if any(e.high < margin for e in evidence.above_bounds):
        return "calibratable"
    if all(e.low > 0 for e in (*evidence.above_bounds, *evidence.above_guesses)):
        return "non-calibratable"
    return "cannot tell"


def _reason(label: str, found: dict[str, Estimate], evidence: _Evidence, margin: float) -> str:
    train, test, gap = (found[k] for k in ("train_accuracy", "test_accuracy", "test_gap"))
    compared = [*evidence.above_bounds, *evidence.above_guesses]
    rivals = ", ".join(
        f"{_RIVALS[e.name]} by {e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}]" for e in compared
    )
    return (
        f"train accuracy is {train.value:.3f} [{train.low:.3f}, {train.high:.3f}] (N = {train.n}), "
        f"test accuracy {test.value:.3f} [{test.low:.3f}, {test.high:.3f}] (N = {test.n}); train "
        f"accuracy exceeds {rivals}. {_conclusion(label, compared, margin)} On test, confidence is "
        f"{gap.value:+.3f} off accuracy: {found['in_sample_gap'].value:+.3f} fitted in-sample, "
        f"{found['generalisation_gap'].value:+.3f} accuracy that did not generalise, "
        f"{-found['shrinkage'].value:+.3f} change of confidence."
    )


_RIVALS = {
    "generalisation_gap": "test accuracy",
    "above_reference": "the reference's accuracy",
    "above_bracket": "mean confidence recalibrated on fresh questions",
    "excess_accuracy": "the known critical accuracy",
}


def _conclusion(label: str, compared: list[Estimate], margin: float) -> str:
    if label == "calibratable":
        return (
            "Accuracy on fresh questions never exceeds the critical accuracy, so train accuracy is "
            f"above that by less than {margin:g}: nothing stands in the way of calibration."
        )
    if label == "non-calibratable":
        text = (
            "That is more than fresh answers support: confidence that fits the training questions "
            "does not fit fresh ones."
        )
        if {e.name for e in compared} & {"above_reference", "excess_accuracy"}:
            return text
        return text + (
            " It supposes that no other model does much better on fresh questions; give a "
            "reference to put that to the test."
        )
    widest = max((e.high - e.low) / 2 for e in compared)
    if widest <= margin / 2:
        return (
            "These disagree: more questions will not settle it, a better reference may (more "
            "accurate, calibrated, never tuned on these questions)."
        )
    smallest = min(e.n for e in compared)
    needed = math.ceil(smallest * (2 * widest / margin) ** 2 / 100) * 100
    return f"That leaves both open; about {needed} questions in each table would tell."


def _recommend(label: str, found: dict[str, Estimate]) -> tuple[str, str]:
    error, tempered = found["test_conf_ece"], found.get("test_conf_ece_tempered")
    bound = math.inf if error.upper is None else error.upper
    if bound <= TOLERANCE:
        return "none", (
            f"Leave it: conf-ECE on test is at most {bound:.3f} (95 % bound), within {TOLERANCE:g}."
        )
    text = "" if tempered is None else f"{tempered.value:.3f} with it on test, cross-fitted"
    if label == "non-calibratable":
        return "rcft", (
            "RCFT is the published way, with its E-step on held-out questions, never on these "
            "training labels. In our laboratory an earlier checkpoint with temperature scaling on "
            "held-out questions did better: try it first"
            + (f" (conf-ECE {error.value:.3f}, {text})." if text else ".")
        )
    if label == "cannot tell":
        return "temperature", (
            "Until then temperature scaling on held-out questions is safe: it leaves accuracy as "
            "it is" + (f" (conf-ECE {error.value:.3f}, {text})." if text else ".")
        )
    if tempered is not None and tempered.low == 0:
        return "temperature", (
            f"Temperature scaling on held-out questions is enough: conf-ECE is {error.value:.3f}, "
            f"{text}, which noise explains."
        )
    return "cft", (
        "Use CFT on fresh labelled questions of this domain: temperature scaling "
        + (f"does not suffice (conf-ECE {error.value:.3f}, {text})." if text else "does not fit.")
    )
