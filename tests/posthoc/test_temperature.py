import numpy as np
import pytest
from worlds import mean_nll, sharpened

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.posthoc import NoOptimumError, TemperatureScaling


def answers(**world):
    return sharpened(**world)[0]


def test_temperature_recovers_a_known_optimum():
    scaling = TemperatureScaling().fit(answers(n=100_000))
    assert scaling.temperature == pytest.approx(3.0, rel=0.02)


def test_temperature_is_stationary_to_1e_minus_7():
    table = answers()
    t = TemperatureScaling().fit(table).temperature

    def nll(temperature):
        return mean_nll(table.with_logprobs(table.logprobs / temperature))

    h = 1e-4
    assert abs(nll(t * (1 + h)) - nll(t * (1 - h))) / (2 * h) < 1e-7
    assert nll(t) <= min(nll(t * f) for f in (0.5, 0.9, 0.99, 1.01, 1.1, 2))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("true", [0.05, 0.5, 1.0, 3.0, 20.0])
def test_temperature_agrees_with_scikit_learn(true, seed):
    from sklearn.calibration import _TemperatureScaling

    table = answers(sharpness=true, spread=4 / true, seed=seed)
    reference = _TemperatureScaling().fit(table.logprobs, table.labels)
    ours = TemperatureScaling().fit(table).temperature
    assert 1 / ours == pytest.approx(reference.beta_, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("true", [3.0, 20.0])
def test_temperature_agrees_with_netcal_where_it_converges(true, seed):
    from netcal.scaling import TemperatureScaling as Reference

    table = answers(sharpness=true, spread=4 / true, seed=seed)
    reference = Reference()
    reference.fit(table.probs(), table.labels)
    ours = TemperatureScaling().fit(table).temperature
    assert 1 / ours == pytest.approx(float(reference.temperature[0]), rel=1e-6)  # it holds 1/T


@pytest.mark.parametrize("true", [0.05, 0.5, 1.0])
def test_temperature_is_likelier_than_netcals_where_that_stops_early(true):
    from netcal.scaling import TemperatureScaling as Reference

    table = answers(sharpness=true, spread=4 / true)
    reference = Reference()
    reference.fit(table.probs(), table.labels)
    theirs = table.with_logprobs(table.logprobs * float(reference.temperature[0]))
    assert mean_nll(TemperatureScaling().fit(table).transform(table)) <= mean_nll(theirs)


@pytest.mark.parametrize("scale", [1e-100, 1e-6, 1e-3, 1e3, 1e6, 1e100])
def test_temperature_converges_from_any_scale(scale):
    table = answers()
    reference = TemperatureScaling().fit(table).temperature
    scaled = TemperatureScaling().fit(table.with_logprobs(table.logprobs * scale)).temperature
    assert scaled / scale == pytest.approx(reference, rel=1e-9)


@pytest.mark.parametrize("n_wrong", [1, 10, 499])
def test_one_wrong_answer_is_enough(n_wrong):
    p = [[0.999, 0.001]] * 1000
    table = AnswerTable.from_probs(p, [1] * n_wrong + [0] * (1000 - n_wrong))
    confidence = TemperatureScaling().fit(table).transform(table).confidence
    assert confidence == pytest.approx(1 - n_wrong / 1000, abs=1e-12)


def test_varying_numbers_of_options_are_fitted_together():
    n_options = np.random.default_rng(1).integers(2, 11, size=50_000)
    table = answers(n=50_000, k=10, n_options=n_options)
    scaling = TemperatureScaling().fit(table)
    assert scaling.temperature == pytest.approx(3.0, rel=0.03)
    assert (scaling.transform(table).predictions == table.predictions).all()


def test_no_information_and_no_mistake_have_no_optimum():
    sure = AnswerTable.from_probs([[0.9, 0.1]] * 3, [0, 0, 0])
    with pytest.raises(NoOptimumError, match="all 3 questions are answered right"):
        TemperatureScaling().fit(sure)
    for labels in ([1, 1, 0, 1], [1, 1, 0, 0]):
        wrong = AnswerTable.from_probs([[0.9, 0.1]] * 4, labels)
        with pytest.raises(NoOptimumError, match="right answers score no higher than wrong ones"):
            TemperatureScaling().fit(wrong)


def test_a_right_answer_of_probability_zero_is_named():
    table = AnswerTable.from_probs([[0.9, 0.1], [1.0, 0.0]], [1, 1], ids=["a", "b"])
    with pytest.raises(InputError, match="question 'b': the right answer has probability 0"):
        TemperatureScaling().fit(table)
