"""The verdict: each label by simulation, its error rates, and what it says."""

import json
from collections import Counter

import numpy as np
import pytest

import calibrant as cal
from calibrant.answers import AnswerTable
from calibrant.diagnosis.verdict import LABELS, Verdict, verdict
from calibrant.errors import InputError


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def truth(n, seed):
    """True logits and labels drawn from them: softmax(z) is calibrated, accuracy .63."""
    rng = np.random.default_rng(seed)
    z = 1.6 * rng.normal(size=(n, 4)) * np.exp(0.5 * rng.normal(size=(n, 1)))
    labels = (rng.random((n, 1)) > softmax(z).cumsum(axis=1)[:, :-1]).sum(axis=1)
    return z, labels, rng


def judge(before, after, labels, **options):
    tables = (AnswerTable.from_probs(p, labels) for p in (before, after))
    return verdict(*tables, n_resamples=200, **options)


def constant(z, labels):
    top = z.argmax(axis=1)
    accuracy = (top == labels).mean()
    p = np.full(z.shape, (1 - accuracy) / 3)
    p[np.arange(len(z)), top] = accuracy
    return p


def learned(z, labels, rng):
    evidence = 2.9 * rng.normal(size=z.shape)
    evidence[np.arange(len(z)), labels] += 2.9**2
    return softmax(evidence)


@pytest.mark.parametrize("n", [300, 1000, 4000])
def test_constant_base_rate_is_gamed(n):
    for seed in range(3):
        z, labels, _ = truth(n, seed)
        found = judge(softmax(2 * z), constant(z, labels), labels)
        assert found.label == "gamed"
        assert "AURC" in found.reason


def test_much_more_accurate_and_calibrated_is_fully_restored():
    for seed in range(3):
        z, labels, rng = truth(1500, 20 + seed)
        found = judge(softmax(2 * z), learned(z, labels, rng), labels)
        assert found.label == "fully restored"
        assert found.difference["accuracy"].low > 0.25


@pytest.mark.slow
def test_noise_alone_is_seldom_restored():
    for scale, amount in ((1.0, 0.2), (1.5, 0.2), (1.0, 1.0)):
        found = Counter()
        for seed in range(10):
            z, labels, rng = truth(600, 100 + seed)
            a, b = (softmax(scale * (z + amount * rng.normal(size=z.shape))) for _ in range(2))
            found[judge(a, b, labels).label] += 1
        assert found["fully restored"] + found["improved"] <= 2, (
            found
        )  # 2.5 % each way; 3 of 10: 1 in 500


@pytest.mark.slow
def test_true_temperature_fix_is_fully_restored_and_more_data_never_make_it_harder():
    shares = []
    for n in (500, 2000, 7000):
        met = 0
        for seed in range(5):
            z, labels, _ = truth(n, 200 + seed)
            met += judge(softmax(2 * z), softmax(z), labels).label == "fully restored"
        shares.append(met)
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == 5


def test_half_way_is_improved():
    z, labels, _ = truth(5000, 30)
    found = judge(softmax(2 * z), softmax(1.4 * z), labels)
    assert found.label == "improved"
    assert "too small" not in found.reason


def test_small_n_is_improved_and_says_that_n_is_too_small():
    z, labels, _ = truth(500, 31)
    found = judge(softmax(2.5 * z), softmax(z), labels)
    assert found.label == "improved"
    assert "N too small to show more" in found.reason
    assert "questions would show it" in found.reason
    assert found.calibrated_upper > 0.03


def test_lost_accuracy_is_harmed():
    z, labels, _ = truth(1000, 32)
    rng = np.random.default_rng(0)
    found = judge(softmax(2 * z), softmax(z + 2 * rng.normal(size=z.shape)), labels)
    assert found.label == "harmed"
    assert "accuracy" in found.reason


def test_worse_scores_are_harmed_even_from_a_calibrated_start():
    z, labels, _ = truth(6000, 33)
    found = judge(softmax(z), softmax(2 * z), labels)
    assert found.label == "harmed"
    assert "NLL" in found.reason


def test_calibrated_and_unchanged_is_already_calibrated():
    z, labels, _ = truth(6000, 34)
    found = judge(softmax(z), softmax(1.02 * z), labels)
    assert found.label == "already calibrated"


def test_calibrated_and_more_accurate_is_still_already_calibrated():
    z, labels, rng = truth(6000, 35)
    found = judge(softmax(z), learned(z, labels, rng), labels)
    assert found.label == "already calibrated"


def test_unchanged_and_not_calibrated_is_not_restored():
    z, labels, _ = truth(1000, 36)
    found = judge(softmax(2 * z), softmax(2 * z), labels)
    assert found.label == "not restored"
    assert found.difference["nll"].value == 0


def test_ranking_lost_at_equal_accuracy_is_gamed_without_help_from_brier():
    # Confidence drawn afresh for half the questions: the same predictions, calibrated on average.
    z, labels, rng = truth(4000, 37)
    p = softmax(z)
    order = rng.permutation(4000)
    top = p.argmax(axis=1)
    c = p.max(axis=1)
    c[:2000] = (top == labels)[:2000].mean()
    q = np.repeat(((1 - c) / 3)[:, None], 4, axis=1)
    q[np.arange(4000), top] = c
    found = judge(softmax(3 * z)[order], q[order], labels[order])
    assert found.label == "gamed"


def test_tolerance_decides():
    z, labels, _ = truth(3000, 38)
    before, after = softmax(2 * z), softmax(1.25 * z)
    assert judge(before, after, labels, tolerance=0.10).label == "fully restored"
    assert judge(before, after, labels, tolerance=0.01).label == "improved"
    assert judge(before, before, labels, tolerance=0.5).label == "already calibrated"


def test_margin_decides():
    z, labels, _ = truth(3000, 39)
    after = softmax(z)
    wrong = np.arange(120)  # 4 % of the answers turned away from the right one
    after[wrong] = np.roll(after[wrong], 1, axis=1)
    assert judge(softmax(2 * z), after, labels).label == "harmed"
    assert judge(softmax(2 * z), after, labels, accuracy_margin=0.1).label != "harmed"


def test_only_shared_questions_count_and_order_does_not():
    z, labels, _ = truth(800, 40)
    ids = [f"q{i}" for i in range(800)]
    a = AnswerTable.from_probs(softmax(2 * z), labels, ids=ids)
    b = AnswerTable.from_probs(softmax(z), labels, ids=ids)
    whole = verdict(a.select(np.arange(600)), b.select(np.arange(600)), n_resamples=100)
    found = verdict(a.select(np.arange(600)), b.select(np.arange(800)[::-1]), n_resamples=100)
    assert found.n == 600
    assert found.to_dict() == whole.to_dict()


def test_duplicates_do_not_make_it_surer():
    z, labels, _ = truth(500, 41)
    copies = np.repeat(np.arange(500), 4)

    def widths(groups):
        tables = [
            AnswerTable.from_probs(softmax(s * z)[copies], labels[copies], groups=groups)
            for s in (2, 1)
        ]
        found = verdict(*tables, n_resamples=100).difference
        return {k: found[k].high - found[k].low for k in ("conf_ece", "nll", "auroc")}

    once = verdict(
        *(AnswerTable.from_probs(softmax(s * z), labels) for s in (2, 1)), n_resamples=100
    ).difference
    naive, grouped = widths(None), widths([str(i) for i in copies])
    for k in naive:
        width = once[k].high - once[k].low
        assert naive[k] < 0.7 * width
        assert grouped[k] == pytest.approx(width, rel=0.35)


def test_reason_names_its_numbers_and_n():
    z, labels, _ = truth(900, 42)
    found = judge(softmax(2 * z), softmax(z), labels)
    assert "N = 900" in found.reason
    assert f"{found.before['conf_ece'].value:.3f} -> {found.after['conf_ece'].value:.3f}" in str(
        found
    )
    assert found.label in LABELS


def test_json_round_trip(tmp_path):
    z, labels, _ = truth(300, 43)
    found = judge(softmax(2 * z), softmax(z), labels)
    assert Verdict.from_json(found.to_json()).to_dict() == found.to_dict()
    found.save(tmp_path / "verdict.json")
    assert Verdict.load(tmp_path / "verdict.json").label == found.label
    assert json.loads(found.to_json())["difference"]["conf_ece"]["high"] < 0


def test_bad_input_is_refused():
    a = AnswerTable.from_probs([[0.9, 0.1]] * 5, [0] * 5)
    with pytest.raises(InputError, match="tolerance"):
        verdict(a, a, tolerance=-1)
    with pytest.raises(InputError, match="share no question"):
        cal.verdict(a, AnswerTable.from_probs([[0.9, 0.1]], [0], ids=["x"]))
    with pytest.raises(InputError, match="not a verdict"):
        Verdict.from_json("{}")


def test_a_loss_too_small_to_matter_is_no_harm():
    """A slope of 1.06 costs every question a little: sure, and a thousandth of a nat."""
    z, labels, _ = truth(20_000, 36)
    found = judge(softmax(z), softmax(1.06 * z), labels)
    change = found.difference["nll"]
    assert change.low > 0
    assert change.value < 0.01
    assert found.label not in ("harmed", "gamed")
    more = judge(softmax(z), softmax(1.4 * z), labels)
    assert more.difference["nll"].low > 0.01
    assert more.label == "harmed"


def test_a_lower_auroc_is_said_where_a_gain_of_accuracy_excuses_it():
    rng = np.random.default_rng(3)
    n = 4000
    sure = rng.random(n) < 0.5
    first = np.where(sure, 0.97, 0.7)  # right .75 and .35 of the time
    right = rng.random(n) < np.where(sure, 0.75, 0.35)
    labels = np.where(right, 0, 1)
    now = rng.random(n) < 0.72  # another model: more often right, and equally sure of everything
    second = np.where(rng.random(n) < 0.5, 0.74, 0.70)
    after = np.where(now == right, second, 1 - second)
    before, last = (np.stack([p, 1 - p], axis=1) for p in (first, after))
    found = judge(before, last, labels)
    assert found.difference["auroc"].high < 0
    assert found.label in ("improved", "fully restored")
    assert "AUROC 0.7" in found.reason


def test_a_table_is_not_worse_than_itself():
    for n in (30, 60, 100, 300):
        table = AnswerTable.from_probs([[0.99, 0.01]] * n, [0] * n)
        found = verdict(table, table, n_resamples=200)
        assert found.label in ("not restored", "already calibrated")
        assert "rose" not in found.reason
