"""The theory with the true probabilities known: it holds on any sample and means what it says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.diagnosis.bounds import bounds
from calibrant.errors import InputError


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def draw_labels(q, rng):
    return (rng.random((len(q), 1)) > q.cumsum(axis=1)[:, :-1]).sum(axis=1)


def padded_world(n, seed, noise, slope):
    """Questions of 2 to 5 options: the true p*, a model of p*^slope with noise, labels."""
    rng = np.random.default_rng(seed)
    options = rng.integers(2, 6, n)
    z = 1.6 * rng.normal(size=(n, 5))
    z[np.arange(5) >= options[:, None]] = -np.inf
    q = softmax(z)
    p = softmax(slope * z + noise * rng.normal(size=z.shape))
    return p, q, np.minimum(draw_labels(q, rng), options - 1), options


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 60),
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.0, 0.3, 3.0]),
    slope=st.sampled_from([0.01, 0.4, 1.0, 5.0]),
    memorised=st.booleans(),
    n_bins=st.sampled_from([1, 10, 15]),
)
def test_no_sample_violates_a_bound(n, seed, noise, slope, memorised, n_bins):
    p, q, labels, options = padded_world(n, seed, noise, slope)
    if memorised:
        p = 0.9 * np.eye(5)[labels] + 0.1 * p
    found = bounds(p, labels, q, n_options=options, n_bins=n_bins)
    assert found.violations() == {}


def test_every_number_by_hand():
    """Two options at (.8, .2), confidence .9, right; three at (.5, .3, .2), picks the .3 at .6."""
    p = [[0.9, 0.1, 0.0], [0.2, 0.6, 0.2]]
    q = [[0.8, 0.2, 0.0], [0.5, 0.3, 0.2]]
    found = bounds(p, [0, 0], q, n_options=[2, 3])
    expected = {
        "accuracy": 0.5,
        "expected_accuracy": 0.55,
        "critical_accuracy": 0.65,
        "mean_confidence": 0.75,
        "conf_ece": (0.1 + 0.6) / 2,
        "lower_bound": 0.25,
        "tce": (0.1 + 0.3) / 2,
        "excess_accuracy": -0.15,
        "target_conf_ece": (0.1 + 0.3) / 2,
        "target_cw_ece": (0.1 + 0.1 + 0.3 + 0.3 + 0) / 5,
        "max_distance": (0.1 + 0.3) / 2,
        "l1_distance": (0.2 + 0.6) / 2,
        "cw_bound": 0.8 / 5,
        "ece_ceiling": (0.3 + 0.7) / 2,  # max(.8 - 1/2, .2), max(.3 - 1/3, .7)
        "z": (0.2 - 0.3) / math.sqrt(0.16 + 0.21),
    }
    assert {k: getattr(found, k) for k in expected} == pytest.approx(expected)


def test_a_violated_bound_is_named():
    """The theory cannot fail on real numbers, so falsify one: its inequality must be named."""
    from dataclasses import replace

    p, q, labels, options = padded_world(50, 0, 0.3, 2.0)
    wrong = replace(bounds(p, labels, q, n_options=options), tce=0.0)
    assert list(wrong.violations()) == ["T1: ECE <= TCE"]


def test_z_is_standard_normal_for_fresh_labels_and_large_for_memorised_ones():
    scores = []
    for seed in range(300):
        p, q, labels, options = padded_world(200, seed, 0.5, 2.0)
        scores.append(bounds(p, labels, q, n_options=options).z)
    assert np.mean(scores) == pytest.approx(0, abs=4 / math.sqrt(300))
    assert np.std(scores) == pytest.approx(1, abs=0.15)
    p, q, labels, options = padded_world(200, 0, 0.5, 2.0)
    learnt = bounds(np.eye(5)[labels], labels, q, n_options=options)
    assert learnt.accuracy == 1
    assert learnt.z > 5
    assert learnt.p_value < 1e-6
    assert learnt.excess_accuracy == pytest.approx(1 - learnt.critical_accuracy)


def test_the_matching_temperature_makes_mean_confidence_the_accuracy():
    p, q, labels, options = padded_world(500, 3, 0.2, 2.0)
    found = bounds(p, labels, q, n_options=options)
    with np.errstate(divide="ignore"):
        tempered = softmax(np.log(p) / found.matching_temperature)
    assert tempered.max(axis=1).mean() == pytest.approx(found.accuracy, abs=1e-9)
    assert found.matching_temperature > 1


def test_without_a_matching_temperature_it_is_undefined():
    right = bounds([[0.9, 0.1]] * 4, [0] * 4, [[0.9, 0.1]] * 4)
    assert math.isnan(right.matching_temperature)
    assert right.to_dict()["matching_temperature"] is None
    assert math.isnan(bounds([[0.9, 0.1]] * 4, [0, 1] * 2, [[0.5, 0.5]] * 4).matching_temperature)


def test_a_certain_target_leaves_nothing_to_chance():
    assert bounds([[0.9, 0.1]], [0], [[1.0, 0.0]]).z == 0
    assert bounds([[0.9, 0.1]], [0], [[0.0, 1.0]]).z == math.inf


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ([[0.6, 0.3, 0.1]], "expected the same"),
        ([[0.6, 0.3]], "row 0"),
        ([[float("nan"), 0.3]], "row 0"),
    ],
)
def test_bad_targets_are_refused(target, words):
    with pytest.raises(InputError, match=words):
        bounds([[0.9, 0.1]], [0], target)
