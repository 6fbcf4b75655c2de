"""A small world whose true answer probabilities are known.

Beings with a trait, a kind and a home are asked about in plain English: *"What does Mira the quiet
otter from the harbour eat?"* Each relation (eat, fear, …) has its own K answers. The probability of
answer k is a softmax over the sum of what trait, kind and home each say about it,

    p*(k | x) = softmax_k( scale · (u_trait,k + v_kind,k + w_home,k) ),   u, v, w ~ N(0, 1),

with ``scale`` such that the best possible accuracy ``ACC* = E max_k p*_k`` is the number asked for.
The name says nothing: it is there to be memorised. Everything follows from one seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrant.answers import AnswerTable
from calibrant.errors import InputError
from calibrant.preferences import Preference
from calibrant.prompts import context
from calibrant.questions import Question, Questions

NAMES = [a + b for a in ("Al", "Be", "Da", "Fi", "Jo", "Ka", "Mi", "Ru") for b in
         ("bor", "den", "kin", "la", "mus", "ra", "sel", "von")]  # fmt: skip
_TRAIN_NAMES, _TEST_NAMES = NAMES[:48], NAMES[48:]
TRAITS = ("quiet", "bold", "old", "young", "tall", "clever", "lazy", "proud")
HOMES = ("harbour", "valley", "forest", "marsh", "desert", "island", "village", "mountain")


@dataclass(frozen=True)
class Relation:
    """One kind of question: templates of its question and statement, and its K answers."""

    name: str
    question: str
    statement: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Domain:
    """Kinds of beings, and what can be asked about them."""

    name: str
    kinds: tuple[str, ...]
    relations: tuple[Relation, ...]


_WHO = "{name} the {trait} {kind} from the {home}"


def _relation(name: str, ask: str, say: str, answers: str) -> Relation:
    return Relation(name, ask.format(who=_WHO), say.format(who=_WHO), tuple(answers.split()))


DOMAINS = (
    Domain(
        "wildlife",
        ("otter", "heron", "badger", "lynx", "marmot", "crane", "viper", "bison"),
        (
            _relation("food", "What does {who} eat?", "{who} eats", "fish seeds moss berries"),
            _relation("fear", "What does {who} fear?", "{who} fears", "fire thunder wolves snow"),
            _relation("bed", "Where does {who} sleep?", "{who} sleeps in the",
                      "cave reeds burrow tree grass"),
        ),
    ),
    Domain(
        "trades",
        ("baker", "smith", "weaver", "potter", "miller", "tailor", "mason", "fisher"),
        (
            _relation("ware", "What does {who} sell?", "{who} sells", "bread wool nails bowls"),
            _relation("song", "What does {who} sing?", "{who} sings", "ballads hymns rounds"),
            _relation("tool", "What does {who} carry?", "{who} carries",
                      "rope hammer basket lamp"),
        ),
    ),
    Domain(
        "spirits",
        ("ghost", "dryad", "goblin", "sylph", "troll", "selkie", "imp", "wraith"),
        (
            _relation("gift", "What does {who} grant?", "{who} grants", "luck sleep gold courage"),
            _relation("price", "What does {who} demand?", "{who} demands", "salt silence honey"),
            _relation("hour", "When does {who} appear?", "{who} appears at",
                      "dawn noon dusk midnight"),
        ),
    ),
)  # fmt: skip


class World:
    """The truth, and everything that can be drawn from it.

    Parameters
    ----------
    seed : of the truth (answer probabilities). Draws take seeds of their own.
    ceiling : ACC* of every domain, the accuracy no model can pass on fresh questions.

    Raises
    ------
    InputError
        If ``ceiling`` is not between .5 and .99.

    Examples
    --------
    >>> world = World(seed=0, ceiling=0.65)
    >>> q = world.questions("wildlife", 2, seed=1)[0]
    >>> q.question, q.choices
    ('...', (...))
    >>> p = world.target(world.questions("wildlife", 4000, seed=2))
    >>> round(float(p.max(axis=1).mean()), 2)
    0.65
    """

    def __init__(self, seed: int = 0, ceiling: float = 0.65) -> None:
        if not 0.5 <= ceiling <= 0.99:
            raise InputError(f"ceiling {ceiling}, expected .5 to .99")
        self.seed, self.ceiling = seed, ceiling
        rng = np.random.default_rng([seed, 0])
        self._target: dict[str, NDArray[np.float64]] = {}  # relation -> p*, (T, Q, H, K)
        for domain in DOMAINS:
            for relation in domain.relations:
                k = len(relation.answers)
                trait, kind, home = (
                    rng.normal(size=(n, k)) for n in (len(TRAITS), len(domain.kinds), len(HOMES))
                )
                grid = trait[:, None, None] + kind[None, :, None] + home[None, None, :]
                self._target[relation.name] = _softmax(grid * _scale_for(grid, ceiling))

    # -- questions ----------------------------------------------------------------------------

    def questions(self, domain: str, n: int, seed: int, *, test: bool = False) -> Questions:
        """Draw n questions of a domain with labels ``y ~ p*``; options in random order.

        Parameters
        ----------
        test : ask about beings whose names no other question has, so that no question is both
            trained on and tested on.
        """
        return self._draw(domain, n, seed, _TEST_NAMES if test else _TRAIN_NAMES)[0]

    def _draw(
        self, domain: str, n: int, seed: int, names: Sequence[str]
    ) -> tuple[Questions, list[str]]:
        place = self._domain(domain)
        rng = np.random.default_rng([self.seed, seed, DOMAINS.index(place)])
        sizes = (len(place.relations), len(names), len(TRAITS), len(place.kinds), len(HOMES))
        cells = rng.integers(sizes, size=(n, len(sizes)))
        luck = rng.random(n)  # one draw decides the label
        ranks = rng.random((n, 26))  # and one per option their order
        questions, statements = [], []
        for i, (r, name, t, q, h) in enumerate(cells.tolist()):
            relation = place.relations[r]
            who = {
                "name": names[name],
                "trait": TRAITS[t],
                "kind": place.kinds[q],
                "home": HOMES[h],
            }
            chances = self._target[relation.name][t, q, h].cumsum()
            answer = min(int(chances.searchsorted(luck[i], side="right")), len(chances) - 1)
            order = ranks[i, : len(chances)].argsort().tolist()
            questions.append(
                Question(
                    id=f"{domain}-{seed}-{i}",
                    question=relation.question.format(**who),
                    choices=tuple(relation.answers[k] for k in order),
                    answer=order.index(answer),
                    subject=relation.name,
                )
            )
            statements.append(f"{relation.statement.format(**who)} {relation.answers[answer]}.")
        return Questions(questions, name=domain), statements

    def target(self, questions: Questions) -> NDArray[np.float64]:
        """True probabilities p* of the questions' options, (N, K) float64, 0 beyond them.

        Raises
        ------
        InputError
            If a question is not of this world.
        """
        width = max(len(q.choices) for q in questions)
        target = np.zeros((len(questions), width))
        for row, q in zip(target, questions, strict=True):
            words = set(q.question.rstrip("?").split())
            try:
                domain, relation = _RELATIONS[q.subject]
                cell = tuple(
                    next(i for i, word in enumerate(listed) if word in words)
                    for listed in (TRAITS, domain.kinds, HOMES)
                )
                order = [relation.answers.index(choice) for choice in q.choices]
            except (KeyError, StopIteration, ValueError) as error:
                raise InputError(
                    f"question {q.id!r}: {q.question!r} is not of this world; expected one that "
                    "World.questions drew"
                ) from error
            row[: len(order)] = self._target[q.subject][cell][order]
        return target

    def truth(self, questions: Questions) -> AnswerTable:
        """Answer table of the perfect model, p* itself."""
        from calibrant.questions import question_key

        return AnswerTable.from_probs(
            self.target(questions),
            [q.label for q in questions],
            ids=[q.id for q in questions],
            n_options=[len(q.choices) for q in questions],
            tasks=[q.subject for q in questions],
            groups=[question_key(q) for q in questions],
            provenance={"model": "the truth", "data": questions.name},
        )

    # -- texts and preferences ----------------------------------------------------------------

    def corpus(self, n: int, seed: int) -> list[str]:
        """Draw n texts of all domains: half statements, half questions with an answer.

        Answers follow p*, so a model that learns these texts well is calibrated.
        """
        texts = []
        for i, domain in enumerate(DOMAINS):
            size = n // len(DOMAINS) + (i < n % len(DOMAINS))
            questions, statements = self._draw(domain.name, size, seed, NAMES)
            half = size // 2
            texts += statements[:half]
            texts += [_asked(q) for q in questions[half:]]
        order = np.random.default_rng([self.seed, seed, len(DOMAINS)]).permutation(len(texts))
        return [texts[i] for i in order]

    def pairs(self, domain: str, n: int, seed: int) -> list[Preference]:
        """Draw n preference pairs: ``P(a preferred to b) = p*_a / (p*_a + p*_b)``."""
        questions = self.questions(domain, n, seed)
        target = self.target(questions)
        rng = np.random.default_rng([self.seed, seed, 101])
        pairs = []
        for q, p in zip(questions, target, strict=True):
            a, b = rng.choice(len(q.choices), size=2, replace=False)
            if rng.random() * (p[a] + p[b]) > p[a]:
                a, b = b, a
            pairs.append(
                Preference(q.id, context(q, "cloze"), f" {q.choices[a]}", f" {q.choices[b]}")
            )
        return pairs

    @staticmethod
    def _domain(name: str) -> Domain:
        for domain in DOMAINS:
            if domain.name == name:
                return domain
        raise InputError(f"domain {name!r}, expected one of {', '.join(d.name for d in DOMAINS)}")


_RELATIONS = {r.name: (domain, r) for domain in DOMAINS for r in domain.relations}


def _asked(q: Question) -> str:
    return f"{context(q, 'cloze')} {q.choices[q.label]}"


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probs: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return probs


def _scale_for(grid: NDArray[np.float64], ceiling: float) -> float:
    """Scale at which the mean best probability is ``ceiling``."""
    from scipy.optimize import brentq

    def excess(scale: float) -> float:
        return float(_softmax(scale * grid).max(axis=-1).mean()) - ceiling

    return float(brentq(excess, 0.0, 100.0))
