import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from worlds import drawn, mean_nll, sharpened, table_of

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.posthoc import (
    DirichletScaling,
    NoOptimumError,
    TemperatureScaling,
    VectorScaling,
)

BIAS = np.array([2.0, 0.5, -1.0, -1.5])  # a model that likes A
BOTH = pytest.mark.parametrize("scaling", [VectorScaling, DirichletScaling])


@BOTH
@pytest.mark.parametrize("sharpness", [0.4, 3.0])  # under- and over-confident
def test_sharpening_and_letter_bias_are_taken_back(scaling, sharpness):
    table, p = sharpened(n=100_000, sharpness=sharpness, bias=BIAS)
    after = scaling().fit(table).transform(table)
    assert np.abs(after.probs() - p).max() < 0.05
    assert np.abs(after.probs() - p).mean() < 0.005
    assert mean_nll(after) < mean_nll(TemperatureScaling().fit(table).transform(table)) - 0.01


def test_vector_scaling_recovers_its_parameters():
    rng = np.random.default_rng(0)
    logp = log_softmax(rng.normal(size=(200_000, 3)) * 2, axis=1)
    weight, bias = np.array([0.3, 0.6, 1.2]), np.array([0.5, -0.25, -0.25])
    labels = drawn(softmax(logp * weight + bias, axis=1), rng)
    fitted = VectorScaling().fit(table_of(logp, labels))
    assert np.diag(fitted.weight) == pytest.approx(weight, abs=0.02)
    assert fitted.bias - fitted.bias.mean() == pytest.approx(bias, abs=0.03)


def test_dirichlet_scaling_recovers_a_map_with_letters_mixed():
    rng = np.random.default_rng(0)
    logp = log_softmax(rng.normal(size=(100_000, 3)) * 2, axis=1)
    weight = np.array([[0.8, -0.3, 0.0], [0.2, 0.5, 0.1], [-0.1, 0.0, 1.1]])
    p = softmax(logp @ weight.T + [0.3, 0.0, -0.3], axis=1)
    table = table_of(logp, drawn(p, rng))
    after = DirichletScaling().fit(table).transform(table)
    assert np.abs(after.probs() - p).mean() < 0.004
    assert mean_nll(after) < mean_nll(VectorScaling().fit(table).transform(table)) - 0.005


def test_dirichlet_without_penalty_is_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    table, _ = sharpened(n=2000, bias=BIAS)
    logp = log_softmax(table.logprobs, axis=1)
    reference = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    reference.fit(logp, table.labels)
    ours = DirichletScaling(l2=0).fit(table).transform(table).probs()
    assert ours == pytest.approx(reference.predict_proba(logp), abs=1e-6)


@BOTH
@pytest.mark.parametrize("l2", [0.0, 1.0, 100.0])
def test_the_penalised_optimum_is_that_of_another_optimiser(scaling, l2):
    table, _ = sharpened(n=300, k=3, bias=BIAS[:3])
    logp = log_softmax(table.logprobs, axis=1)
    x = (logp - logp.mean()) / logp.std()
    diagonal = scaling is VectorScaling

    def loss(theta):
        theta = theta.reshape(3, -1)
        weight = np.diag(theta[:, 0]) if diagonal else theta[:, :3]
        s = x @ weight.T + theta[:, -1]
        nll = -log_softmax(s, axis=1)[np.arange(300), table.labels].sum()
        off = weight[~np.eye(3, dtype=bool)]
        return nll + l2 / 2 * (np.square(off).sum() + np.square(theta[:, -1]).sum())

    start = np.random.default_rng(0).normal(size=6 if diagonal else 12)
    found = minimize(loss, start, method="BFGS", options={"gtol": 1e-6})
    fitted = scaling(l2=l2).fit(table)
    weight = fitted.weight * logp.std()
    bias = fitted.bias + fitted.weight.sum(axis=1) * logp.mean()
    theta = np.column_stack((np.diag(weight) if diagonal else weight, bias))
    assert loss(theta) <= found.fun + 1e-9
    if l2:  # without, constants can be added to b and to the columns of W
        assert theta.ravel() == pytest.approx(found.x, abs=2e-4)


@BOTH
def test_more_penalty_means_smaller_offsets(scaling):
    table, _ = sharpened(n=500, bias=BIAS)
    free, tied = scaling(l2=0.01).fit(table), scaling(l2=1e6).fit(table)
    logp = log_softmax(table.logprobs, axis=1)
    offsets = tied.bias + tied.weight.sum(axis=1) * logp.mean()
    assert np.abs(offsets).max() < 1e-3
    assert np.abs(tied.weight[~np.eye(4, dtype=bool)]).max() < 1e-3
    assert mean_nll(free.transform(table)) < mean_nll(tied.transform(table))


@BOTH
def test_a_constant_added_to_a_question_changes_nothing(scaling):
    table, _ = sharpened(n=500, bias=BIAS)
    moved = table.with_logprobs(table.logprobs + np.linspace(-50, 50, 500)[:, None])
    a, b = scaling().fit(table), scaling().fit(moved)
    assert b.transform(moved).probs() == pytest.approx(a.transform(table).probs(), abs=1e-9)


@BOTH
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_linear_scaling_converges_from_any_scale(scaling, scale):
    table, p = sharpened(n=20_000, sharpness=scale)
    after = scaling().fit(table).transform(table)
    assert mean_nll(after) < mean_nll(TemperatureScaling().fit(table).transform(table)) + 1e-4
    assert np.abs(after.probs() - p).mean() < 0.02


@BOTH
def test_what_has_no_optimum_raises(scaling):
    p = [[0.9, 0.1], [0.1, 0.9]] * 10
    with pytest.raises(NoOptimumError, match="grows without end"):
        scaling().fit(AnswerTable.from_probs(p, [0, 1] * 10))
    with pytest.raises(NoOptimumError, match="does not depend on them"):
        VectorScaling().fit(AnswerTable.from_probs([[0.5, 0.5]] * 20, [0, 1] * 10))


@BOTH
def test_what_letters_cannot_carry_is_refused(scaling):
    table, _ = sharpened(n=100, k=4, n_options=[4] * 99 + [3])
    with pytest.raises(InputError, match="question 'q99' has 3 options, expected 4"):
        scaling().fit(table)
    four = sharpened(n=100)[0]
    fitted = scaling().fit(four)
    with pytest.raises(InputError, match="question 'q0' has 2 options, expected 4"):
        fitted.transform(AnswerTable.from_probs([[0.5, 0.5]], [0], ids=["q0"]))
    with pytest.raises(InputError, match="question '1': an option has probability 0"):
        scaling().fit(AnswerTable.from_probs([[0.5, 0.5], [1.0, 0.0]], [0, 1]))
    with pytest.raises(InputError, match="l2 -1, expected a number from 0 up"):
        scaling(l2=-1)
