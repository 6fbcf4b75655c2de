"""Preference collapse on answer tables: hand-made cases, known truth, and other libraries."""

import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr

from calibrant.answers import AnswerTable
from calibrant.diagnosis.collapse import CollapseReport, collapse
from calibrant.errors import InputError
from calibrant.permutations import average, flip_rate, letter_prior, permuted, recall_std
from calibrant.posthoc.reference import BaseKL
from calibrant.questions import Question


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def world(n, seed=0, options=None):
    """A calibrated base model with K per question out of `options`; labels from its own p."""
    rng = np.random.default_rng(seed)
    k = np.full(n, 4) if options is None else rng.choice(options, n)
    z = 1.6 * rng.normal(size=(n, k.max())) * np.exp(0.5 * rng.normal(size=(n, 1)))
    z[np.arange(k.max()) >= k[:, None]] = -np.inf
    q = softmax(z)
    labels = np.minimum((rng.random((n, 1)) > q.cumsum(axis=1)).sum(axis=1), k - 1)
    return AnswerTable.from_probs(q, labels, n_options=k)


def changed(base, slope=1.0, bias=0.0, noise=0.0, seed=1):
    rng = np.random.default_rng(seed)
    return base.with_logprobs(
        slope * base.logprobs + bias + noise * rng.normal(size=base.logprobs.shape)
    )


def test_numbers_of_one_model_by_hand():
    """Right at .9 of two; wrong at .7 of two and at .995 of four."""
    p = [[0.9, 0.1, 0, 0], [0.3, 0.7, 0, 0], [0.995, 0.002, 0.002, 0.001]]
    table = AnswerTable.from_probs(p, [0, 0, 3], n_options=[2, 2, 4])
    report = collapse(None, table, n_resamples=50)
    expected = {
        "accuracy": 1 / 3,
        "confidence_right": 0.9,
        "confidence_wrong": (0.7 + 0.995) / 2,
        "confidence_gap": 0.9 - (0.7 + 0.995) / 2,
        "collapse_index": (0.2 / 0.5 + 0.745 / 0.75) / 2,
        "share_saturated": 1 / 3,
        "share_saturated_right": 0.0,
        "share_saturated_wrong": 0.5,
        "entropy": -sum(x * math.log(x) for row in p for x in row if x) / 3,
    }
    assert {k: report[k].value for k in expected} == pytest.approx(expected)
    assert [e.value for e in report.predicted_shares] == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert not report.paired
    assert "kl" not in report
    assert report.letter_bias == ()


@pytest.mark.parametrize("options", [None, [2, 3, 5]])
def test_sharpening_is_recovered_exactly(options):
    base = world(400, options=options)
    report = collapse(base, changed(base, slope=2.5), n_resamples=50)
    for name, value in (
        ("effective_slope", 2.5),
        ("slope_residual", 0.0),
        ("slope_r2", 1.0),
        ("temperature", 2.5),
        ("temperature_agreement", 2.5),
        ("disagreement", 0.0),
    ):
        assert report[name].value == pytest.approx(value, abs=1e-6), name
    assert [e.value for e in report.letter_bias] == pytest.approx([0] * len(report.letter_bias))
    assert report["agreement_drift"].low > 0
    assert report["entropy_change"].high < 0
    assert math.isnan(report["disagreement_accuracy_gap"].value)


def test_the_same_model_shows_no_change():
    base = world(300)
    report = collapse(base, base, n_resamples=50)
    for name in ("entropy_change", "kl", "js", "agreement_drift"):
        assert report[name].value == pytest.approx(0, abs=1e-12)
    assert report["temperature"].value == pytest.approx(1)


def test_letter_bias_and_slope_of_varying_options():
    base = world(2000, options=[2, 4, 5])
    bias = np.array([0.8, -0.2, 0.3, 0.0, -0.9])
    report = collapse(base, changed(base, slope=1.7, bias=bias, noise=0.6), n_resamples=200)
    for found, true in zip(report.letter_bias, bias, strict=True):
        assert found.low - 0.03 < true < found.high + 0.03, (found, true)
    assert report["effective_slope"].value == pytest.approx(1.7, abs=0.03)
    # A question's centred noise has the variance .6² (K - 1)/K.
    k = base.n_options
    expected = 0.6 * math.sqrt((k - 1).sum() / k.sum())
    assert report["slope_residual"].value == pytest.approx(expected, rel=0.05)


def test_slope_is_that_of_least_squares_with_every_dummy():
    """The same regression the long way: an intercept per question, a dummy per place."""
    base = world(40, options=[2, 3, 4])
    aligned = changed(base, slope=1.4, bias=np.array([0.5, 0, 0, -0.5]), noise=0.5)
    rows = [(i, k) for i in range(40) for k in range(base.n_options[i])]
    design = np.zeros((len(rows), 1 + 4 + 40))
    y = np.zeros(len(rows))
    for row, (i, k) in enumerate(rows):
        design[row, 0] = base.logprobs[i, k]
        design[row, 1 + k] = design[row, 5 + i] = 1
        y[row] = aligned.logprobs[i, k]
    solution, *_ = np.linalg.lstsq(design, y, rcond=None)
    report = collapse(base, aligned, n_resamples=20)
    assert report["effective_slope"].value == pytest.approx(solution[0])
    bias = solution[1:5] - solution[1:5].mean()
    assert [e.value for e in report.letter_bias] == pytest.approx(bias.tolist())
    left = y - design @ solution
    assert report["slope_residual"].value == pytest.approx(math.sqrt((left**2).mean()))


def test_divergences_are_scipys():
    base = world(200, options=[2, 4])
    aligned = changed(base, slope=2.0, noise=0.7)
    p, q = aligned.probs(), base.probs()
    report = collapse(base, aligned, n_resamples=20)
    assert report["kl"].value == pytest.approx(rel_entr(p, q).sum(axis=1).mean())
    expected = np.mean([jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)])
    assert report["js"].value == pytest.approx(expected)


def test_agreement_and_disagreement_are_kept_apart():
    base = AnswerTable.from_probs([[0.6, 0.4]] * 3 + [[0.7, 0.3]], [0, 1, 1, 0])
    aligned = base.with_logprobs(np.log([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.9, 0.1]]))
    report = collapse(base, aligned, n_resamples=20)
    assert report["agreement_drift"].value == pytest.approx((0.3 + 0.2) / 2)
    assert report["disagreement"].value == 0.5
    assert report["disagreement_accuracy_gap"].value == 1.0


def test_temperature_is_the_minimum_of_the_divergence():
    base = world(300, options=[3, 4])
    aligned = changed(base, slope=3.0, noise=1.0)
    target, z = base.probs(), aligned.logprobs

    def divergence(log_t):
        return rel_entr(target, softmax(z / math.exp(log_t))).sum(axis=1).mean()

    best = math.exp(minimize_scalar(divergence, bounds=(-3, 3), options={"xatol": 1e-9}).x)
    found = collapse(base, aligned, n_resamples=20)["temperature"]
    assert found.value == pytest.approx(best, rel=1e-4)


def test_no_temperature_brings_opposed_scores_near():
    base = AnswerTable.from_probs([[0.8, 0.2]] * 4, [0] * 4)
    opposed = base.with_logprobs(-base.logprobs)
    report = collapse(base, opposed, n_resamples=20)
    assert math.isnan(report["temperature"].value)
    assert "temperature is undefined" in report.notes[0]
    assert "temperature_agreement is undefined: there is no question" in report.notes[1]
    assert json.loads(report.to_json())["estimates"]["temperature"]["value"] == "nan"


def test_one_newton_step_gives_the_refitted_bootstrap():
    base = world(400)
    aligned = changed(base, slope=3.0, noise=1.0)
    report = collapse(base, aligned, n_resamples=400)
    rng = np.random.default_rng(5)
    draws = []
    for _ in range(400):
        rows = rng.integers(0, 400, 400)
        once = AnswerTable.from_probs(aligned.probs()[rows], aligned.labels[rows])
        other = AnswerTable.from_probs(base.probs()[rows], base.labels[rows])
        draws.append(BaseKL().fit(once, other).temperature)
    low, high = np.quantile(draws, [0.025, 0.975])
    width = high - low
    assert report["temperature"].low == pytest.approx(low, abs=0.12 * width)
    assert report["temperature"].high == pytest.approx(high, abs=0.12 * width)


def test_impossible_options_are_left_out_and_said():
    base = world(100)
    scores = 2 * base.logprobs
    scores[:10, 0] = np.where(base.predictions[:10] == 0, scores[:10, 0], -np.inf)
    lost = int(np.isneginf(scores).sum())
    assert lost
    report = collapse(base, base.with_logprobs(scores), n_resamples=20)
    assert report["effective_slope"].value == pytest.approx(2)
    assert report["temperature"].value == pytest.approx(2)
    assert math.isfinite(report["kl"].value)  # the aligned model's zeros cost nothing in KL
    assert f"{lost} of 400 options" in " ".join(report.notes)
    turned = collapse(base.with_logprobs(scores), base, n_resamples=20)
    assert turned["kl"].value == math.inf
    assert math.isnan(turned["kl"].low)


def test_duplicates_count_once():
    """Every question twice as one group: the intervals of the questions taken once."""
    base = world(300)
    aligned = changed(base, slope=2.0, noise=0.5)
    rows = np.repeat(np.arange(300), 2)

    def doubled(table, grouped):
        return AnswerTable.from_probs(
            table.probs()[rows], table.labels[rows],
            groups=[str(i) for i in rows] if grouped else None,
        )  # fmt: skip

    once, honest, naive = (
        collapse(a, b, n_resamples=400)
        for a, b in (
            (base, aligned),
            (doubled(base, True), doubled(aligned, True)),
            (doubled(base, False), doubled(aligned, False)),
        )
    )
    for name in ("collapse_index", "agreement_drift", "disagreement", "effective_slope"):
        width = {r: r[name].high - r[name].low for r in (once, honest, naive)}
        assert width[honest] == pytest.approx(width[once], rel=0.15), name
        assert width[naive] == pytest.approx(width[once] / math.sqrt(2), rel=0.15), name


@pytest.mark.slow
def test_intervals_cover():
    big = world(100_000, seed=9)
    population = collapse(big, changed(big, slope=2.0, noise=0.5, seed=8), n_resamples=1)
    held = dict.fromkeys(("effective_slope", "confidence_wrong", "js", "share_saturated"), 0)
    for seed in range(120):
        base = world(200, seed=seed)
        report = collapse(base, changed(base, 2.0, noise=0.5, seed=seed + 999), n_resamples=150)
        for name in held:
            held[name] += report[name].low <= population[name].value <= report[name].high
    assert all(0.89 <= hits / 120 <= 0.995 for hits in held.values()), held


def asked_in_cyclic_orders(base, bias):
    """The base model's answers to every rotation of its options, with a bias by letter."""
    questions = [
        Question(name, "?", tuple("abcde"[:k]), 0)
        for name, k in zip(base.ids, base.n_options, strict=True)
    ]
    rows, orders = permuted(questions, "cyclic")
    asked = [base.ids.index(row.id.rpartition("#")[0]) for row in rows]
    scores = base.logprobs[asked]
    for i, order in enumerate(orders):
        for place, option in enumerate(order[order >= 0]):
            scores[i, option] += bias[place]
    return AnswerTable(
        ids=tuple(row.id for row in rows),
        logprobs=scores,
        labels=base.labels[asked],
        n_options=base.n_options[asked],
        option_mass=base.option_mass[asked],
        tasks=("",) * len(rows),
        groups=tuple(base.ids[i] for i in asked),
        orders=orders,
    )


def test_letters_of_permuted_answers_are_those_of_the_permutations_room():
    base = world(150, options=[3, 4])
    shown = asked_in_cyclic_orders(base, [1.0, 0.0, 0.0, -0.5])
    report = collapse(base.select(np.arange(150)[::-1]), shown, n_resamples=100)
    assert report.n == 150
    assert report["flip_rate"].value == pytest.approx(flip_rate(shown))
    assert report["recall_std"].value == pytest.approx(recall_std(shown))
    assert report["recall_std"].low > 0.05
    for k, prior in letter_prior(shown).items():
        assert [e.value for e in report.letter_prior[k]] == pytest.approx(prior.tolist())
        assert all(e.high - e.low < 1e-9 for e in report.letter_prior[k])  # the same for all
    averaged = collapse(base, average(shown), n_resamples=20)
    assert report["effective_slope"].value == pytest.approx(averaged["effective_slope"].value)
    # A stands out where it is shown, not where the option stands in its own order.
    assert report.predicted_shares[0].value > averaged.predicted_shares[0].value + 0.1
    assert CollapseReport.from_json(report.to_json()).to_dict() == report.to_dict()


def test_letters_are_followed_through_a_change_of_order_and_a_subset():
    base = world(60, options=[3, 4])
    shown = asked_in_cyclic_orders(base, [1.0, 0.0, 0.0, -0.5])
    chosen = np.flatnonzero([int(name) % 2 for name in shown.questions])
    report = collapse(base.select(np.arange(1, 60, 2)[::-1]), shown, n_resamples=20)
    alone = shown.select(chosen)
    assert report.n == 30
    assert report["flip_rate"].value == pytest.approx(flip_rate(alone))
    for k, prior in letter_prior(alone).items():
        assert [e.value for e in report.letter_prior[k]] == pytest.approx(prior.tolist())


def test_unbalanced_orders_give_no_prior_but_say_so():
    shown = asked_in_cyclic_orders(world(40), [1.0, 0.0, 0.0, 0.0])
    report = collapse(None, shown.select(np.arange(len(shown)) % 4 < 2), n_resamples=20)
    assert report.letter_prior == {}
    assert "no letter prior" in report.notes[0]
    assert report["flip_rate"].value > 0


def test_no_letter_bias_is_not_called_one():
    """Noise lifts RStd above 0: the interval of an unbiased model must reach 0."""
    reach = [collapse(None, world(300, seed=s), n_resamples=200)["recall_std"] for s in range(40)]
    assert np.mean([e.value for e in reach]) > 0.04
    assert np.mean([e.low == 0 for e in reach]) >= 0.9


def test_only_shared_questions_are_used():
    base = world(100)
    report = collapse(base.select(np.arange(60)), changed(base).select(np.arange(40, 100)))
    assert report.n == 20


def test_all_right_and_all_wrong_give_undefined_numbers():
    right = collapse(None, AnswerTable.from_probs([[0.9, 0.1]] * 5, [0] * 5), n_resamples=20)
    assert math.isnan(right["collapse_index"].value)
    assert math.isnan(right["share_saturated_wrong"].value)
    assert right["confidence_right"].value == pytest.approx(0.9)
    wrong = collapse(None, AnswerTable.from_probs([[0.9, 0.1]] * 5, [1] * 5), n_resamples=20)
    assert math.isnan(wrong["confidence_gap"].value)
    assert wrong["collapse_index"].value == pytest.approx(0.8)


def test_round_trip_and_seed(tmp_path):
    base = world(100)
    aligned = changed(base, noise=0.5)
    report = collapse(base, aligned, n_resamples=30, seed=4)
    report.save(tmp_path / "collapse.json")
    assert CollapseReport.load(tmp_path / "collapse.json").to_dict() == report.to_dict()
    assert collapse(base, aligned, n_resamples=30, seed=4).to_dict() == report.to_dict()
    assert collapse(base, aligned, n_resamples=30, seed=5).to_dict() != report.to_dict()


def test_bad_input_is_refused():
    base = world(10)
    with pytest.raises(InputError, match="n_resamples is 0"):
        collapse(base, base, n_resamples=0)
    other = AnswerTable.from_probs([[0.5, 0.5]], [0], ids=["other"])
    with pytest.raises(InputError, match="share no question"):
        collapse(base, other)
    with pytest.raises(InputError, match="not a collapse report"):
        CollapseReport.from_json("[]")
