"""Answer tables whose right calibration is known."""

import numpy as np
from scipy.special import log_softmax, softmax

from calibrant.answers import AnswerTable


def drawn(p, rng):
    """One label for each row of probabilities."""
    return (p.cumsum(axis=1) > rng.random(len(p))[:, None]).argmax(axis=1)


def table_of(scores, labels, n_options=None, ids=None):
    n, k = scores.shape
    names = ids or tuple(f"q{i}" for i in range(n))
    return AnswerTable(
        ids=names,
        logprobs=scores,
        labels=labels,
        n_options=np.full(n, k) if n_options is None else n_options,
        option_mass=np.full(n, np.nan),
        tasks=("",) * n,
        groups=names,
    )


def sharpened(n=4000, k=4, sharpness=3.0, bias=0.0, spread=4 / 3, seed=0, n_options=None):
    """Answers and p*: scores are ``sharpness · log p* + bias``, labels drawn from p*."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, k)) * spread
    if n_options is not None:
        z[np.arange(k) >= np.asarray(n_options)[:, None]] = -np.inf
    labels = drawn(softmax(z, axis=1), rng)
    shift = rng.normal(size=(n, 1))  # scores are free up to a constant a question
    return table_of(sharpness * z + bias + shift, labels, n_options), softmax(z, axis=1)


def crossing(n=4000, k=4, seed=0, low=0.45, slope=0.4):
    """Answers right with probability ``low + slope · c``: under-confident low, over- high."""
    rng = np.random.default_rng(seed)
    c = rng.uniform(0.5, 0.99, n)
    others = rng.dirichlet(np.ones(k - 1), n) * (1 - c)[:, None]
    p = np.column_stack((c, others))  # the first option is the best one, before mixing
    truth = low + slope * c
    labels = np.where(rng.random(n) < truth, 0, rng.integers(1, k, n))
    order = rng.permuted(np.tile(np.arange(k), (n, 1)), axis=1)
    rows = np.arange(n)[:, None]
    return table_of(np.log(p[rows, order]), (order == labels[:, None]).argmax(axis=1)), truth


def mean_nll(table):
    return -log_softmax(table.logprobs, axis=1)[np.arange(len(table)), table.labels].mean()
