"""`plan`: the number of questions it gives shows what it says, as often as it says."""

import numpy as np
import pytest

from calibrant.answers import AnswerTable
from calibrant.cli import run
from calibrant.diagnosis.plan import plan
from calibrant.errors import InputError
from calibrant.metrics.inference import bootstrap_interval, compare_intervals, ece_change_highs

SIMULATIONS = 100
# Three standard deviations of a share of .8 in so many simulations, and a tenth of N: z moves by
# a twentieth of 2.8, the share by 4 points.
MARGIN = 3 * (0.8 * 0.2 / SIMULATIONS) ** 0.5 + 0.04


def world(n, rng, temperature):
    """True probabilities of four options, and those of a model sharper than them."""
    z = 1.6 * rng.normal(size=(n, 4)) * np.exp(0.5 * rng.normal(size=(n, 1)))
    sharp, truth = (np.exp(s * z) / np.exp(s * z).sum(1, keepdims=True) for s in (1, temperature))
    labels = (rng.random((n, 1)) > truth.cumsum(axis=1)[:, :-1]).sum(axis=1)
    return sharp, truth, labels


@pytest.mark.slow
def test_the_tolerance_is_shown_as_often_as_planned():
    rng = np.random.default_rng(1)
    accuracy = world(100_000, rng, 1.0)[1].max(axis=1).mean()
    found = plan(tolerance=0.05, accuracy=accuracy)
    met = 0
    for _ in range(SIMULATIONS):
        _, truth, labels = world(found.questions, rng, 1.0)
        met += bootstrap_interval(truth, labels, n_resamples=200).upper <= 0.05
    assert abs(met / SIMULATIONS - 0.8) < MARGIN


def test_a_change_is_judged_by_the_interval_of_the_verdict():
    rng = np.random.default_rng(4)
    sharp, truth, _ = world(400, rng, 0.7)
    # Confidences above one half, so that two options can carry them.
    before, after, right = (0.5 + x.max(axis=1) / 2 for x in (sharp, truth, truth))
    highs = ece_change_highs(before, after, right, 300, 1, 10, np.random.default_rng(5))
    draw = np.random.default_rng(5)
    rows = draw.integers(400, size=300)
    hit = draw.random(300) < right[rows]
    found = compare_intervals(
        *(np.stack([c[rows], 1 - c[rows]], axis=1) for c in (before, after)),
        np.where(hit, 0, 1),
        metrics=("conf_ece",),
        n_resamples=400,
    )
    assert highs[0] == pytest.approx(found.difference["conf_ece"].high, abs=1e-4)


@pytest.mark.slow
def test_a_change_is_shown_as_often_as_planned():
    """From over-confident to calibrated, in a world that `plan` knows by three numbers only."""
    rng = np.random.default_rng(2)
    sharp, truth, _ = world(100_000, rng, 0.7)
    change = float((sharp.max(axis=1) - truth.max(axis=1)).mean())
    found = plan(ece_change=change, accuracy=float(truth.max(axis=1).mean()))
    assert found.ece_after == 0
    met = 0
    for _ in range(SIMULATIONS):
        before, after, labels = world(found.questions, rng, 0.7)
        options = {"metrics": ("conf_ece",), "n_resamples": 200}
        met += compare_intervals(before, after, labels, **options).difference["conf_ece"].high < 0
    assert abs(met / SIMULATIONS - 0.8) < MARGIN


def test_the_documented_number_for_a_typical_model():
    """docs/statistics.md: about 3,200 questions show .03 where accuracy is .63; 1,900 at .81."""
    assert plan(tolerance=0.03, accuracy=0.63).questions == pytest.approx(3200, rel=0.1)
    assert plan(tolerance=0.03, accuracy=0.81).questions == pytest.approx(1900, rel=0.1)


def test_a_table_of_answers_stands_for_the_model():
    """Its confidences count after softening to its accuracy, not as they are."""
    rng = np.random.default_rng(3)
    sharp, _, labels = world(3000, rng, 0.5)
    table = AnswerTable.from_probs(sharp, labels)
    found = plan(tolerance=0.05, answers=table)
    assert found.accuracy == pytest.approx(table.correct.mean(), abs=0.01)
    typical = plan(tolerance=0.05, accuracy=found.accuracy)
    assert found.questions == pytest.approx(typical.questions, rel=0.2)


def test_the_command_says_it_in_one_line_each(tmp_path, capsys):
    assert run(["plan", "--tolerance", ".08", "--accuracy", ".8", "--options", "2"]) == 0
    out = capsys.readouterr().out
    assert (
        "questions show that a calibrated model's conf-ECE is at most 0.080, 80% of the time"
        in (out)
    )
    assert run(["plan"]) == 2
    assert run(["plan", "--tolerance", ".1", "--ece-before", ".2"]) == 2
    assert run(["plan", "--ece-change", ".2", "--ece-before", ".1"]) == 1
    assert "expected at least the change of 0.2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either an ECE change or a tolerance"),
        ({"ece_change": 0.1, "tolerance": 0.1}, "either an ECE change or a tolerance"),
        ({"tolerance": 0}, "expected a number between 0 and 1"),
        ({"tolerance": float("nan")}, "expected a number between 0 and 1"),
        ({"tolerance": 0.1, "power": 1}, "power is 1"),
        ({"tolerance": 0.1, "accuracy": 0.2}, "accuracy between 0.25 and 1"),
        ({"tolerance": 0.1, "n_options": 1}, "at least 2 options"),
        ({"ece_change": 0.5, "accuracy": 0.6}, "expected less than 1 - accuracy"),
    ],
)
def test_what_cannot_be_planned_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        plan(**arguments)


def test_the_search_ends_where_the_power_asked_for_is_met():
    """Whether a bound is within the tolerance turns from never to always within a factor of 1.7."""
    at = {power: plan(tolerance=0.03, power=power).questions for power in (0.3, 0.5, 0.8, 0.95)}
    assert list(at.values()) == sorted(at.values())
    assert at[0.95] / at[0.3] < 2.5
    assert at[0.5] == pytest.approx(plan(tolerance=0.03, power=0.5, seed=1).questions, rel=0.15)
