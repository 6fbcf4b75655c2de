import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from worlds import drawn, sharpened, table_of

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.posthoc import DACA, BaseKL, NoOptimumError


def aligned_and_base(n=4000, sharpness=3.0, seed=0, n_options=None, changed=0.0):
    """An aligned model that is the sharpened base, but for a share of questions it knows anew."""
    aligned, p = sharpened(n=n, sharpness=sharpness, seed=seed, n_options=n_options)
    base = aligned.with_logprobs(np.log(p, where=p > 0, out=np.full_like(p, -np.inf)))
    rng = np.random.default_rng(seed + 1)
    new = rng.random(n) < changed
    scores = aligned.logprobs.copy()
    scores[new] = scores[new][:, ::-1]  # another option is the best one now
    return aligned.with_logprobs(scores), base


def mean_kl(temperature, aligned, base):
    p = base.probs()
    return (p * (np.log(p) - log_softmax(aligned.logprobs / temperature, axis=1))).sum(1).mean()


def test_base_kl_recovers_the_sharpening_without_labels():
    n_options = np.random.default_rng(1).integers(2, 5, size=4000)
    aligned, base = aligned_and_base(n_options=n_options)
    fitted = BaseKL().fit(aligned, base)
    assert fitted.temperature == pytest.approx(3.0, rel=1e-9)
    assert fitted.transform(aligned).probs() == pytest.approx(base.probs(), abs=1e-9)


@pytest.mark.parametrize("changed", [0.1, 0.3])
def test_base_kl_is_the_minimum_of_the_divergence(changed):
    aligned, base = aligned_and_base(changed=changed)
    found = minimize_scalar(
        lambda log_t: mean_kl(np.exp(log_t), aligned, base),
        bounds=(-3, 5),
        method="bounded",
        options={"xatol": 1e-12},
    )
    fitted = BaseKL().fit(aligned, base).temperature
    assert fitted == pytest.approx(np.exp(found.x), rel=1e-6)
    assert mean_kl(fitted, aligned, base) <= found.fun + 1e-15


def test_disagreement_pulls_base_kl_up_and_leaves_daca_alone():
    aligned, base = aligned_and_base(n=20_000, changed=0.2)
    daca = DACA().fit(aligned, base)
    agree = aligned.predictions == base.predictions
    assert daca.n_questions == agree.sum()
    assert daca.temperature == BaseKL().fit(aligned.select(agree), base.select(agree)).temperature
    assert daca.temperature == pytest.approx(3.0, rel=0.02)  # all but the few it agrees on anyhow
    assert BaseKL().fit(aligned, base).temperature > 1.3 * daca.temperature


def test_labels_do_not_matter_and_tables_are_matched_by_id():
    aligned, base = aligned_and_base(changed=0.2)
    order = np.random.default_rng(0).permutation(len(base))
    same = drawn(softmax(np.zeros((len(base), 4)), axis=1), np.random.default_rng(2))
    other_a = table_of(aligned.logprobs, same)
    other_b = table_of(base.logprobs, same).select(order)
    assert BaseKL().fit(other_a, other_b).temperature == pytest.approx(
        BaseKL().fit(aligned, base).temperature, rel=1e-12
    )
    half = BaseKL().fit(aligned, base.select(order[:2000]))
    assert half.n_questions == 2000


@pytest.mark.parametrize("calibrator", [BaseKL, DACA])
def test_what_cannot_be_compared_is_refused(calibrator):
    a = AnswerTable.from_probs([[0.9, 0.1], [0.2, 0.8]], [0, 0], ids=["a", "b"])
    with pytest.raises(InputError, match="fit without a reference"):
        calibrator().fit(a)
    with pytest.raises(InputError, match="share no question id"):
        calibrator().fit(a, AnswerTable.from_probs([[0.9, 0.1]], [0], ids=["c"]))
    sure = AnswerTable.from_probs([[1.0, 0.0], [0.2, 0.8]], [0, 0], ids=["a", "b"])
    with pytest.raises(InputError, match="question 'a': an option has probability 0 but not in"):
        calibrator().fit(sure, a)
    with pytest.raises(NoOptimumError, match="puts all its probability"):
        calibrator().fit(a, AnswerTable.from_probs([[1, 0], [0, 1]], [0, 0], ids=["a", "b"]))


def test_a_reference_that_opposes_has_no_optimum_for_base_kl_and_no_agreement_for_daca():
    a = AnswerTable.from_probs([[0.9, 0.1], [0.2, 0.8]], [0, 0])
    opposite = AnswerTable.from_probs([[0.1, 0.9], [0.8, 0.2]], [0, 0])
    with pytest.raises(NoOptimumError, match="prefers the options that score low"):
        BaseKL().fit(a, opposite)
    with pytest.raises(InputError, match="same option for none of 2 questions"):
        DACA().fit(a, opposite)
