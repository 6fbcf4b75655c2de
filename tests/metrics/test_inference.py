"""Intervals, noise floors and paired comparisons: against known results, and by simulation."""

import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy import stats

import calibrant.metrics as metrics
from calibrant.errors import InputError
from calibrant.metrics import _intervals, inference
from calibrant.metrics._resampling import (
    Ranked,
    Settings,
    decompositions,
    harmonic,
    ordered_metrics,
    resampled_t,
    weight_blocks,
)
from calibrant.metrics.inference import (
    Estimate,
    NoiseFloor,
    agresti_min,
    bootstrap_interval,
    bootstrap_intervals,
    compare_intervals,
    noise_floor,
    noise_floor_from_confidence,
    paired_bootstrap,
    wilson_interval,
)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def world(n, seed, slope=1.0, spread=1.6):
    """Model probabilities p and labels from q, the softmax of ``slope`` times the same logits."""
    rng = np.random.default_rng(seed)
    z = spread * rng.normal(size=(n, 4)) * np.exp(0.5 * rng.normal(size=(n, 1)))
    q = softmax(slope * z)
    labels = (rng.random((n, 1)) > q.cumsum(axis=1)[:, :-1]).sum(axis=1)
    return softmax(z), labels


def value_of(name, p, y):
    extra = {"coverage_at_risk": {"risk": 0.1}, "accuracy_at_coverage": {"coverage": 0.8}}
    if name == "mean_confidence":
        return p.max(axis=1).mean()
    if name == "conf_ece_quantile":
        return metrics.conf_ece(p, y, strategy="quantile")
    if name in ("mcb", "dsc", "unc"):
        return getattr(metrics.brier_decomposition(p, y), name)
    return getattr(metrics, name)(p, y, **extra.get(name, {}))


# -- Wilson -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("s", "n"), [(0, 7), (7, 7), (1, 30), (500, 1172), (9, 10)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_wilson_agrees_with_scipy(s, n, level):
    known = stats.binomtest(s, n).proportion_ci(level, method="wilson")
    assert wilson_interval(s, n, level) == pytest.approx((known.low, known.high), abs=1e-12)


def test_wilson_takes_arrays_and_knows_nothing_of_an_empty_bin():
    low, high = wilson_interval([0, 3], [0, 4])
    assert (low[0], high[0]) == (0, 1)
    assert (low[1], high[1]) == wilson_interval(3, 4)


@pytest.mark.parametrize(("s", "n", "level"), [(5, 4, 0.95), (-1, 4, 0.95), (1, 4, 1.0)])
def test_wilson_refuses_nonsense(s, n, level):
    with pytest.raises(InputError):
        wilson_interval(s, n, level)


# -- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [1, 12])  # one decimal: most confidences are tied
def test_value_is_that_of_the_metric_of_the_same_name(decimals):
    p, y = world(700, 0, slope=0.6)
    p = np.round(p, decimals)
    p[:, 3] = np.maximum(0, 1 - p[:, :3].sum(axis=1))
    p /= p.sum(axis=1, keepdims=True)
    found = bootstrap_intervals(p, y, n_resamples=20)
    for name in inference.METRICS:
        assert found[name].value == pytest.approx(value_of(name, p, y), abs=1e-9), name


def test_weights_mean_copies():
    p, y = world(200, 1)
    p = np.round(p, 1)
    p = p / p.sum(axis=1, keepdims=True)
    w = np.random.default_rng(0).integers(0, 4, (3, 200))
    c, hit = p.max(axis=1), p.argmax(axis=1) == y
    ranked = Ranked.of(c, hit)
    h = harmonic(int(w.sum(axis=1).max()))
    rows, wrong = ranked.counts(w.astype(float))
    found = ordered_metrics(rows, wrong, h, Settings())
    parts = decompositions(ranked, rows, wrong)
    for i in range(3):
        copies = (np.repeat(p, w[i], axis=0), np.repeat(y, w[i]))
        for name, v in found.items():
            assert v[i] == pytest.approx(value_of(name, *copies), abs=1e-9), name
        assert parts[i] == pytest.approx(metrics.brier_decomposition(*copies), abs=1e-9)


# -- noise floor --------------------------------------------------------------------------------


def test_noise_floor_is_near_its_formula():
    p, y = world(1000, 2)
    c = p.max(axis=1)
    index = metrics.bin_index(c, 10)
    variance = np.bincount(index, weights=c * (1 - c), minlength=10) / 1000
    formula = math.sqrt(2 / math.pi / 1000) * np.sqrt(variance).sum()
    assert noise_floor(p, y).mean == pytest.approx(formula, rel=0.05)


@pytest.mark.parametrize("metric", ["conf_ece", "cw_ece"])
def test_noise_floor_observes_the_metric(metric):
    p, y = world(300, 3)
    p = np.concatenate([p, np.zeros((300, 2))], axis=1)
    k = np.full(300, 4)
    floor = noise_floor(p, y, n_options=k, metric=metric, n_simulations=50)
    assert floor.observed == pytest.approx(getattr(metrics, metric)(p, y, n_options=k), abs=1e-12)
    without = noise_floor(p[:, :4], y, metric=metric, n_simulations=50)
    assert (without.mean, without.p_value) == pytest.approx((floor.mean, floor.p_value), abs=1e-9)


@pytest.mark.parametrize("metric", ["conf_ece", "cw_ece"])
def test_noise_floor_p_values_are_uniform_under_calibration(metric):
    values = []
    for seed in range(200):
        p, y = world(200, 1000 + seed)
        values.append(noise_floor(p, y, metric=metric, n_simulations=99, seed=seed).p_value)
    assert stats.kstest(values, "uniform").statistic < 0.115  # 1 % limit, and the grid of 1/100


@pytest.mark.parametrize("metric", ["conf_ece", "cw_ece"])
def test_normal_floor_of_many_rows_agrees_with_row_by_row(metric, monkeypatch):
    p, y = world(5000, 4)
    exact = noise_floor(p, y, metric=metric, n_simulations=2000)
    monkeypatch.setattr(_intervals, "_EXACT_ROWS", 10)
    normal = noise_floor(p, y, metric=metric, n_simulations=2000)
    assert normal.mean == pytest.approx(exact.mean, rel=0.02)
    assert normal.q95 == pytest.approx(exact.q95, rel=0.03)


def test_noise_floor_from_confidence_is_the_same():
    p, y = world(400, 5)
    c, hit = p.max(axis=1), p.argmax(axis=1) == y
    assert noise_floor_from_confidence(c, hit, seed=3) == noise_floor(p, y, seed=3)


def test_p_value_is_small_when_overconfident_and_never_zero():
    p, y = world(1000, 6, slope=0.4)
    assert noise_floor(p, y, n_simulations=99).p_value == pytest.approx(0.01)


# -- intervals ----------------------------------------------------------------------------------


def test_mean_interval_is_near_scipys_bca():
    p, y = world(400, 7, slope=0.5)
    found = bootstrap_interval(p, y, metric="nll", n_resamples=4000)
    rows = -np.log(p[np.arange(400), y])
    known = stats.bootstrap((rows,), np.mean, n_resamples=4000, rng=np.random.default_rng(0))
    interval = known.confidence_interval
    width = interval.high - interval.low
    assert found.low == pytest.approx(interval.low, abs=0.1 * width)
    assert found.high == pytest.approx(interval.high, abs=0.1 * width)


def test_auroc_interval_is_scipys_percentile_bootstrap():
    p, y = world(300, 8)
    c, hit = p.max(axis=1), p.argmax(axis=1) == y

    def auroc(rows):
        return metrics.auroc(p[rows], y[rows])

    known = stats.bootstrap(
        (np.arange(300),),
        auroc,
        n_resamples=1000,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = bootstrap_interval(p, y, metric="auroc", n_resamples=2000)
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=0.008)
    assert found.value == pytest.approx(metrics.auroc_from_confidence(c, hit), abs=1e-12)


def test_studentised_draws_are_those_of_a_loop():
    values = np.random.default_rng(0).exponential(size=(50, 2))
    weights = next(weight_blocks(50, None, 5, np.random.default_rng(1)))
    mean, error, t = resampled_t(values, None, [weights])
    assert mean == pytest.approx(values.mean(axis=0))
    assert error == pytest.approx(values.std(axis=0) / math.sqrt(50))
    for i in range(5):
        copy = np.repeat(values, weights[i].astype(int), axis=0)
        expected = (copy.mean(axis=0) - mean) / (copy.std(axis=0) / math.sqrt(50))
        assert t[i] == pytest.approx(expected)


def coverage(slope, n, count, metric, truth):
    inside = 0
    for seed in range(count):
        p, y = world(n, 5000 + seed, slope=slope)
        e = bootstrap_interval(p, y, metric=metric, n_resamples=300, seed=seed)
        inside += e.low <= truth <= e.high
    return inside / count


def true_ece(slope, classwise=False):
    rng = np.random.default_rng(1)
    z = 1.6 * rng.normal(size=(400_000, 4)) * np.exp(0.5 * rng.normal(size=(400_000, 1)))
    p, q = softmax(z), softmax(slope * z)
    rows, top = np.arange(len(p)), p.argmax(axis=1)
    columns = [(p[rows, top], q[rows, top])]
    if classwise:
        columns = list(zip(p.T, q.T, strict=True))
    total = 0.0
    for c, g in columns:
        total += np.abs(np.bincount(metrics.bin_index(c, 10), weights=g - c, minlength=10)).sum()
    return total / len(p) / len(columns)


@pytest.mark.parametrize("metric", ["conf_ece", "cw_ece"])
@pytest.mark.parametrize("slope", [1.0, 0.9, 0.5])
def test_error_intervals_cover_the_population_value(metric, slope):
    truth = true_ece(slope, classwise=metric == "cw_ece") if slope < 1 else 0.0
    assert coverage(slope, 500, 80, metric, truth) >= 0.87  # 3 sd below 95 %


def test_percentile_bootstrap_would_never_cover_zero():
    p, y = world(500, 9)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 500, 500) for _ in range(200)]
    assert min(metrics.conf_ece(p[r], y[r]) for r in rows) > 0.01


def test_error_interval_includes_zero_when_the_floor_explains_it():
    for seed in range(60):
        p, y = world(300, 300 + seed, slope=0.85)
        floor = noise_floor(p, y, n_simulations=200, seed=seed)
        low = bootstrap_interval(p, y, n_resamples=200, seed=seed).low
        assert low == 0 or floor.p_value < 0.05


def test_mcb_includes_zero_when_the_floor_explains_it():
    p, y = world(2000, 22)
    calm = bootstrap_intervals(p, y, metrics=("mcb",), n_resamples=200)["mcb"]
    assert calm.low == 0 < calm.value
    p, y = world(2000, 23, slope=0.5)
    assert bootstrap_intervals(p, y, metrics=("mcb",), n_resamples=200)["mcb"].low > 0


def test_upper_bound_never_claims_more_than_a_calibrated_model_can_show():
    p, _ = world(400, 10)
    c = p.max(axis=1)
    rng = np.random.default_rng(0)
    uppers = []
    for _ in range(20):
        hit = rng.random(400) < c
        labels = np.where(hit, p.argmax(axis=1), (p.argmax(axis=1) + 1) % 4)
        uppers.append(bootstrap_interval(p, labels, n_resamples=300).upper)
    assert min(uppers) > 0.6 * np.median(uppers)


def test_one_sided_bound_is_inside_the_interval():
    p, y = world(500, 11, slope=0.6)
    e = bootstrap_interval(p, y)
    assert e.low < e.value < e.high
    assert e.value < e.upper < e.high


@pytest.mark.parametrize("seed", range(8))
def test_no_interval_leaves_what_the_metric_can_be(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 12))
    p, q = rng.dirichlet([0.2] * 3, (2, n))
    y = rng.integers(3, size=n)
    limits = {"signed_gap": (-1, 1), "nll": (0, np.inf), "brier": (0, 2)}
    found = bootstrap_intervals(p, y, n_resamples=100)
    changes = inference.compare_intervals(p, q, y, n_resamples=100)
    reached = 0
    for name in inference.METRICS:
        low, high = limits.get(name, (0, 1))
        both = [(found[name], low, high)]
        if name in inference.PAIRED:
            both.append((changes.difference[name], low - high, high - low))
        for e, lowest, highest in both:
            assert not e.low < lowest, e
            assert not e.high > highest, e
            reached += e.high == highest
    assert reached  # so few questions leave some of them open


def test_rows_that_are_all_alike_leave_open_what_others_may_be():
    few = bootstrap_intervals([[0.9, 0.1]] * 10, [0] * 10)
    # At most 1 - .025^(1/10) = .3085 of the population is unlike ten rows that are alike.
    for name, value, lowest, highest in (
        ("signed_gap", -0.1, -1, 1), ("nll", -np.log(0.9), 0, np.inf), ("brier", 0.02, 0, 2),
        ("mean_confidence", 0.9, 0, 1),
    ):  # fmt: skip
        e = few[name]
        assert e.value == pytest.approx(value)
        assert e.low == pytest.approx(value - 0.30850 * (value - lowest), abs=1e-4)
        assert e.high == pytest.approx(value + 0.30850 * (highest - value), abs=1e-4)
    change = inference.compare_intervals([[0.99, 0.01]] * 10, [[0.95, 0.05]] * 10, [0] * 10)
    assert (change.difference["nll"].low, change.difference["nll"].high) == (-np.inf, np.inf)
    assert change.difference["brier"].low < 0 < change.difference["brier"].high
    same = inference.compare_intervals([[0.9, 0.1]] * 10, [[0.9, 0.1]] * 10, [0] * 10)
    assert (same.difference["nll"].low, same.difference["nll"].high) == (0, 0)
    # One row gives no interval, of the Brier decomposition neither.
    assert np.isnan(bootstrap_intervals([[0.9, 0.1]], [0])["mcb"].low)


def test_more_data_narrow_every_interval():
    few, many = (
        bootstrap_intervals(*world(n, 12, slope=0.6), n_resamples=400) for n in (300, 4800)
    )
    for name in inference.METRICS:
        if name not in ("mce", "underconfidence"):  # decided by the emptiest bin; nearly 0
            ratio = (many[name].high - many[name].low) / (few[name].high - few[name].low)
            assert 0.12 < ratio < 0.55, name  # 1/4 for means


def test_over_and_underconfidence_are_seen_from_their_side():
    p, y = world(3000, 13, slope=0.5)
    found = bootstrap_intervals(p, y, metrics=("overconfidence", "underconfidence", "conf_ece"))
    assert found["overconfidence"].low > 0.1
    assert found["underconfidence"].low == 0
    assert found["underconfidence"].high < 0.02


# -- duplicates ---------------------------------------------------------------------------------


def test_duplicates_as_groups_do_not_narrow_the_interval():
    p, y = world(300, 14, slope=0.6)
    copies = np.repeat(np.arange(300), 4)
    names = ("accuracy", "nll", "conf_ece", "cw_ece", "auroc", "smooth_ece")
    once = bootstrap_intervals(p, y, metrics=names)
    grouped = bootstrap_intervals(p[copies], y[copies], groups=copies, metrics=names)
    naive = bootstrap_intervals(p[copies], y[copies], metrics=names)
    for name in names:
        width = once[name].high - once[name].low
        assert grouped[name].high - grouped[name].low == pytest.approx(width, rel=0.3), name
        assert naive[name].high - naive[name].low < 0.7 * width, name


def test_groups_of_one_change_nothing():
    p, y = world(200, 15)
    names = ("nll", "auroc", "conf_ece")
    groups = [f"g{i}" for i in range(200)]
    assert bootstrap_intervals(p, y, metrics=names, groups=groups) == bootstrap_intervals(
        p, y, metrics=names
    )


def test_groups_of_another_length_are_refused():
    with pytest.raises(InputError, match="groups has 2 entries, expected 3"):
        bootstrap_interval([[0.6, 0.4]] * 3, [0, 0, 1], groups=["a", "b"])


# -- pairs --------------------------------------------------------------------------------------


def test_pairing_narrows_the_difference():
    p, y = world(1000, 16, slope=0.6)
    after = softmax(0.8 * np.log(p))
    change = compare_intervals(p, after, y, metrics=("nll", "conf_ece", "accuracy")).difference
    alone = bootstrap_interval(p, y, metric="nll")
    assert change["nll"].value == pytest.approx(metrics.nll(after, y) - metrics.nll(p, y))
    assert change["nll"].high - change["nll"].low < 0.6 * (alone.high - alone.low)
    assert change["accuracy"].value == 0
    assert change["conf_ece"].high < 0


def test_paired_order_metrics_resample_the_same_questions():
    p, y = world(500, 17, slope=0.6)
    twin = softmax(1.0000001 * np.log(p))
    change = compare_intervals(p, twin, y, metrics=("auroc", "aurc", "dsc")).difference
    for e in change.values():
        assert abs(e.low) < 1e-6
        assert abs(e.high) < 1e-6


def test_equal_errors_are_called_different_in_few_cases():
    wrong = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        p, y = world(500, 7000 + seed, slope=0.7)
        z = np.log(p)
        a, b = (softmax(z + 0.3 * rng.normal(size=z.shape)) for _ in range(2))
        e = paired_bootstrap(a, b, y, n_resamples=200)
        wrong += e.low > 0 or e.high < 0
    assert wrong <= 5  # binomial(30, .05): 1 in 300


def test_change_of_two_errors_covers_the_true_change():
    def errors(n, seed):
        rng = np.random.default_rng(seed)
        z = 1.6 * rng.normal(size=(n, 4)) * np.exp(0.5 * rng.normal(size=(n, 1)))
        return z, softmax(2 * z), softmax(1.4 * z), softmax(z), rng

    _, a, b, q, _ = errors(100_000, 0)
    rows = np.arange(len(q))

    def population(p):
        top = p.argmax(axis=1)
        gap = (q - p)[rows, top]
        return np.abs(np.bincount(metrics.bin_index(p[rows, top], 10), weights=gap)).sum() / len(q)

    truth, inside, width = population(b) - population(a), 0, 0.0
    for seed in range(16):
        _, a_few, b_few, q_few, rng = errors(600, 1 + seed)
        y = (rng.random((600, 1)) > q_few.cumsum(axis=1)[:, :-1]).sum(axis=1)
        e = paired_bootstrap(a_few, b_few, y, n_resamples=200)
        inside += e.low <= truth <= e.high
        width += (e.high - e.low) / 16
    assert inside >= 13  # binomial(16, .95): 1 in 100
    assert width < 0.08 < -1.2 * truth


def test_agresti_min_is_symmetric_and_widens_with_duplicates():
    change = np.array([1.0] * 12 + [-1.0] * 5 + [0.0] * 83)
    low, high = agresti_min(change, 0.95)
    assert agresti_min(-change, 0.95) == pytest.approx((-high, -low))
    wide = agresti_min(np.repeat(change, 4), 0.95, np.repeat(np.arange(100), 4))
    assert wide[1] - wide[0] == pytest.approx(high - low, rel=0.05)


def test_infinite_nll_is_reported_not_hidden():
    p, y = [[1.0, 0.0]] * 3 + [[0.5, 0.5]] * 7, [1] + [0] * 9
    assert bootstrap_interval(p, y, metric="nll").value == math.inf
    better = [[0.9, 0.1]] * 10
    assert paired_bootstrap(p, better, y, metric="nll").value == -math.inf
    assert math.isnan(paired_bootstrap(p, p, y, metric="nll").value)


# -- edges --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "y"),
    [
        ([[0.7, 0.3]], [0]),
        ([[1.0, 0.0]] * 20, [0] * 20),
        ([[1.0, 0.0]] * 20, [1] * 20),
        ([[0.5, 0.5]] * 20, [0, 1] * 10),
        ([[0.9, 0.1], [0.2, 0.8]], [0, 1]),
    ],
    ids=["one row", "all right", "all wrong", "all tied", "two rows"],
)
@pytest.mark.filterwarnings("error")
def test_edges_give_numbers_and_no_warnings(p, y):
    found = bootstrap_intervals(p, y, n_resamples=50)
    change = compare_intervals(p, p, y, n_resamples=50, metrics=inference.PAIRED).difference
    for e in [*found.values(), *change.values()]:
        assert math.isnan(e.low) or e.low <= e.high
    for name in ("conf_ece", "cw_ece"):
        assert 0 <= found[name].low <= found[name].high <= 1.5
    assert noise_floor(p, y, n_simulations=10).n == len(p)


def test_certain_and_right_still_leaves_room_for_error():
    e = bootstrap_interval([[1.0, 0.0]] * 300, [0] * 300)
    assert e.value == 0
    assert 0.005 < e.upper < 0.03  # the rule of three: 3/300


def test_unknown_metric_is_refused():
    with pytest.raises(InputError, match="metric is 'ece', expected one of accuracy"):
        bootstrap_interval([[0.7, 0.3]], [0], metric="ece")
    with pytest.raises(InputError, match="expected 'conf_ece' or 'cw_ece'"):
        noise_floor([[0.7, 0.3]], [0], metric="nll")
    with pytest.raises(InputError, match="metric is 'mce'"):
        paired_bootstrap([[0.7, 0.3]], [[0.7, 0.3]], [0], metric="mce")


def test_bad_rows_are_refused_by_name():
    with pytest.raises(InputError, match="row 1"):
        bootstrap_interval([[0.7, 0.3], [0.7, np.nan]], [0, 0])


def test_same_seed_same_numbers_and_another_seed_others():
    p, y = world(200, 18)
    one, two, other = (
        bootstrap_interval(p, y, metric="nll", seed=s, n_resamples=100) for s in (1, 1, 2)
    )
    assert one == two != other


def test_estimates_and_floors_survive_json():
    e = Estimate("nll", math.inf, math.nan, math.inf, 5, 0.95, None, "x")
    back = Estimate.from_dict(json.loads(json.dumps(e.to_dict(), allow_nan=False)))
    assert str(back) == str(e)
    f = noise_floor([[0.7, 0.3]] * 5, [0] * 5, n_simulations=10)
    assert NoiseFloor.from_dict(json.loads(json.dumps(f.to_dict()))) == f


def test_thousand_resamples_of_all_metrics_are_quick():
    p, y = world(10_000, 19, slope=0.6)
    start = time.process_time()
    bootstrap_intervals(p, y)
    assert time.process_time() - start < 12  # 1.8 s on a free core, for 24 metrics


def test_neither_torch_nor_matplotlib_is_imported():
    code = (
        "import sys, calibrant as c; c.evaluate; c.verdict;"
        "t = c.AnswerTable.from_probs([[.6, .4]] * 9, [0] * 9);"
        "c.evaluate(t, n_resamples=9); c.verdict(t, t, n_resamples=9);"
        "print({'torch', 'matplotlib', 'scipy.stats', 'rich'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


@pytest.mark.parametrize("c", [0.99, 0.999])
@pytest.mark.parametrize("n", [30, 100])
def test_the_upper_bound_holds_where_a_model_is_sure_and_rarely_wrong(c, n):
    """By enumeration: over every true share of wrong answers the bound covers 95 % of the time."""
    p = np.tile([c, 1 - c], (n, 1))
    wrong = np.arange(16)
    uppers = np.array([
        bootstrap_interval(p, np.arange(n) < s, n_resamples=200).upper for s in wrong
    ])  # fmt: skip
    for share in np.linspace(0, 0.12, 61):
        chance = stats.binom.pmf(wrong, n, share)
        if chance.sum() > 0.999:
            assert chance @ (uppers >= abs(share - (1 - c))) > 0.945, share


def test_the_numbers_of_the_statistics_page_for_sure_models():
    """300 right answers at confidence .999 and .99, in docs/statistics.md."""
    at_most = {c: bootstrap_interval([[c, 1 - c]] * 300, [0] * 300).upper for c in (0.999, 0.99)}
    exact = 1 - 0.05 ** (1 / 300)  # Clopper-Pearson's limit for no surprise in 300
    assert at_most[0.999] == pytest.approx(exact - 0.001, abs=2e-4)
    assert round(at_most[0.999], 3) == 0.009
    assert round(at_most[0.99], 3) == 0.012


def test_answers_do_not_differ_from_themselves():
    for c in (0.5, 0.9, 0.99):
        p, y = [[c, 1 - c]] * 60, [0] * 50 + [1] * 10
        found = inference.compare_intervals(p, p, y, n_resamples=100).difference
        for name in inference.PAIRED:
            e = found[name]
            if name != "accuracy":  # two models' may differ on other questions
                assert (e.value, e.low, e.high) == (0, 0, 0) or np.isnan(e.low), name
