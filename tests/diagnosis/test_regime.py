"""The regime rule: right on worlds with a known critical accuracy, and honest where nothing tells.

`benchmarks/simulations.py --section regime` has more worlds, sizes and references.
"""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from calibrant.answers import AnswerTable
from calibrant.diagnosis.regime import RegimeReport, _minus, regime
from calibrant.errors import InputError
from calibrant.metrics.inference import Estimate, bootstrap_interval
from calibrant.posthoc import TemperatureScaling


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def draw(n, rng):
    """True logits and probabilities of questions of 2 to 5 options, and labels; ACC* is .67."""
    k = rng.integers(2, 6, n)
    z = 1.6 * rng.normal(size=(n, 5)) * np.exp(0.5 * rng.normal(size=(n, 1)))
    z[np.arange(5) >= k[:, None]] = -np.inf
    q = softmax(z)
    return z, q, np.minimum((rng.random((n, 1)) > q.cumsum(axis=1)).sum(axis=1), k - 1)


def table(scores, labels, name):
    ids = [f"{name}{i}" for i in range(len(labels))]
    k = np.isfinite(scores).sum(axis=1)
    return AnswerTable.from_probs(softmax(scores), labels, ids=ids, n_options=k)


def tables(n, rng, *, slope=1.5, noise=0.0, memorised=0.0, reference_noise=None):
    """Train, test and reference tables, and p* of train and test."""
    z, q, labels = draw(n, rng)
    scores = slope * (z + noise * rng.normal(size=z.shape))
    scores[np.arange(n), labels] += 15.0 * (rng.random(n) < memorised)
    train = table(scores, labels, "train")
    z, p, labels = draw(n, rng)
    test = table(slope * (z + noise * rng.normal(size=z.shape)), labels, "test")
    reference = None
    if reference_noise is not None:
        reference = table(z + reference_noise * rng.normal(size=z.shape), labels, "test")
    return train, test, reference, (q, p)


# Worlds at least .05 from the boundary (A_tr − ACC*, from 300,000 questions), and the verdict.
WORLDS = [
    ({"noise": 1.2, "slope": 2.5}, "calibratable"),  # -.09, over-confident
    ({"noise": 1.2, "slope": 0.3, "reference_noise": 0.0}, "calibratable"),  # -.09, under-confident
    ({"memorised": 0.2}, "non-calibratable"),  # +.07
    ({"memorised": 0.2, "reference_noise": 0.0}, "non-calibratable"),
    ({"memorised": 0.2, "reference_noise": 1.0}, "non-calibratable"),
    ({"noise": 0.8, "memorised": 0.9, "slope": 3.0}, "non-calibratable"),  # +.29
]


@pytest.mark.slow
def test_right_at_3000_questions_and_hardly_ever_surely_wrong():
    """At least 90 % right in every world, at most 5 % confidently wrong over all of them."""
    wrong = trials = 0
    for world, right in WORLDS:
        rng = np.random.default_rng(1)
        found = Counter(
            regime(*tables(3000, rng, **world)[:3], n_resamples=10).label for _ in range(10)
        )
        assert found[right] >= 9, (world, found)
        wrong += 10 - found[right] - found["cannot tell"]
        trials += 10
    assert wrong <= 0.05 * trials


@pytest.mark.parametrize("n", [300, 1000])
def test_small_tables_are_rarely_wrong(n):
    rng = np.random.default_rng(2)
    weak = Counter(regime(*tables(n, rng, noise=1.2)[:2], n_resamples=10).label for _ in range(25))
    learnt = Counter(
        regime(*tables(n, rng, memorised=0.2)[:2], n_resamples=10).label for _ in range(25)
    )
    assert weak["non-calibratable"] <= 2, weak
    assert learnt["calibratable"] <= 2, learnt
    if n == 300:
        assert weak["cannot tell"] > 6, weak


def test_a_good_reference_clears_a_weak_model_that_learnt_some_labels():
    """Train accuracy above test accuracy but below ACC*: only the reference can know."""
    rng = np.random.default_rng(3)
    train, test, reference, targets = tables(
        3000, rng, noise=2.0, memorised=0.12, reference_noise=0
    )
    assert regime(train, test, n_resamples=10).label == "non-calibratable"
    assert regime(train, test, reference, n_resamples=10).label == "calibratable"
    known = regime(train, test, target_probs=targets, n_resamples=10)
    assert known["excess_accuracy"].value < -0.05
    assert known.label == "calibratable"


def test_the_known_target_decides_alone():
    rng = np.random.default_rng(4)
    train, test, _, targets = tables(2000, rng, memorised=0.4)
    found = regime(train, test, target_probs=targets, n_resamples=10)
    assert found.label == "non-calibratable"
    excess = train.correct.mean() - targets[0].max(axis=1).mean()
    assert found["excess_accuracy"].value == pytest.approx(excess)
    assert found.bounds["train"].z > 5
    assert abs(found.bounds["test"].z) < 4
    assert found.bounds["train"].violations() == {}
    assert "the known critical accuracy" in found.reason


def test_the_terms_add_up_to_the_test_gap():
    rng = np.random.default_rng(5)
    found = regime(*tables(500, rng, memorised=0.3)[:2], n_resamples=50)
    total = found["in_sample_gap"].value + found["generalisation_gap"].value
    assert found["test_gap"].value == pytest.approx(total - found["shrinkage"].value)
    for name in ("in_sample_gap", "generalisation_gap", "shrinkage", "test_gap"):
        assert found[name].low < found[name].value < found[name].high


def test_the_bracket_holds_the_accuracy_of_the_best_and_the_recalibrated_confidence():
    rng = np.random.default_rng(6)
    train, test, reference, (_, p) = tables(3000, rng, noise=1.0, reference_noise=0.0)
    over_confident = reference.with_logprobs(3 * reference.logprobs)
    found = regime(train, test, over_confident, n_resamples=10)
    top = p.max(axis=1).mean()
    assert found["bracket_low"].value == pytest.approx(reference.correct.mean())
    assert found["bracket_high"].low < top < found["bracket_high"].high
    assert found["bracket_high"].value == pytest.approx(top, abs=0.03)
    alone = regime(train, test, n_resamples=10)
    assert alone["bracket_low"].value == pytest.approx(test.correct.mean())


def crossing(n, rng):
    """Sure where it knows little, unsure where it knows much: no temperature mends that."""
    sure = rng.random(n) < 0.5
    right = rng.random(n) < np.where(sure, 0.7, 0.85)
    p = np.where(sure[:, None], [0.95, 0.05], [0.6, 0.4])
    return AnswerTable.from_probs(p, 1 - right.astype(int))


def test_interval_of_the_recalibrated_confidence_is_the_jackknifes():
    """Each question left out in turn, the temperature fitted anew."""
    n = 300
    test = crossing(n, np.random.default_rng(7))
    found = regime(test, test, n_resamples=10)["bracket_high"]
    means = []
    for i in range(n):
        left = test.select(np.arange(n) != i)
        means.append(TemperatureScaling().fit(left).transform(left).confidence.mean())
    error = np.sqrt((n - 1) / n * np.square(means - np.mean(means)).sum())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.02)


def test_difference_of_accuracies_is_newcombes():
    """Newcombe 1998, table II: 56/70 - 48/80, method 10: .0524 to .3339."""
    p = [[0.6, 0.4]]
    a, b = (
        bootstrap_interval(p * n, [0] * k + [1] * (n - k), metric="accuracy")
        for k, n in ((56, 70), (48, 80))
    )
    found = _minus(a, b)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=6e-5)


@pytest.mark.parametrize(
    ("world", "method"),
    [
        ({"slope": 1.0}, "none"),
        ({"slope": 2.5}, "temperature"),
        ({"slope": 2.5, "memorised": 0.5}, "rcft"),
    ],
)
def test_recommended_methods(world, method):
    train, test, *_ = tables(4000, np.random.default_rng(8), **world)
    assert regime(train, test, n_resamples=100).method == method


def test_what_no_temperature_mends_calls_for_training():
    rng = np.random.default_rng(9)
    found = regime(crossing(2000, rng), crossing(2000, rng), n_resamples=100)
    assert (found.label, found.method) == ("calibratable", "cft")
    assert found["test_conf_ece_tempered"].low > 0


def test_one_lower_fresh_accuracy_is_not_enough():
    """Far above its own test accuracy, but not above the reference's: memorised or learnt?"""

    def right(share, name, n=1000):
        ids = [f"{name}{i}" for i in range(n)]
        labels = (np.arange(n) >= share * n).astype(int)
        return AnswerTable.from_probs([[0.7, 0.3]] * n, labels, ids=ids)

    found = regime(right(0.7, "a"), right(0.6, "b"), right(0.68, "c"), n_resamples=10)
    assert found["generalisation_gap"].low > 0.05
    assert found["above_reference"].low < 0 < 0.05 < found["above_reference"].high
    assert found.label == "cannot tell"


def test_too_few_questions_are_said_to_be_too_few():
    rng = np.random.default_rng(10)
    found = [regime(*tables(100, rng)[:2], n_resamples=10) for _ in range(10)]
    unsure = [f for f in found if f.label == "cannot tell"]
    assert unsure
    assert "questions in each table would tell" in unsure[0].reason
    assert "N = 100" in unsure[0].reason
    assert unsure[0].method in ("none", "temperature")


def test_a_table_without_a_temperature_leaves_the_bracket_open():
    train = AnswerTable.from_probs([[0.9, 0.1]] * 400, [0] * 400, ids=[f"t{i}" for i in range(400)])
    test = AnswerTable.from_probs([[0.9, 0.1]] * 400, [0] * 160 + [1] * 240)
    found = regime(train, test, n_resamples=10)
    assert "bracket_high" not in found
    assert "no upper end" in found.notes[0]
    assert found.label == "non-calibratable"
    assert found["train_accuracy"].high == 1


def test_duplicates_widen_the_intervals():
    rng = np.random.default_rng(11)
    train, test, *_ = tables(300, rng)
    rows = np.repeat(np.arange(300), 3)

    def tripled(one, name):
        return AnswerTable.from_probs(
            one.probs()[rows], one.labels[rows], n_options=one.n_options[rows],
            ids=[f"{name}{i}" for i in range(900)], groups=[one.ids[i] for i in rows],
        )  # fmt: skip

    once = regime(train, test, n_resamples=100)
    thrice = regime(tripled(train, "a"), tripled(test, "b"), n_resamples=100)
    for name in ("generalisation_gap", "bracket_high"):
        width = [r[name].high - r[name].low for r in (once, thrice)]
        assert width[1] == pytest.approx(width[0], rel=0.12), name


def test_shared_questions_are_warned_of():
    train, test, *_ = tables(100, np.random.default_rng(12))
    assert regime(train, test, n_resamples=10).notes == ()
    assert "100 question ids occur" in regime(train, train, n_resamples=10).notes[0]


def test_round_trip(tmp_path):
    train, test, reference, targets = tables(100, np.random.default_rng(13), reference_noise=0.5)
    found = regime(train, test, reference, target_probs=targets, n_resamples=20)
    found.save(tmp_path / "regime.json")
    assert RegimeReport.load(tmp_path / "regime.json").to_dict() == found.to_dict()
    assert str(found).startswith(found.label)
    right = AnswerTable.from_probs([[0.9, 0.1]] * 9, [0] * 9)
    undefined = regime(right, right, target_probs=([[1, 0]] * 9,) * 2, n_resamples=10)
    back = RegimeReport.from_json(undefined.to_json())
    assert math.isnan(back.bounds["test"].matching_temperature)


def test_permutations_are_averaged():
    train, test, *_ = tables(50, np.random.default_rng(15))
    rows = np.repeat(np.arange(50), 2)
    twice = replace(
        test.select(rows[::2]),
        ids=tuple(f"{name}#0" for name in test.ids),
        orders=np.where(np.arange(5) < test.n_options[:, None], np.arange(5), -1),
    )
    assert regime(train, twice, n_resamples=10).n_test == 50


def test_bad_input_is_refused():
    train, test, *_ = tables(50, np.random.default_rng(14))
    with pytest.raises(InputError, match="margin is 0"):
        regime(train, test, margin=0)
    with pytest.raises(InputError, match="expected the same"):
        regime(train, test, target_probs=([[0.5, 0.5]] * 50,) * 2)
    with pytest.raises(InputError, match="not a regime report"):
        RegimeReport.from_json("[]")


def test_minus_is_wide_enough_for_exact_ends():
    sure = Estimate("accuracy", 1.0, 0.9, 1.0, 30)
    found = _minus(sure, sure)
    assert (found.low, found.high) == pytest.approx((-0.1, 0.1))
