"""The four rows of docs/laboratory.md's table of cascades, on every one of five seeds."""

import numpy as np
import pytest

from calibrant.errors import InputError
from calibrant.lab.cascade import SOURCES, cascade


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(range(1), id="one seed"),
        pytest.param(range(1, 5), id="four more", marks=pytest.mark.slow),
    ],
)
def runs(request):
    return {source: [cascade(source, seed) for seed in request.param] for source in SOURCES}


def at(run, step):
    return run.conf_ece[list(run.steps).index(step)]


def test_all_start_over_confident(runs):
    for run in (run for same in runs.values() for run in same):
        assert 0.115 < run.conf_ece[0] < 0.14
        assert run.mean_confidence[0] - run.accuracy == pytest.approx(run.conf_ece[0], abs=0.002)
        assert run.confidence_sd[0] > 0.13


def test_frozen_accuracies_pull_all_confidences_to_one_value(runs):
    """A question falls from bin to bin; early stopping would have been lucky, the end is worse."""
    for run in runs["frozen"]:
        assert at(run, 20) < 0.05
        assert at(run, 100) > 0.2
        assert run.conf_ece[-1] > 0.22 > 1.5 * run.conf_ece[0]
        assert run.confidence_sd[-1] < 0.01
        # To the bin whose accuracy lies in it: two options, so .5.
        assert run.mean_confidence[-1] == pytest.approx(0.51, abs=0.02)


@pytest.mark.parametrize("source", ["frozen-bins", "re-estimated"])
def test_accuracies_that_follow_the_confidences_restore_them(runs, source):
    for run in runs[source]:
        assert at(run, 20) < 0.065
        assert max(at(run, 100), run.conf_ece[-1]) < 0.015
        assert run.confidence_sd[-1] > 0.11  # and it still tells questions apart
        assert run.mean_confidence[-1] == pytest.approx(run.accuracy, abs=0.015)


def test_memorised_labels_drive_confidence_to_one(runs):
    for run in runs["memorised"]:
        assert at(run, 20) < 0.07
        assert 0.08 < at(run, 100) < 0.12
        assert run.conf_ece[-1] == pytest.approx(1 - run.accuracy, abs=0.002)
        assert run.confidence_sd[-1] < 0.001


def test_confidences_end_where_the_map_sends_them():
    """By hand: with frozen bins every question goes to the accuracy of the bin it was in."""
    run = cascade("re-estimated", 3, n=5_000, steps=200)
    frozen = cascade("frozen-bins", 3, n=5_000, steps=200)
    rng = np.random.default_rng(3)
    logit = np.abs(rng.normal(scale=1.8, size=5_000))
    right, fresh = rng.random((2, 5_000)) < 1 / (1 + np.exp(-logit))
    c = 1 / (1 + np.exp(-2.6 * logit))
    bins = np.minimum((c * 10).astype(int), 9)
    end = np.array([right[bins == b].mean() if (bins == b).any() else 0 for b in range(10)])[bins]
    end += (c - end) * 0.95**200
    assert frozen.mean_confidence[-1] == pytest.approx(end.mean(), abs=1e-6)
    assert frozen.confidence_sd[-1] == pytest.approx(end.std(), abs=1e-6)
    assert run.accuracy == fresh.mean()


def test_a_source_that_is_none_is_refused():
    with pytest.raises(InputError, match="source 'lucky', expected one of frozen, frozen-bins"):
        cascade("lucky")
