"""Options in several orders: ask the same question so, and take the orders' effect out again.

A model that prefers a letter answers differently when the options change places. `permuted` lays
questions out in several orders; the answers are an `AnswerTable` with ``orders`` and one row per
question and order. The functions here make of it one row per question, and say how much the order
mattered. The methods are described in ``docs/scoring.md``.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.questions import LETTERS, Question

MAX_ALL = 5  # options up to which every order is asked: 5! = 120 prompts a question
MIN_ESTIMATION = 10  # questions a letter prior is estimated on at least, where there are so many


def permuted(
    questions: Sequence[Question], permutations: str | int, seed: int = 0
) -> tuple[list[Question], NDArray[np.int64]]:
    """Lay each question out with its options in several orders.

    Parameters
    ----------
    questions : N questions; K may differ.
    permutations : "cyclic", the K rotations of the options; "all", the K! orders; or an integer P,
        that many different random orders (all K! where that is fewer).
    seed : of the random orders. A question's orders depend on the seed and its id alone.

    Returns
    -------
    rows : the questions with options and answer in each order, ids ``q#0``, ``q#1``, ….
    orders : (rows, K) int64; ``orders[i, j]`` is the option shown at position j, -1 padding.

    Raises
    ------
    InputError
        If ``permutations`` is none of these, or "all" meets a question of more than 5 options.

    Examples
    --------
    >>> rows, orders = permuted([Question("q", "1 + 1 = ?", ("1", "2", "3"), 1)], "cyclic")
    >>> [(row.id, row.choices, row.answer) for row in rows]
    [('q#0', ('1', '2', '3'), 1), ('q#1', ('2', '3', '1'), 0), ('q#2', ('3', '1', '2'), 2)]
    >>> orders.tolist()
    [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    """
    rows: list[Question] = []
    orders: list[tuple[int, ...]] = []
    for q in questions:
        for p, order in enumerate(_orders(q, permutations, seed)):
            choices = tuple(q.choices[k] for k in order)
            rows.append(replace(q, id=f"{q.id}#{p}", choices=choices, answer=order.index(q.label)))
            orders.append(order)
    table = np.full((len(rows), max(map(len, orders), default=0)), -1, dtype=np.int64)
    for row, order in zip(table, orders, strict=True):
        row[: len(order)] = order
    return rows, table


def _orders(q: Question, permutations: str | int, seed: int) -> list[tuple[int, ...]]:
    k = len(q.choices)
    options = range(k)
    if permutations == "cyclic":
        return [tuple((j + shift) % k for j in options) for shift in options]
    if permutations == "all":
        if k > MAX_ALL:
            raise InputError(
                f"question {q.id!r}: all permutations of {k} options would be {math.factorial(k):,}"
                f" prompts; expected at most {MAX_ALL} options, or permutations 'cyclic' or a "
                "number"
            )
        return list(itertools.permutations(options))
    if isinstance(permutations, bool) or not isinstance(permutations, int) or permutations < 1:
        raise InputError(
            f"permutations {permutations!r}, expected 'cyclic', 'all' or a number from 1"
        )
    if k <= MAX_ALL and math.factorial(k) <= permutations:
        return list(itertools.permutations(options))
    rng = random.Random(f"{seed} {q.id}")
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < permutations:
        drawn[tuple(rng.sample(options, k))] = None
    return list(drawn)


def in_every_order(
    ask: Callable[[list[Question]], AnswerTable],
    questions: Sequence[Question],
    permutations: str | int,
    seed: int = 0,
) -> AnswerTable:
    """Ask questions with their options in several orders.

    Parameters
    ----------
    ask : gives the answer table of a list of questions, one row each, in order.
    questions, permutations, seed : as for `permuted`.

    Returns
    -------
    AnswerTable
        One row per question and order, with ``orders``.

    Examples
    --------
    A model that answers by letter alone:

    >>> def ask(rows):
    ...     return AnswerTable.from_probs([[0.7, 0.3]] * len(rows), [q.answer for q in rows],
    ...                                   ids=[q.id for q in rows])
    >>> table = in_every_order(ask, [Question("q", "1 + 1 = ?", ("2", "3"), 0)], "cyclic")
    >>> table.probs().round(4).tolist(), table.labels.tolist()
    ([[0.7, 0.3], [0.3, 0.7]], [0, 0])
    """
    rows, orders = permuted(questions, permutations, seed)
    answers = ask(rows)
    notes = {
        "data": getattr(questions, "name", None),
        "data_fingerprint": getattr(questions, "fingerprint", None),
        "permutations": {"orders": permutations, "seed": seed},
    }
    return in_own_order(answers.with_logprobs(answers.logprobs, **notes), orders)


def in_own_order(answers: AnswerTable, orders: NDArray[np.int64]) -> AnswerTable:
    """Bring answers to `permuted` questions back to the questions' own option order.

    Parameters
    ----------
    answers : one row per permuted question, columns and labels by *position*.
    orders : (rows, K) int64, as `permuted` gives them.

    Examples
    --------
    >>> shown = AnswerTable.from_probs([[0.7, 0.2, 0.1]], [0], ids=["q#0"])
    >>> own = in_own_order(shown, np.array([[2, 0, 1]]))
    >>> own.probs().round(4).tolist(), own.labels.tolist()
    ([[0.2, 0.1, 0.7]], [2])
    """
    position, option = _cells(orders)
    logprobs = np.full_like(answers.logprobs, -np.inf)
    rows = np.arange(len(answers))
    logprobs[position[0], option] = answers.logprobs[position]
    return replace(answers, logprobs=logprobs, labels=orders[rows, answers.labels], orders=orders)


def _cells(orders: NDArray[np.int64]) -> tuple[tuple[NDArray[np.int64], ...], NDArray[np.int64]]:
    """Index (row, position) of every option shown, and which option it is."""
    position = np.nonzero(orders >= 0)
    return position, orders[position]


def average(answers: AnswerTable) -> AnswerTable:
    r"""Average each question's option probabilities over the orders it was asked in.

    .. math:: \bar p_{ik} = \frac1{P_i} \sum_{\pi} p_{ik}^{(\pi)}

    Parameters
    ----------
    answers : table with several rows per question; ``option_mass`` is averaged likewise.

    Returns
    -------
    AnswerTable
        One row per question, in order of first appearance, with the question's own id and no
        ``orders``; ``provenance["permutations"]`` says how many rows there were, the flip rate,
        RStd and, where the orders allow it, the letters' prior; ``notes`` says it in words.

    Examples
    --------
    >>> table = AnswerTable.from_probs([[0.9, 0.1], [0.4, 0.6]], [0, 0], ids=["q#0", "q#1"])
    >>> table = replace(table, orders=[[0, 1], [1, 0]])
    >>> one = average(table)
    >>> one.ids, one.probs().round(4).tolist(), one.provenance["permutations"]["flip_rate"]
    (('q',), [[0.65, 0.35]], 1.0)
    """
    members, first = _members(answers)
    counts = np.bincount(members)
    probs = np.zeros((len(counts), answers.logprobs.shape[1]))
    np.add.at(probs, members, answers.probs())
    mass = np.bincount(members, weights=answers.option_mass) / counts
    with np.errstate(divide="ignore"):
        logprobs = np.log(probs / counts[:, None])
    asked = {
        "rows": len(answers),
        "flip_rate": flip_rate(answers) if (counts > 1).all() else None,
        "recall_std": recall_std(answers),
        "letter_prior": _prior_or_none(answers),
    }
    earlier = answers.provenance
    return replace(
        replace(answers.select(first), orders=None),
        ids=tuple(answers.questions[i] for i in first),
        logprobs=logprobs,
        option_mass=mass,
        provenance={
            **earlier,
            "permutations": {**earlier.get("permutations", {}), **asked},
            "notes": [*earlier.get("notes", ()), *_notes(asked)],
        },
    )


def one_row_each(answers: AnswerTable) -> AnswerTable:
    """Average a table that holds permutations; any other is returned as it is.

    Examples
    --------
    >>> table = AnswerTable.from_probs([[0.9, 0.1]], [0])
    >>> one_row_each(table) is table
    True
    """
    return answers if answers.orders is None else average(answers)


def _notes(asked: dict[str, Any]) -> Iterator[str]:
    """Sentences for the report."""
    if asked["flip_rate"] is not None:
        yield (
            f"Averaged over orders of the options ({asked['rows']:,} prompts): the predicted "
            f"option changes with the order for {asked['flip_rate']:.0%} of the questions (RStd "
            f"{asked['recall_std']:.3f})."
        )
    if asked["letter_prior"] is not None:
        yield f"How likely each letter is whatever the option: {_listed(asked['letter_prior'])}."


def _listed(prior: Mapping[str, Sequence[float]]) -> str:
    return "; ".join(
        ", ".join(f"{LETTERS[j]} {share:.2f}" for j, share in enumerate(shares))
        for shares in prior.values()
    )


def letter_prior(answers: AnswerTable) -> dict[int, NDArray[np.float64]]:
    r"""Estimate how likely the model finds each letter whatever the option (PriDe).

    Over the permutations :math:`\pi` of a question, in which every option stands at every letter
    equally often, its options cancel:

    .. math:: P_i(j) \propto \exp\Big(\frac1P \sum_\pi \log p_i^{(\pi)}(\text{letter } j)\Big),
              \qquad P(j) = \frac1N \sum_i P_i(j)

    Parameters
    ----------
    answers : table of cyclic or all permutations; no labels are used.

    Returns
    -------
    dict
        Number of options K -> (K,) float64, the prior of the first K letters (sum 1), estimated on
        the questions with K options.

    Raises
    ------
    InputError
        If a question's options do not stand at every letter equally often, or one has
        probability 0.

    References
    ----------
    Zheng et al., "Large Language Models Are Not Robust Multiple Choice Selectors", ICLR 2024,
    arXiv 2309.03882.

    Examples
    --------
    An option that is certain by content at .8 and a letter A that is 3 times as likely as B:
    p(option at A) ∝ 3 · .8 and 3 · .2.

    >>> table = AnswerTable.from_probs([[2.4 / 2.6, 0.2 / 2.6], [0.8 / 1.4, 0.6 / 1.4]], [0, 0],
    ...                                ids=["q#0", "q#1"])
    >>> letter_prior(replace(table, orders=[[0, 1], [1, 0]]))[2].round(4).tolist()
    [0.75, 0.25]
    """
    own, n_options = question_priors(answers)
    return {int(k): own[n_options == k, :k].mean(axis=0) for k in np.unique(n_options)}


def question_priors(answers: AnswerTable) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Each question's own P_i(j) of `letter_prior`, (Q, K) with 0 as padding, and its K, (Q,).

    Raises
    ------
    InputError
        As `letter_prior`.

    Examples
    --------
    >>> table = AnswerTable.from_probs([[0.8, 0.2], [0.2, 0.8]], [0, 0], ids=["q#0", "q#1"])
    >>> own, n_options = question_priors(replace(table, orders=[[0, 1], [1, 0]]))
    >>> own.round(4).tolist(), n_options.tolist()
    ([[0.8, 0.2]], [2])
    """
    orders = own_orders(answers)
    with np.errstate(divide="ignore"):
        log_p = np.log(answers.probs())
    members, first = _members(answers)
    _check_balanced(answers, orders, members, first)
    (rows, position), option = _cells(orders)
    if np.isneginf(log_p[rows, option]).any():
        row = int(rows[np.isneginf(log_p[rows, option])][0])
        raise InputError(
            f"letter prior: row {row} (id {answers.ids[row]!r}) gives an option probability 0; the "
            "prior is a geometric mean, expected positive probabilities"
        )
    total = np.zeros((len(first), orders.shape[1]))
    np.add.at(total, (members[rows], position), log_p[rows, option])
    n_options = answers.n_options[first]
    mean = total / np.bincount(members)[:, None]
    mean[np.arange(orders.shape[1]) >= n_options[:, None]] = -np.inf
    own = np.exp(mean - mean.max(axis=1, keepdims=True))
    return own / own.sum(axis=1, keepdims=True), n_options


def debias(answers: AnswerTable, prior: Mapping[int, NDArray[np.float64]]) -> AnswerTable:
    r"""Divide the letters' prior out of every row (PriDe).

    .. math:: \tilde p_{ik} \propto p_{ik} \,/\, P(\text{letter at which option } k \text{ stood})

    Parameters
    ----------
    answers : any table of letter answers, permuted or not; rows stay as they are.
    prior : from `letter_prior`, on these questions or on a share of them.

    Raises
    ------
    InputError
        If the prior has nothing for a question's number of options, or a probability that is not
        positive.

    Examples
    --------
    >>> table = AnswerTable.from_probs([[2.4 / 2.6, 0.2 / 2.6]], [0])
    >>> debias(table, {2: np.array([0.75, 0.25])}).probs().round(4).tolist()
    [[0.8, 0.2]]
    """
    orders = own_orders(answers)
    width = orders.shape[1]
    log_prior = np.zeros((len(answers), width))
    for k in np.unique(answers.n_options):
        values = np.asarray(prior.get(int(k), ()), dtype=np.float64)
        if values.shape != (k,) or not (values > 0).all():
            row = int(np.flatnonzero(answers.n_options == k)[0])
            raise InputError(
                f"debias: the prior for {k} options is {values.tolist() or 'missing'} (question "
                f"{answers.ids[row]!r} has {k}), expected {k} positive numbers"
            )
        log_prior[answers.n_options == k, :k] = np.log(values)
    (rows, position), option = _cells(orders)
    logprobs = answers.logprobs.copy()
    logprobs[rows, option] -= log_prior[rows, position]
    logprobs -= logprobs.max(axis=1, keepdims=True)  # no log-probabilities any more: above 0
    named = _named(prior)
    note = f"Divided out of the answers, how likely each letter is: {_listed(named)}."
    notes = [*answers.provenance.get("notes", ()), note]
    return answers.with_logprobs(logprobs, letter_prior=named, notes=notes)


def flip_rate(answers: AnswerTable) -> float:
    """Share of questions whose predicted option changes with the order of the options.

    Raises
    ------
    InputError
        If a question was asked in one order only.

    Examples
    --------
    >>> table = AnswerTable.from_probs([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.6, 0.4]], [0] * 4,
    ...                                ids=["a#0", "a#1", "b#0", "b#1"])
    >>> flip_rate(replace(table, orders=[[0, 1], [1, 0]] * 2))
    0.5
    """
    members, first = _members(answers)
    counts = np.bincount(members)
    if counts.min() < 2:
        row = int(first[counts.argmin()])
        raise InputError(
            f"flip rate: question {answers.questions[row]!r} was asked in one order only, expected "
            "at least two"
        )
    differs = answers.predictions != answers.predictions[first][members]
    return float((np.bincount(members, weights=differs) > 0).mean())


def recall_std(answers: AnswerTable) -> float:
    """Standard deviation over the letters of their recall (RStd, a share, not per cent).

    A letter's recall is the share of right predictions among the rows whose right option stands at
    that letter; letters where none does are left out. 0 for a model without letter bias.

    References
    ----------
    Zheng et al., arXiv 2309.03882.

    Examples
    --------
    Always A: recall 1 for A, 0 for B.

    >>> table = AnswerTable.from_probs([[0.9, 0.1]] * 4, [0, 1, 1, 0])
    >>> recall_std(table)
    0.5
    """
    orders = own_orders(answers)
    at = (orders == answers.labels[:, None]).argmax(axis=1)  # position of the right option
    n = np.bincount(at)
    right = np.bincount(at, weights=answers.correct)
    return float(np.std(right[n > 0] / n[n > 0]))


def estimation_sample(n_options: Sequence[int], share: float, seed: int = 0) -> list[int]:
    """Draw the questions a letter prior is estimated on: a share for each number of options.

    Parameters
    ----------
    n_options : N integers. share : in (0, 1].

    Returns
    -------
    Positions, ascending: of the questions with K options the share, rounded up, and at least 10
    where there are so many.

    Examples
    --------
    >>> len(estimation_sample([4] * 200 + [3] * 2, 0.1))
    22
    """
    if not 0 < share <= 1:
        raise InputError(f"share of the questions to permute is {share}, expected above 0, up to 1")
    rng = random.Random(seed)
    chosen: list[int] = []
    for k in sorted(set(n_options)):
        rows = [i for i, each in enumerate(n_options) if each == k]
        n = min(len(rows), max(math.ceil(share * len(rows)), MIN_ESTIMATION))
        chosen += rng.sample(rows, n)
    return sorted(chosen)


# -- inside -----------------------------------------------------------------------------------


def _named(prior: Mapping[int, NDArray[np.float64]]) -> dict[str, list[float]]:
    """JSON-able form of a prior."""
    return {str(k): np.asarray(values).tolist() for k, values in prior.items()}


def _prior_or_none(answers: AnswerTable) -> dict[str, list[float]] | None:
    try:
        return _named(letter_prior(answers))
    except InputError:  # random orders: the options do not cancel
        return None


def own_orders(answers: AnswerTable) -> NDArray[np.int64]:
    """Orders of the table; without any, every option stands at its own position."""
    if answers.orders is not None:
        return answers.orders
    own = np.tile(np.arange(answers.logprobs.shape[1]), (len(answers), 1))
    return np.where(own < answers.n_options[:, None], own, -1)


def _members(answers: AnswerTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Question number of every row, numbered by first appearance, and each one's first row."""
    number: dict[str, int] = {}
    members = np.array([number.setdefault(name, len(number)) for name in answers.questions])
    first = np.unique(members, return_index=True)[1]
    return members, first


def _check_balanced(
    answers: AnswerTable,
    orders: NDArray[np.int64],
    members: NDArray[np.int64],
    first: NDArray[np.int64],
) -> None:
    """Refuse questions whose options do not stand at each position equally often."""
    (rows, position), option = _cells(orders)
    width = orders.shape[1]
    seen = np.zeros((len(first), width, width))
    np.add.at(seen, (members[rows], position, option), 1)
    k = answers.n_options[first]
    inside = np.arange(width)[None, :] < k[:, None]
    each = np.bincount(members) / k
    off = (seen != each[:, None, None] * inside[:, :, None] * inside[:, None, :]).any(axis=(1, 2))
    if off.any():
        question = answers.questions[first[np.flatnonzero(off)[0]]]
        raise InputError(
            f"letter prior: the options of question {question!r} do not stand at every letter "
            "equally often; expected permutations 'cyclic' or 'all'"
        )
