"""``restore --method auto``: which remedy, judged on labelled questions that none was fitted on.

Works on answer tables alone: `calibrant.restore` makes them. Test sets never come in here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calibrant.answers import AnswerTable
from calibrant.diagnosis.comparison import pooled
from calibrant.diagnosis.verdict import Verdict, verdict
from calibrant.errors import InputError
from calibrant.files import JsonFile
from calibrant.metrics.inference import bootstrap_intervals
from calibrant.posthoc import LABELLED, Calibrator

NONE = "none"  # the model as it came
# Simplest first: one number, one per option, a free monotone map of the confidence. The others of
# `LABELLED` are variants of these.
POST_HOC = ("temperature", "vector", "isotonic")
# The second where no temperature can be fitted, which the first needs; docs/rcft.md says why these.
FINE_TUNED = ("tempered-cft", "cft")
WHEN_TO_FINE_TUNE = ("auto", "always", "never")
MIN_SOURCE = 50  # questions a source needs to stand in for another domain
_LOST = ("harmed", "gamed")


@dataclass(frozen=True, eq=False)
class Choice(JsonFile):
    """What `restore --method auto` settled on, and why.

    Attributes
    ----------
    method : `NONE`, or one of `POST_HOC` or `FINE_TUNED`.
    explanation : str, three sentences.
    verdicts : candidate -> `Verdict` against the model before, on the held-out questions.
    n_fitted, n_held_out : labelled questions the candidates were fitted on, and judged on.
    fine_tuning : why fine-tuning was tried, "" if it was not.
    skipped : sentences about methods that could not be fitted.
    """

    what = "choice of a restoration"

    method: str
    explanation: str
    verdicts: dict[str, Verdict]
    n_fitted: int
    n_held_out: int
    fine_tuning: str = ""
    skipped: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Give plain lists and numbers, ready for JSON."""
        return {
            "format_version": self.format_version,
            "method": self.method,
            "explanation": self.explanation,
            "fine_tuning": self.fine_tuning,
            "n_fitted": self.n_fitted,
            "n_held_out": self.n_held_out,
            "skipped": self.skipped,
            "verdicts": {name: v.to_dict() for name, v in self.verdicts.items()},
        }

    @classmethod
    def _of(cls, values: dict[str, Any]) -> Choice:
        content = {name: value for name, value in values.items() if name != "format_version"}
        verdicts = {k: Verdict.from_dict(v) for k, v in content.pop("verdicts").items()}
        if content["method"] not in (NONE, *POST_HOC, *FINE_TUNED):
            raise ValueError(f"method {content['method']!r}")
        return cls(verdicts=verdicts, **content)


def prefer(
    candidates: Mapping[str, AnswerTable],
    *,
    tolerance: float = 0.03,
    n_resamples: int = 1000,
    seed: int = 0,
) -> str:
    """Name the candidate to take: the first that none of the later ones beats.

    A later one takes the place of the best so far if it does not lose by the verdict between the
    two (harmed or gamed), and either that verdict is an improvement or its NLL is lower by more
    than chance (paired, 95 %). So what is simpler stays unless something better is shown.

    Parameters
    ----------
    candidates : name -> answers to the same held-out questions, the simplest first.

    Raises
    ------
    InputError
        If there is none.

    Examples
    --------
    >>> from calibrant.posthoc import TemperatureScaling
    >>> rng = np.random.default_rng(0)
    >>> p = rng.dirichlet([0.5] * 4, 1000)
    >>> labels = (rng.random((1000, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)
    >>> sharp = AnswerTable.from_probs(p**3 / (p**3).sum(axis=1, keepdims=True), labels)
    >>> prefer({"none": sharp, "temperature": TemperatureScaling().fit(sharp).transform(sharp)})
    'temperature'
    """
    if not candidates:
        raise InputError("no candidates to choose from; expected at least one")
    best, *others = candidates
    for name in others:
        judged = verdict(
            candidates[best],
            candidates[name],
            tolerance=tolerance,
            n_resamples=n_resamples,
            seed=seed,
        )
        better = judged.label in ("improved", "fully restored")
        better |= judged.difference["nll"].high < 0
        if better and judged.label not in _LOST:
            best = name
    return best


def post_hoc_candidates(
    fitted_on: AnswerTable, held_out: AnswerTable, others: Sequence[AnswerTable] = ()
) -> tuple[dict[str, AnswerTable], list[str]]:
    """Fit each post-hoc method on one table and apply it to the other; say what could not be.

    Parameters
    ----------
    others : answers that a method must be able to change as well, whatever comes of it.
    """
    tables, skipped = {}, []
    for name in POST_HOC:
        try:
            calibrator = LABELLED[name]().fit(fitted_on)
            for table in others:
                calibrator.transform(table)
            tables[name] = calibrator.transform(held_out)
        except InputError as error:
            skipped.append(f"{name}: not applicable: {error}")
    return tables, skipped


def transfers(
    pool: AnswerTable,
    source: Sequence[str],
    make: Callable[[], Calibrator],
    *,
    tolerance: float = 0.03,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Verdict | None:
    """Judge a calibrator on sources it was not fitted on: each in turn is another domain.

    Parameters
    ----------
    pool : labelled questions. source : N str, where each comes from.
    make : gives an unfitted calibrator.

    Returns
    -------
    Verdict over all sources with at least `MIN_SOURCE` questions, or None if there are fewer than
    two of them, or the calibrator cannot be fitted without one.
    """
    names = np.array(source)
    large = [s for s in dict.fromkeys(source) if (names == s).sum() >= MIN_SOURCE]
    if len(large) < 2:
        return None
    before, after = {}, {}
    for s in large:
        left_out = pool.select(names == s)
        try:
            calibrator = make().fit(pool.select(names != s))
            after[s] = calibrator.transform(left_out)
        except InputError:
            return None
        before[s] = left_out
    return verdict(
        pooled(before), pooled(after), tolerance=tolerance, n_resamples=n_resamples, seed=seed
    )


def reason_to_fine_tune(
    best: AnswerTable, elsewhere: Verdict | None, *, tolerance: float, min_accuracy: float | None
) -> str:
    """Say what post-hoc calibration leaves to be done, "" if nothing is shown to be.

    Parameters
    ----------
    best : held-out answers after the best post-hoc method.
    elsewhere : of `transfers`.
    min_accuracy : what the user asks for, or None.
    """
    found = bootstrap_intervals(
        best.probs(), best.labels, n_options=best.n_options, groups=best.groups,
        metrics=("accuracy", "conf_ece"),
    )  # fmt: skip
    accuracy, ece = found["accuracy"], found["conf_ece"]
    chance = float((1 / best.n_options).mean())
    if min_accuracy is not None and accuracy.value < min_accuracy:
        return f"accuracy {accuracy.value:.3f} is below the {min_accuracy:g} asked for"
    if accuracy.low <= chance:
        return (
            f"accuracy {accuracy.value:.3f} cannot be told from guessing ({chance:.3f}), which no "
            "post-hoc method can mend"
        )
    if ece.low > tolerance:
        return (
            f"the best post-hoc method leaves conf-ECE {ece.value:.3f}, surely above the "
            f"tolerance {tolerance:g}"
        )
    if elsewhere is not None and elsewhere.label in (*_LOST, "not restored"):
        change = elsewhere.difference["conf_ece"]
        return (
            "post-hoc calibration does not carry over to sources it was not fitted on "
            f"({elsewhere.label}: conf-ECE change {change.value:+.3f} [{change.low:+.3f}, "
            f"{change.high:+.3f}], N = {elsewhere.n:,})"
        )
    return ""


def conclude(
    candidates: Mapping[str, AnswerTable],
    *,
    n_fitted: int,
    fine_tuning: str,
    preferred: str | None = None,
    skipped: Sequence[str] = (),
    tolerance: float = 0.03,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Choice:
    """Choose among all candidates, the model before being the first, and explain it.

    Parameters
    ----------
    preferred : what `prefer` says of these candidates, where it is known already.
    """
    before = candidates[NONE]
    how: dict[str, Any] = {"tolerance": tolerance, "n_resamples": n_resamples, "seed": seed}
    chosen = preferred or prefer(candidates, **how)
    verdicts = {name: verdict(before, table, **how) for name, table in candidates.items()}
    sentences = (
        _tried(verdicts, len(before)),
        _about_fine_tuning(verdicts, fine_tuning),
        _chosen(chosen, n_fitted, len(before)),
    )
    return Choice(
        chosen, " ".join(sentences), verdicts, n_fitted, len(before), fine_tuning, list(skipped)
    )


def _numbers(found: Verdict) -> str:
    values = found.after
    return (
        f"accuracy {values['accuracy'].value:.3f}, conf-ECE {values['conf_ece'].value:.3f} and "
        f"NLL {values['nll'].value:.3f}"
    )


def _tried(verdicts: Mapping[str, Verdict], n: int) -> str:
    start = f"On {n:,} labelled questions held out the model has {_numbers(verdicts[NONE])} before"
    tried = [
        f"after {name} {_numbers(v)} ({v.label})"
        for name, v in verdicts.items()
        if name in POST_HOC
    ]
    return "; ".join([start, *tried]) + ("." if tried else "; no post-hoc method can be fitted.")


def _about_fine_tuning(verdicts: Mapping[str, Verdict], why: str) -> str:
    if not why:
        return (
            "Fine-tuning was not tried: nothing shows that it is needed to calibrate the model "
            "(--fine-tune always tries it, --min-accuracy says when accuracy asks for it)."
        )
    tried = [
        f"after {name} {_numbers(v)} ({v.label})"
        for name, v in verdicts.items()
        if name in FINE_TUNED
    ]
    return f"Fine-tuning was tried because {why}: {'; '.join(tried)}."


def _chosen(chosen: str, n_fitted: int, n: int) -> str:
    if chosen == NONE:
        text = (
            "the model as it came, since no method is shown to better it by the verdict or by NLL"
        )
    else:
        how = f"now fitted on all {n_fitted + n:,} labels"
        if chosen in FINE_TUNED:
            how = f"trained on {n_fitted:,} labels"
        text = f"{chosen} ({how}), the simplest that no other beats by the verdict or by NLL"
    return f"Chosen: {text}; the test sets had no part in this."
