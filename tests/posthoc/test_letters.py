from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from worlds import sharpened, table_of

from calibrant import posthoc
from calibrant.errors import InputError
from calibrant.posthoc import PriDe, TemperatureScaling

LETTERS = np.array([1.5, 0.5, -0.5, -1.5])


def asked(sharpness=1.0, n=200, seed=0, n_options=None):
    """Questions in every rotation of their options, by a model that likes A; and p*."""
    table, p = sharpened(n=n, sharpness=sharpness, seed=seed, n_options=n_options)
    scores, orders, labels, options, ids = [], [], [], [], []
    for i in range(n):
        k = table.n_options[i]
        for turn in range(k):
            order = np.append((np.arange(k) + turn) % k, np.full(4 - k, -1))
            bias = np.zeros(4)
            bias[order[:k]] = LETTERS[:k]
            scores.append(table.logprobs[i] + bias)
            orders.append(order)
            labels.append(table.labels[i])
            options.append(k)
            ids.append(f"q{i}#{turn}")
    permuted = table_of(np.array(scores), labels, n_options=options, ids=tuple(ids))
    return replace(permuted, orders=np.array(orders)), table, p


def test_letter_prior_and_probabilities_are_recovered_exactly():
    n_options = np.random.default_rng(0).integers(2, 5, size=200)
    permuted, _, p = asked(n_options=n_options)
    fitted = PriDe().fit(permuted)
    assert fitted.n_questions == 200
    for k in (2, 3, 4):
        assert fitted.prior[k] == pytest.approx(softmax(LETTERS[:k]), abs=1e-12)
    first = permuted.orders[:, 0] == 0  # each question in its own order
    after = fitted.transform(permuted.select(first))
    assert after.probs() == pytest.approx(p, abs=1e-12)
    every = fitted.transform(permuted).probs()
    assert every == pytest.approx(np.repeat(p, n_options, axis=0), abs=1e-12)


def test_debiasing_then_temperature_recovers_a_sharpened_model():
    permuted, table, p = asked(sharpness=3.0, n=5000)
    once = table_of(table.logprobs + LETTERS, table.labels)  # new questions, asked once
    debiased = PriDe().fit(permuted).transform(once)
    after = TemperatureScaling().fit(debiased).transform(debiased)
    assert np.abs(after.probs() - p).max() < 0.03
    biased = TemperatureScaling().fit(once).transform(once)
    assert np.abs(biased.probs() - p).max() > 0.2


def test_prior_survives_a_file(tmp_path):
    permuted, table, _ = asked()
    fitted = PriDe().fit(permuted)
    fitted.save(tmp_path / "calibrator.json")
    again = posthoc.load(tmp_path / "calibrator.json")
    assert type(again) is PriDe
    assert (again.transform(table).logprobs == fitted.transform(table).logprobs).all()


def test_a_number_of_options_without_prior_is_refused():
    permuted, _, _ = asked()
    two = table_of(np.array([[0.3, 0.0]]), [0])
    with pytest.raises(InputError, match="prior for 2 options is missing"):
        PriDe().fit(permuted).transform(two)
    with pytest.raises(InputError, match="pride: transform before fit"):
        PriDe().transform(two)
