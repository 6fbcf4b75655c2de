"""Score questions with a model behind an OpenAI-compatible server.

Three ways to ask, the most exact that is possible:

* Letters, with the model's tokenizer: the prompt goes as token ids, and vLLM returns the
  log-probabilities of exactly the letters' tokens (``logprob_token_ids``). Equal to `score` of the
  same weights.
* Letters, without: the prompt goes as text (``letter``, completions) or as messages
  (``chat-letter``, chat completions), and the server returns its few likeliest tokens. An option
  that is not among them is bounded by the smallest value returned, and counted.
* Cloze, with the tokenizer: every option goes after its question as token ids, and the server
  returns the log-probabilities of the prompt's own tokens (``echo``).
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from calibrant.answers import AnswerTable
from calibrant.errors import InputError, shown
from calibrant.progress import progress
from calibrant.prompts import (
    EncodedQuestion,
    Prompt,
    PromptLike,
    before_letter,
    encode,
    encode_bare,
    messages,
    reads_as,
)
from calibrant.questions import Question, Questions, question_key
from calibrant.scoring.journal import Journal
from calibrant.version import __version__

MOST_TOP_LOGPROBS = 20  # the most that chat servers return
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_FATAL = frozenset({401, 403, 404, 405})
_LONGEST_REPLY = 64 << 20  # bytes, unpacked
_LONGEST_WAIT = 120.0  # seconds between two tries
# First token of an answer that is thought about: <think>, or a channel of gpt-oss's.
_THOUGHTS = re.compile(r"<\w*:?think\w*>|<\|channel\|>")


def score_server(
    questions: Sequence[Question],
    url: str,
    model: str,
    *,
    prompt: PromptLike = "letter",
    tokenizer: Any = None,
    api_key: str | None = None,
    top_logprobs: int = MOST_TOP_LOGPROBS,
    concurrency: int = 16,
    timeout: float = 60.0,
    retries: int = 6,
    partial: str | os.PathLike[str] | None = None,
    show_progress: bool = True,
) -> AnswerTable:
    r"""Ask a served model every question and return its option log-probabilities.

    As `calibrant.score`, by way of the network: for letters
    ``logprobs[i, k] = log Σ P(tokens that read as letter_k)``, for cloze the sum of the option's
    token log-probabilities over its tokens, characters or 1.

    Parameters
    ----------
    questions : N questions, 2 to 26 options each.
    url : base of the API, as ``http://host:8000/v1``. model : its name on the server.
    prompt : ``letter`` asks ``/completions``, ``chat-letter`` ``/chat/completions``; the cloze
        formats ask ``/completions`` and need ``tokenizer``.
    tokenizer : the model's Hugging Face tokenizer. With one, prompts go as token ids to
        ``/completions`` and letters are read exactly, which vLLM can do.
    api_key : sent as a bearer token, and nowhere else.
    top_logprobs : likeliest tokens asked for where letters are not read exactly.
    concurrency : requests at a time. timeout : seconds of one. retries : tries after the first, on
        connection errors, time-outs, status 408, 425, 429 and 5xx (``Retry-After`` is honoured) and
        replies that make no sense; the wait doubles from half a second, with jitter.
    partial : folder that keeps every answer as it comes, so that a run killed at any moment goes on
        where it stopped. It stays when all is done: save the table, then delete it.

    Returns
    -------
    AnswerTable
        ``option_mass`` is the letters' probability as far as it was returned, NaN for cloze.
        ``provenance["missing_options"]`` is how many options of a question were only bounded, by
        id, where there were any.

    Raises
    ------
    InputError
        If the server cannot be reached, refuses, or gives no log-probabilities; or if questions
        stayed without a usable answer: the message names them, and the answers of the others stay
        in ``partial``.
    """
    prompt = Prompt.of(prompt)
    url = _checked(url)
    if top_logprobs < 1:
        raise InputError(f"top_logprobs is {top_logprobs}, expected at least 1")
    questions = questions if isinstance(questions, Questions) else Questions(questions)
    tasks = _tasks(questions, model, prompt, tokenizer, top_logprobs)
    plan = {
        "server": url,
        "model": model,
        "prompt": prompt.to_json(),
        "top_logprobs": None if tokenizer is not None else top_logprobs,
        "data_fingerprint": questions.fingerprint,
    }
    journal = None if partial is None else Journal(partial)
    done: dict[int, Any] = {} if journal is None else journal.begin(plan)
    pending = ((i, task) for i, task in enumerate(tasks) if i not in done)
    writing: AbstractContextManager[Callable[[int, Any], None]] = (
        nullcontext(lambda i, value: None) if journal is None else journal.writing()
    )
    with (
        writing as write,
        progress("asking", len(questions), "q", show=show_progress) as advance,
    ):
        advance(len(done))

        def keep(index: int, value: Any) -> None:
            write(index, value)
            done[index] = value
            advance(1)

        if len(done) < len(questions):
            client = _Client(url, api_key, concurrency, timeout, retries)
            _run(client.ask_all(pending, keep))
    return _table(questions, prompt, [done[i] for i in range(len(questions))], plan)


def _checked(url: str) -> str:
    """Base address without a slash at its end."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"server {url!r}, expected an address as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise InputError(
            f"server {parts.hostname!r}: the address holds a name, password or query, which would "
            "be written to the run folder; expected a plain address and the key in an environment "
            "variable (--api-key-env)"
        )
    return url.rstrip("/")


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, also from a notebook, where an event loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


def _table(
    questions: Questions, prompt: Prompt, values: list[dict[str, Any]], plan: dict[str, Any]
) -> AnswerTable:
    scores = np.full((len(values), max(len(v["logprobs"]) for v in values)), -np.inf)
    for row, value in zip(scores, values, strict=True):
        row[: len(value["logprobs"])] = value["logprobs"]
    mass = [math.nan if v["option_mass"] is None else v["option_mass"] for v in values]
    missing = {q.id: v["missing"] for q, v in zip(questions, values, strict=True) if v["missing"]}
    return AnswerTable(
        ids=tuple(q.id for q in questions),
        logprobs=scores,
        labels=np.array([q.label for q in questions]),
        n_options=np.array([len(q.choices) for q in questions]),
        option_mass=np.minimum(mass, 1.0),
        tasks=tuple(q.subject for q in questions),
        groups=tuple(question_key(q) for q in questions),
        provenance={
            "source": "server",
            **plan,
            "data": questions.name,
            "missing_options": missing,
            "notes": list(_notes(questions, missing, plan["top_logprobs"])),
            "versions": {"calibrant": __version__},
        },
    )


def _notes(questions: Questions, missing: dict[str, int], asked: int | None) -> Iterator[str]:
    if not missing:
        return
    n = len(questions)
    yield (
        f"{sum(missing.values())} options of {len(missing)} of {n} questions were not among the "
        f"{asked} likeliest tokens asked for: the smallest probability returned was taken for "
        "theirs, which is lower. With --tokenizer vLLM returns every option's own."
    )
    none = sum(missing.get(q.id) == len(q.choices) for q in questions)
    if none:
        yield (
            f"{none} of {n} questions had none of their options returned: they count as undecided. "
            "The model does not answer in the form asked for."
        )


# -- what is asked, and how it is read ----------------------------------------------------------

Reply = Any
Value = dict[str, Any]  # logprobs: K floats, option_mass: float or None, missing: int


@dataclass(frozen=True)
class _Task:
    """One question: its requests, and what their replies say."""

    id: str
    path: str
    bodies: list[dict[str, Any]]
    read: Callable[[list[Reply]], Value] = field(repr=False)


class _MalformedError(Exception):
    """A reply that makes no sense; asking again may help."""


class _UselessError(_MalformedError):
    """A reply without what was asked for; asking again will not help."""


def _tasks(
    questions: Questions, model: str, prompt: Prompt, tokenizer: Any, top_logprobs: int
) -> Iterable[_Task]:
    if tokenizer is not None:
        encoded = encode(list(questions), tokenizer, prompt)
        if prompt.is_letter:
            return (_exact_letters(q, model) for q in encoded)
        texts = list(dict.fromkeys(c for q in questions for c in q.choices))
        own = prompt.format == "cloze-pmi"
        bare = dict(zip(texts, encode_bare(texts, tokenizer), strict=True)) if own else {}
        return (
            _echoed(e, [bare[c] for c in q.choices] if own else [], model, prompt.has_option_mass)
            for e, q in zip(encoded, questions, strict=True)
        )
    if not prompt.is_letter:
        raise InputError(
            f"prompt {prompt}: on a server one needs to know where an option's tokens begin; "
            "expected the model's tokenizer (--tokenizer), or --prompt letter or chat-letter"
        )
    if prompt.letter_tokens != "merged":
        raise InputError(
            f"prompt letter_tokens {prompt.letter_tokens!r}: without the model's tokenizer "
            "(--tokenizer) a letter is every token that reads as it; expected 'merged'"
        )
    return (_likeliest(q, model, prompt, top_logprobs) for q in questions)


# What a server draws at temperature 1 is not used; some return probabilities after the temperature
# was applied, and at 0 those would all be 0 or 1.
_ONE_TOKEN = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0}


def _likeliest(q: Question, model: str, prompt: Prompt, top_logprobs: int) -> _Task:
    """Letters among the likeliest tokens."""
    body: dict[str, Any] = {"model": model, **_ONE_TOKEN}
    if prompt.format == "chat-letter":
        path = "/chat/completions"
        body |= {"messages": messages(q, prompt), "logprobs": True, "top_logprobs": top_logprobs}
    else:
        path = "/completions"
        body |= {"prompt": before_letter(q, prompt), "logprobs": top_logprobs}

    def read(replies: list[Reply]) -> Value:
        top, drawn = _first_position(replies[0])
        # A server may add the token it drew to the likeliest ones.
        top = sorted(top, key=lambda pair: -pair[1])[:top_logprobs]
        if _THOUGHTS.fullmatch(top[0][0].strip()):
            raise _UselessError(
                f"the model begins its answer with thoughts ({top[0][0]!r}), so its first token is "
                "no option; expected thinking turned off on the server, or the model's tokenizer "
                "(--tokenizer), with which the prompt is made here without it"
            )
        low = top[-1][1]
        if len(top) > 1 and top[-1] == drawn:
            low = top[-2][1]
        found: dict[str, list[float]] = {letter: [] for letter in prompt.markers(len(q.choices))}
        for token, logprob in top:
            if (letter := reads_as(token)) in found:
                found[letter].append(logprob)
        logprobs = [_log_sum(values) if values else low for values in found.values()]
        return {
            "logprobs": logprobs,
            "option_mass": sum(math.exp(x) for values in found.values() for x in values),
            "missing": sum(not values for values in found.values()),
        }

    return _Task(q.id, path, [body], read)


def _exact_letters(q: EncodedQuestion, model: str) -> _Task:
    """Letters by token id: every spelling of each, wherever it ranks."""
    wanted = sorted({token for reads in q.reads for _, token in reads})
    body = {
        "model": model,
        **_ONE_TOKEN,
        "prompt": q.prefix,
        "logprobs": 1,
        "logprob_token_ids": wanted,
        "return_tokens_as_token_ids": True,
    }

    def read(replies: list[Reply]) -> Value:
        returned = dict(_first_position(replies[0])[0])
        names = {token: f"token_id:{token}" for token in wanted}
        if not any(name in returned for name in names.values()):
            raise _UselessError(
                "the reply does not have the tokens asked for by id (logprob_token_ids), which "
                "vLLM returns; without --tokenizer the likeliest tokens are read"
            )
        if lacking := [name for name in names.values() if name not in returned]:
            raise _MalformedError(f"the reply lacks {lacking[0]}, which was asked for")
        options = [[returned[names[token]] for _, token in reads] for reads in q.reads]
        return {
            "logprobs": [_log_sum(values) for values in options],
            "option_mass": sum(math.exp(x) for values in options for x in values),
            "missing": 0,
        }

    return _Task(q.id, "/completions", [body], read)


def _echoed(q: EncodedQuestion, bare: list[EncodedQuestion], model: str, has_mass: bool) -> _Task:
    """Cloze and labels: each option's own tokens as part of the prompt.

    ``bare`` are the options on their own, for cloze-pmi, which takes their score off.
    """
    asked = [(q, k) for k in range(len(q.reads))] + [(option, 0) for option in bare]
    bodies: list[dict[str, Any]] = [
        {
            "model": model,
            **_ONE_TOKEN,
            "prompt": [*e.prefix, *e.branches[k], e.reads[k][-1][1]],
            "logprobs": 1,
            "echo": True,
        }
        for e, k in asked
    ]

    def read(replies: list[Reply]) -> Value:
        scores = []
        for reply, body, (e, k) in zip(replies, bodies, asked, strict=True):
            logprobs = _echo(reply, len(body["prompt"]))
            # Offset 0 is the token after the prefix.
            total = sum(_number(logprobs[len(e.prefix) + offset]) for offset, _ in e.reads[k])
            scores.append(total / e.divisors[k])
        scores, own = scores[: len(q.reads)], scores[len(q.reads) :]
        scores = (
            [score - alone for score, alone in zip(scores, own, strict=True)] if own else scores
        )
        mass = sum(map(math.exp, scores)) if has_mass else None
        return {"logprobs": scores, "option_mass": mass, "missing": 0}

    return _Task(q.id, "/completions", bodies, read)


def _first_position(reply: Reply) -> tuple[list[tuple[str, float]], Any]:
    """Tokens and log-probabilities at the first position, and the pair the server drew.

    Completions give a mapping of token to log-probability, chat completions (and some servers'
    completions) a list of objects.
    """
    logprobs = _logprobs(reply)
    drawn: Any
    try:
        if "content" in logprobs:
            first = logprobs["content"][0]
            pairs = [(t["token"], t["logprob"]) for t in first["top_logprobs"]]
            drawn = (first.get("token"), first.get("logprob"))
        else:
            pairs = list((logprobs["top_logprobs"][0] or {}).items())
            names, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
            drawn = (names[0], values[0]) if names and values else None
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _MalformedError(f"the reply's logprobs have no first position ({error!r})") from None
    if not pairs:
        raise _UselessError("the reply's list of likeliest tokens is empty")
    return [(str(token), _number(logprob)) for token, logprob in pairs], drawn


def _echo(reply: Reply, n_tokens: int) -> list[Any]:
    """Log-probabilities of the prompt's own tokens, None for the first."""
    values = _logprobs(reply).get("token_logprobs")
    if not isinstance(values, list) or not n_tokens <= len(values) <= n_tokens + 1:
        n = len(values) if isinstance(values, list) else "no"
        raise _UselessError(
            f"the reply has {n} token log-probabilities for a prompt of {n_tokens} tokens: the "
            "server does not echo the prompt it was given (echo), so cloze cannot be read from it"
        )
    return values


def _logprobs(reply: Reply) -> Mapping[str, Any]:
    try:
        choice = reply["choices"][0]
        logprobs = choice.get("logprobs")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _MalformedError(f"the reply has no choices[0] ({error!r})") from None
    if logprobs is None:
        raise _UselessError("the reply has no log-probabilities (choices[0].logprobs)")
    if not isinstance(logprobs, dict):
        raise _MalformedError("choices[0].logprobs is not an object")
    return logprobs


def _number(value: Any) -> float:
    known = isinstance(value, (int, float)) and value <= 1e-3  # not NaN
    if not known or (value < -sys.float_info.max and value != -math.inf):
        raise _MalformedError(f"a log-probability is {shown(value)}, expected a number up to 0")
    return float(value)


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top if math.isinf(top) else top + math.log(sum(math.exp(x - top) for x in values))


# -- the network --------------------------------------------------------------------------------


class _FailedError(Exception):
    """A question without a usable answer, and why."""


class _Client:
    """Asks questions, several at a time, each until it is answered or the tries are used up."""

    def __init__(
        self, url: str, api_key: str | None, concurrency: int, timeout: float, retries: int
    ) -> None:
        self.url, self.api_key = url, api_key
        self.concurrency, self.timeout, self.retries = concurrency, timeout, retries
        self.answered = False  # whether any question was: the server works as it is asked
        self.failed: dict[str, str] = {}
        self.in_a_row = 0  # failures since the last answer

    async def ask_all(
        self, tasks: Iterator[tuple[int, _Task]], keep: Callable[[int, Value], None]
    ) -> None:
        """Ask every question; the first one alone, so that what is wrong is said once.

        Raises
        ------
        InputError
            If the server is of no use, or when all are asked and some have no answer.
        """
        try:
            import aiohttp
        except ImportError as error:
            raise InputError(
                "asking a server needs aiohttp; install it with pip install 'calibrant[server]'"
            ) from error
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        async with aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self.timeout),
            connector=aiohttp.TCPConnector(limit=self.concurrency),
        ) as self.session:
            first = [next(tasks)]
            await self._work(iter(first), keep)
            if self.failed:
                raise self._error(f"the first question failed: {self.failed.popitem()[1]}")
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self.concurrency):
                        group.create_task(self._work(tasks, keep))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        if self.failed:
            shown = "; ".join(f"{name!r}: {why}" for name, why in [*self.failed.items()][:3])
            more = f"; and {len(self.failed) - 3} more" if len(self.failed) > 3 else ""
            raise self._error(
                f"{len(self.failed)} questions have no usable answer ({shown}{more}); expected one "
                "for each: give the same command again to ask only those again"
            )

    async def _work(
        self, tasks: Iterator[tuple[int, _Task]], keep: Callable[[int, Value], None]
    ) -> None:
        for index, task in tasks:  # shared by all workers
            try:
                keep(index, await self._answer(task))
                self.answered, self.in_a_row = True, 0
            except _FailedError as error:
                self.failed[task.id] = str(error)
                self.in_a_row += 1
                if self.answered and self.in_a_row >= max(8, 2 * self.concurrency):
                    raise self._error(
                        f"{self.in_a_row} questions in a row have no usable answer (the last: "
                        f"{error}); give the same command again to go on"
                    ) from None

    async def _answer(self, task: _Task) -> Value:
        """Ask until the replies can be read."""
        for attempt in range(self.retries + 1):
            wait = None
            try:
                replies = [await self._post(task.path, body) for body in task.bodies]
                return task.read(replies)
            except _UselessError as error:
                if not self.answered:
                    raise self._error(
                        f"{error}; a model is measured by the probabilities of its options, and "
                        "this server does not give them as asked"
                    ) from None
                reason = str(error)
            except _MalformedError as error:
                reason = str(error)
            except _BusyError as error:
                reason, wait = str(error), error.wait
            if attempt < self.retries:
                await asyncio.sleep(_delay(attempt) if wait is None else wait)
        raise _FailedError(f"{reason} ({self.retries + 1} tries)")

    async def _post(self, path: str, body: dict[str, Any]) -> Reply:
        import aiohttp

        try:
            async with self.session.post(
                self.url + path, json=body, allow_redirects=False
            ) as reply:
                data = await _body(reply)
                if reply.status == 200:
                    answer: Reply = json.loads(data)
                    return answer
                text = self._clean(data.decode(errors="replace"))
                reason = f"status {reply.status}: {text}"
                if reply.status in _RETRIED:
                    raise _BusyError(reason, _retry_after(reply.headers.get("Retry-After")))
                if reply.status in _FATAL:
                    hint = "; a chat model is asked with --prompt chat-letter"
                    raise self._error(
                        f"{path} gives {reason}{hint if reply.status in (404, 405) else ''}"
                    )
                raise _FailedError(reason)
        except TimeoutError:
            raise _BusyError(f"no reply within {self.timeout:g} s", None) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _BusyError(self._clean(f"{type(error).__name__}: {error}"), None) from None
        except (ValueError, RecursionError) as error:  # invalid JSON, or not UTF-8
            raise _MalformedError(f"the reply is not JSON ({error})") from None

    def _error(self, message: str) -> InputError:
        return InputError(f"server {self.url}: {message}")

    def _clean(self, text: str) -> str:
        """Text of a server on one line, without the key, which some repeat."""
        if self.api_key:
            text = text.replace(self.api_key, "***")
        return " ".join(text.split())[:300]


async def _body(reply: Any) -> bytes:
    """Bytes of a reply, of which a few may unpack to any number."""
    body = bytearray()
    async for part in reply.content.iter_chunked(1 << 16):
        body += part
        if len(body) > _LONGEST_REPLY:
            raise _FailedError(f"the reply is longer than {_LONGEST_REPLY >> 20} MiB")
    return bytes(body)


class _BusyError(Exception):
    """The server did not answer this time; asking again after ``wait`` seconds may help."""

    def __init__(self, reason: str, wait: float | None) -> None:
        super().__init__(reason)
        self.wait = wait


def _delay(attempt: int) -> float:
    """Seconds to wait after a failed try: doubling from a half, and spread out at random."""
    return min(_LONGEST_WAIT, 0.5 * 2.0**attempt) * random.uniform(0.5, 1.5)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a ``Retry-After`` header, a number or a date; None if it says nothing."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(_LONGEST_WAIT, max(0.0, seconds)) if math.isfinite(seconds) else None
