"""What the laboratory must show, with margins that hold on every one of five worlds."""

from itertools import pairwise

import pytest

from calibrant.lab.story import IN, OUT, dpo_name
from calibrant.runs import TRAIN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_language_models_start_nearly_calibrated(story):
    """Against the truth (no label noise); labels add the noise floor, about .016 at N = 3,000."""
    for name in ("pretrained", "sft"):
        assert story.bounds(name).target_conf_ece < 0.04
        assert story.bounds(name).conf_ece < 0.055
        assert story.bounds(name).accuracy > story.bounds(name).critical_accuracy - 0.06


def test_dpo_makes_them_over_confident(story):
    before, after = story.bounds("sft"), story.bounds(story.aligned.step.name)
    assert after.conf_ece > 3 * before.conf_ece
    assert after.conf_ece > 0.2
    assert after.mean_confidence > after.accuracy + 0.2


def test_collapse_grows_as_beta_falls(story):
    reports = [story.collapse(dpo_name(b)) for b in sorted(story.settings.betas, reverse=True)]
    for quantity in ("effective_slope", "collapse_index", "conf_ece"):
        values = [story.collapse("sft")[quantity].value, *(r[quantity].value for r in reports)]
        assert all(a + 0.02 < b for a, b in pairwise(values)), quantity
    for beta, report in zip(sorted(story.settings.betas, reverse=True), reports, strict=True):
        assert 1.3 < report["effective_slope"].value < 1.1 * (1 + 1 / beta)


def test_preference_matching_does_not_collapse(story):
    report, sft = story.collapse("preference-matching"), story.bounds("sft")
    assert 0.8 < report["effective_slope"].value < 1.25
    assert story.bounds("preference-matching").target_conf_ece < sft.target_conf_ece + 0.05
    mildest = story.bounds(dpo_name(max(story.settings.betas)))
    assert story.bounds("preference-matching").conf_ece < mildest.conf_ece / 1.5


def test_the_bounds_hold_on_every_checkpoint(story):
    for checkpoint in story.checkpoints_in_order():
        for on, table in checkpoint.tables.items():
            b = story.bounds(checkpoint.step.name, on)
            assert not b.violations(), (checkpoint.step.name, on)
            if on != TRAIN:  # T4, beyond chance only where questions were memorised
                assert abs(b.z) < 4.5, (checkpoint.step.name, on)
            if 1 / table.n_options.min() < b.accuracy < 1:
                assert b.matching_temperature > 0  # T6


def test_fresh_labels_restore_the_calibratable_model(story):
    sft, aligned, cft = (story.bounds(n) for n in ("sft", story.aligned.step.name, "cft"))
    assert cft.conf_ece < 0.035
    assert cft.target_conf_ece < 0.03  # the verdict's tolerance
    assert cft.tce < 1.25 * sft.tce
    assert cft.accuracy > max(sft.accuracy, aligned.accuracy) - 0.02


def test_repeating_few_labels_does_not(story):
    repeated = story.bounds("cft-repeated")
    assert repeated.conf_ece > 0.15
    assert repeated.conf_ece > 4 * story.bounds("cft").conf_ece


def test_training_on_leaves_the_calibratable_regime(story):
    """T2 and T5: accuracy above ACC* in training, the gap to test accuracy returns as test ECE."""
    train, test = story.bounds("sft2", TRAIN), story.bounds("sft2")
    assert train.excess_accuracy > 0.2
    assert train.z > 8
    assert test.conf_ece > story.bounds(story.aligned.step.name).conf_ece
    shrinkage = train.mean_confidence - test.mean_confidence
    assert abs(train.mean_confidence - train.accuracy) < 0.02
    predicted = train.accuracy - test.accuracy - shrinkage
    assert test.conf_ece == pytest.approx(predicted, abs=0.03)


def test_plain_sft_leaves_the_error_high(story):
    assert story.bounds("sft1").conf_ece > 0.25
    assert story.bounds("released-literal").conf_ece > 0.25


def test_held_out_rcft_halves_it_at_the_same_accuracy(story):
    sft2, rcft = story.bounds("sft2"), story.bounds("rcft")
    assert rcft.conf_ece < sft2.conf_ece / 2
    assert rcft.accuracy > sft2.accuracy - 0.03


def test_accuracies_of_memorised_labels_drive_confidence_to_one(story):
    """The regulariser is as good as gone; held-out accuracies keep it at work."""
    in_sample, held_out = (story[name].tables for name in ("released-in-sample", "rcft"))
    assert in_sample[TRAIN].confidence.mean() > 0.95
    assert held_out[TRAIN].confidence.mean() < 0.8
    assert in_sample[IN].confidence.mean() > held_out[IN].confidence.mean() + 0.1
    assert story.bounds("released-in-sample").conf_ece > 2 * story.bounds("rcft").conf_ece


def test_frozen_accuracies_end_at_one_confidence_where_nothing_holds_it(story):
    """With the calibration term alone; the labels, where they are heard, spread it again."""
    start, frozen = story.aligned.tables[IN].confidence, story["alone-frozen"].tables[IN].confidence
    assert frozen.std() < start.std() / 4
    heard = story["released-frozen"].tables[IN].confidence
    assert heard.std() > 1.5 * frozen.std()


def test_every_remedy_is_measured_in_and_out_of_domain(story):
    for checkpoint in story.checkpoints_in_order():
        assert {IN, OUT} <= set(checkpoint.tables)
        for on in (IN, OUT):
            assert len(checkpoint.tables[on]) == story.settings.test // (1 if on == IN else 2)
