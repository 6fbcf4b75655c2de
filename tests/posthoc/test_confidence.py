"""Calibrators of the confidence: isotonic and scaling-binning."""

import json

import numpy as np
import pytest
from calibration.calibrators import PlattBinnerTopCalibrator
from hypothesis import given, settings
from hypothesis import strategies as st
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
from calibrant.posthoc import load as load_calibrator
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
    # 1/3 is what three options get where nothing is known: they nearly tie, in their order.
    assert after[0] == pytest.approx([1 / 3, 1 / 3, 1 / 3], abs=1e-8)
    assert after[0, 0] > after[0, 1] > after[0, 2]


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
def test_order_and_where_possible_ratios_are_kept(calibrator, world):
    table, _ = world()
    after = calibrator().fit(table).transform(table)
    order = table.logprobs.argsort(axis=1)
    assert (after.logprobs.argsort(axis=1) == order).all()
    old, new = (np.take_along_axis(t.probs(), order, axis=1) for t in (table, after))
    old, new = (p[:, :-1] / p[:, :-1].sum(axis=1, keepdims=True) for p in (old, new))
    allowed = after.confidence > (1 - after.confidence) * old[:, -1] + 1e-6
    assert allowed.sum() > 1000
    assert new[allowed] == pytest.approx(old[allowed], abs=1e-9)


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


@BOTH
@pytest.mark.parametrize("k", [3, 4, 8])
def test_sure_answers_near_chance_get_the_confidence_they_deserve(calibrator, k):
    """Right answers are hardly likelier than wrong ones: old ratios leave no room for that."""
    (table, _), (fresh, truth) = (
        sharpened(n=20_000, k=k, sharpness=10.0, spread=0.15, seed=seed) for seed in (0, 1)
    )
    after = calibrator().fit(table).transform(fresh)
    assert conf_ece(fresh.probs(), fresh.labels) > 0.3
    assert conf_ece(after.probs(), fresh.labels) < 0.02
    deserved = truth[np.arange(len(fresh)), fresh.predictions]
    assert np.abs(after.confidence - deserved).mean() < 0.02


@pytest.mark.parametrize(
    "fitted",
    [
        {"kind": "isotonic", "thresholds": [0.5, 0.9], "values": [100 / 271] * 2},
        {"kind": "scaling-binning", "n_bins": 1, "slope": 1.0, "intercept": 0.0, "edges": [],
         "values": [100 / 271]},
    ],
)  # fmt: skip
def test_a_low_confidence_is_a_temperature_by_hand(fitted, tmp_path):
    """Also from files written before there was this rule: they hold g, not what follows from it."""
    path = tmp_path / "calibrator.json"
    path.write_text(json.dumps({**fitted, "format_version": 1, "n_questions": 3}))
    # 100 : 10 : 1 to the power log .9 / log .1 is 100 : 90 : 81. In old ratios the runner-up
    # would have 10/11 of the 171/271 left, more than the 100/271 of the prediction.
    table = AnswerTable.from_probs([[10 / 111, 100 / 111, 1 / 111]], [0])
    after = load_calibrator(path).transform(table)
    assert after.probs()[0] == pytest.approx([90 / 271, 100 / 271, 81 / 271], abs=1e-14)


def test_the_limit_of_old_ratios():
    # At c = 10/21 the runner-up has 10/11 of the other 11/21, as much as the prediction.
    table = AnswerTable.from_probs([[100 / 111, 10 / 111, 1 / 111]] * 2, [0, 0])
    confidence = 10 / 21 + np.array([1e-6, -1e-6])
    p = table.with_logprobs(with_confidence(table, confidence)).probs()
    assert p[:, 0] == pytest.approx(confidence, abs=1e-12)
    assert p[0, 1] / p[0, 2] == pytest.approx(10)
    assert p[1, 0] / p[1, 1] == pytest.approx(p[1, 1] / p[1, 2])  # a temperature: gaps 1 : 2 stay


@st.composite
def tables_and_confidences(draw):
    """Up to 8 questions of 2 to 6 options: ties, options of probability 0, any sharpness."""
    n, k = draw(st.integers(1, 8)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.integers(0, draw(st.sampled_from([2, 4, 50])), (n, k)).astype(float)
    scores *= 10.0 ** rng.integers(-7, 8, (n, 1))  # nearly equal to saturated
    scores[rng.random((n, k)) < draw(st.sampled_from([0.0, 0.3]))] = -np.inf
    n_options = rng.integers(2, k + 1, n)
    scores[np.arange(n), rng.integers(0, n_options)] = 0.0
    confidence = draw(st.lists(st.floats(1e-6, 1 - 1e-6), min_size=n, max_size=n))
    return table_of(scores, np.zeros(n, int), n_options), np.array(confidence)


@settings(max_examples=150, deadline=None)
@given(tables_and_confidences())
def test_order_and_ties_never_change_and_the_confidence_is_the_wanted_one(world):
    table, wanted = world
    after = table.with_logprobs(with_confidence(table, wanted))
    assert (after.predictions == table.predictions).all()
    for row, k in enumerate(table.n_options):
        old, new = table.logprobs[row, :k], after.logprobs[row, :k]
        assert ((old[:, None] > old) == (new[:, None] > new)).all()
        assert not np.isnan(new).any()
        tied, possible = (old == old.max()).sum(), np.isfinite(old).sum()
        unknown = tied == possible < k
        assert (np.isfinite(new) == (np.isfinite(old) | unknown)).all()
        least, most = 1 / (k if unknown else possible), 1 / tied
        if tied < k:
            most -= 1e-6 / tied
        expected = least if tied == possible and not unknown else np.clip(wanted[row], least, most)
        assert after.confidence[row] == pytest.approx(expected, abs=2e-9)
        if possible - tied < 2:
            continue
        # Ratios: the old ones where they leave the prediction ahead, else all to one power < 1.
        others = np.sort(old[(old < old.max()) & np.isfinite(old)])
        share = 1 / np.exp(others - others[-1]).sum()  # of the runner-up in what the others get
        allowed = expected - (1 - tied * expected) * share
        z, new = (s[np.isfinite(old)] - s.max() for s in (old, new))
        if allowed > 1e-8:
            below = z < 0
            assert np.diff(new[below]) == pytest.approx(np.diff(z[below]), rel=1e-6, abs=1e-9)
        elif allowed < -1e-8:
            power = new.min() / z.min()
            assert power <= 1 or new.min() > -3e-9
            assert new == pytest.approx(power * z, rel=1e-6, abs=2e-9)


def test_a_wide_gap_leaves_a_narrow_one_exact():
    # 1 + x + y = 1 / .4: options .5 nats apart tie at the temperature that brings 1e30 to log 2.
    table = table_of(np.array([[0.0, -1.0, -1e30], [0.0, -1e-12, -1.0]]), [0, 0])
    after = table.with_logprobs(with_confidence(table, np.array([0.4, 0.35])))
    assert after.probs()[0] == pytest.approx([0.4, 0.4, 0.2], abs=1e-9)
    assert after.probs()[1] == pytest.approx([0.35, 0.35, 0.3], abs=1e-9)
    assert (after.logprobs[:, 0] > after.logprobs[:, 1]).all()


def test_a_confidence_is_given_and_the_rest_shared():
    table = AnswerTable.from_probs(
        [[0.7, 0.2, 0.1, 0], [0.4, 0.4, 0.2, 0], [1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]],
        [0] * 4,
        n_options=[3, 3, 4, 4],
    )
    scores = with_confidence(table, np.array([0.5, 0.3, 0.7, 0.9]))
    p = table.with_logprobs(scores).probs()
    assert p[0] == pytest.approx([0.5, 1 / 3, 1 / 6, 0])
    # Two tie for the best: at .3 each the third would have .4, and win. All get 1/3 instead.
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


@pytest.mark.parametrize("step", [0.125, 0.25])
@pytest.mark.parametrize("seed", range(10))
def test_scaling_binning_has_a_value_in_every_bin_where_confidences_are_tied(seed, step, tmp_path):
    """Log-odds on the grid of bfloat16: ties reach over several parts of equal count."""
    rng = np.random.default_rng(seed)
    odds = np.round(rng.normal(0.2, 0.5, 300) / step) * step
    p = 1 / (1 + np.exp(-odds))
    labels = (rng.random(300) > p).astype(int)
    table = AnswerTable.from_probs(np.stack([p, 1 - p], axis=1), labels)
    fitted = ScalingBinning().fit(table)
    assert np.isfinite(fitted.values).all()
    assert len(fitted.edges) == len(fitted.values) - 1
    fitted.save(tmp_path / "c.json")
    again = load_calibrator(tmp_path / "c.json")
    np.testing.assert_array_equal(again.transform(table).probs(), fitted.transform(table).probs())
