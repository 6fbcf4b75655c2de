"""What `restore --method auto` takes, on tables whose truth is known."""

import re

import numpy as np
import pytest

from calibrant.answers import AnswerTable
from calibrant.choice import (
    NONE,
    Choice,
    conclude,
    post_hoc_candidates,
    prefer,
    reason_to_fine_tune,
    transfers,
)
from calibrant.errors import InputError
from calibrant.posthoc import TemperatureScaling

QUICK = {"n_resamples": 100}


def world(n, seed=0, concentration=0.5):
    """Calibrated probabilities of n questions and labels drawn from them."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet([concentration] * 4, n)
    return p, (rng.random((n, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)


def table(p, labels, sharpness=1.0):
    q = p**sharpness
    return AnswerTable.from_probs(q / q.sum(axis=1, keepdims=True), labels)


def test_what_is_simpler_stays_unless_something_better_is_shown():
    p, labels = world(800)
    same = table(p, labels)
    hardly = table(p, labels, 1.01)
    candidates = {NONE: same, "a": table(p, labels), "b": hardly}
    assert prefer(candidates, **QUICK) == NONE


def test_a_remedy_is_taken_where_it_is_needed_and_the_better_of_two():
    p, labels = world(1500)
    sharp, half, right = (table(p, labels, s) for s in (3.0, 2.0, 1.0))
    assert prefer({NONE: sharp, "half": half}, **QUICK) == "half"
    assert prefer({NONE: sharp, "half": half, "right": right}, **QUICK) == "right"
    assert prefer({NONE: sharp, "right": right, "half": half}, **QUICK) == "right"


def test_the_constant_base_rate_is_not_taken_though_its_ece_is_zero():
    p, labels = world(1500)
    mild = table(p, labels, 1.3)
    order = np.argsort(-p, axis=1)
    accuracy = mild.correct.mean()
    flat = np.full_like(p, (1 - accuracy) / 3)
    np.put_along_axis(flat, order[:, :1], accuracy, axis=1)
    assert prefer({NONE: mild, "flat": AnswerTable.from_probs(flat, labels)}, **QUICK) == NONE


def test_fine_tuning_is_asked_for_by_accuracy_by_ece_and_by_other_sources():
    p, labels = world(1000)
    good = table(p, labels)

    def reason(best, elsewhere=None, **more):
        return reason_to_fine_tune(
            best, elsewhere, **{"tolerance": 0.03, "min_accuracy": None, **more}
        )

    assert reason(good) == ""
    assert "below the 0.9 asked for" in reason(good, min_accuracy=0.9)
    assert reason(good, min_accuracy=0.3) == ""
    guessing = AnswerTable.from_probs(p, np.random.default_rng(5).integers(0, 4, len(p)))
    assert "cannot be told from guessing (0.250)" in reason(guessing)
    assert "surely above the tolerance" in reason(table(p, labels, 4.0))


def test_a_calibrator_that_does_not_carry_over_is_found_on_the_sources_themselves():
    """One source is over-confident, the other under-confident: no single temperature does."""
    p, labels = world(1200)
    source = ["a"] * 600 + ["b"] * 600
    q = np.where(np.arange(1200)[:, None] < 600, p**4, p**0.25)
    mixed = AnswerTable.from_probs(q / q.sum(axis=1, keepdims=True), labels)
    found = transfers(mixed, source, TemperatureScaling, **QUICK)
    assert found.label in ("harmed", "not restored"), str(found)
    text = reason_to_fine_tune(table(p, labels), found, tolerance=0.03, min_accuracy=None)
    assert "does not carry over" in text
    alike = transfers(table(p, labels, 3.0), source, TemperatureScaling, **QUICK)
    assert alike.label in ("improved", "fully restored")
    assert transfers(mixed, ["a"] * 1160 + ["b"] * 40, TemperatureScaling) is None


def test_the_choice_explains_itself_in_three_sentences_and_comes_back_from_its_file(tmp_path):
    p, labels = world(900)
    fit, held = (table(p[part], labels[part], 3.0) for part in (slice(0, 600), slice(600, None)))
    tables, skipped = post_hoc_candidates(fit, held)
    assert skipped == []
    choice = conclude({NONE: held, **tables}, n_fitted=600, fine_tuning="", **QUICK)
    assert choice.method == "temperature"
    sentences = re.split(r"(?<=\.)\s+(?=[A-Z])", choice.explanation)
    assert len(sentences) == 3, sentences
    assert "On 300 labelled questions held out" in sentences[0]
    assert "Fine-tuning was not tried" in sentences[1]
    assert sentences[2].startswith("Chosen: temperature (now fitted on all 900 labels)")
    tuned = conclude(
        {NONE: held, **tables, "tempered-cft": table(p[600:], labels[600:])},
        n_fitted=600, fine_tuning="it was asked for", **QUICK,
    )  # fmt: skip
    assert "Fine-tuning was tried because it was asked for: after tempered-cft" in tuned.explanation
    choice.save(tmp_path / "choice.json")
    assert Choice.load(tmp_path / "choice.json").to_dict() == choice.to_dict()
    (tmp_path / "choice.json").write_text("[]")
    with pytest.raises(InputError, match="not a choice of a restoration"):
        Choice.load(tmp_path / "choice.json")


def test_a_method_that_cannot_be_fitted_is_said_and_left_out():
    p, _ = world(200)
    order = np.argsort(-p, axis=1)
    right = np.take_along_axis(p, order, axis=1)
    always = AnswerTable.from_probs(right, np.zeros(200, dtype=int))  # every answer is right
    tables, skipped = post_hoc_candidates(always, always)
    assert "temperature" not in tables
    assert any(line.startswith("temperature: not applicable") for line in skipped)


def test_a_method_that_cannot_change_every_test_set_is_no_candidate():
    p, labels = world(600)
    fit, held = (table(p[part], labels[part], 3.0) for part in (slice(0, 400), slice(400, None)))
    other = AnswerTable.from_probs([[0.5, 0.3, 0.2]], [0], ids=["of three"])
    tables, skipped = post_hoc_candidates(fit, held, [held, other])
    assert list(tables) == ["temperature", "isotonic"]
    assert skipped == [
        "vector: not applicable: vector: question 'of three' has 3 options, expected 4 for every "
        "question: each letter has its own weights"
    ]
    assert list(post_hoc_candidates(fit, held)[0]) == ["temperature", "vector", "isotonic"]
