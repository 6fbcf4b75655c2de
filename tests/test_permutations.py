import itertools
from dataclasses import replace

import numpy as np
import pytest

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.permutations import (
    average,
    debias,
    estimation_sample,
    flip_rate,
    in_own_order,
    letter_prior,
    permuted,
    recall_std,
)
from calibrant.questions import Question
from helpers import make_questions

PRIOR = {2: np.array([0.8, 0.2]), 3: np.array([0.6, 0.3, 0.1]), 4: np.array([0.5, 0.3, 0.15, 0.05])}


def biased_answers(questions, permutations="cyclic", *, noise=0.0, seed=0):
    """What a model with a known letter prior answers: p(letter j) is prior[j] x content, renormed.

    Returns the content probabilities by question id too.
    """
    rng = np.random.default_rng(seed)
    content = {q.id: rng.dirichlet(np.ones(len(q.choices))) for q in questions}
    rows, orders = permuted(questions, permutations)
    shown = np.zeros(orders.shape)
    for i, row in enumerate(rows):
        k = len(row.choices)
        own = content[row.id.rpartition("#")[0]]
        shown[i, :k] = PRIOR[k] * own[orders[i, :k]] * np.exp(noise * rng.normal(size=k))
    table = AnswerTable.from_probs(
        shown / shown.sum(1, keepdims=True),
        [row.answer for row in rows],
        ids=[row.id for row in rows],
        n_options=[len(row.choices) for row in rows],
    )
    return in_own_order(table, orders), content


def test_every_order_keeps_the_right_answer_and_every_option():
    questions = make_questions(20, k_max=5)
    for how, expected in (("cyclic", len), ("all", None), (3, None)):
        rows, orders = permuted(questions, how)
        by_id = {q.id: q for q in questions}
        for row, order in zip(rows, orders, strict=True):
            q = by_id[row.id.rpartition("#")[0]]
            assert row.choices[row.answer] == q.choices[q.answer]
            assert [q.choices[k] for k in order if k >= 0] == list(row.choices)
        if expected:
            assert len(rows) == sum(expected(q.choices) for q in questions)


def test_all_permutations_are_all_of_them():
    q = Question("q", "x", tuple("abcd"), 0)
    _, orders = permuted([q], "all")
    assert {tuple(order) for order in orders} == set(itertools.permutations(range(4)))
    with pytest.raises(InputError, match=r"'six': all permutations of 6 options would be 720"):
        permuted([Question("six", "x", tuple("abcdef"), 0)], "all")


def test_random_orders_are_distinct_seeded_and_do_not_depend_on_the_other_questions():
    questions = make_questions(10, k_min=4, k_max=8)
    rows, orders = permuted(questions, 6, seed=3)
    pairs = list(zip(rows, orders, strict=True))
    assert len(pairs) == 60
    assert len({(row.id[: row.id.index("#")], *order) for row, order in pairs}) == 60
    alone, _ = permuted(questions[4:5], 6, seed=3)
    assert alone == [row for row in rows if row.id.startswith(f"{questions[4].id}#")]
    assert permuted(questions, 6, seed=4)[0] != rows
    two = Question("two", "x", ("a", "b"), 0)
    assert len(permuted([two], 6)[0]) == 2, "there are no more orders of two options"


@pytest.mark.parametrize("how", ["cycle", 0, -1, True, 2.0, None])
def test_what_is_no_kind_of_permutation_is_refused(how):
    with pytest.raises(InputError, match="expected 'cyclic', 'all' or a number from 1"):
        permuted(make_questions(1), how)


@pytest.mark.parametrize("how", ["cyclic", "all"])
def test_a_known_prior_is_recovered_exactly_and_divided_out(how):
    questions = make_questions(30, k_min=2, k_max=4)
    table, content = biased_answers(questions, how)
    prior = letter_prior(table)
    assert set(prior) == {2, 3, 4}
    for k, values in prior.items():
        np.testing.assert_allclose(values, PRIOR[k], rtol=1e-10)
    clean = debias(table, prior)
    for i, name in enumerate(clean.questions):
        k = clean.n_options[i]
        np.testing.assert_allclose(clean.probs()[i, :k], content[name], rtol=1e-9)
    assert flip_rate(table) > 0.2
    assert flip_rate(clean) == 0.0


def test_a_prior_from_a_noisy_share_helps_the_questions_asked_once():
    questions = make_questions(400, k_min=4, k_max=4)
    share = estimation_sample([4] * 400, 0.1, seed=1)
    assert len(share) == 40
    some, _ = biased_answers([questions[i] for i in share], noise=0.5)
    prior = letter_prior(some)
    np.testing.assert_allclose(prior[4], PRIOR[4], atol=0.03)
    once, content = biased_answers(questions, 1, noise=0.5, seed=5)
    truth = np.array([content[name] for name in once.questions])
    before = np.abs(once.probs() - truth).mean()
    after = np.abs(debias(once, prior).probs() - truth).mean()
    assert after < 0.6 * before


def test_average_is_one_row_per_question_and_takes_duplicates_apart():
    questions = [replace(q, id=f"{i % 2}#{i}") for i, q in enumerate(make_questions(6, k_max=4))]
    table, _ = biased_answers(questions, "cyclic")
    table = replace(table, groups=("same",) * len(table), option_mass=np.full(len(table), 0.5))
    one = average(table)
    assert one.ids == tuple(q.id for q in questions)
    assert one.labels.tolist() == [q.answer for q in questions]
    assert one.orders is None
    probs, k = table.probs(), len(questions[0].choices)
    np.testing.assert_allclose(one.probs()[0], probs[:k].mean(axis=0), rtol=1e-12)
    assert one.option_mass.tolist() == [0.5] * 6
    assert one.provenance["permutations"]["rows"] == len(table)
    assert one.provenance["permutations"]["flip_rate"] == flip_rate(table)


def test_shuffled_rows_average_the_same():
    table, _ = biased_answers(make_questions(12, k_max=4), "cyclic")
    shuffled = average(table.select(np.random.default_rng(0).permutation(len(table))))
    expected, found = shuffled.align(average(table))
    np.testing.assert_allclose(expected.probs(), found.probs(), rtol=1e-12)


def test_recall_by_hand():
    """Three letters; A is right 2 of 2, B 1 of 2, C never right: no answer stands there."""
    p = [[0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1]]
    table = AnswerTable.from_probs(p, [0, 0, 1, 1])
    assert recall_std(table) == pytest.approx(np.std([1.0, 0.5]))


def test_recall_counts_by_the_letter_shown_not_by_the_option():
    table, _ = biased_answers(make_questions(50, k_min=3, k_max=3), "cyclic")
    own = AnswerTable.from_probs(table.probs(), table.labels)
    assert recall_std(table) > 0.1
    assert recall_std(own) < recall_std(table)


def test_what_cannot_be_estimated_is_refused():
    questions = make_questions(4, k_min=3, k_max=4)
    table, _ = biased_answers(questions, 2)
    with pytest.raises(InputError, match="do not stand at every letter equally often"):
        letter_prior(table)
    cyclic, _ = biased_answers(questions)
    with pytest.raises(InputError, match="do not stand at every letter equally often"):
        letter_prior(cyclic.select(range(1, len(cyclic))))
    with pytest.raises(InputError, match=r"prior for \d options is missing"):
        debias(cyclic, {7: np.ones(7) / 7})
    with pytest.raises(InputError, match="in one order only"):
        flip_rate(biased_answers(questions, 1)[0])
    zero = AnswerTable.from_probs([[1.0, 0.0], [0.5, 0.5]], [0, 0], ids=["q#0", "q#1"])
    with pytest.raises(InputError, match=r"row 0 \(id 'q#0'\) gives an option probability 0"):
        letter_prior(replace(zero, orders=[[0, 1], [1, 0]]))
    with pytest.raises(InputError, match="share of the questions to permute is 0"):
        estimation_sample([4], 0)
