"""Question to text: what the model reads, and where its answer is read off.

A prompt format turns a question into one *context* and K *continuations*; the score of option k
is read off the continuation's tokens. Formats:

========================  ===================================================================
``letter``                options listed as ``A. …``; continuation is the letter
``chat-letter``           the same inside the model's own chat template
``labels``                the options are label words shared by all questions; continuation is
                          the word, its log-probability not divided by length
``cloze``                 question only; continuation is the option's text, mean log-prob per token
``cloze-char``            as ``cloze``, divided by characters
``cloze-sum``             as ``cloze``, not divided
``cloze-pmi``             as ``cloze-sum``, minus the option's log-probability after ``Answer:``
========================  ===================================================================

A letter is read by one rule, here and on servers: its probability is the sum over the vocabulary
tokens that read as the letter without blanks and word-boundary markers (``A``, `` A``, ``▁A``).
Everything is described, with examples, in ``docs/scoring.md``.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, get_args

from calibrant.errors import InputError, shown
from calibrant.questions import Question, question_key

PromptFormat = Literal[
    "letter", "chat-letter", "labels", "cloze", "cloze-char", "cloze-sum", "cloze-pmi"
]
LetterTokens = Literal["merged", "single"]
LetterStyle = Literal["A.", "A)", "(A)", "A:", "1.", "1)", "(1)", "1:"]
ShotChoice = Literal["fixed", "subject"]

LETTERS = string.ascii_uppercase
# Styles and separators that are tried where none is asked for, in order of preference. A separator
# stands between the end of the context and the letter; a chat model begins its turn with the letter
# itself. Other styles end their context as one of these does.
STYLES: tuple[LetterStyle, ...] = ("A.", "(A)")
SEPARATORS = {"letter": (" ", "", "\n"), "chat-letter": ("", " ", "\n")}

CHUNK = 1000  # questions tokenised at once
PMI_IS_FOR_SCORING = (
    "prompt format 'cloze-pmi' compares with the options' own probability, which training would "
    "change; expected another format to train with (cloze-sum has the same likelihood)"
)
BARE = "Answer:"  # context of an option's own probability (cloze-pmi)


@dataclass(frozen=True)
class Prompt:
    """How a question is asked.

    Wherever a prompt is expected, a format name stands for ``Prompt(name)``.

    Attributes
    ----------
    format : the format's name.
    letter_tokens : "merged", a letter's probability is the sum over the tokens that read as it
        (``A``, `` A``); "single", only the one token that follows the context (lm-eval's rule).
    letter_style : how options are listed, and whether by letters or by numbers; None takes the
        first of `STYLES` under which letters are single tokens.
    separator : what stands between the context and the answer; None takes the first of `SEPARATORS`
        under which letters are single tokens, and a blank for other formats.
    system_prompt : the chat's system message; None leaves it to the template.
    examples : answered questions to show first (few-shot). The question itself is never shown.
    shots : how many of them; None shows all.
    shot_choice : "fixed", the first ``shots``; "subject", the first of the question's own subject.

    Raises
    ------
    InputError
        If a field has no meaning, or none for this format.

    Examples
    --------
    >>> Prompt("letter").to_json()
    'letter'
    >>> Prompt.of({"format": "letter", "letter_style": "(A)"}).letter_style
    '(A)'
    """

    format: PromptFormat = "letter"
    letter_tokens: LetterTokens = "merged"
    letter_style: LetterStyle | None = None
    separator: str | None = None
    system_prompt: str | None = None
    examples: tuple[Question, ...] = ()
    shots: int | None = None
    shot_choice: ShotChoice = "fixed"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("format", get_args(PromptFormat)),
            ("letter_tokens", get_args(LetterTokens)),
            ("letter_style", (None, *get_args(LetterStyle))),
            ("shot_choice", get_args(ShotChoice)),
        ):
            if getattr(self, name) not in allowed:
                expected = ", ".join(str(each) for each in allowed if each is not None)
                raise InputError(
                    f"prompt {name} {getattr(self, name)!r}, expected one of {expected}"
                )
        if self.letter_style is not None and not self.is_letter:
            raise InputError(f"prompt format {self.format!r} has no letters to style")
        if self.system_prompt is not None and not self.is_chat:
            raise InputError(
                f"prompt format {self.format!r} has no system prompt, expected chat-letter"
            )
        for name in ("separator", "system_prompt"):
            if not isinstance(getattr(self, name), str | None):
                raise InputError(f"prompt {name} {shown(getattr(self, name))}, expected text")
        if not isinstance(self.shots, int | None):
            raise InputError(f"prompt shots {shown(self.shots)}, expected a whole number")
        try:
            examples = tuple(e if isinstance(e, Question) else Question(**e) for e in self.examples)
        except TypeError as error:
            raise InputError(f"prompt examples: {error}; expected answered questions") from None
        object.__setattr__(self, "examples", examples)
        if self.shots is not None and not 1 <= self.shots <= len(examples):
            raise InputError(
                f"prompt shots {self.shots} with {len(examples)} examples, expected examples, and "
                "at least 1 and at most all of them shown"
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
        shots = len(self.examples) if self.shots is None else self.shots
        return self.format + (f", {shots} shot{'s' * (shots > 1)}" if shots else "")

    @property
    def is_letter(self) -> bool:
        """Whether the continuation is an option letter or number."""
        return self.format in ("letter", "chat-letter")

    @property
    def is_chat(self) -> bool:
        """Whether the text is made by the model's chat template."""
        return self.format == "chat-letter"

    @property
    def lists_options(self) -> bool:
        """Whether the model sees all options, so that their order may matter."""
        return self.is_letter or self.format == "labels"

    def check_lists_options(self) -> None:
        """Raise `InputError` unless the model sees all options, so that their order matters."""
        if not self.lists_options:
            raise InputError(
                f"prompt format {self.format!r} lists no options, so their order changes nothing; "
                "expected letter, chat-letter or labels with permutations"
            )

    @property
    def has_option_mass(self) -> bool:
        """Whether a score is the log-probability of an agreed word, as letters and labels are."""
        return self.lists_options

    def markers(self, n: int) -> tuple[str, ...]:
        """Letters or numbers of the first n options."""
        if "1" in (self.letter_style or ""):
            return tuple(str(k + 1) for k in range(n))
        return tuple(LETTERS[:n])

    def with_examples(
        self,
        pool: Sequence[Question],
        shots: int,
        shot_choice: ShotChoice = "fixed",
        seed: int = 0,
    ) -> Prompt:
        """Show examples drawn from a pool of answered questions.

        Parameters
        ----------
        pool : questions, in the order in which they are to be shown; exact duplicates count once.
        shots : examples to show. One more is kept, to stand in where one *is* the question.
        shot_choice : "fixed" draws one set for all questions, "subject" one for each subject.
        seed : of the draw.

        Raises
        ------
        InputError
            If the pool (or a subject in it) holds fewer than ``shots`` different questions.
        """
        distinct = list({question_key(q): q for q in pool}.values())
        subjects: dict[str, list[Question]] = {}
        for q in distinct:
            subjects.setdefault(q.subject if shot_choice == "subject" else "", []).append(q)
        kept = []
        for subject, part in subjects.items():
            if len(part) < shots:
                where = f" of subject {subject!r}" if shot_choice == "subject" else ""
                raise InputError(f"few-shot examples: {len(part)}{where}, expected {shots} or more")
            drawn = random.Random(seed).sample(range(len(part)), min(shots + 1, len(part)))
            kept += [part[i] for i in sorted(drawn)]
        return replace(self, examples=tuple(kept), shots=shots, shot_choice=shot_choice)

    def shown_to(self, question: Question) -> list[Question]:
        """Examples that this question is shown, never the question itself.

        Raises
        ------
        InputError
            If there are too few.
        """
        if not self.examples:
            return []
        key = question_key(question)
        own = question.subject if self.shot_choice == "subject" else None
        others = [e for k, e in self._keyed if k != key and own in (None, e.subject)]
        shots = len(others) if self.shots is None else self.shots
        if len(others) < max(shots, 1):
            of = "" if own is None else f" of subject {own!r}"
            raise InputError(
                f"question {question.id!r}: there are {len(others)} few-shot examples{of} besides "
                f"the question itself, expected {max(shots, 1)}"
            )
        return others[:shots]

    @cached_property
    def _keyed(self) -> list[tuple[str, Question]]:
        return [(question_key(e), e) for e in self.examples]


PromptLike = Prompt | str | Mapping[str, Any]


# -- text -------------------------------------------------------------------------------------


def context(question: Question, prompt: PromptLike, tokenizer: Any = None) -> str:
    r"""Text the model reads before the answer.

    Raises
    ------
    InputError
        For ``chat-letter`` when the tokenizer has no chat template, or one that takes no system
        message where one is asked for; or if there are too few examples to show.

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
    >>> print(context(Question("2", "Dull.", ("good", "bad"), 1), "labels"))
    Text: Dull.
    Labels: good, bad
    Label:
    """
    prompt = Prompt.of(prompt)
    if prompt.is_chat:
        return _chat(question, prompt, tokenizer)
    blocks = [_ask(e, prompt) + _reply(e, prompt) for e in prompt.shown_to(question)]
    return "\n\n".join([*blocks, _ask(question, prompt)])


def _ask(question: Question, prompt: Prompt) -> str:
    """One question as text, up to where its answer follows."""
    if prompt.format == "labels":
        return f"Text: {question.question}\nLabels: {', '.join(question.choices)}\nLabel:"
    if not prompt.is_letter:
        return f"Question: {question.question}\nAnswer:"
    style = prompt.letter_style or STYLES[0]
    markers = prompt.markers(len(question.choices))
    options = "\n".join(
        f"{re.sub('[A1]', marker, style)} {choice}"
        for marker, choice in zip(markers, question.choices, strict=True)
    )
    body = f"Question: {question.question}\nOptions:\n{options}\n"
    if prompt.is_chat:
        return body + _INSTRUCTION.format("number" if "1" in style else "letter")
    return body + "Answer:"


def _separator(prompt: Prompt) -> str:
    return _separators(prompt, prompt.letter_style or STYLES[0])[0]


def _reply(question: Question, prompt: Prompt) -> str:
    """The right answer as text, as it follows what `_ask` says."""
    separator = _separator(prompt)
    if not prompt.is_letter:
        return separator + question.choices[question.label]
    closing = ")" if separator.endswith("(") else ""
    return separator + prompt.markers(len(question.choices))[question.label] + closing


def _separators(prompt: Prompt, style: str) -> tuple[str, ...]:
    """What may stand before the answer, in order of preference."""
    if prompt.separator is not None:
        return (prompt.separator,)
    if not prompt.is_letter:
        return (" ",)
    bracket = "(" if style.startswith("(") else ""
    return tuple(separator + bracket for separator in SEPARATORS[prompt.format])


_CHAT_ADVICE = "use --prompt letter or cloze"
_INSTRUCTION = "Answer with only a single {}."
# A block of thoughts that the template opened and left open.
_OPEN_THOUGHT = re.compile(r"<(\w*:?think\w*)>(?!.*</\1>)", re.DOTALL)
_HARMONY = "<|start|>assistant"  # gpt-oss: the answer has a channel of its own
_HARMONY_ANSWER = "<|channel|>final<|message|>"


def messages(question: Question, prompt: PromptLike) -> list[dict[str, str]]:
    """Conversation of a ``chat-letter`` prompt, before any chat template: roles and contents."""
    prompt = Prompt.of(prompt)
    said = []
    if prompt.system_prompt is not None:
        said.append({"role": "system", "content": prompt.system_prompt})
    for example in prompt.shown_to(question):
        said.append({"role": "user", "content": _ask(example, prompt)})
        said.append({"role": "assistant", "content": _reply(example, prompt).strip()})
    return [*said, {"role": "user", "content": _ask(question, prompt)}]


def _chat(question: Question, prompt: Prompt, tokenizer: Any) -> str:
    """Render the chat up to where the model's answer begins."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(
            f"prompt format {prompt.format!r}: this tokenizer has no chat template; {_CHAT_ADVICE}"
        )
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            messages(question, prompt),
            tokenize=False,
            add_generation_prompt=True,
            # The two names that templates give the switch; others ignore them.
            enable_thinking=False,
            thinking=False,
        )
    except TemplateError as error:
        raise InputError(
            f"prompt format {prompt.format!r}: the model's chat template refuses these messages "
            f"({error}); expected one that takes "
            f"{'a system message' if prompt.system_prompt is not None else 'a user message'}; "
            f"{_CHAT_ADVICE}"
        ) from error
    return _thoughts_closed(text)


def _thoughts_closed(text: str) -> str:
    """End the thinking that a template began: the answer is read after it, never inside."""
    # What follows the question is the template's own; a question may hold such tags as text.
    ending = text.rpartition(_INSTRUCTION.partition("{")[0])[2]
    if opened := _OPEN_THOUGHT.search(ending):
        return text.rstrip("\n") + f"\n\n</{opened[1]}>\n\n"
    return text + _HARMONY_ANSWER if ending.endswith(_HARMONY) else text


# -- tokens -----------------------------------------------------------------------------------


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


def before_letter(question: Question, prompt: PromptLike) -> str:
    """Text of a ``letter`` prompt to the token before its letter, as a server is given it.

    >>> q = Question("1", "x", ("y", "z"), 0)
    >>> [before_letter(q, Prompt(letter_style=style))[-9:] for style in ("A.", "(A)")]
    ['z\\nAnswer:', 'Answer: (']
    """
    prompt = Prompt.of(prompt)
    return context(question, prompt) + _separator(prompt).rstrip(" ")


def resolved(prompt: PromptLike, tokenizer: Any, questions: Sequence[Question]) -> Prompt:
    """Settle what is left open: the letter style and the separator that suit the tokenizer.

    Under them each letter of these questions is one token after its context.

    Raises
    ------
    InputError
        If there are no questions, or no style and separator will do.
    """
    prompt = Prompt.of(prompt)
    if not questions:
        raise InputError("no questions to score; expected at least one")
    if not prompt.is_letter:
        return replace(prompt, separator=_separator(prompt))
    encode_ = _Encoder(tokenizer, prompt)
    widest = max(questions, key=lambda q: len(q.choices))
    n = len(widest.choices)
    tried = []
    styles = STYLES if prompt.letter_style is None else (prompt.letter_style,)
    for style in styles:
        for separator in _separators(prompt, style):
            candidate = replace(prompt, letter_style=style, separator=separator)
            text = context(widest, candidate, tokenizer)
            if len(set(_single_tokens(encode_, text, separator, candidate.markers(n)))) == n:
                return candidate
            tried.append(separator)
    first, last = candidate.markers(n)[0], candidate.markers(n)[-1]
    raise InputError(
        f"this tokenizer makes no single token of each of {first} to {last} after {text[-20:]!r} "
        f"with any of the separators {tuple(tried)}: letter prompts cannot be scored; use another "
        "--letter-style or --separator, or --prompt cloze"
    )


def encode(
    questions: Sequence[Question], tokenizer: Any, prompt: PromptLike
) -> list[EncodedQuestion]:
    """Tokenise questions for scoring and training.

    Parameters
    ----------
    questions : K may differ per question.
    tokenizer : a Hugging Face tokenizer.

    Raises
    ------
    InputError
        If the format is unknown, a letter is not one token in context under any separator, an
        option has no token of its own, or a label begins another.
    """
    return [q for chunk in encode_chunks(questions, tokenizer, prompt) for q in chunk]


def encode_chunks(
    questions: Sequence[Question], tokenizer: Any, prompt: PromptLike
) -> Iterator[list[EncodedQuestion]]:
    """Do what `encode` does, a chunk of questions at a time, so that lists of all never exist."""
    prompt = resolved(prompt, tokenizer, questions)
    encode_ = _Encoder(tokenizer, prompt)
    letters = _Letters(encode_, prompt, tokenizer, questions) if prompt.is_letter else None
    for i in range(0, len(questions), CHUNK):
        chunk = questions[i : i + CHUNK]
        contexts = [context(q, prompt, tokenizer) for q in chunk]
        if letters is not None:
            yield letters.encode(chunk, contexts)
        else:
            yield _encode_texts(chunk, contexts, prompt, encode_)


def encode_bare(texts: Sequence[str], tokenizer: Any) -> list[EncodedQuestion]:
    """Tokenise option texts after ``Answer:`` alone, for their own probability (cloze-pmi).

    Parameters
    ----------
    texts : different option texts. They are the options, in order, of the questions returned.
    """
    prompt = Prompt("cloze-sum", separator=" ")
    encode_ = _Encoder(tokenizer, prompt)
    encoded = []
    for i in range(0, len(texts), CHUNK):
        # One option of each question is as good as any: no text is a branch of another's row.
        part = [_Bare(f"option {text!r}", (text,), 0) for text in texts[i : i + CHUNK]]
        encoded += _encode_texts(part, [BARE] * len(part), prompt, encode_)
    return encoded


@dataclass(frozen=True)
class _Bare:
    """An option on its own, which is no `Question`."""

    id: str
    choices: tuple[str, ...]
    label: int


class _Encoder:
    """Token ids of texts, without the end-of-sequence token some tokenizers append."""

    def __init__(self, tokenizer: Any, prompt: Prompt) -> None:
        # A chat template writes its own special tokens; adding them again would double the BOS.
        self.tokenizer, self.special = tokenizer, not prompt.is_chat
        bare = tokenizer("", add_special_tokens=self.special)["input_ids"]
        eos = tokenizer.eos_token_id
        # "" encodes to the special tokens alone. With BOS = EOS, one token alone is a BOS.
        self.drop_last = (
            bool(bare) and bare[-1] == eos and (len(bare) > 1 or eos != tokenizer.bos_token_id)
        )

    def __call__(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=self.special)["input_ids"]
        return [row[:-1] for row in ids] if self.drop_last else ids


# -- letters ----------------------------------------------------------------------------------


def _single_tokens(
    encode_: _Encoder, text: str, separator: str, markers: tuple[str, ...]
) -> list[int]:
    """Tokens of the letters that are exactly one further token after the context."""
    # The letter is tokenised with the separator's last blank ("Answer:" + " A"); the rest of the
    # separator belongs to the context.
    head = encode_([text + separator.rstrip(" ")])[0]
    rows = encode_([text + separator + marker for marker in markers])
    return [row[-1] for row in rows if row[:-1] == head]


class _Letters:
    """Encodes letter questions of one resolved prompt."""

    def __init__(
        self, encode_: _Encoder, prompt: Prompt, tokenizer: Any, questions: Sequence[Question]
    ) -> None:
        widest = max(questions, key=lambda q: len(q.choices))
        self.encode_, self.separator = encode_, prompt.separator or ""
        self.markers = prompt.markers(len(widest.choices))
        text = context(widest, prompt, tokenizer)
        self.tokens = _single_tokens(encode_, text, self.separator, self.markers)
        self.spellings = [[token] for token in self.tokens]
        if prompt.letter_tokens == "merged":
            self.spellings = _spellings(tokenizer, self.markers)

    def encode(self, questions: Sequence[Question], contexts: list[str]) -> list[EncodedQuestion]:
        heads = self.encode_([text + self.separator.rstrip(" ") for text in contexts])
        # The prompts end alike, so a letter that is one token after one of them is so after all;
        # each prompt is still held to its own last letter.
        last = self.encode_(
            [
                text + self.separator + self.markers[len(q.choices) - 1]
                for text, q in zip(contexts, questions, strict=True)
            ]
        )
        encoded = []
        for q, head, row in zip(questions, heads, last, strict=True):
            k = len(q.choices)
            if row != [*head, self.tokens[k - 1]]:
                raise InputError(
                    f"question {q.id!r}: {self.markers[k - 1]} is not one token of its own after "
                    "this question's prompt with this tokenizer; use --prompt cloze"
                )
            reads = [[(0, token) for token in tokens] for tokens in self.spellings[:k]]
            encoded.append(
                EncodedQuestion(q.id, head, [[] for _ in range(k)], reads, [1.0] * k, q.label)
            )
        return encoded


def reads_as(token: str) -> str:
    """Text of a token without the blanks and word-boundary markers around it.

    >>> [reads_as(token) for token in (" A", "▁A", "A", "\\n")]
    ['A', 'A', 'A', '']
    """
    return token.strip("▁" + string.whitespace)


def _spellings(tokenizer: Any, markers: tuple[str, ...]) -> list[list[int]]:
    """All tokens that read as each letter: its bare form and those with blanks around it."""
    # A blank is one character of a token's own spelling ("ĠA", "▁A"), or a few bytes; "<0x41>" is
    # a byte. What a short token reads as, decoding it tells.
    found: dict[str, list[int]] = {marker: [] for marker in markers}
    letters = set("".join(markers))
    for token, index in tokenizer.get_vocab().items():
        if token.startswith("<0x") or (len(token) <= 6 and not letters.isdisjoint(token)):
            text = reads_as(tokenizer.decode([index]))
            if text in found:
                found[text].append(index)
    return [sorted(found[marker]) for marker in markers]


# -- label words and option texts -------------------------------------------------------------


def _encode_texts(
    questions: Sequence[Question | _Bare],
    contexts: list[str],
    prompt: Prompt,
    encode_: _Encoder,
) -> list[EncodedQuestion]:
    separator = _separator(prompt)
    heads = encode_(contexts)
    rows = iter(
        encode_(
            [
                text + separator + choice
                for text, q in zip(contexts, questions, strict=True)
                for choice in q.choices
            ]
        )
    )
    return [
        _branched(q, len(head), [next(rows) for _ in q.choices], prompt)
        for q, head in zip(questions, heads, strict=True)
    ]


def _branched(
    q: Question | _Bare, start: int, full: list[list[int]], prompt: Prompt
) -> EncodedQuestion:
    """Encode a question of whose K token sequences the options' own tokens begin at ``start``."""
    # They begin there also where a merge changed the last context token.
    for choice, row in zip(q.choices, full, strict=True):
        if len(row) <= start:
            raise InputError(f"question {q.id!r}: option {choice!r} has no token of its own")
    if prompt.format == "labels":
        _check_labels(q, full)
    shared = start
    while any(row[:shared] != full[0][:shared] for row in full):
        shared -= 1
    # The token at index t is predicted at index t - 1, which is offset t - shared.
    reads = [[(t - shared, row[t]) for t in range(start, len(row))] for row in full]
    divisors = [
        float({"cloze": len(r), "cloze-char": len(choice)}.get(prompt.format, 1))
        for r, choice in zip(reads, q.choices, strict=True)
    ]
    branches = [row[shared:-1] for row in full]
    return EncodedQuestion(q.id, full[0][:shared], branches, reads, divisors, q.label)


def _check_labels(q: Question | _Bare, full: list[list[int]]) -> None:
    """Refuse a label that begins another: it can never be the less likely of the two."""
    for k, row in enumerate(full):
        for j, other in enumerate(full):
            if j != k and other[: len(row)] == row:
                raise InputError(
                    f"question {q.id!r}: label {q.choices[j]!r} begins with {q.choices[k]!r}, "
                    "which can then never be less likely; expected other label words, or --prompt "
                    "letter"
                )


# -- showing ----------------------------------------------------------------------------------


def show(encoded: EncodedQuestion, tokenizer: Any) -> str:
    """Text of a question's tokens as the model gets them, and each option's own, in ⟦…⟧.

    Tokens of a sequence follow one another; alternative spellings of a letter are joined by
    *or*.
    """

    def text(tokens: Sequence[int]) -> str:
        decoded: str = tokenizer.decode(tokens, skip_special_tokens=False)
        return decoded

    end = min(offset for reads in encoded.reads for offset, _ in reads)
    lines = [text(encoded.prefix[: len(encoded.prefix) + min(end, 0)])]
    for k, reads in enumerate(encoded.reads):
        alternatives = len({offset for offset, _ in reads}) < len(reads)
        tokens = [f"⟦{text([token])}⟧" for _, token in reads]
        right = "  (right)" if k == encoded.answer else ""
        lines.append(f"  {k + 1}: {(' or ' if alternatives else '').join(tokens)}{right}")
    return "\n".join(lines)
