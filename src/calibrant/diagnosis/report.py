"""`evaluate`: everything worth knowing about one answer table, with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.files import JsonFile
from calibrant.metrics.binned import BinTable, bin_table
from calibrant.metrics.inference import (
    DEFAULTS,
    INTERVAL_STEPS,
    METRICS,
    Estimate,
    NoiseFloor,
    bootstrap_intervals,
    noise_floor,
    wilson_interval,
)
from calibrant.progress import measuring, step

STEPS = INTERVAL_STEPS + 1  # of `evaluate`, as `step` counts them
SATURATED = 0.99  # a confidence above this counts as saturated
_LOW_MASS = 0.9
_ONE_LETTER = 0.6
_WIDE_FLOOR = 0.05


class Finding(NamedTuple):
    """One word on a model's calibration, and the numbers it rests on."""

    label: str
    reason: str

    def __str__(self) -> str:
        return f"{self.label}: {self.reason}"


@dataclass(frozen=True, eq=False)
class CalibrationReport(JsonFile):
    """Every metric of one answer table with its interval, and what to beware of.

    Attributes
    ----------
    n : int, questions.
    metrics : dict from metric name to `Estimate`; ``report["conf_ece"]`` is short for it.
    floors : dict with the `NoiseFloor` of "conf_ece" and "cw_ece".
    bins : `BinTable` of the confidence, (1, B). class_bins : the class-wise one, (K, B).
    summary : dict of plain numbers: ``sd_confidence``, ``share_saturated`` (c > .99),
        ``option_mass`` (mean, None if unknown), ``predicted_shares`` and ``label_shares`` (by
        option index), ``top_predicted_share``, ``n_groups``, ``min_options``, ``max_options``.
    warnings : tuple of sentences in plain words.
    settings : dict: ``n_bins``, ``n_resamples``, ``seed``, ``level``, ``risk``, ``coverage``.
    provenance : dict, the table's.

    Examples
    --------
    >>> from calibrant.answers import AnswerTable
    >>> table = AnswerTable.from_probs([[0.9, 0.1]] * 300, [0] * 180 + [1] * 120)
    >>> report = evaluate(table, n_resamples=200)
    >>> estimate = report["conf_ece"]
    >>> round(estimate.value, 4), estimate.low < 0.3 < estimate.high
    (0.3, True)
    >>> CalibrationReport.from_json(report.to_json()).to_dict() == report.to_dict()
    True
    """

    what = "calibration report"

    n: int
    metrics: dict[str, Estimate]
    floors: dict[str, NoiseFloor]
    bins: BinTable
    class_bins: BinTable
    summary: dict[str, Any]
    warnings: tuple[str, ...]
    settings: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Estimate:
        if name not in self.metrics:
            raise KeyError(f"no metric {name!r} in this report; it has {', '.join(self.metrics)}")
        return self.metrics[name]

    def __contains__(self, name: object) -> bool:
        return name in self.metrics

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def finding(self, tolerance: float = 0.03) -> Finding:
        """Say in one word what the numbers show.

        *calibrated*: the one-sided 95 % upper bound of conf-ECE is at most the tolerance. *cannot
        tell*: the bound is above it, yet chance alone would show as much (p >= .05).
        *over-confident*, *under-confident*: the interval of confidence - accuracy lies on one side
        of 0. *miscalibrated*: conf-ECE is beyond chance, and its sign varies.

        Examples
        --------
        >>> from calibrant.answers import AnswerTable
        >>> table = AnswerTable.from_probs([[0.9, 0.1]] * 300, [0] * 180 + [1] * 120)
        >>> print(evaluate(table).finding())
        over-confident: confidence is 0.900 on average, and 0.600 of the answers are right;
        conf-ECE 0.300 [0.247, 0.358], by chance about 0.014; N = 300.
        """
        ece, gap, floor = self["conf_ece"], self["signed_gap"], self.floors["conf_ece"]
        upper = math.inf if ece.upper is None else ece.upper
        measured = (
            f"conf-ECE {ece.value:.3f} [{ece.low:.3f}, {ece.high:.3f}], by chance about "
            f"{floor.mean:.3f}; N = {self.n:,}."
        )
        if upper <= tolerance:
            return Finding(
                "calibrated",
                f"conf-ECE is at most {upper:.3f} (95 % bound, tolerance {tolerance:g}); "
                f"{measured}",
            )
        if floor.p_value >= 0.05:
            return Finding(
                "cannot tell",
                f"a calibrated model would show as much by chance (p = {floor.p_value:.2f}), but "
                f"so few questions only show that conf-ECE is at most {upper:.3f}, not "
                f"{tolerance:g}; {measured}",
            )
        means = (
            f"confidence is {self['mean_confidence'].value:.3f} on average, and "
            f"{self['accuracy'].value:.3f} of the answers are right; {measured}"
        )
        if gap.low > 0:
            return Finding("over-confident", means)
        if gap.high < 0:
            return Finding("under-confident", means)
        over, under = self["overconfidence"].value, self["underconfidence"].value
        return Finding(
            "miscalibrated",
            f"too confident on some questions (part {over:.3f} of conf-ECE) and not confident "
            f"enough on others ({under:.3f}); {means}",
        )

    def bin_intervals(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Wilson intervals of the accuracy in each confidence bin: low and high, (B,) float64.

        0 and 1 where the bin is empty.
        """
        low, high = wilson_interval(
            self.bins.sum_correct[0], self.bins.count[0], float(self.settings["level"])
        )
        return low, high

    # -- text -------------------------------------------------------------------------------

    def table(self) -> str:
        """Give the report as plain text, one metric a line."""
        lines = [f"Calibration of {self.n} questions", ""]
        level = round(100 * float(self.settings["level"]))
        lines.append(f"{'metric':<22}{'value':>9}   {f'{level} % interval':<20}")
        lines.extend(_metric_line(e) for e in self.metrics.values())
        lines.append("")
        for floor in self.floors.values():
            lines.append(
                f"noise floor of {floor.metric}: {floor.mean:.4f} on average, 95 % below "
                f"{floor.q95:.4f}; p = {floor.p_value:.3f}"
            )
        lines += ["", *self._bin_lines(), "", *self._summary_lines()]
        lines += [f"! {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<CalibrationReport: {self.n} questions, conf-ECE {self['conf_ece']}>"

    def _bin_lines(self) -> list[str]:
        low, high = self.bin_intervals()
        lines = [f"{'bin':<14}{'n':>7}  {'confidence':>10}  {'accuracy':>8}"]
        t = self.bins
        for b in np.flatnonzero(t.count[0]):
            name = f"{t.edges[0, b]:.3g} to {t.edges[0, b + 1]:.3g}"
            lines.append(
                f"{name:<14}{t.count[0, b]:>7}  {t.mean_confidence[0, b]:>10.3f}  "
                f"{t.frequency[0, b]:>8.3f} [{low[b]:.3f}, {high[b]:.3f}]"
            )
        return lines

    def _summary_lines(self) -> list[str]:
        s = self.summary
        shares = " ".join(f"{_letter(k)} {v:.2f}" for k, v in enumerate(s["predicted_shares"]))
        mass = "unknown" if s["option_mass"] is None else f"{s['option_mass']:.3f}"
        return [
            f"sd of confidence {s['sd_confidence']:.3f}, share above {SATURATED}: "
            f"{s['share_saturated']:.3f}, option mass {mass}",
            f"predicted options: {shares}",
        ]

    # -- files ------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Give plain lists and numbers, ready for JSON."""
        return {
            "format_version": self.format_version,
            "n": self.n,
            "metrics": {name: e.to_dict() for name, e in self.metrics.items()},
            "floors": {name: f.to_dict() for name, f in self.floors.items()},
            "bins": self.bins.to_dict(),
            "class_bins": self.class_bins.to_dict(),
            "summary": self.summary,
            "warnings": list(self.warnings),
            "settings": self.settings,
            "provenance": self.provenance,
        }

    @classmethod
    def _of(cls, values: dict[str, Any]) -> CalibrationReport:
        return cls(
            n=int(values["n"]),
            metrics={k: Estimate.from_dict(v) for k, v in values["metrics"].items()},
            floors={k: NoiseFloor.from_dict(v) for k, v in values["floors"].items()},
            bins=BinTable.from_dict(values["bins"]),
            class_bins=BinTable.from_dict(values["class_bins"]),
            summary=dict(values["summary"]),
            warnings=tuple(values["warnings"]),
            settings=dict(values["settings"]),
            provenance=dict(values["provenance"]),
        )


def evaluate(
    answers: AnswerTable,
    *,
    n_bins: int = 10,
    n_resamples: int = 1000,
    seed: int = 0,
    show_progress: bool = False,
) -> CalibrationReport:
    """Measure the calibration of an answer table: every metric with a 95 % interval.

    Intervals are of the population's values, over questions, exact duplicates (``groups``) as one;
    `docs/statistics.md` says how each is made and how often it covers the truth.

    Parameters
    ----------
    answers : AnswerTable of N questions. n_bins : B >= 1, equal-width bins.
    n_resamples : draws behind each interval and each noise floor. seed : int.
    show_progress : a bar on standard error, if it takes more than a moment.

    Returns
    -------
    CalibrationReport

    Raises
    ------
    InputError
        If ``n_bins`` or ``n_resamples`` is below 1, or the table holds several permutations of one
        question.

    Examples
    --------
    >>> from calibrant.answers import AnswerTable
    >>> table = AnswerTable.from_probs([[0.9, 0.1]] * 300, [0] * 180 + [1] * 120)
    >>> report = evaluate(table)
    >>> report["accuracy"].value, round(report["signed_gap"].value, 4)
    (0.6, 0.3)
    >>> report.floors["conf_ece"].p_value < 0.01
    True
    """
    if n_resamples < 1:
        raise InputError(f"n_resamples is {n_resamples}, expected at least 1")
    answers.refuse_permutations()
    probs = answers.probs()
    data: dict[str, Any] = {"n_options": answers.n_options, "n_bins": n_bins}
    draws: dict[str, Any] = {"seed": seed, **data}
    floors = {}
    # Where someone else shows a bar, these steps are of theirs.
    with measuring("measuring", STEPS) if show_progress else nullcontext():
        for name in ("conf_ece", "cw_ece"):
            floors[name] = noise_floor(
                probs, answers.labels, metric=name, n_simulations=n_resamples, **draws
            )
        step()
        metrics = bootstrap_intervals(
            probs, answers.labels, groups=answers.groups, n_resamples=n_resamples, **draws
        )
    summary = _summary(answers)
    return CalibrationReport(
        n=len(answers),
        metrics={name: metrics[name] for name in METRICS},
        floors=floors,
        bins=bin_table(probs, answers.labels, **data),
        class_bins=bin_table(probs, answers.labels, classwise=True, **data),
        summary=summary,
        warnings=tuple(_warnings(answers, metrics, floors, summary)),
        settings={
            "n_bins": n_bins,
            "n_resamples": n_resamples,
            "seed": seed,
            "level": 0.95,
            **DEFAULTS._asdict(),
        },
        provenance=answers.provenance,
    )


# -- inside -------------------------------------------------------------------------------------


def _summary(answers: AnswerTable) -> dict[str, Any]:
    n, width = answers.logprobs.shape
    confidence = answers.confidence
    known = answers.option_mass[np.isfinite(answers.option_mass)]
    predicted = np.bincount(answers.predictions, minlength=width) / n
    return {
        "sd_confidence": float(confidence.std()),
        "share_saturated": float((confidence > SATURATED).mean()),
        "option_mass": float(known.mean()) if len(known) else None,
        "predicted_shares": predicted.tolist(),
        "label_shares": (np.bincount(answers.labels, minlength=width) / n).tolist(),
        "top_predicted_share": float(predicted.max()),
        "n_groups": len(set(answers.groups)),
        "min_options": int(answers.n_options.min()),
        "max_options": int(answers.n_options.max()),
    }


def _warnings(
    answers: AnswerTable,
    metrics: dict[str, Estimate],
    floors: dict[str, NoiseFloor],
    summary: dict[str, Any],
) -> Iterator[str]:
    n, floor = len(answers), floors["conf_ece"]
    if summary["n_groups"] < n:
        yield (
            f"{n - summary['n_groups']} of {n} questions repeat another one exactly; intervals "
            f"count the {summary['n_groups']} different ones."
        )
    if floor.q95 > _WIDE_FLOOR:
        yield (
            f"{n} questions are few: a perfectly calibrated model would show a conf-ECE of "
            f"{floor.mean:.3f} on average and up to {floor.q95:.3f} by chance."
        )
    if floor.p_value >= 0.05:
        yield (
            f"The conf-ECE of {floor.observed:.3f} cannot be told from that of a perfectly "
            f"calibrated model (p = {floor.p_value:.2f}); its 95 % upper bound is "
            f"{metrics['conf_ece'].upper:.3f}."
        )
    yield from _model_warnings(answers, metrics, summary)
    yield from answers.provenance.get("notes", ())  # what the source of the answers warns of


def _model_warnings(
    answers: AnswerTable, metrics: dict[str, Estimate], summary: dict[str, Any]
) -> Iterator[str]:
    mass = summary["option_mass"]
    if mass is not None and mass < _LOW_MASS:
        yield (
            f"Only {mass:.0%} of the model's probability is on the options on average; all "
            "numbers here are of what is left after renormalising."
        )
    k = int(np.argmax(summary["predicted_shares"]))
    share, right = summary["predicted_shares"][k], summary["label_shares"][k]
    if share >= _ONE_LETTER and share - right > 0.2:
        yield (
            f"Option {_letter(k)} is predicted for {share:.0%} of the questions and right for "
            f"{right:.0%}: the model may not read the options."
        )
    chance = float((1 / answers.n_options).mean())
    if metrics["accuracy"].low <= chance:
        yield (
            f"The accuracy of {metrics['accuracy'].value:.3f} is not shown to be above chance "
            f"({chance:.3f})."
        )
    if summary["share_saturated"] >= 0.5:
        wrong = 1 - float(answers.correct[answers.confidence > SATURATED].mean())
        yield (
            f"{summary['share_saturated']:.0%} of the confidences are above {SATURATED}; "
            f"{wrong:.0%} of those answers are wrong."
        )
    if summary["sd_confidence"] < 1e-6:
        yield "The confidence is the same for every question: it tells nothing apart."
    if math.isinf(metrics["nll"].value):
        yield "A right option has probability 0: the NLL is infinite."
    if math.isnan(metrics["auroc"].value):
        yield "All answers are right or all wrong: AUROC is not defined."


def _metric_line(e: Estimate) -> str:
    interval = "" if math.isnan(e.low) else f"[{e.low:.4f}, {e.high:.4f}]"
    return f"{e.name:<22}{e.value:>9.4f}   {interval:<20}"


def _letter(k: int) -> str:
    return chr(ord("A") + k) if k < 26 else str(k)
