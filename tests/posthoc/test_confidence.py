"""Calibrators of the confidence: isotonic and scaling-binning."""

import numpy as np
import pytest
from calibration.calibrators import PlattBinnerTopCalibrator
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from worlds import crossing, mean_nll, sharpened, table_of

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.metrics import conf_ece
from calibrant.posthoc import (
    IsotonicCalibration,
    NoOptimumError,
    ScalingBinning,
    TemperatureScaling,
)
from calibrant.posthoc._confidence import with_confidence

BOTH = pytest.mark.parametrize("calibrator", [IsotonicCalibration, ScalingBinning])


def test_isotonic_is_scikit_learns():
    for table in (crossing()[0], sharpened()[0]):
        fitted = IsotonicCalibration().fit(table)
        kept = {"y_min": 1 / 4002, "y_max": 4001 / 4002}
        reference = IsotonicRegression(out_of_bounds="clip", **kept)
        reference.fit(table.confidence, table.correct)
        at = np.linspace(0, 1, 10_001)
        theirs = reference.predict(at)
        assert np.interp(at, fitted.thresholds, fitted.values) == pytest.approx(theirs, abs=1e-12)


def test_isotonic_recovers_a_curve_that_crosses_the_diagonal():
    table, truth = crossing(n=100_000)
    after = IsotonicCalibration().fit(table).transform(table)
    error = np.abs(after.confidence - truth)
    assert error.mean() < 0.01
    assert np.quantile(error, 0.99) < 0.05  # the ends rest on few questions


def test_isotonic_by_hand():
    # Right: .5 -> 1 of 2, .6 -> 0 of 1, .8 -> 1 of 1. The first two violate: pooled, 1 of 3.
    p = [[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.8, 0.1, 0.1]]
    table = AnswerTable.from_probs(p, [0, 1, 1, 0])
    fitted = IsotonicCalibration().fit(table)
    assert fitted.thresholds == pytest.approx([0.5, 0.6, 0.8])
    assert fitted.values == pytest.approx([1 / 3, 1 / 3, 5 / 6])  # 1 is kept to (N+1)/(N+2)
    after = fitted.transform(table).probs()
    assert after[3] == pytest.approx([5 / 6, 1 / 12, 1 / 12])
    # 1/3 would put the runner-up (.3 of .5 left, 2/3 to share) ahead: they nearly tie.
    assert after[0] == pytest.approx([3 / 8, 3 / 8, 2 / 8], abs=1e-8)
    assert after[0, 0] > after[0, 1]


def test_scaling_binning_recovers_a_logistic_curve():
    rng = np.random.default_rng(0)
    c = rng.uniform(0.5, 0.999, 100_000)
    truth = expit(0.4 * logit(c) + 0.5)  # over-confident high, under-confident low
    labels = (rng.random(len(c)) > truth).astype(int)
    table = AnswerTable.from_probs(np.column_stack((c, 1 - c)), labels)
    fitted = ScalingBinning().fit(table)
    assert (fitted.slope, fitted.intercept) == pytest.approx((0.4, 0.5), abs=0.02)
    after = fitted.transform(table)
    assert len(np.unique(after.confidence.round(9))) == 10
    assert np.abs(after.confidence - truth).mean() < 0.02  # half a bin
    assert conf_ece(after.probs(), labels) < 0.01 < conf_ece(table.probs(), labels)


def test_the_logistic_curve_is_scikit_learns():
    table, _ = crossing()
    fitted = ScalingBinning().fit(table)
    reference = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12)
    reference.fit(logit(table.confidence)[:, None], table.correct)
    assert fitted.slope == pytest.approx(reference.coef_[0, 0], rel=1e-6)
    assert fitted.intercept == pytest.approx(reference.intercept_[0], rel=1e-6)


@pytest.mark.parametrize("n_bins", [1, 7, 10, 15])
def test_bins_are_those_of_the_authors(n_bins):
    table, _ = crossing(n=1003)
    reference = PlattBinnerTopCalibrator(1, n_bins)
    reference.train_calibration(table.probs(), table.labels)
    fitted = ScalingBinning(n_bins=n_bins).fit(table)
    # Their curve is fitted to 1e-4 only; the same questions share a bin, at the same mean.
    theirs = reference.calibrate(table.probs())
    ours = fitted.values[np.searchsorted(fitted.edges, fitted._curve(logit(table.confidence)))]
    assert len(np.unique(ours)) == n_bins
    assert (np.argsort(ours, kind="stable") == np.argsort(theirs, kind="stable")).all()
    assert ours == pytest.approx(theirs, abs=1e-4)


@BOTH
@pytest.mark.parametrize("world", [crossing, sharpened])
def test_prediction_ratios_and_accuracy_are_kept(calibrator, world):
    table, _ = world()
    after = calibrator().fit(table).transform(table)
    assert (after.predictions == table.predictions).all()
    before_rest, after_rest = (
        np.sort(t.probs(), axis=1)[:, :-1] / np.sort(t.probs(), axis=1)[:, :-1].sum(1)[:, None]
        for t in (table, after)
    )
    assert after_rest == pytest.approx(before_rest, abs=1e-9)


@BOTH
def test_confidence_becomes_calibrated_where_temperature_cannot(calibrator):
    table, _ = crossing(n=20_000)
    fresh, _ = crossing(n=20_000, seed=1)
    after = calibrator().fit(table).transform(fresh)
    assert conf_ece(fresh.probs(), fresh.labels) > 0.05
    assert conf_ece(after.probs(), fresh.labels) < 0.02


@BOTH
def test_a_temperature_first_spares_the_other_options_their_sharpness(calibrator):
    (table, _), (fresh, _) = sharpened(), sharpened(seed=1)
    first = TemperatureScaling().fit(table)
    second = calibrator().fit(first.transform(table)).transform(first.transform(fresh))
    alone = calibrator().fit(table).transform(fresh)
    assert mean_nll(second) < mean_nll(alone) - 0.01
    assert conf_ece(second.probs(), fresh.labels) < 0.03


@BOTH
def test_no_option_gets_probability_zero_or_one(calibrator):
    table, _ = sharpened(sharpness=60.0)
    sure = calibrator().fit(table).transform(table)
    p = sure.probs()
    assert p.max() < 1
    assert np.isfinite(sure.logprobs).all()


def test_a_confidence_is_given_and_the_rest_shared():
    table = AnswerTable.from_probs(
        [[0.7, 0.2, 0.1, 0], [0.4, 0.4, 0.2, 0], [1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]],
        [0] * 4,
        n_options=[3, 3, 4, 4],
    )
    scores = with_confidence(table, np.array([0.5, 0.3, 0.7, 0.9]))
    p = table.with_logprobs(scores).probs()
    assert p[0] == pytest.approx([0.5, 1 / 3, 1 / 6, 0])
    # Two tie for the best: each gets .3, so the third has .4, which would win: all alike instead.
    assert p[1] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=1e-8)
    assert p[1, 0] == p[1, 1] > p[1, 2]
    assert p[2] == pytest.approx([0.7, 0.1, 0.1, 0.1])  # no ratios are known
    assert p[3] == pytest.approx([0.25] * 4)
    tied = with_confidence(table, np.array([0.5, 0.45, 0.7, 0.9]))
    assert table.with_logprobs(tied).probs()[1] == pytest.approx([0.45, 0.45, 0.1, 0])
    most = with_confidence(table, np.array([0.5, 0.9, 0.7, 0.9]))
    assert table.with_logprobs(most).probs()[1] == pytest.approx([0.5, 0.5, 0, 0], abs=2e-6)


def test_confidences_beyond_rounding_are_told_apart():
    # 1 − c is 1e-20 and 1e-30: both confidences are 1.0 in float64, the other options are not 0.
    table = table_of(np.array([[0.0, -46.0, -47.0], [0.0, -69.0, -70.0]]), [0, 0])
    p = table.with_logprobs(with_confidence(table, np.array([0.9, 0.9]))).probs()
    assert p[:, 1] / p[:, 2] == pytest.approx(np.e)
    assert p[:, 0] == pytest.approx(0.9)


def test_equal_confidences_share_a_bin_and_surer_answers_the_last():
    p = [[0.6, 0.4]] * 5 + [[0.9, 0.1]] * 7  # the median lies within the second group
    fitted = ScalingBinning(n_bins=2).fit(
        AnswerTable.from_probs(p, [0, 0, 0, 1, 1] + [0] * 6 + [1])
    )
    assert fitted.values == pytest.approx([9 / 12])
    after = fitted.transform(AnswerTable.from_probs([[0.99, 0.01], [0.55, 0.45]], [0, 0]))
    assert after.confidence == pytest.approx([9 / 12] * 2)


def test_a_curve_without_optimum_raises():
    with pytest.raises(NoOptimumError, match="3 of 3 answers are right"):
        ScalingBinning().fit(AnswerTable.from_probs([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], [0] * 3))
    parted = AnswerTable.from_probs([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], [0, 0, 1])
    with pytest.raises(NoOptimumError, match="2 of 3 answers are right"):
        ScalingBinning().fit(parted)
    alike = AnswerTable.from_probs([[0.9, 0.1]] * 3, [0, 0, 1])
    with pytest.raises(NoOptimumError, match="unequal confidences"):
        ScalingBinning().fit(alike)
    with pytest.raises(InputError, match="n_bins 0, expected at least 1"):
        ScalingBinning(n_bins=0)
