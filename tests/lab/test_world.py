import numpy as np
import pytest
from scipy.stats import chisquare

from calibrant.errors import InputError
from calibrant.lab.world import DOMAINS, World
from calibrant.questions import Question, Questions


@pytest.fixture(scope="module")
def world():
    return World(seed=3)


@pytest.mark.parametrize("ceiling", [0.55, 0.8])
def test_the_ceiling_is_the_mean_best_probability_of_every_domain(ceiling):
    world = World(seed=1, ceiling=ceiling)
    for domain in DOMAINS:
        target = world.target(world.questions(domain.name, 20_000, seed=0))
        np.testing.assert_allclose(target.sum(axis=1), 1, atol=1e-12)
        best = target.max(axis=1)
        assert abs(best.mean() - ceiling) < 4 * best.std() / np.sqrt(len(best))


def test_labels_are_drawn_from_the_target(world):
    """Labels in each tenth of an option's probability are as frequent as their mean probability."""
    questions = world.questions("wildlife", 30_000, seed=5)
    target = world.target(questions)
    hit = np.arange(target.shape[1])[None, :] == np.array([q.answer for q in questions])[:, None]
    bins = np.minimum((target * 10).astype(int), 9)
    for b in range(10):
        here = (bins == b) & (target > 0)
        observed, expected = hit[here].sum(), target[here].sum()
        sd = np.sqrt((target[here] * (1 - target[here])).sum())
        assert abs(observed - expected) < 4 * sd, b


def test_the_order_of_options_says_nothing(world):
    answers = [q.answer for q in world.questions("trades", 20_000, seed=6) if len(q.choices) == 4]
    assert chisquare(np.bincount(answers)).pvalue > 1e-4


def test_texts_carry_the_same_truth_as_questions(world):
    """Half of the corpus are statements; each answer word is as frequent as p* makes it."""
    texts = world.corpus(30_000, seed=2)
    eats = [t for t in texts if " eats " in t]
    assert abs(len(eats) - 30_000 / 3 / 3 / 2) < 200
    words = [t.removesuffix(".").split()[-1] for t in eats]
    relation = DOMAINS[0].relations[0]
    p = world._target["food"].mean(axis=(0, 1, 2))
    counts = np.array([words.count(a) for a in relation.answers])
    assert chisquare(counts, p * counts.sum()).pvalue > 1e-4


def test_preferences_follow_bradley_terry(world):
    pairs = world.pairs("wildlife", 20_000, seed=4)
    questions = world.questions("wildlife", 20_000, seed=4)
    target = world.target(questions)
    wins = expected = variance = 0.0
    for pair, q, p in zip(pairs, questions, target, strict=True):
        a, b = (q.choices.index(text.strip()) for text in (pair.chosen, pair.rejected))
        first, second = min(a, b), max(a, b)  # blind to who won
        chance = p[first] / (p[first] + p[second])
        wins += a == first
        expected += chance
        variance += chance * (1 - chance)
        assert pair.prompt == f"Question: {q.question}\nAnswer:"
    assert abs(wins - expected) < 4 * np.sqrt(variance)


def test_everything_follows_from_the_seed(world):
    again, other = World(seed=3), World(seed=4)
    assert world.corpus(50, seed=1) == again.corpus(50, seed=1)
    assert list(world.questions("spirits", 50, seed=1)) == list(
        again.questions("spirits", 50, seed=1)
    )
    assert world.pairs("trades", 50, seed=1) == again.pairs("trades", 50, seed=1)
    questions = world.questions("wildlife", 50, seed=1)
    assert not np.allclose(world.target(questions), other.target(questions))
    assert list(questions) != list(world.questions("wildlife", 50, seed=2))


def test_the_perfect_model_is_calibrated(world):
    from calibrant.diagnosis.bounds import bounds

    table = world.truth(world.questions("wildlife", 4_000, seed=9))
    b = bounds(table.probs(), table.labels, table.probs(), n_options=table.n_options)
    assert b.tce == 0
    assert b.conf_ece < 0.04
    assert abs(b.z) < 4


def test_bad_input_is_refused(world):
    with pytest.raises(InputError, match=r"ceiling 1.0, expected \.5 to \.99"):
        World(ceiling=1.0)
    with pytest.raises(InputError, match="domain 'law', expected one of wildlife, trades, spirits"):
        world.questions("law", 3, seed=0)
    foreign = Questions([Question("q", "What is 2 + 2?", ("3", "4"), 1)])
    with pytest.raises(InputError, match=r"question 'q': .* is not of this world"):
        world.target(foreign)
