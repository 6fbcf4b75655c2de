import numpy as np
import pytest
from worlds import crossing, sharpened, table_of

from calibrant.answers import AnswerTable
from calibrant.posthoc import ExpectationConsistency, NoOptimumError


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_expectation_consistency_recovers_a_known_optimum(sharpness):
    table, _ = sharpened(n=100_000, sharpness=sharpness)
    scaling = ExpectationConsistency().fit(table)
    assert scaling.temperature == pytest.approx(sharpness, rel=0.02)


@pytest.mark.parametrize("world", [sharpened, crossing])
def test_mean_confidence_equals_accuracy(world):
    table, _ = world()
    after = ExpectationConsistency().fit(table).transform(table)
    assert after.confidence.mean() == pytest.approx(table.correct.mean(), abs=1e-12)
    assert (after.predictions == table.predictions).all()


def test_mean_confidence_equals_accuracy_with_varying_options_and_any_scale():
    n_options = np.random.default_rng(1).integers(2, 11, size=5000)
    table, _ = sharpened(n=5000, k=10, n_options=n_options)
    for scale in (1e-9, 1.0, 1e9):
        scaled = table.with_logprobs(table.logprobs * scale)
        after = ExpectationConsistency().fit(scaled).transform(scaled)
        assert after.confidence.mean() == pytest.approx(table.correct.mean(), abs=1e-12)


def test_accuracy_at_chance_or_at_one_has_no_solution():
    with pytest.raises(NoOptimumError, match=r"on these 4 questions is 0\.5, not above ch"):
        ExpectationConsistency().fit(AnswerTable.from_probs([[0.9, 0.1]] * 4, [0, 0, 1, 1]))
    with pytest.raises(NoOptimumError, match="accuracy on these 3 questions is 1 and mean conf"):
        ExpectationConsistency().fit(AnswerTable.from_probs([[0.9, 0.1]] * 3, [0, 0, 0]))


def test_chance_is_the_mean_of_one_over_k():
    # Accuracy 0.4: above the mean of 1/2 and 1/5 (.35) on two- and five-option questions.
    scores = np.array([[1.0, 0, -np.inf, -np.inf, -np.inf], [1.0, 0, 0, 0, 0]] * 5)
    labels = [0] * 4 + [1] * 6
    fitted = ExpectationConsistency().fit(table_of(scores, labels, n_options=[2, 5] * 5))
    assert fitted.temperature > 1
    with pytest.raises(NoOptimumError, match=r"not above chance"):
        ExpectationConsistency().fit(table_of(scores, [0] * 3 + [1] * 7, n_options=[2, 5] * 5))


def test_options_that_tie_bound_mean_confidence():
    table = AnswerTable.from_probs([[0.5, 0.5]] * 2 + [[0.9, 0.1]] * 2, [0, 0, 0, 1])
    with pytest.raises(NoOptimumError, match=r"reaches at most 0\.75"):
        ExpectationConsistency().fit(table)


def test_mean_confidence_equals_accuracy_where_some_options_tie():
    table = AnswerTable.from_probs([[0.5, 0.5]] * 2 + [[0.9, 0.1]] * 4, [0, 1, 0, 0, 0, 1])
    after = ExpectationConsistency().fit(table).transform(table)
    assert after.confidence == pytest.approx([0.5] * 2 + [0.75] * 4)  # 4 of 6 in all
