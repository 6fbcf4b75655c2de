"""Question to text: what the model reads, and where its answer is read off.

A prompt format turns a question into one *context* and K *continuations*; the score of option k
is read off the continuation's tokens. Formats:

========================  ===================================================================
``letter``                options listed as ``A. …``; continuation is the letter
``chat-letter``           the same inside the model's own chat template
``cloze``                 question only; continuation is the option's text, mean log-prob per token
``cloze-char``            as ``cloze``, divided by characters
``cloze-sum``             as ``cloze``, not divided
========================  ===================================================================

A letter is read by one rule, here and on servers: its probability is the sum over the vocabulary
tokens that read as the letter without blanks and word-boundary markers (``A``, `` A``, ``▁A``).
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from calibrant.errors import InputError
from calibrant.questions import Question

PromptFormat = Literal["letter", "chat-letter", "cloze", "cloze-char", "cloze-sum"]

LetterTokens = Literal["merged", "single"]

LETTERS = string.ascii_uppercase
# What may stand between the end of the context and the letter, in order of preference. A chat model
# begins its turn with the letter itself.
SEPARATORS = {"letter": (" ", "", "\n"), "chat-letter": ("", " ", "\n")}

CHUNK = 1000  # questions tokenised at once


@dataclass(frozen=True)
class Prompt:
    """How a question is asked.

    Wherever a prompt is expected, a format name stands for ``Prompt(name)``.

    Attributes
    ----------
    format : the format's name.
    letter_tokens : "merged", a letter's probability is the sum over the tokens that read as it
        (``A``, `` A``); "single", only the one token that follows the context (lm-eval's rule).

    Raises
    ------
    InputError
        If a field has no meaning.

    Examples
    --------
    >>> Prompt("letter").to_json()
    'letter'
    >>> Prompt.of({"format": "letter", "letter_tokens": "single"})
    Prompt(format='letter', letter_tokens='single')
    """

    format: PromptFormat = "letter"
    letter_tokens: LetterTokens = "merged"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("format", get_args(PromptFormat)),
            ("letter_tokens", get_args(LetterTokens)),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"prompt {name} {getattr(self, name)!r}, expected one of {', '.join(allowed)}"
                )

    @classmethod
    def of(cls, prompt: PromptLike) -> Prompt:
        """Take a `Prompt`, a format's name, or what `to_json` made."""
        if isinstance(prompt, Prompt):
            return prompt
        if isinstance(prompt, str):
            return cls(prompt)  # type: ignore[arg-type]  # checked at once
        if not isinstance(prompt, Mapping):
            raise InputError(f"prompt {prompt!r}, expected a Prompt or the name of a format")
        known = {field.name for field in fields(cls)}
        if unknown := [str(name) for name in prompt if name not in known]:
            raise InputError(f"prompt: unknown {unknown[0]!r}, expected of {', '.join(known)}")
        return cls(**prompt)

    def to_json(self) -> str | dict[str, Any]:
        """JSON-able form: the format's name, or a dict where more than that was chosen."""
        given = asdict(self)
        chosen = {f.name: given[f.name] for f in fields(self) if given[f.name] != f.default}
        return {"format": self.format} | chosen if set(chosen) - {"format"} else self.format

    def __str__(self) -> str:
        return self.format

    @property
    def is_letter(self) -> bool:
        """Whether the continuation is an option letter."""
        return self.format in ("letter", "chat-letter")


PromptLike = Prompt | str | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EncodedQuestion:
    """A question as tokens: a shared prefix, K branches after it, and what is read where.

    Attributes
    ----------
    prefix : tokens that all options share. Never empty.
    branches : K token lists, the tokens of option k after the prefix. The last token of an option
        is only predicted, never read, so it is left out: letters have K empty branches.
    reads : per option, a list of (offset, token): the log-probability of ``token`` read at
        ``offset`` counted from the last prefix token (0) into the option's own branch (1, 2, …).
        Tokens at one offset are alternatives, whose probabilities are added (the spellings of a
        letter); offsets are a sequence, whose log-probabilities are added (an option's text).
    divisors : K floats; the option's score is its log-probability over this.
    """

    id: str
    prefix: list[int]
    branches: list[list[int]]
    reads: list[list[tuple[int, int]]]
    divisors: list[float]
    answer: int

    @property
    def n_tokens(self) -> int:
        """Tokens of one packed row: the prefix once and every branch."""
        return len(self.prefix) + sum(map(len, self.branches))

    @property
    def longest(self) -> int:
        """Tokens of the longest single sequence, the position range a model must have."""
        return len(self.prefix) + max(map(len, self.branches))


def check_lists_options(prompt: Prompt) -> None:
    """Raise `InputError` if the format shows no options, so that their order means nothing."""
    if not prompt.is_letter:
        raise InputError(
            f"prompt format {prompt.format!r} lists no options, so their order changes nothing; "
            "expected a format that does (letter, chat-letter) with permutations"
        )


def context(question: Question, prompt: PromptLike, tokenizer: Any = None) -> str:
    r"""Text the model reads before the answer.

    Raises
    ------
    InputError
        For ``chat-letter`` when the tokenizer has no chat template.

    Examples
    --------
    >>> q = Question("1", "Which is a fruit?", ("Brick", "Apple"), 1)
    >>> print(context(q, "letter"))
    Question: Which is a fruit?
    Options:
    A. Brick
    B. Apple
    Answer:
    >>> context(q, "cloze")
    'Question: Which is a fruit?\nAnswer:'
    """
    prompt = Prompt.of(prompt)
    if not prompt.is_letter:
        return f"Question: {question.question}\nAnswer:"
    if prompt.format == "letter":
        return _listed(question) + "Answer:"
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "prompt format 'chat-letter': this tokenizer has no chat template; use --prompt letter "
            "or cloze"
        )
    text: str = tokenizer.apply_chat_template(
        messages(question, prompt),
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    return text


def messages(question: Question, prompt: PromptLike) -> list[dict[str, str]]:
    """Conversation of a ``chat-letter`` prompt, before any chat template: roles and contents."""
    Prompt.of(prompt)
    return [
        {"role": "user", "content": _listed(question) + "Answer with only a single letter."},
    ]


def _listed(question: Question) -> str:
    options = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)
    )
    return f"Question: {question.question}\nOptions:\n{options}\n"


def reads_as(token: str) -> str:
    """Text of a token without the blanks and word-boundary markers around it.

    >>> [reads_as(token) for token in (" A", "▁A", "A", "\\n")]
    ['A', 'A', 'A', '']
    """
    return token.strip("▁" + string.whitespace)


def encode(questions: list[Question], tokenizer: Any, prompt: PromptLike) -> list[EncodedQuestion]:
    """Tokenise questions for scoring and training.

    Parameters
    ----------
    questions : K may differ per question.
    tokenizer : a Hugging Face tokenizer.

    Raises
    ------
    InputError
        If the format is unknown, a letter is not one token in context under any separator, or an
        option has no token of its own.
    """
    return [q for chunk in encode_chunks(questions, tokenizer, prompt) for q in chunk]


def encode_chunks(
    questions: list[Question], tokenizer: Any, prompt: PromptLike
) -> Iterator[list[EncodedQuestion]]:
    """Do what `encode` does, a chunk of questions at a time, so that lists of all never exist."""
    prompt = Prompt.of(prompt)
    if not questions:
        raise InputError("no questions to score; expected at least one")
    # A chat template writes its own special tokens; adding them again would double the BOS.
    encode_ = _Encoder(tokenizer, special=prompt.format != "chat-letter")
    chunks = (questions[i : i + CHUNK] for i in range(0, len(questions), CHUNK))
    if not prompt.is_letter:
        yield from (_encode_cloze(chunk, prompt, encode_) for chunk in chunks)
        return
    widest = max(questions, key=lambda q: len(q.choices))
    text = context(widest, prompt, tokenizer)
    k_max = len(widest.choices)
    separator, letters = _letters(encode_, text, k_max, SEPARATORS[prompt.format])
    spellings = [[token] for token in letters]
    if prompt.letter_tokens == "merged":
        spellings = _spellings(tokenizer, LETTERS[:k_max])
    for chunk in chunks:
        contexts = [context(q, prompt, tokenizer) for q in chunk]
        yield _encode_letters(chunk, contexts, separator, letters, spellings, encode_)


class _Encoder:
    """Token ids of texts, without the end-of-sequence token some tokenizers append."""

    def __init__(self, tokenizer: Any, special: bool) -> None:
        self.tokenizer, self.special = tokenizer, special
        bare = tokenizer("", add_special_tokens=special)["input_ids"]
        eos = tokenizer.eos_token_id
        # "" encodes to the special tokens alone. With BOS = EOS, one token alone is a BOS.
        self.drop_last = (
            bool(bare) and bare[-1] == eos and (len(bare) > 1 or eos != _bos(tokenizer))
        )

    def __call__(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=self.special)["input_ids"]
        return [row[:-1] for row in ids] if self.drop_last else ids


def _bos(tokenizer: Any) -> int | None:
    bos: int | None = tokenizer.bos_token_id
    return bos


def _letters(
    encode_: _Encoder, text: str, n_letters: int, separators: tuple[str, ...]
) -> tuple[str, list[int]]:
    """First separator after which each letter is exactly one further token, and those tokens."""
    for separator in separators:
        # The letter is tokenised with the separator's last blank ("Answer:" + " A"); the rest of
        # the separator belongs to the context.
        head = encode_([text + separator.rstrip(" ")])[0]
        rows = encode_([text + separator + letter for letter in LETTERS[:n_letters]])
        tails = [row[len(head) :] for row in rows if row[: len(head)] == head]
        tokens = [tail[0] for tail in tails if len(tail) == 1]
        if len(set(tokens)) == n_letters:
            return separator, tokens
    raise InputError(
        f"this tokenizer makes no single token of the letters {LETTERS[0]}-"
        f"{LETTERS[n_letters - 1]} after {text[-20:]!r} with any of the separators "
        f"{separators}: letter prompts cannot be scored; use --prompt cloze"
    )


def _spellings(tokenizer: Any, letters: str) -> list[list[int]]:
    """All tokens that read as each letter: its bare form and those with blanks around it."""
    # A blank is one character of a token's own spelling ("ĠA", "▁A"), or a few bytes; "<0x41>" is
    # a byte. What a short token reads as, decoding it tells.
    found: dict[str, list[int]] = {letter: [] for letter in letters}
    for token, index in tokenizer.get_vocab().items():
        if token.startswith("<0x") or (len(token) <= 6 and any(c in found for c in token)):
            text = reads_as(tokenizer.decode([index]))
            if text in found:
                found[text].append(index)
    return [sorted(found[letter]) for letter in letters]


def _encode_letters(
    questions: list[Question],
    contexts: list[str],
    separator: str,
    letters: list[int],
    spellings: list[list[int]],
    encode_: _Encoder,
) -> list[EncodedQuestion]:
    heads = encode_([text + separator.rstrip(" ") for text in contexts])
    # The prompts end alike, so a letter that is one token after one of them is so after all; each
    # prompt is still held to its own last letter.
    last = encode_(
        [
            text + separator + LETTERS[len(q.choices) - 1]
            for text, q in zip(contexts, questions, strict=True)
        ]
    )
    encoded = []
    for q, head, row in zip(questions, heads, last, strict=True):
        k = len(q.choices)
        if row != [*head, letters[k - 1]]:
            raise InputError(
                f"question {q.id!r}: letter {LETTERS[k - 1]} is not one token of its own after "
                "this question's prompt with this tokenizer; use --prompt cloze"
            )
        reads = [[(0, token) for token in tokens] for tokens in spellings[:k]]
        encoded.append(
            EncodedQuestion(q.id, head, [[] for _ in range(k)], reads, [1.0] * k, q.answer)
        )
    return encoded


def _encode_cloze(
    questions: list[Question], prompt: Prompt, encode_: _Encoder
) -> list[EncodedQuestion]:
    contexts = [context(q, prompt) for q in questions]
    heads = encode_(contexts)
    flat = [
        f"{text} {choice}"
        for text, q in zip(contexts, questions, strict=True)
        for choice in q.choices
    ]
    rows = iter(encode_(flat))
    encoded = []
    for q, head in zip(questions, heads, strict=True):
        full = [next(rows) for _ in q.choices]
        start = len(
            head
        )  # option tokens begin here, also where a merge changed the last context token
        for choice, row in zip(q.choices, full, strict=True):
            if len(row) <= start:
                raise InputError(f"question {q.id!r}: option {choice!r} has no token of its own")
        shared = start
        while any(row[:shared] != full[0][:shared] for row in full):
            shared -= 1
        branches = [row[shared:-1] for row in full]
        # The token at index t is predicted at index t - 1, which is offset t - shared.
        reads = [[(t - shared, row[t]) for t in range(start, len(row))] for row in full]
        divisors = [
            {"cloze": len(r), "cloze-char": len(choice), "cloze-sum": 1}[prompt.format]
            for r, choice in zip(reads, q.choices, strict=True)
        ]
        encoded.append(
            EncodedQuestion(
                q.id, full[0][:shared], branches, reads, [float(d) for d in divisors], q.answer
            )
        )
    return encoded
