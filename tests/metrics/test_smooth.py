"""Smooth ECE against the integral it is defined by, computed another way."""

import itertools

import numpy as np
import pytest
from scipy import integrate, optimize

from calibrant.errors import InputError
from calibrant.metrics import (
    smooth_ece,
    smooth_ece_from_confidence,
    smooth_reliability,
    smooth_reliability_from_confidence,
)
from calibrant.metrics.smooth import _residual_modes, _smooth_error

SIGMAS = [0.5, 0.1, 0.03, 0.01, 0.003]


def kernel(t, c, sigma):
    """Gaussian reflected at 0 and 1, by its images; enough of them for sigma <= 1."""
    images = np.concatenate([[2 * j + c, 2 * j - c] for j in range(-5, 6)])
    total = np.exp(-0.5 * ((t - images) / sigma) ** 2).sum(axis=0)
    return total / (sigma * np.sqrt(2 * np.pi))


def exact_error(c, hit, sigma):
    """The integral of |mean residual smoothed|, between its sign changes, by adaptive rules."""

    def residual(t):
        return float(np.mean((hit - c) * kernel(t, c, sigma)))

    grid = np.linspace(0, 1, 1001)
    values = np.array([residual(t) for t in grid])
    change = np.flatnonzero(values[:-1] * values[1:] < 0)
    roots = [optimize.brentq(residual, grid[i], grid[i + 1], xtol=1e-13) for i in change]
    # A few narrow kernels: quad must not step over them.
    spikes = [c - 9 * sigma, c, c + 9 * sigma] if len(c) < 50 else []
    ends = sorted([0.0, *roots, *np.clip(np.ravel(spikes), 0, 1), 1.0])
    pieces = itertools.pairwise(ends)
    return sum(
        abs(integrate.quad(residual, a, b, epsabs=1e-11, epsrel=1e-9, limit=300)[0])
        for a, b in pieces
    )


@pytest.mark.parametrize("n", [3, 40, 200])
def test_smoothing_is_within_1e_6_of_the_exact_integral(crossing, n):
    p, y = crossing(n, 4, seed=n)
    c, hit = p.max(axis=1), p.argmax(axis=1) == y
    modes = _residual_modes(c, hit)
    for sigma in SIGMAS:
        assert _smooth_error(modes, sigma) == pytest.approx(exact_error(c, hit, sigma), abs=1e-6)


@pytest.mark.parametrize("n", [3, 40, 1000])
def test_the_result_is_the_fixed_point_of_the_exact_integral(crossing, n):
    p, y = crossing(n, 4, seed=n + 1)
    value = smooth_ece(p, y)
    exact = exact_error(p.max(axis=1), p.argmax(axis=1) == y, value)
    assert exact == pytest.approx(value, abs=1e-6)


def test_calibrated_data_have_a_small_fixed_point():
    rng = np.random.default_rng(0)
    c = rng.uniform(0, 1, 200_000)
    assert smooth_ece_from_confidence(c, rng.random(200_000) < c) < 0.01


def test_residuals_of_one_sign_are_kept_whole_by_any_smoothing():
    # All wrong: the smoothed residual never changes sign, so smECE is the mean confidence.
    c = np.random.default_rng(0).uniform(0.3, 1, 500)
    assert smooth_ece_from_confidence(c, np.zeros(500)) == pytest.approx(c.mean(), abs=1e-12)


def test_perfect_and_worst_predictions_and_one_row():
    assert smooth_ece([[1, 0]] * 5, [0] * 5) == 0
    assert smooth_ece([[1, 0]] * 5, [1] * 5) == pytest.approx(1)
    assert smooth_ece([[0.7, 0.3]], [0]) == pytest.approx(0.3)
    assert smooth_ece([[0.5, 0.5]] * 2, [0, 1]) == 0
    assert smooth_ece([[1.0005, 0]], [1]) == pytest.approx(1, abs=1e-3)


def test_curve_is_the_kernel_average(crossing):
    p, y = crossing(500, 4)
    c, hit = p.max(axis=1), p.argmax(axis=1) == y
    curve = smooth_reliability(p, y, bandwidth=0.04)
    weights = kernel(curve.grid[:, None], c[None, :], 0.04)
    np.testing.assert_allclose(curve.density, weights.mean(axis=1), atol=1e-5)
    dense = curve.density > 1e-2
    average = (weights @ hit) / weights.sum(axis=1)
    np.testing.assert_allclose(curve.accuracy[dense], average[dense], atol=1e-5)
    assert np.trapezoid(curve.density, curve.grid) == pytest.approx(1, abs=1e-4)


def test_curve_says_nothing_where_there_are_no_rows():
    curve = smooth_reliability_from_confidence([0.9, 0.8], [1, 0], bandwidth=0.02)
    assert np.isnan(curve.accuracy[:200]).all()
    known = curve.accuracy[~np.isnan(curve.accuracy)]
    assert len(known) > 50
    assert (known >= 0).all()
    assert (known <= 1).all()
    assert (curve.density >= 0).all()


def test_curve_takes_the_smooth_ece_for_bandwidth(crossing):
    p, y = crossing(500, 4)
    assert smooth_reliability(p, y).bandwidth == smooth_ece(p, y)
    assert smooth_reliability([[1, 0]], [0]).bandwidth == 1e-3


@pytest.mark.parametrize("bandwidth", [0, -1, np.nan, np.inf])
def test_bad_bandwidth_is_refused(bandwidth):
    with pytest.raises(InputError, match="bandwidth"):
        smooth_reliability([[0.5, 0.5]], [0], bandwidth=bandwidth)
