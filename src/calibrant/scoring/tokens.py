"""Encoded questions as flat arrays: a fraction of the memory of lists, and quick to lay out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrant.prompts import EncodedQuestion

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tokens:
    """N encoded questions with O options in all, see `EncodedQuestion`.

    Attributes
    ----------
    ids : tuple of N str.
    token : (T,) int32. Prefix and branches of every question, one after the other.
    n_prefix, n_options, n_reads, answer : (N,) int64.
    n_branch : (O,) int64, tokens of each option's branch. divisor : (O,) float32.
    read : (R, 3) int32. Option of its question, offset and token of every read.
    """

    ids: tuple[str, ...]
    token: NDArray[np.int32]
    n_prefix: Integers
    n_options: Integers
    n_reads: Integers
    answer: Integers
    n_branch: Integers
    divisor: NDArray[np.float32]
    read: NDArray[np.int32]

    @classmethod
    def of(cls, questions: Sequence[EncodedQuestion] | Tokens) -> Tokens:
        """Take questions in either form."""
        if isinstance(questions, Tokens):
            return questions

        def numbers(values: Iterable[int]) -> Integers:
            return np.fromiter(values, dtype=np.int64)

        token = chain.from_iterable(chain(q.prefix, *q.branches) for q in questions)
        read = chain.from_iterable(
            (k, offset, token)
            for q in questions
            for k, reads in enumerate(q.reads)
            for offset, token in reads
        )
        return cls(
            ids=tuple(q.id for q in questions),
            token=np.fromiter(token, dtype=np.int32),
            n_prefix=numbers(len(q.prefix) for q in questions),
            n_options=numbers(len(q.branches) for q in questions),
            n_reads=numbers(sum(map(len, q.reads)) for q in questions),
            answer=numbers(q.answer for q in questions),
            n_branch=numbers(len(branch) for q in questions for branch in q.branches),
            divisor=np.fromiter((d for q in questions for d in q.divisors), dtype=np.float32),
            read=np.fromiter(read, dtype=np.int32).reshape(-1, 3),
        )

    @classmethod
    def join(cls, chunks: Iterable[Sequence[EncodedQuestion]]) -> Tokens:
        """All questions of several chunks, one chunk at a time in the form of lists."""
        parts = [cls.of(chunk) for chunk in chunks]
        joined: dict[str, Any] = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(cls)
            if field.name != "ids"
        }
        return cls(ids=tuple(chain.from_iterable(part.ids for part in parts)), **joined)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Integers) -> Tokens:
        """Some questions, by index."""
        options = ranges(self.option_start[rows], self.n_options[rows])
        return Tokens(
            ids=tuple(self.ids[i] for i in rows),
            token=self.token[ranges(self.start[rows], self.n_tokens[rows])],
            n_prefix=self.n_prefix[rows],
            n_options=self.n_options[rows],
            n_reads=self.n_reads[rows],
            answer=self.answer[rows],
            n_branch=self.n_branch[options],
            divisor=self.divisor[options],
            read=self.read[ranges(self.read_start[rows], self.n_reads[rows])],
        )

    @cached_property
    def option_start(self) -> Integers:
        """First option of each question, and the end of the last, (N + 1,)."""
        return starts(self.n_options)

    @cached_property
    def read_start(self) -> Integers:
        """First read of each question, and the end of the last, (N + 1,)."""
        return starts(self.n_reads)

    @cached_property
    def n_tokens(self) -> Integers:
        """Tokens of one packed row: the prefix once and every branch, (N,)."""
        return self.n_prefix + np.add.reduceat(self.n_branch, self.option_start[:-1])

    @cached_property
    def start(self) -> Integers:
        """First token of each question, and the end of the last, (N + 1,)."""
        return starts(self.n_tokens)

    @cached_property
    def longest(self) -> Integers:
        """Tokens of each question's longest single sequence, (N,)."""
        return self.n_prefix + np.maximum.reduceat(self.n_branch, self.option_start[:-1])

    @cached_property
    def n_kept(self) -> Integers:
        """Positions of each question at which something is read, (N,)."""
        option, offset, _ = self.read.T.astype(np.int64)
        question = np.repeat(np.arange(len(self)), self.n_reads)
        branch = np.where(offset > 0, option + 1, 0)  # positions of the prefix are shared
        span = int(np.abs(offset).max(initial=0)) + 1
        place = ((question * (int(self.n_options.max()) + 1) + branch) * 2 * span) + offset + span
        owner = np.unique(place) // (2 * span * (int(self.n_options.max()) + 1))
        return np.bincount(owner, minlength=len(self))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of ids, tokens and reads."""
        digest = hashlib.sha256()
        for field in fields(self):
            value = getattr(self, field.name)
            part = "\0".join(value).encode() if field.name == "ids" else value.tobytes()
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()


def starts(lengths: Integers) -> Integers:
    """Where each of adjoining stretches begins, and where the last ends.

    >>> starts(np.array([2, 0, 3])).tolist()
    [0, 2, 2, 5]
    """
    return np.concatenate([[0], np.cumsum(lengths)])


def ranges(first: Integers, lengths: Integers) -> Integers:
    """Whole numbers ``first[i], first[i] + 1, …``, ``lengths[i]`` of them, for every i.

    >>> ranges(np.array([5, 1]), np.array([2, 3])).tolist()
    [5, 6, 1, 2, 3]
    """
    return np.repeat(first - starts(lengths)[:-1], lengths) + np.arange(int(lengths.sum()))
